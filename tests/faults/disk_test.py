"""A disk that is full or read-only: a run goes on, and loses nothing.

Without --faults a try of each. All of it needs the right to mount.
"""

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest

from aced import files
from tests.faults import harness
from tests.faults.harness import Trainer, assert_same_run

# More than the other runs have: saves fail and come right again on the way.
STEPS = 48
FLAGS = (f"--config.total_steps={STEPS}", "--config.checkpoint.keep_last=1")
EVERY = 3  # Steps between two saves.
# A checkpoint takes 0.55 MB, and the next one is written beside it.
SIZE = "2m"


@pytest.fixture(scope="module")
def mountable(tmp_path_factory):
  """Skips all where a disk cannot be mounted."""
  folder = tmp_path_factory.mktemp("mount")
  try:
    with tmpfs(folder):
      pass
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"a tmpfs cannot be mounted: {error}")


@pytest.fixture(scope="module")
def whole(mountable, tmp_path_factory):
  """A run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("disk") / "whole"
  harness.train(workdir, *FLAGS)
  return workdir


@pytest.fixture
def workdir(whole, request):
  """A workdir beside it, for one try."""
  path = whole.with_name(re.sub(r"\W+", "_", request.node.name))
  path.mkdir()
  yield path
  shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def disk(workdir):
  """A workdir that is a small disk."""
  with tmpfs(workdir):
    yield workdir


@contextlib.contextmanager
def tmpfs(folder):
  """A small disk in the place of a folder."""
  mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder)
  try:
    yield
  finally:
    unmount(folder)


@contextlib.contextmanager
def full(disk):
  """Keeps a disk full: room that somebody gives back is taken at once."""
  ballast, end = disk / "ballast", threading.Event()

  def fill():
    with ballast.open("wb", buffering=0) as file:
      while not end.wait(0.002):
        with contextlib.suppress(OSError):
          while file.write(bytes(4096)):
            pass

  thread = threading.Thread(target=fill)
  thread.start()
  try:
    yield disk / "checkpoints"
  finally:
    end.set()
    thread.join()
    ballast.unlink()


@contextlib.contextmanager
def read_only(workdir):
  """Lets nobody write to the folder of checkpoints, not even root."""
  folder = workdir / "checkpoints"
  mount("--bind", folder, folder)
  try:
    end = time.monotonic() + 30
    while True:
      try:
        mount("-o", "remount,bind,ro", folder)
        break
      except subprocess.CalledProcessError:  # Busy: a save is under way.
        assert time.monotonic() < end
        time.sleep(0.01)
    yield folder
  finally:
    unmount(folder)


@contextlib.contextmanager
def a_file(workdir):
  """Puts a file in the place of the folder of checkpoints."""
  folder, aside = workdir / "checkpoints", workdir / "aside"
  folder.rename(aside)
  folder.touch()
  try:
    yield aside
  finally:
    folder.unlink()
    aside.rename(folder)


def mount(*arguments):
  subprocess.run(["mount", *arguments], check=True, capture_output=True)


def unmount(folder):
  # At once for all who come; those who are still in it may finish.
  subprocess.run(["umount", "--lazy", folder], check=True)


def under_way(trainer, workdir, rng):
  """Waits for a random moment after the first checkpoint."""
  at = int(rng.integers(EVERY + 1, STEPS // 3))
  trainer.until(
    lambda: harness.steps_taken(workdir) >= at and harness.saved(workdir)
  )
  time.sleep(rng.uniform(0, 0.3))


def not_saved(trainer):
  """The steps that could not be saved so far, by the log."""
  return [
    int(step)
    for step in re.findall(r"step (\d+) could not be saved in", trainer.log())
  ]


def assert_kept(folder, steps):
  """The checkpoint from before `steps` failed is the newest, and whole."""
  kept = max(int(p.name) for p in folder.iterdir() if files.is_sealed(p))
  assert kept < steps[0]
  assert files.damage(folder / str(kept)) is None


def assert_nothing_lost(whole, workdir):
  """Nothing shows that anything was the matter."""
  assert_same_run(whole, workdir)
  first, second = (
    [line["step"] for line in harness.lines(w)] for w in (whole, workdir)
  )
  assert first == second
  # Nor does what was given up take room.
  assert os.listdir(workdir / "checkpoints") == [str(STEPS)]


def goes_on(trainer, workdir, rng, trouble):
  """Trains to the end, with a trouble in the middle."""
  under_way(trainer, workdir, rng)
  count = int(rng.integers(2, 5))
  with trouble(workdir) as folder:
    trainer.until(lambda: len(not_saved(trainer)) >= count)
    if trouble is full:
      trainer.until(lambda: "its lines wait" in trainer.log())
    steps = not_saved(trainer)
    assert steps == list(range(steps[0], steps[-1] + 1, EVERY))
    assert_kept(folder, steps)
  assert trainer.processes[0].poll() is None
  failed = not_saved(trainer)[-1]
  trainer.until(lambda: max(harness.saved(workdir), default=0) > failed)
  # What failed must not hold up the end either.
  assert trainer.wait(60) == [0], trainer.log()[-3000:]
  # One save may have begun before the trouble was over.
  assert not_saved(trainer)[-1] <= failed + EVERY


@pytest.mark.slow
@pytest.mark.tries(1, 5)
def test_full_for_a_while(whole, disk, seed):
  with Trainer(disk, *FLAGS) as trainer:
    goes_on(trainer, disk, np.random.default_rng(seed), full)
  assert_nothing_lost(whole, disk)


@pytest.mark.faults
@pytest.mark.tries(1, 5)
@pytest.mark.parametrize(
  "trouble", [read_only, pytest.param(a_file, marks=pytest.mark.faults)]
)
def test_folder_of_checkpoints_is_spoilt_for_a_while(
  whole, workdir, seed, trouble
):
  with Trainer(workdir, *FLAGS) as trainer:
    goes_on(trainer, workdir, np.random.default_rng(100 + seed), trouble)
  assert_nothing_lost(whole, workdir)


@pytest.mark.faults
@pytest.mark.tries(1, 5)
def test_full_to_the_end(whole, disk, seed):
  flags = (*FLAGS, "--config.checkpoint.patience_seconds=2")
  with Trainer(disk, *flags) as trainer:
    under_way(trainer, disk, np.random.default_rng(200 + seed))
    with full(disk) as folder:
      assert trainer.wait() == [1], trainer.log()[-3000:]
      assert_kept(folder, not_saved(trainer))
    told = rf"^NotSaved: step {STEPS} could not be saved in .*Make room"
    assert re.search(told, trainer.log(), re.MULTILINE)
  harness.train(disk, *flags)
  assert_nothing_lost(whole, disk)


SEAL_FAILS = """
import sys
from aced import files
seal, calls = files.seal, []
def fails(folder):
  calls.append(folder)
  if len(calls) == 2:
    raise OSError(28, "No space left on device")
  seal(folder)
files.seal = fails
import runpy
sys.argv[0] = "aced.train"
runpy.run_module("aced.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.faults
def test_a_save_that_fails_on_the_first_of_two_fails_on_both(tmp_path):
  """The first alone seals; the other hears of it, and the next goes well."""
  whole, workdir = tmp_path / "whole", tmp_path / "workdir"
  harness.train(whole, processes=2)
  with Trainer(workdir, processes=2, program=SEAL_FAILS) as trainer:
    assert trainer.wait() == [0, 0], trainer.log()[-3000:]
    for k in range(2):
      assert "step 6 could not be saved in" in trainer.log(k)
  assert harness.saved(workdir)[-1] == harness.saved(whole)[-1]
  assert_same_run(whole, workdir)
