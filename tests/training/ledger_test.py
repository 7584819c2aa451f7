"""The cost ledger against the arithmetic of the papers."""

import pytest

from aced import config as config_lib
from aced.training import ledger
from aced.training.recipe import Recipe
from tests.config_test import curated

STUDENT, TEACHER = 7e9, 70e9


def count(cached=(), **changes):
  recipe = Recipe.from_config(config_lib.resolve(curated(**changes)))
  costs = ledger.count(
    recipe, STUDENT, {"reference": TEACHER}, width=768, cached=cached
  )
  return costs


def test_iid_is_three_forward_passes():
  recipe = Recipe.from_config(config_lib.resolve({"batch_size": 10}))
  costs = ledger.count(recipe, STUDENT, {}, width=768)
  assert costs.total == costs.iid == 3 * 2 * STUDENT * 10
  assert (costs.relative, costs.scored) == (1.0, 0)


def test_cached_acid_costs_one_plus_one_third_over_one_minus_f():
  costs = count(cached=("reference",))
  selection = costs.parts["selection"] / costs.iid
  assert costs.relative - selection == pytest.approx(1 + 1 / (3 * 0.2))
  assert selection < 1e-3
  assert sum(costs.shares().values()) == pytest.approx(1.0)
  assert (costs.trained, costs.scored) == (16, 80)


def test_a_teacher_that_is_the_reference_costs_nothing():
  distilled = {"weight": 1.0, "teachers": {"reference": 1.0}}
  assert count(distillation=distilled).total == count().total


def test_iidistill_pays_a_second_pass_of_the_student_alone():
  distilled = {"weight": 1.0, "teachers": {"reference": 1.0}, "batch": "iid"}
  extra = count(distillation=distilled).total - count().total
  assert extra == pytest.approx(3 * 2 * STUDENT * 16)


def test_easy_reference_does_not_run_the_student_on_the_super_batch():
  assert "student scoring" not in count(curation__score="easy_reference").parts
  cached = count(curation__score="easy_reference", cached=("reference",))
  assert set(cached.parts) == {"training", "selection"}


def test_selection_flops_by_hand():
  """B=80, b=16, 4 chunks of 4: own scores, then 3 updates of 2 directions."""
  recipe = Recipe.from_config(config_lib.resolve(curated()))
  by_hand = 2 * 80 * 768 + 3 * 2 * (2 * 80 * 4 * 768)
  assert ledger.selection_flops(recipe, 768) == by_hand


def test_accumulation_costs_a_forward_pass_unless_scoring_made_it():
  pieces = {"accumulation": {"microbatch": 8}}
  assert count(**pieces).total == count().total
  easy = {"curation__score": "easy_reference"}
  extra = count(**easy, **pieces).total - count(**easy).total
  assert extra == pytest.approx(2 * STUDENT * 16)


def test_cheap_scoring_makes_half_of_training_cheap_too():
  recipe = Recipe.from_config(
    config_lib.resolve(curated(scoring={"patch_size": 32}))
  )
  costs = ledger.count(
    recipe,
    STUDENT,
    {"reference": TEACHER},
    width=768,
    scoring_macs={"": STUDENT / 4},
  )
  assert costs.parts["student scoring"] == 2 * STUDENT / 4 * 80
  assert costs.parts["training"] == 3 * 2 * STUDENT * 16 * (0.5 + 0.5 / 4)
  assert costs.parts["reference scoring"] == 2 * TEACHER * 80
