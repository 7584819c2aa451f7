"""The workdir of a run, written by hand: nothing is trained."""

import json

import numpy as np
import pytest

from aced import config as config_lib
from aced.files import write_json
from aced.training import workdir as workdir_lib
from aced.training.picks import FOLDER
from aced.training.tracker import METRICS_FILE
from tests.config_test import load


@pytest.fixture
def make_run(repository, tmp_path):
  """Makes the workdir of a run of `steps` steps; returns its path."""

  def make(name="aced", steps=12, source=None, **last):
    config = load(repository, name).get_config("smoke")
    if source:
      config.input.source = source
    where = tmp_path / "run"
    flat = config_lib.flatten(config_lib.resolve(config))
    write_json(where / workdir_lib.FILE, flat)
    curated = config.curation.method != "uniform"
    lines = [_line(step, curated) for step in range(1, steps + 1)]
    lines.append({"step": steps, "eval/retrieval/mean/R@1": 0.25, **last})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (where / METRICS_FILE).write_text(text)
    for step in (1, steps) if curated else ():
      _write_picks(where / FOLDER / f"{step:08d}.npz", step)
    return where

  return make


def _line(step, curated):
  line = {
    "step": step,
    "loss": 5 / step,
    "loss/contrastive": 4 / step,
    "loss/distillation/reference": 1 / step,
    "data/clean_kept": 0.8,
    "data/clean_pool": 0.4,
    "time/examples_per_second": 100.0,
    "time/waiting": 0.01,
    "scale/t": 10.0,
  }
  if curated:
    line |= {
      "curation/kept_score": 2.0,
      "curation/pool_score": 0.5,
      "curation/effective_sample_size": 30.0,
      "curation/effective_sample_size_least": 20.0,
    }
  return line


def _write_picks(path, seed):
  rng = np.random.default_rng(seed)
  path.parent.mkdir(exist_ok=True)
  np.savez(
    path,
    index=rng.permutation(400)[:80],
    kept=np.arange(80) < 16,
    usable=np.ones(80, bool),
    student=rng.random(80, np.float32),
    reference=rng.random(80, np.float32),
    fault=rng.integers(0, 2, 80).astype(np.int8),
  )
