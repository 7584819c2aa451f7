"""Metrics one step late, and a stop at what is not finite."""

import collections

import jax.numpy as jnp
import pytest

from aced.data.devices import BadRecords
from aced.data.records import CAUSES
from aced.training.watch import Diverged, NoData, Watch, check_data, not_finite


class Recorder:
  """Stands in for tracker and progress bar, and keeps what it is given."""

  def __init__(self):
    self.seen = []

  def log(self, step, metrics):
    self.seen.append((step, metrics))

  update = log


def make(every=2, saved=None, **options):
  tracker, bar = Recorder(), Recorder()
  watch = Watch(tracker, bar, every=every, saved=lambda: saved, **options)
  return watch, tracker, bar


def test_metrics_arrive_one_step_late():
  watch, tracker, bar = make()
  for step in (1, 2, 3):
    watch.push(step, {"loss": jnp.float32(step)}, {"host": step})
    assert [s for s, _ in bar.seen] == list(range(1, step))
  watch.flush()
  watch.flush()
  assert [s for s, _ in bar.seen] == [1, 2, 3]
  counts = {"guard/skipped": 0.0, "data/bad_records": 0.0}
  assert tracker.seen == [(2, {"loss": 2.0, "host": 2} | counts)]


def test_a_loss_that_is_not_finite_stops_and_is_named():
  watch, _, _ = make(saved=40)
  watch.push(41, {"loss/contrastive": jnp.float32("nan"), "loss": 1.0})
  with pytest.raises(Diverged, match=r"step 41 .*loss/contrastive = nan") as e:
    watch.flush()
  assert e.value.step == 41
  assert "step 40 is kept" in str(e.value)


def test_other_metrics_may_be_infinite():
  infinite = float("inf")
  assert not_finite({"curation/pool_score": infinite, "loss": 1.0}) == {}
  watch, _, _ = make()
  watch.push(1, {"norm/gradient": infinite})
  with pytest.raises(Diverged, match="There is no checkpoint yet"):
    watch.flush()


def skipped(step, watch):
  watch.push(step, {"loss": float("nan"), "guard/skipped": 1.0})
  watch.flush()


def test_steps_that_change_nothing_are_counted_up_to_a_limit(caplog):
  watch, tracker, _ = make(every=1, saved=3, skip_limit=2)
  with caplog.at_level("WARNING", logger="absl"):
    skipped(1, watch)
    skipped(2, watch)
  assert "step 2 is not finite and changes nothing: loss = nan; 2 so far" in (
    caplog.text
  )
  watch.push(3, {"loss": 1.0, "guard/skipped": 0.0})
  watch.flush()
  assert tracker.seen[-1][1]["guard/skipped"] == 2.0
  assert (watch.skipped, watch.in_a_row) == (2, 0)
  skipped(4, watch)
  skipped(5, watch)
  # A run that goes on counts on.
  later, _, _ = make(skip_limit=2, saved=3)
  later.resume(watch.counts())
  with pytest.raises(Diverged, match="3rd in a row; they changed nothing") as e:
    skipped(6, later)
  assert e.value.good and "step 3 is kept" in str(e.value)


def test_records_of_all_processes_are_counted():
  bad = BadRecords()
  watch, tracker, _ = make(every=1, bad=bad)
  errors = jnp.zeros(len(CAUSES)).at[CAUSES["too_large"]].set(3.0)
  watch.push(1, {"loss": 1.0, "errors": errors.at[0].set(77.0)})
  watch.flush()
  assert tracker.seen[0][1]["data/bad/too_large"] == 3.0
  assert tracker.seen[0][1]["data/bad_records"] == 3.0
  assert "errors" not in tracker.seen[0][1]
  assert watch.counts()["bad_records"] == {"too_large": 3}


def test_alarms_are_logged_and_counted(caplog):
  class Alarms:
    def __init__(self):
      self.counts = collections.Counter(x=1)

    def see(self, step, metrics, sketch):
      return [f"step {step}: {metrics['loss']}, {sketch.shape}"]

    def metrics(self):
      return {"alarm/x": 1.0}

  watch, tracker, _ = make(every=1, alarms=Alarms())
  with caplog.at_level("WARNING", logger="absl"):
    watch.push(1, {"loss": 2.0, "sketch": jnp.zeros(4)})
    watch.flush()
  assert "step 1: 2.0, (4,)" in caplog.text
  assert tracker.seen[0][1]["alarm/x"] == 1.0
  later, _, _ = make(alarms=Alarms())
  later.resume(watch.counts())
  assert later.counts()["alarms"] == {"x": 2}


def test_a_super_batch_without_a_usable_pair_stops():
  check_data(1, {"data/masked": 0.99})
  with pytest.raises(NoData, match="step 3: none of the pairs"):
    check_data(3, {"data/masked": 1.0})
