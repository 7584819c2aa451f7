"""Records that are broken, and readers that die or hang: all are counted.

Without --faults a try of each.
"""

import collections
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
from PIL import Image

from aced.data.parts import record_index
from tests.faults import harness
from tests.faults.harness import Trainer, assert_same_run

pytestmark = pytest.mark.skipif(
  not pathlib.Path("/proc/self/stat").exists(),
  reason="readers are found by /proc, of Linux",
)

STEPS = 24
RECORDS = 400
SUPER_BATCH = 80  # Records of a step.
# Record -> the cause for which it cannot be used; one in a hundred.
BROKEN = {
  17: "damaged_image",
  118: "not_an_image",
  203: "missing_image",
  391: "empty_caption",
}
READERS = 2
# Of these steps or so the records are read before they are needed.
AHEAD = 8


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  """Of a run on pictures in files, some of which are broken."""
  source = write_set(tmp_path_factory.mktemp("pairs"))
  return (
    f"--config.input.source=jsonl:{source}",
    "--config.evals.retrieval.source=",
  )


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
  """A run that nothing but its records disturbs."""
  workdir = tmp_path_factory.mktemp("data") / "whole"
  harness.train(workdir, *flags, READ_BY_PROCESSES)
  return workdir


READ_BY_PROCESSES = f"--config.input.num_workers={READERS}"


def write_set(folder):
  """Writes pairs, some of them broken; returns the file of their lines."""
  rng = np.random.default_rng(0)
  lines = []
  for k in range(RECORDS):
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{k}.jpg")
    caption = f"{k % 7} things of kind {k % 11}"
    lines.append({"image": f"{k}.jpg", "text": caption})
  cut, no_image, missing, empty = BROKEN
  path = folder / f"{cut}.jpg"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  (folder / f"{no_image}.jpg").write_text("<html>404</html>")
  (folder / f"{missing}.jpg").unlink()
  lines[empty]["text"] = "  "
  where = folder / "pairs.jsonl"
  where.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return where


def expected(step):
  """Cause -> how many records of it the steps up to `step` read."""
  read = (record_index(p, RECORDS, seed=0) for p in range(step * SUPER_BATCH))
  return collections.Counter(BROKEN[r] for r in read if r in BROKEN)


def counted(line):
  """The same, by the metrics of a step."""
  prefix = "data/bad/"
  return {
    k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)
  }


def assert_exact(workdir):
  """Every step has counted what it has read, and nothing else."""
  curve = harness.curve(workdir)
  assert sorted(curve) == list(range(1, STEPS + 1))
  for step, line in curve.items():
    assert counted(line) == expected(step), step
    assert line["data/bad_records"] == expected(step).total()
  # In whole epochs there is each of them once, in whatever order.
  epochs = 4
  line = curve[epochs * RECORDS // SUPER_BATCH]
  assert counted(line) == dict.fromkeys(BROKEN.values(), epochs)


def readers(trainer):
  """The processes that read for a trainer, by their numbers."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      # After the name, which may hold anything, come state and parent.
      parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
      command = (path / "cmdline").read_bytes()
    except OSError:  # It has ended meanwhile.
      continue
    if parent == trainer.processes[0].pid and b"spawn_main" in command:
      found.append(int(path.name))
  return sorted(found)


def send_to_reader(trainer, workdir, rng, number, at):
  """Sends a signal to one of the readers after step `at`; returns which."""
  trainer.until(
    lambda: (
      harness.steps_taken(workdir) >= at and len(readers(trainer)) == READERS
    )
  )
  time.sleep(rng.uniform(0, 0.1))
  reader = int(rng.choice(readers(trainer)))
  os.kill(reader, number)
  return reader


def restarts(workdir):
  """How many readers had been started anew by the last step of all."""
  return harness.lines(workdir)[-1]["data/reader_restarts"]


def test_broken_records_are_counted(whole):
  assert_exact(whole)
  assert restarts(whole) == 0


@pytest.mark.slow
@pytest.mark.tries(1, 5)
def test_broken_records_are_counted_by_a_resumed_run(
  whole, workdir, flags, seed
):
  rng = np.random.default_rng(seed)
  with Trainer(workdir, *flags, READ_BY_PROCESSES) as trainer:
    at = int(rng.integers(4, STEPS))
    trainer.until(lambda: harness.steps_taken(workdir) >= at)
    left = readers(trainer)
    trainer.kill()
    trainer.wait()
  assert len(left) == READERS
  assert_ended(left)
  harness.train(workdir, *flags, READ_BY_PROCESSES)
  assert "going on from the checkpoint" in trainer.log()
  assert_exact(workdir)
  assert_same_run(whole, workdir)


def assert_ended(processes, seconds=30):
  """Processes end by themselves, whose parent is no more."""
  end = time.monotonic() + seconds
  while any(map(runs, processes)):
    assert time.monotonic() < end, f"{processes} are left"
    time.sleep(0.05)


def runs(process):
  try:
    command = pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    return b"spawn_main" in command
  except OSError:
    return False


@pytest.mark.faults
@pytest.mark.tries(1, 5)
def test_readers_are_killed(whole, workdir, flags, seed):
  rng = np.random.default_rng(100 + seed)
  # Each of them after the last one's records have come.
  steps = [k * AHEAD + int(rng.integers(1, 3)) for k in range(STEPS // AHEAD)]
  with Trainer(workdir, *flags, READ_BY_PROCESSES) as trainer:
    for at in steps:
      send_to_reader(trainer, workdir, rng, signal.SIGKILL, at)
    assert trainer.wait() == [0], trainer.log()[-3000:]
  assert_same_run(whole, workdir)
  assert 1 <= restarts(workdir) <= len(steps)
  assert "is masked: reading it" not in trainer.log()


@pytest.mark.faults
@pytest.mark.tries(1, 5)
def test_a_reader_hangs(whole, workdir, flags, seed):
  rng = np.random.default_rng(200 + seed)
  stall = "--config.input.stall_seconds=2"
  with Trainer(workdir, *flags, READ_BY_PROCESSES, stall) as trainer:
    at = int(rng.integers(1, STEPS - AHEAD))
    reader = send_to_reader(trainer, workdir, rng, signal.SIGSTOP, at)
    try:
      trainer.until(lambda: reader not in readers(trainer), seconds=60)
    finally:
      if reader in readers(trainer):
        os.kill(reader, signal.SIGKILL)
    assert trainer.wait() == [0], trainer.log()[-3000:]
  assert_same_run(whole, workdir)
  assert restarts(workdir) >= 1
  assert "it hangs for 2 s" in trainer.log()


def by_two(flags):
  """The flags of two processes with a reader each."""
  return (*flags, f"--config.input.num_workers={READERS // 2}")


@pytest.mark.faults
def test_broken_records_of_all_processes_are_counted(whole, workdir, flags):
  harness.train(workdir, *by_two(flags), processes=2)
  assert_exact(workdir)


@pytest.mark.faults
@pytest.mark.tries(1, 5)
def test_broken_records_of_all_processes_are_counted_by_a_resumed_run(
  whole, workdir, flags, seed
):
  rng = np.random.default_rng(300 + seed)
  with Trainer(workdir, *by_two(flags), processes=2) as trainer:
    at = int(rng.integers(4, STEPS))
    trainer.until(lambda: harness.steps_taken(workdir) >= at)
    for k in range(2):
      trainer.kill(k)
    trainer.wait()
  harness.train(workdir, *by_two(flags), processes=2)
  assert_exact(workdir)
