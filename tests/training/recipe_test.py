"""What a recipe concludes from a config."""

import pytest

from aced import config as config_lib
from aced.training.recipe import Recipe, Scoring
from tests.config_test import curated


def recipe(**changes):
  return Recipe.from_config(config_lib.resolve(curated(**changes)))


def test_scoring_is_read_whole():
  found = recipe(scoring={"patch_size": 32, "token_drop": 0.5}).scoring
  assert found == Scoring(patch_size=32, token_drop=0.5)
  assert found.cheap and not Scoring(microbatch=8).cheap


@pytest.mark.parametrize(
  "changes, reuses",
  [
    ({"accumulation": {"microbatch": 8}}, True),
    ({"accumulation": {"microbatch": 16}}, False),  # All at once.
    ({"accumulation": {"microbatch": 0}}, False),
    (
      {
        "accumulation": {"microbatch": 8},
        "curation__score": "easy_reference",
      },
      False,
    ),
    (
      {"accumulation": {"microbatch": 8}, "scoring": {"resolution": 16}},
      False,
    ),
    (
      {"accumulation": {"microbatch": 8}, "student__text": {"dropout": 0.1}},
      False,
    ),
  ],
)
def test_when_scoring_serves_as_the_first_pass(changes, reuses):
  assert recipe(**changes).reuses_scoring == reuses


def test_co_training_hangs_on_scoring_the_student():
  cheap = {"scoring": {"patch_size": 32}}
  assert recipe(**cheap).cotrains
  assert not recipe(**cheap, curation__score="easy_reference").cotrains
  assert not recipe(scoring={"patch_size": 32, "cotrain": 0.0}).cotrains


def test_each_frozen_model_is_named_once():
  distilled = {"weight": 1.0, "teachers": {"reference": 1.0, "other": 1.0}}
  found = recipe(distillation=distilled, frozen__other={})
  assert found.frozen == ("reference", "other")
