"""What a config of big_vision's trainer cannot have, told before it starts."""

import numpy as np
import pytest
from ml_collections import ConfigDict

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


def test_a_loss_that_is_not_finite_ends_the_run(bv):
  from aced.bv import trainer

  bv.utils.chrono.inform(first_step=0, total_steps=4, global_bs=8)
  loop = trainer.Loop(build(bv), bv.utils.BigVisionMetricWriter(), None)
  bv.utils.chrono.inform(measure=loop.writer.measure, write_note=print)
  loop.log(1, {"training_loss": np.float32(3.0)})
  with pytest.raises(trainer.NotFinite, match="is nan at step 2"):
    loop.log(2, {"training_loss": np.float32("nan")})


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
    ({"mixup": {}}, "config.mixup"),
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
