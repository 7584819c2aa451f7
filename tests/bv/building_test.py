"""What a config of big_vision's trainer cannot have, told before it starts."""

import gc
import warnings

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from aced.config import ConfigError
from tests.bv import program

pytestmark = pytest.mark.big_vision

LARGE = {
  "model_name": "proj.image_text.two_towers",
  "model": program.towers(48),
  "model_init": "random",
}
JOINT = {"method": "joint", "filter_ratio": 0.5, "num_chunks": 2}


def build(bv, **keys):
  from aced.bv import building

  config = program.base()
  config.update(ConfigDict(keys))
  return building.build(config)


def test_a_run_is_what_its_config_says(bv):
  run = build(bv, curation=JOINT | {"reference": "a"}, reference={"a": LARGE})
  assert run.dataset.element_spec["image"].shape == (16, 16, 16, 3)
  assert run.method.recipe.batch_size == 8
  # Steps count pairs that are trained on: 48 / 8 an epoch.
  assert run.steps("x", config={"x_epochs": 2}) == 12
  assert run.steps("x", config={"x_examples": 80}) == 10
  assert set(run.frozen_models) == {"a"}


@pytest.fixture
def loop(bv):
  from aced.bv import trainer

  bv.utils.chrono.inform(first_step=0, total_steps=4, global_bs=8)
  loop = trainer.Loop(build(bv), bv.utils.BigVisionMetricWriter(), None)
  bv.utils.chrono.inform(measure=loop.writer.measure, write_note=print)
  yield loop
  loop.writer.close()


def test_what_is_not_finite_ends_the_run(loop):
  from aced.bv.trainer import NotFinite

  loss, score = "training_loss", "curation/pool_score"
  loop.log(1, {loss: np.float32(3.0), score: np.float32(-2.0)})
  with pytest.raises(NotFinite, match="is nan at step 2"):
    loop.log(2, {loss: np.float32("nan")})
  with pytest.raises(NotFinite, match="scores of curation are nan at step 3"):
    loop.log(3, {loss: np.float32(3.0), score: np.float32("nan")})


def test_an_evaluator_that_cannot_be_built_is_told_by_name(loop):
  loop.run.config.evals = {
    "a": {"type": "aced.retrieval", "sorce": "x", "log_steps": 1}
  }
  with pytest.raises(ConfigError, match="config.evals.a: .*argument"):
    loop.evaluators()


def small(ids):
  """The reference, or the student, with an embedding for so many ids."""
  model = program.towers(32)
  model["text"]["vocab_size"] = ids
  return model


@pytest.mark.parametrize(
  ("keys", "model"),
  [
    ({"model": small(257)}, "config.model"),
    (
      {
        "curation": JOINT | {"reference": "a"},
        "reference": {"a": LARGE | {"model": small(257)}},
      },
      "config.reference.a",
    ),
    ({"teachers": {"a": LARGE | {"model": small(9)}}}, "config.teachers.a"),
  ],
)
def test_a_vocabulary_that_is_too_small_is_refused(bv, keys, model):
  with pytest.raises(ConfigError, match=r"is less than the 258 ids") as caught:
    build(bv, **keys)
  assert caught.match(f"of {model}, which sees the column 'labels' of config.i")


def test_vocabularies_are_those_of_the_columns_that_models_see(bv):
  pp = program.base("labels@a").input.pp.replace(
    "|keep", '|aced_tokenize("bytes", 16, inkey="none", outkey="labels@a")|keep'
  )
  pp = pp.replace("aced_decode(16)", 'aced_decode(16)|copy("text", "none")')
  table = LARGE | {"labels": "labels@a"}
  run = build(bv, input={"pp": pp}, teachers={"a": table})
  assert run.vocabularies == [
    ("config.model", "labels", 258),
    ("config.teachers.a", "labels@a", 258),
  ]
  table["model"] = small(257)
  with pytest.raises(ConfigError, match="'labels@a' of config.input, is less"):
    build(bv, input={"pp": pp}, teachers={"a": table})


def test_ids_of_a_tokenizer_of_theirs_are_refused_as_they_come(bv):
  import tensorflow as tf
  from big_vision.pp import registry

  def ids(most):
    def op(data):
      return data | {"labels": tf.fill([16], most)}

    return op

  def batches(most):
    pp = f'aced_decode(16)|ids({most})|keep("image", "labels")'
    with registry.temporary_ops(ids=ids):
      return build(bv, input={"pp": pp}).checked_batches()

  assert next(batches(257))["labels"].shape == (8, 16)
  with pytest.raises(ConfigError, match="258 of config.model.*the 259 ids"):
    next(batches(258))


def test_a_loader_that_gives_other_sizes_is_told(bv, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  with pytest.raises(ConfigError, match="has 2 rows from each of 3 processes"):
    build(bv)


@pytest.fixture
def pools_left_open():
  """big_vision's pipeline leaves its pools of threads to the collector."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    yield
    gc.collect()


def test_data_sets_are_mixed_as_there(bv, pools_left_open):
  from aced.bv import building

  one = program.base().input
  mixed = {
    "data": {"a": 0.7, "b": 0.3},
    "a": {"data": one.data, "pp": one.pp},
    "b": {"data": one.data, "pp": one.pp},
    "batch_size": 8,
  }
  config = program.base()
  config.input = mixed
  run = building.build(config)
  assert run.data_size == 2 * 48
  assert next(run.checked_batches())["image"].shape == (8, 16, 16, 3)
  config.model = small(200)
  with pytest.raises(ConfigError, match="of config.input.a, is less"):
    building.build(config)


@pytest.mark.parametrize(
  ("keys", "words"),
  [
    ({"curation": JOINT | {"reference": "b"}}, "'b' is described nowhere"),
    ({"teachers": {"a": LARGE | {"loss": "feature"}}}, r"\(32, 32\).*\(48, 48"),
    ({"teachers": {"a": LARGE | {"labels": "labels@a"}}}, "column 'labels@a'"),
    ({"teachers": {"a": LARGE | {"model_name": "proj.tower"}}}, "no module"),
    (
      {"teachers": {"a": LARGE | {"model": {"imge": 1}}}},
      "teachers.a.model.*i",
    ),
    ({"model": {"widht": 3}}, "config.model: .*widht"),
    ({"model_name": "two_towers"}, "no module big_vision.models.two_towers"),
    ({"pp_modules": ["ops_sound"]}, "no module big_vision.pp.ops_sound"),
    ({"input": {"batch_size": 4}}, "batch_size=4 does not divide over"),
    ({"curaton": {}}, "config.curaton .*'curation'"),
    (
      {"input": {"data": {"name": "bv:aced", "sorce": "x"}}},
      "config.input: .*sorce",
    ),
    ({"input": {"pp": "aced_decod(3)"}}, "config.input: .*aced_decod"),
    (
      {
        "curation": JOINT | {"filter_ratio": 0.9, "score": "hard"},
      },
      "80 pairs .8 trained on.* than the data set of 48",
    ),
  ],
)
def test_what_cannot_be_is_told_by_name(bv, keys, words):
  with pytest.raises(ValueError) as caught:
    build(bv, **keys)
  assert caught.match(words)
