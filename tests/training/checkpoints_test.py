"""Checkpoints: saved whole, restored exactly, refused where they do not fit."""

import time

import jax
import numpy as np
import pytest

from aced import files
from aced.models import params as params_lib
from aced.models import saved as saved_lib
from aced.training import checkpoints as checkpoints_lib
from aced.training.checkpoints import (
  FOLDER,
  Checkpoints,
  NotSaved,
)
from aced.training.retention import DAMAGED, CheckpointError
from tests.training.step_test import METHODS
from tests.training.toy import Setup


def steps(workdir):
  """What a folder of checkpoints holds, all of which is to be whole."""
  folder = workdir / FOLDER
  found = sorted(int(p.name) for p in folder.iterdir() if p.is_dir())
  assert [files.damage(folder / str(step)) for step in found] == [None] * len(
    found
  )
  return found


def stepped(state, step):
  return state.replace(step=jax.numpy.int32(step))


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_round_trip_with_shardings(tmp_path):
  state, _ = Setup(METHODS["iid"]).run(2)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(state, {"config": {"a": 1}, "position": 32})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 2
    like = Setup(METHODS["iid"]).init(seed=7)
    restored = checkpoints.restore(2, like)
    assert_same(restored, state)
    assert checkpoints.metadata(2) == {"config": {"a": 1}, "position": 32}
  for got, want in zip(
    jax.tree.leaves(restored), jax.tree.leaves(like), strict=True
  ):
    assert got.sharding == want.sharding


def test_on_another_number_of_devices(tmp_path):
  state, _ = Setup(METHODS["iid"], devices=8).run(1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {})
    checkpoints.wait()
    like = Setup(METHODS["iid"], devices=1).init()
    assert_same(checkpoints.restore(1, like), state)


def test_the_last_and_the_best_are_kept(tmp_path):
  state = Setup(METHODS["iid"]).init()
  with Checkpoints(tmp_path, keep_last=1, best="R@1") as checkpoints:
    for step, value in ((1, 0.2), (2, 0.9), (3, 0.4), (4, 0.5)):
      checkpoints.score(step, {"R@1": value, "loss": 9.0})
      checkpoints.save(stepped(state, step), {})
    checkpoints.save(stepped(state, 5), {})
  assert steps(tmp_path) == [2, 5]
  assert saved_lib.find_checkpoint(f"{tmp_path}@best")[1] == 2
  loaded = params_lib.load(tmp_path)
  assert_same(loaded, jax.device_get(state.params))


def test_the_best_is_kept_when_a_run_goes_on(tmp_path):
  state = Setup(METHODS["iid"]).init()
  for scores in (((1, 0.2), (2, 0.9), (3, 0.4)), ((4, 0.5), (5, 0.3))):
    with Checkpoints(tmp_path, keep_last=1, best="R@1") as checkpoints:
      for step, value in scores:
        checkpoints.score(step, {"R@1": value})
        checkpoints.save(stepped(state, step), {})
  assert steps(tmp_path) == [2, 5]
  # Best by another metric from now on: nothing is known by it yet.
  with Checkpoints(tmp_path, keep_last=1, best="accuracy") as checkpoints:
    checkpoints.score(6, {"accuracy": 0.1})
    checkpoints.save(stepped(state, 6), {})
    checkpoints.save(stepped(state, 7), {})
  assert steps(tmp_path) == [6, 7]
  assert saved_lib.find_checkpoint(f"{tmp_path}@best")[1] == 6


def test_every_so_many_steps_one_is_kept(tmp_path):
  state = Setup(METHODS["iid"]).init()
  with Checkpoints(tmp_path, keep_last=2, keep_every=4) as checkpoints:
    for step in range(2, 16, 2):
      checkpoints.save(stepped(state, step), {})
  assert steps(tmp_path) == [4, 8, 12, 14]


def test_a_checkpoint_of_other_shapes_lists_what_differs(tmp_path):
  setup = Setup(METHODS["iid"])
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(stepped(setup.init(), 1), {})
    checkpoints.wait()
    setup.model = setup.model.clone(width=5)
    with pytest.raises(
      CheckpointError, match=r"params/img/kernel \(48, 6\)"
    ) as e:
      checkpoints.restore(1, setup.init())
  assert "of another shape" in str(e.value)


