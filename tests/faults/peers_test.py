"""One of several processes is lost, or differs: the others end and say so."""

import shutil
import socket
import time

import numpy as np
import pytest

from tests.faults import harness
from tests.faults.harness import Trainer, assert_close_run, assert_same_run
from tests.train_test import write_pairs

# Seconds in which the others have to notice, far below jax's 100.
NOTICE = 30.0
# Codes with which launchers start the same command again; the collectives of
# JAX may abort (134) before a process has heard who was lost.
AGAIN = (75, -6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("peers") / "whole"
  harness.train(workdir, processes=2)
  return workdir


@pytest.mark.slow
@pytest.mark.tries(1, 5)
def test_one_of_two_is_killed(whole, seed):
  rng = np.random.default_rng(seed)
  victim, workdir = seed % 2, whole.with_name(f"killed{seed}")
  with Trainer(workdir, processes=2) as trainer:
    at = int(rng.integers(3, 20))
    trainer.until(lambda: harness.steps_taken(workdir) >= at)
    time.sleep(rng.uniform(0, 0.3))
    began = time.monotonic()
    trainer.kill(victim)
    codes = trainer.wait(NOTICE)
    took = time.monotonic() - began
    assert codes[victim] == -9 and codes[1 - victim] in AGAIN, codes
    assert took < NOTICE
    told = f"process {victim} of 2 on host {socket.gethostname()} was lost"
    until(lambda: told in trainer.log(1 - victim))
  harness.train(workdir, processes=2)
  assert_same_run(whole, workdir)
  shutil.rmtree(workdir)


def until(condition, seconds=10):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


def test_another_config_is_named_by_all(tmp_path):
  workdir = tmp_path / "config"
  seeds = [("--config.seed=0",), ("--config.seed=1",)]
  with Trainer(workdir, processes=2, each=seeds) as trainer:
    assert trainer.wait(120) == [1, 1], trainer.log()[-3000:]
    for k in range(2):
      assert "  config seed: 0 on " in trainer.log(k)
      assert ", 1 on " in trainer.log(k)
  assert not workdir.exists()


def test_one_that_fails_ends_all_with_its_words(tmp_path):
  """A host without the data: nobody waits for it, and nobody tries again."""
  source = write_pairs(tmp_path / "here", 100, broken=())
  (tmp_path / "there").mkdir()
  workdir = tmp_path / "fails"
  with Trainer(
    workdir,
    f"--config.input.source=jsonl:{source.name}",
    processes=2,
    folders=[source.parent, tmp_path / "there"],
  ) as trainer:
    assert trainer.wait(120) == [1, 1], trainer.log()[-3000:]
    assert f"there is no file {tmp_path}/there/pairs.jsonl" in trainer.log(1)
    host = socket.gethostname()
    told = f"process 1 of 2 on host {host} ended: SourceError: source 'jsonl:"
    assert told in trainer.log(0)
  assert not workdir.exists()


@pytest.mark.faults
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_processes_equal_one_with_as_many_devices(
  whole, tmp_path_factory, processes, devices
):
  """Losses, evaluations and what was chosen, at every step."""
  folder = tmp_path_factory.mktemp("equal")
  one, several = folder / "one", folder / "several"
  harness.train(one, devices=processes * devices)
  harness.train(several, processes=processes, devices=devices)
  assert_close_run(one, several, tolerance=1e-6)
  first, second = harness.curve(one), harness.curve(several)
  for step, metrics in first.items():
    for name, value in metrics.items():
      np.testing.assert_allclose(
        second[step][name], value, rtol=1e-4, atol=1e-4, err_msg=name
      )
