"""The loop end to end: golden metrics, kill and resume, bad input."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aced import config as config_lib
from aced.config import ConfigError
from aced.evaluation.evaluators import Retrieval
from aced.models import params as params_lib
from aced.models import saved as saved_lib
from aced.train import train
from aced.training.step import TrainStep
from aced.training.tracker import METRICS_FILE, read_jsonl
from aced.training.watch import Diverged
from aced.training.workdir import WorkdirError
from tests import xla
from tests.config_test import load


def smoke(repository, name="acid", variant="", **changes):
  """A smoke config without evaluations, with `section__key` changes."""
  arg = ",".join(filter(None, (variant, "smoke")))
  config = config_lib.to_plain(load(repository, name).get_config(arg))
  config["evals"] = {}
  config["checkpoint"]["best"] = ""
  config["log"] |= {
    "every_steps": 1,
    "progress": False,
    "report": False,
    "page": False,
  }
  config["checkpoint"]["every_steps"] = 100
  for key, value in changes.items():
    section, _, field = key.rpartition("__")
    (config[section] if section else config)[field] = value
  return config


def params_of(workdir):
  return params_lib.flatten(params_lib.load(workdir))


def assert_same_params(a, b):
  a, b = params_of(a), params_of(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_one_run_with_evaluations_writes_what_it_says(repository, tmp_path):
  config = load(repository, "aced").get_config("smoke")
  config.log.progress = False
  scores = train(config, tmp_path)
  assert {"eval/zero_shot/accuracy", "eval/retrieval/mean/R@1"} <= set(scores)
  lines = read_jsonl(tmp_path / METRICS_FILE)
  last = {k: v for line in lines for k, v in line.items() if line["step"] == 12}
  assert last["eval/retrieval/mean/R@1"] == scores["eval/retrieval/mean/R@1"]
  assert {"loss", "data/clean_kept", "curation/kept_score"} <= set(last)
  assert saved_lib.find_checkpoint(f"{tmp_path}@best")[1] == 12
  again = train(config, tmp_path)  # Nothing left to do but evaluate.
  assert again == pytest.approx(scores)


def test_golden_metrics(repository, tmp_path):
  """Any change of these numbers is a change of the algorithm; say it."""
  train(smoke(repository, total_steps=3), tmp_path)
  losses = [line["loss"] for line in read_jsonl(tmp_path / METRICS_FILE)]
  # Three steps in float32; platforms differ in the last digits.
  np.testing.assert_allclose(losses, GOLDEN, rtol=2e-4)


GOLDEN = [5.696855, 4.782978, 4.812822]


def test_a_loss_that_turns_nan_stops_and_keeps_what_was_good(
  repository, tmp_path, monkeypatch
):
  take = TrainStep.__call__

  def spoilt(self, state, frozen, batch):
    after, metrics = take(self, state, frozen, batch)
    nan = jnp.where(state.step == 5, jnp.nan, 0.0)
    metrics["loss/contrastive"] += nan
    params = jax.tree.map(lambda x: x + nan, after.params)
    return after.replace(params=params), metrics

  monkeypatch.setattr(TrainStep, "__call__", spoilt)
  config = smoke(repository, "iid", checkpoint__every_steps=2)
  with pytest.raises(Diverged, match=r"step 6 is not finite: loss/contrastive"):
    train(config, tmp_path)
  steps = [line["step"] for line in read_jsonl(tmp_path / METRICS_FILE)]
  assert steps == [1, 2, 3, 4, 5]
  # Step 6 was due to be saved, and was not.
  assert saved_lib.find_checkpoint(str(tmp_path))[1] == 4
  for leaf in jax.tree.leaves(params_lib.load(tmp_path)):
    assert np.isfinite(leaf).all()


def spoil(monkeypatch, spoilt):
  """Makes the loss of some steps, counted from 0, not a number."""
  take, losses, at = TrainStep.__call__, TrainStep.losses, []

  def called(self, state, frozen, batch):
    at[:] = [state.step]
    return take(self, state, frozen, batch)

  def changed(self, *args):
    loss, parts = losses(self, *args)
    loss = jnp.where(jnp.isin(at[0], jnp.array(spoilt)), jnp.nan, loss)
    return loss, parts | {"loss": loss}

  monkeypatch.setattr(TrainStep, "__call__", called)
  monkeypatch.setattr(TrainStep, "losses", changed)


def test_steps_that_are_not_finite_change_nothing(
  repository, tmp_path, monkeypatch
):
  config = smoke(repository, "iid", total_steps=6, checkpoint__every_steps=1)
  config["checkpoint"]["keep_last"] = 9
  spoil(monkeypatch, [3, 4])
  train(config, tmp_path)
  lines = read_jsonl(tmp_path / METRICS_FILE)
  assert [line["guard/skipped"] for line in lines] == [0, 0, 0, 1, 2, 2]
  assert [math.isnan(line["loss"]) for line in lines[2:]] == [
    *(False, True, True, False)
  ]
  assert_same_params(f"{tmp_path}@3", f"{tmp_path}@5")
  before, after = (params_of(f"{tmp_path}@{step}") for step in (5, 6))
  assert any((before[name] != after[name]).any() for name in before)


def test_too_many_in_a_row_end_the_run_and_keep_the_state(
  repository, tmp_path, monkeypatch
):
  config = smoke(repository, "iid", checkpoint__every_steps=2)
  config["guards"] = {"skip_limit": 2}
  spoil(monkeypatch, range(5, 99))
  with pytest.raises(Diverged, match="step 8 .*3rd in a row") as error:
    train(config, tmp_path)
  assert error.value.good
  # What was good has not been pushed out by what came of it.
  steps = saved_lib.saved_steps(tmp_path / saved_lib.CHECKPOINTS)
  assert steps == [4, 6, steps[-1]] and steps[-1] >= 8
  for leaf in jax.tree.leaves(params_lib.load(tmp_path)):
    assert np.isfinite(leaf).all()


def test_an_evaluator_that_fails_does_not_end_training(
  repository, tmp_path, monkeypatch, caplog
):
  def fails(self, embed_image, embed_text):
    raise OSError("the disk is gone")

  monkeypatch.setattr(Retrieval, "run", fails)
  config = config_lib.to_plain(load(repository, "iid").get_config("smoke"))
  config["total_steps"] = 3
  config["log"] |= {"progress": False, "report": False}
  with caplog.at_level("WARNING", logger="absl"):
    scores = train(config, tmp_path)
  assert scores["eval/retrieval/failed"] == 1.0
  assert "eval/zero_shot/accuracy" in scores
  assert "evaluator retrieval failed at step 3" in caplog.text
  assert saved_lib.find_checkpoint(str(tmp_path))[1] == 3


def test_a_workdir_of_another_run_is_refused_and_left_alone(
  repository, tmp_path
):
  train(smoke(repository, "iid", total_steps=3), tmp_path)
  before = (tmp_path / METRICS_FILE).read_bytes()
  with pytest.raises(WorkdirError, match="batch_size: 16 -> 8"):
    train(smoke(repository, "iid", total_steps=3, batch_size=8), tmp_path)
  assert (tmp_path / METRICS_FILE).read_bytes() == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 12, "curation__num_chunks": 4}, "batch_size=12 does not"),
    ({"batch_size": 88, "curation__num_chunks": 4}, "larger than the data set"),
    (
      {"input__source": "jsonl:/nowhere/x.jsonl"},
      "there is no file /nowhere/x",
    ),
    ({"input__source": "synthetic:trian"}, "Did you mean 'train'"),
    ({"input__image_size": 40}, "does not divide into patches"),
    ({"input__tokenizer": "byte"}, "byte"),
    ({"mesh__data": 3}, "does not fit 8 devices"),
    ({"checkpoint__every_epochs": 1.0}, "checkpoint.every_steps, checkpoint"),
    ({"seed": -1}, "seed=-1"),
    ({"scoring__resolution": 13}, "scoring.resolution=13 with patches of"),
    ({"scoring__patch_size": 5}, r"patches of \(5, 5\) pixels"),
    ({"curation__kernel": "pallas"}, "Use curation.kernel='xla'"),
    ({"accumulation__microbatch": 12}, "microbatch=12 does not divide"),
    ({"curation__scope": "per_device"}, "scope='per_device' draws an equal"),
  ],
)
def test_what_is_wrong_is_told_before_anything_is_made(
  repository, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    train(smoke(repository, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_frozen_models_need_weights(repository, tmp_path):
  config = smoke(repository)
  config["frozen"]["reference"]["init"] = ""
  with pytest.raises(ConfigError, match="frozen.reference.init is empty"):
    train(config, tmp_path)
  config["frozen"]["reference"]["init"] = str(tmp_path / "none")
  with pytest.raises(FileNotFoundError, match="no weights at"):
    train(config, tmp_path)


def test_a_reference_of_another_shape_is_refused_by_name(repository, tmp_path):
  train(smoke(repository, "iid", total_steps=3), tmp_path / "other")
  config = smoke(repository)
  config["frozen"]["reference"]["init"] = str(tmp_path / "other")
  with pytest.raises(
    ValueError, match=r"img/MAPHead_0/probe \(1, 1, 32\), expected"
  ):
    train(config, tmp_path / "run")


def command(repository, *args, module="aced.train"):
  """Runs a command on one device; returns its exit status and its errors."""
  done = subprocess.run(
    [sys.executable, "-m", module, *args],
    capture_output=True,
    text=True,
    cwd=repository,
    env=os.environ | {"XLA_FLAGS": xla.QUICK},
  )
  return done.returncode, done.stderr


def test_the_command_trains_and_reports(repository, tmp_path):
  code, text = command(
    repository,
    "--config=configs/aced.py:smoke",
    f"--workdir={tmp_path}",
    "--config.total_steps=4",
    "--config.log.every_steps=2",
  )
  assert code == 0, text
  for part in (
    "* curation.filter_ratio",
    "parameters",
    "super-batch B = 80",
    "memory per device",
    "times an IID step",
    "step 4/4",
    "data: waited for",
  ):
    assert part in text, part
  assert [x["step"] for x in read_jsonl(tmp_path / METRICS_FILE)][:1] == [2]


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.curation.filter_ration=0.5", "filter_rati"),
    ("--config.curation.filter_ratio=0.7", "not a whole number"),
    ("--config.batch_size=x", "batch_size"),
  ],
)
def test_the_command_names_what_is_wrong(repository, tmp_path, flag, message):
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    f"--workdir={tmp_path}/w",
    flag,
  )
  assert code != 0
  assert message in text
  assert not pathlib.Path(tmp_path, "w").exists()


def write_pairs(folder, count, broken):
  """A JSONL file of coloured pictures, `broken` of them cut short."""
  folder.mkdir()
  lines = []
  for k in range(count):
    pixels = np.full((40, 40, 3), (k * 37 % 256, k * 91 % 256, 128), np.uint8)
    Image.fromarray(pixels).save(folder / f"{k}.png")
    if k in broken:
      data = (folder / f"{k}.png").read_bytes()
      (folder / f"{k}.png").write_bytes(data[: len(data) // 2])
    lines.append({"image": f"{k}.png", "text": f"colour number {k}"})
  lines[5]["text"] = ""
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def test_records_that_cannot_be_read_are_masked_counted_and_named(
  repository, tmp_path, caplog
):
  path = write_pairs(tmp_path / "data", 80, broken=range(10, 22))
  config = smoke(
    repository, total_steps=3, input__source=str(path), input__num_workers=1
  )
  with caplog.at_level("WARNING", logger="absl"):
    train(config, tmp_path / "run")
  lines = read_jsonl(tmp_path / "run" / METRICS_FILE)
  for step, line in enumerate(lines, start=1):
    # Every super-batch is one epoch of the 80 records, 13 of them no use.
    assert line["data/masked"] == pytest.approx(13 / 80)
    assert line["data/bad/damaged_image"] == 12 * step
    assert line["data/bad/empty_caption"] == step
    assert line["data/reader_restarts"] == 0
    assert 0 <= line["time/waiting"] <= 1
    assert np.isfinite(line["loss"])
  named = [r.getMessage() for r in caplog.records if "masked" in r.getMessage()]
  assert len(named) == 2  # One line a cause, not one a record.
  assert any("damaged_image" in text and str(path) in text for text in named)


@pytest.mark.slow
def test_fsdp_gives_the_same_losses(repository, tmp_path):
  losses = []
  for fsdp in (1, 4):
    config = smoke(repository, "aced", total_steps=3)
    config["mesh"] = {"data": -1, "fsdp": fsdp}
    train(config, tmp_path / str(fsdp))
    lines = read_jsonl(tmp_path / str(fsdp) / METRICS_FILE)
    losses.append([line["loss"] for line in lines])
  # The same sums in another order.
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_an_evaluator_without_a_source_is_off(repository, tmp_path):
  config = config_lib.to_plain(load(repository, "iid").get_config("smoke"))
  config["total_steps"] = 3
  config["evals"]["zero_shot"]["source"] = ""
  config["log"] |= {"progress": False, "report": False}
  scores = train(config, tmp_path)
  assert not [name for name in scores if "zero_shot" in name]
  assert "eval/retrieval/mean/R@1" in scores
