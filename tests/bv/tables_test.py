"""The three keys: read as they are meant, and what is wrong told by name."""

import pytest
from ml_collections import ConfigDict

from aced.bv import tables
from aced.config import ConfigError
from aced.training.views import View

LARGE = {"model_name": "proj.image_text.two_towers", "model_init": "random"}
JOINT = {"method": "joint", "filter_ratio": 0.8, "reference": "large"}


def config(batch_size=16, **keys):
  given = {"batch_size": batch_size, "data": {"name": "bv:aced"}}
  return ConfigDict({"input": given, **keys})


def test_none_of_the_keys_is_iid():
  method = tables.read(config())
  assert method.recipe.super_batch == method.recipe.batch_size == 16
  assert not method.recipe.curated
  assert not method.recipe.frozen


def test_the_batch_is_what_is_trained_on_and_more_is_loaded():
  curation = JOINT | {"num_chunks": 8, "gain": 2.0, "microbatch": 40}
  recipe = tables.read(
    config(curation=curation, reference={"large": LARGE})
  ).recipe
  assert (recipe.batch_size, recipe.super_batch) == (16, 80)
  assert (recipe.num_chunks, recipe.gain) == (8, 2.0)
  assert recipe.scoring.microbatch == 40
  assert recipe.score == "learnability"
  assert recipe.reference == "large"
  assert recipe.loss == "sigmoid"


@pytest.mark.parametrize("described", ["reference", "teachers"])
def test_a_name_in_both_tables_is_one_model(described):
  keys = {"reference": {"large": {}}, "teachers": {"large": {"weight": 0.5}}}
  keys[described]["large"] |= LARGE
  method = tables.read(config(curation=JOINT, **keys))
  assert method.recipe.frozen == ("large",)
  assert method.recipe.teachers == (("large", 0.5),)
  assert method.frozen["large"].where == f"config.{described}.large"


def test_teachers_alone_distil_from_a_uniform_batch():
  teachers = {
    "a": {**LARGE, "weight": 2, "loss": "feature"},
    "b": {**LARGE, "weight": 1.0, "loss": "feature", "labels": "labels@b"},
  }
  method = tables.read(config(teachers=teachers))
  assert method.recipe.super_batch == 16
  assert method.recipe.teachers == (("a", 2.0), ("b", 1.0))
  assert method.recipe.distill_loss == "feature"
  assert method.frozen["a"].view == View()
  assert method.frozen["b"].view.labels == "labels@b"


def test_hard_needs_no_reference():
  curation = {"method": "joint", "score": "hard", "filter_ratio": 0.5}
  assert not tables.read(config(curation=curation)).recipe.frozen


def changed(table, **values):
  return {**table, **values}


@pytest.mark.parametrize(
  ("keys", "words"),
  [
    ({"curation": {"filter_ration": 0.8}}, "filter_ration.*'filter_ratio'"),
    ({"curation": {"method": "jont"}}, "method='jont'.*'joint'"),
    ({"curation": changed(JOINT, gain="1")}, "curation.gain='1'"),
    ({"curation": changed(JOINT, num_chunks=0)}, "num_chunks=0"),
    ({"curation": changed(JOINT, num_chunks=5)}, "num_chunks=5"),
    ({"curation": changed(JOINT, filter_ratio=0.3)}, "22.86"),
    ({"curation": changed(JOINT, filter_ratio=0.0)}, "do not fit"),
    ({"curation": {"filter_ratio": 0.5}}, "do not fit"),
    ({"curation": changed(JOINT, reference="")}, "needs a reference"),
    (
      {"curation": changed(JOINT, reference="larg")},
      "'larg' is described nowhere.*Described: large. Did you mean 'large'",
    ),
    ({"curation": [1]}, "must be a table"),
    ({"reference": {"large": {"model_nam": "x"}}}, "large.model_nam"),
    ({"reference": {"large": changed(LARGE, weight=1.0)}}, "large.weight"),
    ({"reference": LARGE}, "maps the name of a model to its keys"),
    ({"reference": {"other": LARGE, "large": LARGE}}, "other is not used"),
    ({"reference": {"large": changed(LARGE, model_init="")}}, "model_init is"),
    ({"reference": {"large": changed(LARGE, model_name="")}}, "model_name is"),
    ({"reference": {"large": changed(LARGE, image="big")}}, "image@large"),
    ({"reference": {"large": changed(LARGE, model=3)}}, "model=3"),
    ({"teachers": {"large": LARGE}}, "both config.reference.large and"),
    ({"teachers": {"large": {"weight": -1.0}}}, "weight=-1.0"),
    ({"teachers": {"large": {"loss": "sofmax"}}}, "'softmax'"),
    ({"teachers": {"a": LARGE, "b": {**LARGE, "loss": "sigmoid"}}}, "share"),
    (
      {"curation": changed(JOINT, reference="b"), "reference": {}},
      "'b' is described nowhere.*No other model is described",
    ),
  ],
)
def test_what_is_wrong_is_told_by_name(keys, words):
  keys = {"curation": JOINT, "reference": {"large": LARGE}} | keys
  with pytest.raises(ValueError, match=words):
    tables.read(config(**keys))


def test_an_iid_batch_beside_none_that_is_curated_is_refused():
  teachers = {"large": {**LARGE, "batch": "iid"}}
  with pytest.raises(ConfigError, match="batch='iid' needs curation"):
    tables.read(config(teachers=teachers))
