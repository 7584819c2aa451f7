"""Killed, stopped or moved: a run comes to the same end.

Without --faults a few tries of each, and with it as many as are worth a claim.
"""

import signal
import time

import numpy as np
import pytest

from tests.faults import harness
from tests.faults.harness import Trainer, assert_close_run, assert_same_run
from tests.training.preemption_test import Metadata

# Steps of metrics in which a run is after its start, and before its end.
STEPS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing disturbs, and the programs that it compiled."""
  workdir = tmp_path_factory.mktemp("resume") / "whole"
  harness.train(workdir)
  assert harness.steps_taken(workdir) == STEPS
  return workdir


@pytest.mark.tries(1, 20)
def test_killed_at_a_random_moment(whole, workdir, seed):
  rng = np.random.default_rng(seed)
  with Trainer(workdir) as trainer:
    # From the first step on, as many are killed in any part of the run.
    at = int(rng.integers(1, STEPS))
    trainer.until(lambda: harness.steps_taken(workdir) >= at)
    time.sleep(rng.uniform(0, 0.3))
    trainer.kill()
    trainer.wait()
  harness.train(workdir)
  assert_same_run(whole, workdir)


def during_step(trainer, workdir, rng):
  at = int(rng.integers(1, STEPS - 2))
  trainer.until(lambda: harness.steps_taken(workdir) >= at)


def during_save(trainer, workdir, rng):
  folder = workdir / "checkpoints"
  after = int(rng.integers(0, STEPS - 6))
  trainer.until(lambda: harness.steps_taken(workdir) >= after)
  trainer.until(lambda: any(folder.glob("*orbax-checkpoint-tmp*")))


def during_evaluation(trainer, workdir, rng):
  # The metrics of a step are there before its evaluation begins.
  at = rng.choice([12, STEPS])
  trainer.until(lambda: harness.steps_taken(workdir) >= at)
  time.sleep(rng.uniform(0, 0.05))


@pytest.mark.tries(1, 3)
@pytest.mark.parametrize(
  "reach",
  [
    pytest.param(during_step, marks=pytest.mark.faults),
    pytest.param(during_save, marks=pytest.mark.faults),
    during_evaluation,
  ],
)
def test_told_to_stop(whole, workdir, seed, reach):
  rng = np.random.default_rng(100 + seed)
  with Trainer(workdir) as trainer:
    reach(trainer, workdir, rng)
    trainer.send(signal.SIGTERM)
    assert trainer.wait(60) == [75], trainer.log()[-3000:]
    step = harness.saved(workdir)[-1]
    assert f"stopped by SIGTERM: step {step} is saved" in trainer.log()
    # Nothing that had been done is lost.
    assert step >= harness.steps_taken(workdir)
  harness.train(workdir)
  assert_same_run(whole, workdir)


@pytest.mark.faults
def test_told_twice(whole, workdir):
  with Trainer(workdir) as trainer:
    during_save(trainer, workdir, np.random.default_rng(7))
    for number in (signal.SIGTERM, signal.SIGTERM):
      trainer.send(number)
    assert trainer.wait(60) == [75], trainer.log()[-3000:]
  harness.train(workdir)
  assert_same_run(whole, workdir)


@pytest.mark.faults
def test_a_notice_of_the_cloud(whole, workdir):
  with Metadata() as server:
    env = {"GCE_METADATA_HOST": server.url.split("/")[2]}
    # Long enough that it is looked at on the way, which is every 5 s.
    with Trainer(workdir, "--config.total_steps=2000", env=env) as trainer:
      trainer.until(lambda: harness.steps_taken(workdir) >= 3)
      server.values["preempted"] = "TRUE"
      assert trainer.wait(60) == [75], trainer.log()[-3000:]
      step = harness.saved(workdir)[-1]
      told = f"stopped by the notice preempted=TRUE: step {step} is saved"
      assert told in trainer.log() and step >= harness.steps_taken(workdir)


NO_DROPOUT = "--config.student.text.dropout=0.0"

# (processes, devices of each) before and after. The first two have the mesh of
# the others' halves or doubles; one process with as many devices is compared.
MOVES = [
  ((1, 2), (2, 1)),
  ((2, 1), (1, 2)),
  ((4, 1), (2, 2)),
  ((2, 2), (4, 1)),
  ((1, 8), (1, 4)),
  ((1, 4), (1, 8)),
]


@pytest.fixture(scope="module")
def still(whole):
  """An undisturbed run without dropout, whose noise hangs on the devices."""
  workdir = whole.with_name("still")
  harness.train(workdir, NO_DROPOUT)
  return workdir


@pytest.mark.faults
@pytest.mark.parametrize(("before", "after"), MOVES)
def test_moved_to_other_processes_and_devices(still, workdir, before, after):
  processes, devices = before
  with Trainer(
    workdir, NO_DROPOUT, processes=processes, devices=devices
  ) as trainer:
    trainer.until(lambda: harness.steps_taken(workdir) >= 8)
    trainer.send(signal.SIGTERM, k=processes - 1)
    assert trainer.wait() == [75] * processes, trainer.log()[-3000:]
  assert 8 <= harness.steps_taken(workdir) < STEPS
  processes, devices = after
  harness.train(workdir, NO_DROPOUT, processes=processes, devices=devices)
  assert_close_run(still, workdir)
  # The same examples in the same order, none twice: those of a step are known
  # by how many were clean, and in which state each left the draws.
  first, second = harness.curve(still), harness.curve(workdir)
  for step in first:
    assert first[step]["data/clean_pool"] == second[step]["data/clean_pool"]
    assert first[step]["data/clean_kept"] == second[step]["data/clean_kept"]
