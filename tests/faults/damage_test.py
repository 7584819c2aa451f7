"""Damaged checkpoints: found and passed over, or restored as they were."""

import shutil

import numpy as np
import pytest

from aced.training.checkpoints import FOLDER
from aced.training.retention import DAMAGED
from tests.faults import harness
from tests.faults.harness import assert_same_run
from tests.training.checkpoints_test import spoil

FLAGS = ("--config.checkpoint.keep_last=2", "--config.evals.retrieval.source=")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A whole run, and one that was ended on the way with two checkpoints."""
  folder = tmp_path_factory.mktemp("damage")
  whole, half = folder / "whole", folder / "half"
  harness.train(whole, *FLAGS)
  with harness.Trainer(half, *FLAGS) as trainer:
    trainer.until(lambda: len(harness.saved(half)) == 2)
    trainer.kill()
    trainer.wait()
  return whole, half


@pytest.mark.tries(1, 30)
def test_no_wrong_weights_are_loaded(runs, seed):
  whole, half = runs
  workdir = whole.with_name(f"try{seed}")
  shutil.copytree(half, workdir)
  newest = harness.saved(workdir)[-1]
  what = spoil(np.random.default_rng(seed), workdir / FOLDER / str(newest))
  try:
    harness.train(workdir, *FLAGS)
    log = harness.log_path(workdir).read_text()
    told = f"the checkpoint of step {newest} is passed over" in log
    # Bytes of JSON that mean nothing may be altered, and then it is whole.
    assert told or f"going on from the checkpoint at step {newest}" in log, what
    assert told == (workdir / FOLDER / f"{DAMAGED}{newest}").exists()
    assert_same_run(whole, workdir)
  finally:
    shutil.rmtree(workdir, ignore_errors=True)
