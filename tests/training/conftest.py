"""Runs of decoders that several tests look at."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from aced.train import train
from tests.training.decoders import (
  COLOURS,
  STEPS,
  base,
  decoded,
)
from tests.training.decoding_test import SIZE


@pytest.fixture(scope="package")
def compiled(tmp_path_factory):
  """Programs are compiled once: most of a run's time is that."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def encoder(tmp_path_factory, compiled):
  """The workdir of an earlier run of ours, with two checkpoints."""
  workdir = tmp_path_factory.mktemp("encoder") / "run"
  train(base(total_steps=2, checkpoint__every_steps=1), workdir)
  return workdir


@pytest.fixture(scope="package")
def coloured(tmp_path_factory):
  """Pictures of one colour each, with captions and questions."""
  folder = tmp_path_factory.mktemp("coloured")
  lines = []
  for k, (name, value) in enumerate([*COLOURS.items()] * 2):
    pixels = np.full((SIZE, SIZE, 3), value, np.uint8)
    Image.fromarray(pixels).save(folder / f"{k}.png")
    questions = {"what color?": name, "is it blue?": "ny"[name == "blue"]}
    lines.append(
      {
        "image": f"{k}.png",
        "text": f"a {name} square on its own",
        "questions": [
          {"question": q, "answers": [a]} for q, a in questions.items()
        ],
      }
    )
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return f"jsonl:{path}"


@pytest.fixture(scope="package")
def whole(tmp_path_factory, compiled, encoder, coloured):
  """A run of a decoder that nothing disturbs: config, workdir, scores."""
  workdir = tmp_path_factory.mktemp("decoder") / "whole"
  config = decoded(
    f"{encoder}@1",
    total_steps=STEPS,
    input__source=coloured,
    optimizer__learning_rate=0.01,
    eval__every_steps=STEPS // 2,
    checkpoint__best="eval/answers/exact_match",
    log__report=True,
    evals={
      "captions": {"type": "captioning", "source": coloured, "batch_size": 5},
      "answers": {"type": "vqa", "source": coloured, "batch_size": 16},
      "off": {"type": "vqa", "source": ""},
    },
  )
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    scores = train(config, workdir)
  for part in ("decoder  ", "encoder (frozen)", "training", "1.00 times"):
    assert part in said.getvalue(), part
  config["log"]["report"] = False
  return config, workdir, scores
