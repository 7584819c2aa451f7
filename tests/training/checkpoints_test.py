"""Checkpoints: saved whole, restored exactly, refused where they do not fit."""

import jax
import numpy as np
import pytest

from aced.models import params as params_lib
from aced.training.checkpoints import CheckpointError, Checkpoints
from tests.training.step_test import METHODS
from tests.training.toy import Setup


def stepped(state, step):
  return state.replace(step=jax.numpy.int32(step))


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_round_trip_with_shardings(tmp_path):
  state, _ = Setup(METHODS["iid"]).run(2)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(state, {"config": {"a": 1}, "position": 32})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 2
    like = Setup(METHODS["iid"]).init(seed=7)
    restored = checkpoints.restore(2, like)
    assert_same(restored, state)
    assert checkpoints.metadata(2) == {
      "config": {"a": 1},
      "position": 32,
      "metrics": {},
    }
  for got, want in zip(
    jax.tree.leaves(restored), jax.tree.leaves(like), strict=True
  ):
    assert got.sharding == want.sharding


def test_on_another_number_of_devices(tmp_path):
  state, _ = Setup(METHODS["iid"], devices=8).run(1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {})
    checkpoints.wait()
    like = Setup(METHODS["iid"], devices=1).init()
    assert_same(checkpoints.restore(1, like), state)


def test_the_last_and_the_best_are_kept(tmp_path):
  state = Setup(METHODS["iid"]).init()
  with Checkpoints(tmp_path, keep_last=1, best="R@1") as checkpoints:
    for step, value in ((1, 0.2), (2, 0.9), (3, 0.4), (4, 0.5)):
      checkpoints.save(stepped(state, step), {}, {"R@1": value, "loss": 9.0})
    checkpoints.save(stepped(state, 5), {})
  folder = tmp_path / params_lib.CHECKPOINTS
  assert sorted(p.name for p in folder.iterdir()) == ["2", "5"]
  assert params_lib.find_checkpoint(f"{tmp_path}@best")[1] == 2
  loaded = params_lib.load(tmp_path)
  assert_same(loaded, jax.device_get(state.params))


def test_the_best_is_kept_when_a_run_goes_on(tmp_path):
  state = Setup(METHODS["iid"]).init()
  for scores in (((1, 0.2), (2, 0.9), (3, 0.4)), ((4, 0.5), (5, 0.3))):
    with Checkpoints(tmp_path, keep_last=1, best="R@1") as checkpoints:
      for step, value in scores:
        checkpoints.save(stepped(state, step), {}, {"R@1": value})
  folder = tmp_path / params_lib.CHECKPOINTS
  assert sorted(p.name for p in folder.iterdir()) == ["2", "5"]
  # Best by another metric from now on: there is none yet, and nothing breaks.
  with Checkpoints(tmp_path, keep_last=1, best="accuracy") as checkpoints:
    checkpoints.save(stepped(state, 6), {}, {"accuracy": 0.1})
  assert params_lib.find_checkpoint(str(tmp_path))[1] == 6


def test_a_checkpoint_of_other_shapes_lists_what_differs(tmp_path):
  setup = Setup(METHODS["iid"])
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(stepped(setup.init(), 1), {})
    checkpoints.wait()
    setup.model = setup.model.clone(width=5)
    with pytest.raises(
      CheckpointError, match=r"params/img/kernel \(48, 6\)"
    ) as e:
      checkpoints.restore(1, setup.init())
  assert "of another shape" in str(e.value)


def test_other_frozen_weights_are_refused(tmp_path):
  state = stepped(Setup(METHODS["iid"]).init(), 1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {"identities": {"frozen.reference": "abc"}})
    checkpoints.wait()
    checkpoints.restore(1, state, {"frozen.reference": "abc"})
    with pytest.raises(CheckpointError, match="frozen.reference is now xyz"):
      checkpoints.restore(1, state, {"frozen.reference": "xyz"})
    with pytest.raises(CheckpointError, match="was trained with abc"):
      checkpoints.restore(1, state, {})