def test_other_frozen_weights_are_refused(tmp_path):
  state = stepped(Setup(METHODS["iid"]).init(), 1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {"identities": {"frozen.reference": "abc"}})
    checkpoints.wait()
    checkpoints.restore(1, state, {"frozen.reference": "abc"})
    with pytest.raises(CheckpointError, match="frozen.reference is now xyz"):
      checkpoints.restore(1, state, {"frozen.reference": "xyz"})
    with pytest.raises(CheckpointError, match="was trained with abc"):
      checkpoints.restore(1, state, {})


@pytest.fixture
def saved(tmp_path):
  """A workdir with checkpoints of steps 1 and 2, and the state of each."""
  setup = Setup(METHODS["iid"])
  states = [setup.run(n)[0] for n in (1, 2)]
  with Checkpoints(tmp_path, keep_last=2) as checkpoints:
    for n, state in enumerate(states, start=1):
      checkpoints.save(state, {"step": n})
  return tmp_path, states


def reopened(workdir):
  """The step that a run would go on from, and its state."""
  with Checkpoints(workdir) as checkpoints:
    step = checkpoints.latest()
    like = Setup(METHODS["iid"]).init(seed=7)
    return step, step and checkpoints.restore(step, like)


def spoil(rng, folder):
  """Cuts, loses or alters one file of a checkpoint; says what was done."""
  paths = sorted(p for p in folder.rglob("*") if p.is_file())
  path = paths[rng.integers(len(paths))]
  data, kind = bytearray(path.read_bytes()), rng.integers(3)
  if kind == 0 or not data:
    path.unlink()
  elif kind == 1:
    path.write_bytes(data[: rng.integers(len(data))])
  else:
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
  return f"{('lost', 'cut', 'altered')[kind]} {path.relative_to(folder)}"


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_checkpoint_is_passed_over(saved, seed, caplog):
  workdir, states = saved
  what = spoil(np.random.default_rng(seed), workdir / FOLDER / "2")
  with caplog.at_level("WARNING", logger="absl"):
    step, state = reopened(workdir)
  # What bytes of JSON do not change the meaning of may be altered.
  assert step == 1 or not caplog.records, what
  assert_same(state, states[step - 1])
  if step == 1:
    assert "the checkpoint of step 2 is passed over" in caplog.text
    assert (workdir / FOLDER / f"{DAMAGED}2").is_dir()
    with Checkpoints(workdir, keep_last=2) as checkpoints:
      checkpoints.save(states[1], {"step": 2})
    assert_same(reopened(workdir)[1], states[1])


def test_all_unfinished_is_a_new_start(saved):
  workdir, _ = saved
  for step in (1, 2):
    (workdir / FOLDER / str(step) / files.MANIFEST).unlink()
  assert reopened(workdir) == (None, None)


def test_all_damaged_is_told_and_nothing_is_lost(saved):
  workdir, _ = saved
  for step in (1, 2):
    (workdir / FOLDER / str(step) / "metadata" / "metadata").write_text("{}")
  with pytest.raises(CheckpointError, match=r"is whole \(step 2: .*; step 1: "):
    reopened(workdir)
  for step in (1, 2):
    assert (workdir / FOLDER / f"{DAMAGED}{step}" / files.MANIFEST).exists()


def test_what_cannot_be_read_is_no_damage(saved, monkeypatch):
  workdir, _ = saved

  def unreadable(file, algorithm):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(files.hashlib, "file_digest", unreadable)
  with pytest.raises(PermissionError):
    reopened(workdir)
  monkeypatch.undo()
  assert reopened(workdir)[0] == 2


def test_folders_of_other_names_are_left_alone(saved):
  workdir, _ = saved
  for name in ("\u00b2", "007", "old"):
    (workdir / FOLDER / name).mkdir()
  assert reopened(workdir)[0] == 2


