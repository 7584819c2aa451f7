"""Our trainer beside big_vision's own, and what curation adds to it."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from aced.bv import compat

pytestmark = [pytest.mark.big_vision, pytest.mark.slow]

SHARED = ("training_loss", "l2_grads", "l2_params", "l2_updates")
OURS = {
  "loss",
  "loss/contrastive",
  "loss/distillation/large",
  "scale/t",
  "scale/b",
  "curation/kept_score",
  "curation/pool_score",
  "curation/pool_spread",
  "curation/effective_sample_size",
  "curation/effective_sample_size_least",
  "data/masked",
  "data/masked_trained",
  "data/clean_pool",
  "data/clean_kept",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository):
  """The folder of all runs, made once, also where pytest is several."""
  try:
    compat.find()
  except ModuleNotFoundError as error:
    pytest.skip(str(error))
  base = tmp_path_factory.getbasetemp()
  shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bv"
  shared.mkdir(exist_ok=True)
  told = shared / "told.json"
  with (shared / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not told.exists():
      # Of its own: what one that was killed has left is no run to go on with.
      folder = tempfile.mkdtemp(dir=shared)
      told.write_text(json.dumps([folder, make(folder, repository)]))
  folder, error = json.loads(told.read_text())
  assert not error, error
  return pathlib.Path(folder)


def make(folder, repository):
  """Trains everything, in another process, which takes minutes.

  Returns:
    The end of what it said, if it failed.
  """
  done = subprocess.run(
    [sys.executable, "-m", "tests.bv.program", folder],
    cwd=repository,
    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    capture_output=True,
    text=True,
  )
  return done.returncode and (done.stderr[-4000:] or str(done.returncode))


def rows(folder):
  """Step -> its metrics, the last row of each.

  Told by the pairs that were seen: big_vision's writer looks up the step only
  when it comes to write, and may then name a later one.
  """
  lines = (folder / "big_vision_metrics.txt").read_text().splitlines()
  return {r.get("examples_seen", 0) // 8: r for r in map(json.loads, lines)}


def results(folder):
  return json.loads((folder / "results.json").read_text())


def test_without_our_keys_it_trains_as_big_vision_does(runs):
  found, want = rows(runs / "ours"), rows(runs / "theirs")
  assert list(found) == list(want) == [1, 2, 3, 4]
  assert [row["step"] for row in found.values()] == [1, 2, 3, 4]
  for step, row in want.items():
    for name in SHARED:
      # On eight devices of a CPU the numbers were the same to the last bit.
      assert found[step][name] == pytest.approx(row[name], rel=1e-6), name
    assert found[step]["global_schedule"] == row["global_schedule"]
  losses = [row["training_loss"] for row in want.values()]
  assert len(set(losses)) == 4


def test_ours_by_name_train_in_both_trainers_alike(runs):
  found, want = rows(runs / "ours_by_name"), rows(runs / "theirs_by_name")
  # Ours tells our towers how rows are split, and big_vision's does not.
  for step, row in want.items():
    for name in SHARED:
      assert found[step][name] == pytest.approx(row[name], rel=1e-5), name
  scores = {k: v for k, v in want[4].items() if k.startswith("scenes/")}
  assert 0 < scores["scenes/mean/R@10"] <= 1
  assert {k: found[4][k] for k in scores} == scores


def test_both_leave_the_same_checkpoints(runs):
  found, want = (
    sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    for folder in (runs / "ours", runs / "theirs")
  )
  assert found == want
  assert "checkpoint.bv-LAST" in found


def test_metrics_of_curation_have_our_names(runs):
  row = rows(runs / "whole")[4]
  assert row.keys() > OURS | set(SHARED)
  assert row["curation/kept_score"] > row["curation/pool_score"]
  # Pairs that are trained on are counted, not those that are loaded.
  assert row["examples_seen"] == 4 * 8
  parts = row["loss/contrastive"] + 0.5 * row["loss/distillation/large"]
  assert row["training_loss"] == pytest.approx(parts, rel=1e-6)


def test_a_killed_run_goes_on_to_the_same_parameters(runs):
  assert results(runs)["same"]
  whole, killed = rows(runs / "whole"), rows(runs / "killed")
  for step in (3, 4):  # The step after the checkpoint was taken twice.
    for name in (*SHARED, "curation/kept_score", "data/clean_kept"):
      assert killed[step][name] == whole[step][name], name


def test_student_and_reference_begin_as_a_checkpoint_of_theirs(runs):
  scores = {
    step: row["curation/pool_score"]
    for step, row in rows(runs / "from_bv").items()
  }
  # Of the same weights, on pictures of another size: nothing is learnable yet,
  # nor after the first step, whose learning rate is 0.
  assert scores[1] == pytest.approx(0, abs=1e-4)
  assert scores[2] == pytest.approx(0, abs=1e-4)
  assert abs(scores[3]) > 1e-3


def test_a_run_of_another_filter_ratio_does_not_go_on(runs):
  said = results(runs)["refused"]
  assert (
    "these keys differ from it:\n  curation.filter_ratio: 0.5 -> 0.75\n"
    in (said)
  )
  kept = json.loads((runs / "whole" / "config.json").read_text())
  assert kept["curation"]["filter_ratio"] == 0.5


def test_the_state_is_that_of_big_vision_and_no_frozen_model_is_saved(runs):
  assert results(runs)["state"] == ["opt", "params"]
  assert results(runs)["sharded"]
  saved = {
    path.name.split("~")[0]
    for path in (runs / "whole" / "checkpoint.bv-000000004").iterdir()
  }
  assert saved == {"params", "opt", "chrono"}
  sizes = [
    json.loads(path.read_text())["shape"]
    for path in (runs / "whole").rglob(".zarray")
  ]
  assert sizes
  assert not any(48 in size for size in sizes)  # The reference's width.


def test_the_last_checkpoint_loads_into_our_model(runs, bv, fields):
  from aced.bv import two_towers
  from aced.models.trees import flatten

  found = flatten(two_towers.load(None, str(runs / "whole" / "checkpoint.bv")))
  assert found["txt/Embed_0/embedding"].shape == (258, 32)
  norm = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in found.values()))
  # Sums of squares in another order.
  want = rows(runs / "whole")[4]["l2_params"]
  assert norm == pytest.approx(want, rel=1e-5)
