"""A workdir belongs to one run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from aced import config as config_lib
from aced import files
from aced.train import train
from aced.training import workdir
from aced.training.workdir import WorkdirError
from tests.config_test import curated


def config(**changes):
  return config_lib.resolve({"batch_size": 8, "total_steps": 3, **changes})


def begun(where, config, *, saved=True):
  """Claims a workdir for a run, which has saved its first step or has not."""
  workdir.claim(where, config)
  if saved:
    folder = where / "checkpoints" / "3"
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"arrays")
    files.seal(folder)


def test_claimed_once_and_found_again(tmp_path):
  assert workdir.claim(tmp_path / "new", config()) == []
  assert workdir.claim(tmp_path / "new", config()) == []
  written = json.loads((tmp_path / "new" / workdir.FILE).read_text())
  assert written["batch_size"] == 8


def test_another_run_is_refused_and_the_keys_are_named(tmp_path):
  begun(tmp_path, config())
  before = (tmp_path / workdir.FILE).read_bytes()
  with pytest.raises(workdir.WorkdirError, match="batch_size: 8 -> 16"):
    workdir.claim(tmp_path, config(batch_size=16))
  with pytest.raises(workdir.WorkdirError, match="seed: 0 -> 1"):
    workdir.claim(tmp_path, config(seed=1))
  assert (tmp_path / workdir.FILE).read_bytes() == before


def test_a_run_that_saved_nothing_is_begun_anew(tmp_path, caplog):
  begun(tmp_path, config(seed=7), saved=False)
  for name in ("picks/00000001.npz", "checkpoints/3/state"):  # Not sealed.
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"of the first")
  (tmp_path / "metrics.jsonl").write_text("metrics of the first")
  changed = workdir.claim(tmp_path, config(seed=8, batch_size=16))
  assert changed == ["batch_size: 8 -> 16", "seed: 7 -> 8"]
  assert "no checkpoint of the run that was begun there" in caplog.text
  assert not (tmp_path / "picks").exists()
  assert not (tmp_path / "checkpoints").exists()
  assert not (tmp_path / "metrics.jsonl").exists()
  kept = tmp_path / "before-1"
  assert (kept / "metrics.jsonl").read_text() == "metrics of the first"
  assert (kept / "checkpoints/3/state").read_bytes() == b"of the first"
  assert str(kept) in caplog.text
  written = json.loads((tmp_path / workdir.FILE).read_text())
  assert (written["seed"], written["batch_size"]) == (8, 16)
  assert workdir.claim(tmp_path, config(seed=8, batch_size=16)) == []
  (tmp_path / "metrics.jsonl").write_text("metrics of the second")
  workdir.claim(tmp_path, config(seed=9))
  second = tmp_path / "before-2" / "metrics.jsonl"
  assert second.read_text() == "metrics of the second"


def test_a_damaged_checkpoint_is_one_that_was_saved(tmp_path):
  begun(tmp_path, config())
  (tmp_path / "checkpoints" / "3").rename(tmp_path / "checkpoints/damaged-3")
  with pytest.raises(WorkdirError, match="seed: 0 -> 1"):
    workdir.claim(tmp_path, config(seed=1))


def test_a_longer_run_is_told_how_to_go_on_from_an_old_one(tmp_path):
  begun(tmp_path, config())
  with pytest.raises(WorkdirError, match=r"total_steps: 3 -> 6") as error:
    workdir.claim(tmp_path, config(total_steps=6))
  assert f"--config.student.init={tmp_path}" in str(error.value)
  with pytest.raises(WorkdirError, match="seed: 0 -> 1") as error:
    workdir.claim(tmp_path, config(seed=1))
  assert "student.init" not in str(error.value)


def test_a_run_begun_with_other_defaults_of_a_decoder_goes_on(tmp_path):
  begun(tmp_path, config())
  path = tmp_path / workdir.FILE
  old = json.loads(path.read_text()) | {"decoder.tasks": ["caption", "vqa"]}
  path.write_text(json.dumps(old))
  assert workdir.claim(tmp_path, config()) == []
  path.write_text(json.dumps(old | {"decoder.model.width": 32}))
  with pytest.raises(WorkdirError, match="decoder.model.width: 32 ->"):
    workdir.claim(tmp_path, config())


def test_a_constant_schedule_can_be_made_longer(tmp_path):
  constant = {"decay": "constant", "warmup_steps": 1}
  begun(tmp_path / "constant", config(optimizer=constant))
  longer = config(optimizer=constant, total_steps=6)
  assert workdir.claim(tmp_path / "constant", longer) == ["total_steps: 3 -> 6"]
  share = {"decay": "constant", "warmup_percent": 40.0}
  begun(tmp_path / "share", config(optimizer=share))
  with pytest.raises(WorkdirError, match="total_steps: 3 -> 6"):
    workdir.claim(tmp_path / "share", config(optimizer=share, total_steps=6))


def test_harmless_changes_are_told(tmp_path):
  workdir.claim(tmp_path, config())
  changed = config(log={"every_steps": 7}, mesh={"data": 8, "fsdp": 1})
  assert workdir.claim(tmp_path, changed) == [
    "log.every_steps: None -> 7",
    "mesh.data: -1 -> 8",
  ]


def test_pieces_are_harmless_unless_something_is_drawn_by_piece(tmp_path):
  pieces = {"accumulation": {"microbatch": 4}}
  workdir.claim(tmp_path / "plain", config())
  assert workdir.claim(tmp_path / "plain", config(**pieces))
  dropout = {"student": {"image": {"dropout": 0.1}}}
  begun(tmp_path / "dropout", config(**dropout))
  with pytest.raises(workdir.WorkdirError, match="accumulation.microbatch"):
    workdir.claim(tmp_path / "dropout", config(**dropout, **pieces))


def test_what_fingerprints_guard_may_move(tmp_path):
  """But a cache in the place of a model is another run, by rounding."""

  def cached(init, cache):
    return config_lib.resolve(
      curated(frozen={"reference": {"init": init, "cache": cache}})
    )

  begun(tmp_path, cached("", "a"))
  moved = workdir.claim(tmp_path, cached("", "b"))
  assert moved == ["frozen.reference.cache: a -> b"]
  with pytest.raises(
    workdir.WorkdirError, match="frozen.reference.cache: a ->"
  ):
    workdir.claim(tmp_path, cached("weights.npz", ""))


@pytest.mark.parametrize("name", workdir.FOREIGN)
def test_what_another_program_left_is_not_taken_over(tmp_path, name):
  (tmp_path / name).write_text("precious")
  with pytest.raises(workdir.WorkdirError, match=f"holds {name} but no config"):
    workdir.claim(tmp_path, config())
  assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("name", ["a[0]", "b*", "c?"])
def test_a_name_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
  with pytest.raises(WorkdirError, match=r"has one of \* \? \[ \] in it"):
    train({"batch_size": 8, "total_steps": 3}, tmp_path / name / "run")
  assert not (tmp_path / name).exists()


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_bucket_is_to_be_mounted(kind):
  with pytest.raises(WorkdirError, match="bucket/run: a bucket is not written"):
    train({"batch_size": 8, "total_steps": 3}, kind("gs://bucket/run"))


def test_home_is_known(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert workdir.checked("~/run") == tmp_path / "run"


def test_a_damaged_config_is_named(tmp_path):
  workdir.claim(tmp_path, config())
  (tmp_path / workdir.FILE).write_text("{")
  with pytest.raises(
    WorkdirError, match=r"config\.json, which says .* damaged"
  ):
    workdir.claim(tmp_path, config())


def test_two_runs_do_not_share_a_workdir(tmp_path, caplog):
  assert workdir.in_use(tmp_path) == workdir.in_use(tmp_path / "none") == ""
  program = (
    "import sys, time\n"
    "from aced.training import workdir\n"
    "with workdir.held(sys.argv[1]):\n"
    "  print('held', flush=True)\n"
    "  time.sleep(60)\n"
  )
  command = [sys.executable, "-c", program, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
    assert other.stdout.readline() == b"held\n"
    assert f"process {other.pid} on" in workdir.in_use(tmp_path)
    with (
      pytest.raises(WorkdirError, match=f"in use by process {other.pid} on"),
      workdir.held(tmp_path, seconds=0.1),
    ):
      pass
    # It is said before it is waited for.
    said = f"in use by process {other.pid} on"
    (told,) = [r for r in caplog.records if said in r.getMessage()]
    assert "0.1 s at most" in told.getMessage()
    other.kill()
  # The lock of a process that was killed is nobody's.
  with workdir.held(tmp_path, seconds=10):
    assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
