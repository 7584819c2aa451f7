"""Metrics one step late, and a stop at what is not finite."""

import jax.numpy as jnp
import pytest

from aced.training.watch import (
  Diverged,
  NoData,
  Watch,
  check_data,
  check_finite,
)


class Recorder:
  """Stands in for tracker and progress bar, and keeps what it is given."""

  def __init__(self):
    self.seen = []

  def log(self, step, metrics):
    self.seen.append((step, metrics))

  update = log


def make(every=2, saved=None):
  tracker, bar = Recorder(), Recorder()
  watch = Watch(
    tracker,
    bar,
    every=every,
    saved=lambda: saved,
  )
  return watch, tracker, bar


def test_metrics_arrive_one_step_late():
  watch, tracker, bar = make()
  for step in (1, 2, 3):
    watch.push(step, {"loss": jnp.float32(step)}, {"host": step})
    assert [s for s, _ in bar.seen] == list(range(1, step))
  watch.flush()
  watch.flush()
  assert [s for s, _ in bar.seen] == [1, 2, 3]
  assert tracker.seen == [(2, {"loss": 2.0, "host": 2})]


def test_a_loss_that_is_not_finite_stops_and_is_named():
  watch, _, _ = make(saved=40)
  watch.push(41, {"loss/contrastive": jnp.float32("nan"), "loss": 1.0})
  with pytest.raises(Diverged, match=r"step 41 .*loss/contrastive = nan") as e:
    watch.flush()
  assert e.value.step == 41
  assert "step 40 is kept" in str(e.value)


def test_other_metrics_may_be_infinite():
  check_finite(1, {"curation/pool_score": float("inf"), "loss": 1.0}, None)
  with pytest.raises(Diverged, match="there is none yet"):
    check_finite(1, {"norm/gradient": float("inf")}, None)


def test_a_super_batch_without_a_usable_pair_stops():
  check_data(1, {"data/masked": 0.99})
  with pytest.raises(NoData, match="step 3: none of the pairs"):
    check_data(3, {"data/masked": 1.0})
