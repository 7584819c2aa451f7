"""Trackers keep what they are given, through resuming, and nothing else."""

import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.training import tracker
from aced.training.tracker import JsonLines, make_tracker, read_jsonl


def log(path, steps, **options):
  with JsonLines(path, **options) as lines:
    for step in steps:
      lines.log(step, {"loss": 1 / (step + 1), "count": step})


def test_one_object_a_line_flushed(tmp_path):
  path = tmp_path / "new" / "metrics.jsonl"
  with JsonLines(path) as lines:
    lines.log(
      3, {"loss": np.float32(0.5), "n": jnp.int32(7), "x": jnp.ones(())}
    )
    assert path.read_text() == '{"step": 3, "loss": 0.5, "n": 7, "x": 1.0}\n'
  assert read_jsonl(path) == [{"step": 3, "loss": 0.5, "n": 7, "x": 1.0}]


def test_bfloat16_is_a_number(tmp_path):
  with JsonLines(tmp_path / "m.jsonl") as lines:
    lines.log(0, {"loss": jnp.bfloat16(1.5)})
  assert read_jsonl(tmp_path / "m.jsonl")[0]["loss"] == 1.5


def test_numbers_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
  path = tmp_path / "m.jsonl"
  with JsonLines(path) as lines:
    lines.log(0, {"a": np.nan, "b": np.inf, "c": jnp.float32(-np.inf)})

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  json.loads(path.read_text(), parse_constant=refuse)
  (line,) = read_jsonl(path)
  assert math.isnan(line["a"])
  assert (line["b"], line["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo'])
@pytest.mark.parametrize("killed", [4, 5, 8])
def test_resumed_file_equals_an_undisturbed_one(tmp_path, killed, torn):
  undisturbed, path = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
  log(undisturbed, range(1, 11))
  log(path, range(1, killed + 1))
  with path.open("a") as file:
    file.write(torn)
  assert len(read_jsonl(path)) == killed
  log(path, range(5, 11), resume_step=4)
  assert path.read_bytes() == undisturbed.read_bytes()
  assert sorted(tmp_path.iterdir()) == [undisturbed, path]


def test_a_kill_while_lines_are_dropped_loses_nothing(tmp_path, monkeypatch):
  path = tmp_path / "m.jsonl"
  log(path, range(6))
  before = path.read_bytes()

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(tracker.os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    JsonLines(path, resume_step=2)
  assert path.read_bytes() == before


def test_new_run_refuses_lines_of_another(tmp_path):
  path = tmp_path / "m.jsonl"
  log(path, [1])
  with pytest.raises(FileExistsError, match=r"m\.jsonl holds the metrics"):
    JsonLines(path)
  assert len(read_jsonl(path)) == 1


def test_damaged_line_is_named(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  for read in (read_jsonl, lambda p: JsonLines(p, resume_step=1)):
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: 'nonsense"):
      read(path)


@pytest.mark.parametrize(
  ("metrics", "message"),
  [
    ({"loss": np.zeros(2)}, r"'loss' is float64 of shape \(2,\)"),
    ({"note": "text"}, "'note'"),
    ({"step": 1}, "may not be called 'step'"),
  ],
)
def test_refuses_what_is_not_a_number(tmp_path, metrics, message):
  with (
    JsonLines(tmp_path / "m.jsonl") as lines,
    pytest.raises(ValueError, match=message),
  ):
    lines.log(0, metrics)


def test_other_processes_write_nothing(tmp_path):
  log(tmp_path / "m.jsonl", range(3), active=False)
  with make_tracker(["tensorboard"], tmp_path, active=False) as one:
    one.log(0, {"loss": 1.0})
  assert not list(tmp_path.iterdir())


def test_unknown_tracker(tmp_path):
  with pytest.raises(ConfigError, match="'tensorbord'.*mean 'tensorboard'"):
    make_tracker(["tensorbord"], tmp_path)


@pytest.mark.parametrize(
  ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_missing_package_names_the_extra(tmp_path, monkeypatch, name, package):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ModuleNotFoundError, match=rf'install -e "\.\[{name}\]"'):
    make_tracker([name], tmp_path, config={"name": "run"})
  assert not (tmp_path / tracker.METRICS_FILE).exists()


def test_tensorboard(tmp_path):
  pytest.importorskip("tensorboardX", reason="without the extra tensorboard")
  with make_tracker(["tensorboard"], tmp_path) as one:
    one.log(1, {"loss": jnp.float32(2.5), "data/masked": np.nan})
  assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] == 2.5
  (events,) = (tmp_path / "tensorboard").iterdir()
  content = events.read_bytes()
  assert b"loss" in content and np.float32(2.5).tobytes() in content


def test_wandb(tmp_path, monkeypatch):
  calls = []

  class Run:
    id = "abc"

    def define_metric(self, *args, **kwargs):
      calls.append(("define", args, kwargs))

    def log(self, row):
      calls.append(row)

    def finish(self):
      calls.append("finish")

  def init(**kwargs):
    calls.append(kwargs)
    return Run()

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  config = {"name": "demo", "optimizer": {"b1": 0.9}}
  for resume_step in (None, 4):
    with make_tracker(["wandb"], tmp_path, resume_step, config) as one:
      one.log(5, {"loss": jnp.float32(0.5)})
  starts = [c for c in calls if isinstance(c, dict) and "project" in c]
  assert [start["id"] for start in starts] == [None, "abc"]
  assert starts[0]["project"] == "demo"
  assert starts[0]["config"] == {"name": "demo", "optimizer.b1": 0.9}
  assert calls.count({"step": 5, "loss": 0.5}) == calls.count("finish") == 2