def test_a_score_that_is_no_number_is_not_the_best(saved):
  workdir, _ = saved
  with Checkpoints(workdir, keep_last=2, best="R@1") as checkpoints:
    checkpoints.score(1, {"R@1": 0.5})
    checkpoints.score(2, {"R@1": float("nan")})
  assert saved_lib.find_checkpoint(f"{workdir}@best")[1] == 1
  (workdir / FOLDER / saved_lib.SCORES).write_text("[]")
  with Checkpoints(workdir, keep_last=2, best="R@1") as checkpoints:
    checkpoints.score(2, {"R@1": 0.1})
  assert saved_lib.find_checkpoint(f"{workdir}@best")[1] == 2


def test_weights_of_a_damaged_checkpoint_are_refused(saved):
  workdir, states = saved
  data = next((workdir / FOLDER / "2" / "state").rglob("d/*"))
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  with pytest.raises(
    params_lib.ParamsError, match=r"step 2 .* is damaged: state/.*there are 1"
  ):
    params_lib.load(workdir)
  assert_same(params_lib.load(f"{workdir}@1"), jax.device_get(states[0].params))


class Full:
  """Stands in for a disk: saving fails while it is full."""

  def __init__(self, monkeypatch):
    self.full = False
    seal = files.seal
    monkeypatch.setattr(files, "seal", lambda path: self.check() or seal(path))

  def check(self):
    if self.full:
      raise OSError(28, "No space left on device")


def test_a_save_that_fails_leaves_the_last_and_the_next_goes_well(
  tmp_path, monkeypatch, caplog
):
  disk = Full(monkeypatch)
  state = Setup(METHODS["iid"]).init()
  with (
    Checkpoints(tmp_path) as checkpoints,
    caplog.at_level("WARNING", logger="absl"),
  ):
    checkpoints.save(stepped(state, 1), {})
    checkpoints.wait()
    disk.full = True
    checkpoints.save(stepped(state, 2), {})
    checkpoints.wait()
    assert checkpoints.latest() == 1 and steps(tmp_path) == [1]
    assert "No space left on device" in caplog.text
    assert "step 1 is kept" in caplog.text
    disk.full = False
    checkpoints.save(stepped(state, 2), {})
    checkpoints.wait()
    assert checkpoints.latest() == 2 and steps(tmp_path) == [2]
    assert checkpoints.summary(1.0).endswith("; 1 could not be saved")


def test_a_folder_that_is_gone_is_not_the_end(tmp_path):
  state = Setup(METHODS["iid"]).init()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(stepped(state, 1), {})
    checkpoints.wait()
    folder = checkpoints.folder
    folder.rename(tmp_path / "aside")
    folder.write_text("in the way")
    checkpoints.save(stepped(state, 2), {})
    checkpoints.wait()
    assert checkpoints.latest() == 1 and checkpoints.failed == 1
    folder.unlink()
    (tmp_path / "aside").rename(folder)
    checkpoints.save(stepped(state, 3), {})
    checkpoints.wait()
    assert steps(tmp_path) == [3]


def test_the_last_one_is_tried_until_it_is_saved(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints_lib, "time", Clock())
  disk = Full(monkeypatch)
  state = Setup(METHODS["iid"]).init()
  with Checkpoints(tmp_path) as checkpoints:
    disk.full = True
    with pytest.raises(NotSaved, match=r"step 4 .* in 4 tries .*No space"):
      checkpoints.save_now(stepped(state, 4), {}, seconds=12)
    tries = checkpoints.failed
    assert tries == 4  # At 0, 5, 10 and 12 seconds.
    monkeypatch.setattr(
      disk, "check", lambda: third(checkpoints.failed - tries)
    )
    checkpoints.save_now(stepped(state, 4), {}, seconds=60)
    assert checkpoints.latest() == 4


class Clock:
  """A clock that only sleep moves, so that a slow machine changes nothing."""

  perf_counter = staticmethod(time.perf_counter)

  def __init__(self):
    self.now = 0.0

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds


def third(tries):
  """A disk that has room from the third try on."""
  if tries < 2:
    raise OSError(28, "No space left on device")


def test_leftovers_of_a_killed_save_are_removed(saved):
  workdir, _ = saved
  part = workdir / FOLDER / "3.orbax-checkpoint-tmp"
  part.mkdir()
  (part / "x").write_text("half")
  assert reopened(workdir)[0] == 2
  assert not part.exists()
