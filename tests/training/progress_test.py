"""What is shown, by a clock that the test turns."""

import io

import pytest

from aced.training.progress import Progress


class Clock:
  """Seconds that pass only when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def run(progress, clock, steps, seconds, metrics=None):
  for step in steps:
    clock.now += seconds
    progress.update(step, metrics)


@pytest.fixture
def clock():
  return Clock()


def test_speed_leaves_out_compilation_and_pauses(clock):
  progress = Progress(1000, enabled=False, clock=clock)
  clock.now += 60  # Compiles.
  progress.update(1)
  assert progress.steps_per_second is None
  run(progress, clock, range(2, 6), 0.5)
  assert progress.steps_per_second == pytest.approx(2.0)
  with progress.paused("evaluating"):
    clock.now += 1000
  run(progress, clock, range(6, 9), 0.5)
  assert progress.steps_per_second == pytest.approx(2.0)


def test_speed_is_a_moving_average(clock):
  progress = Progress(1000, enabled=False, clock=clock)
  run(progress, clock, range(1, 300), 1.0)
  run(progress, clock, range(300, 600), 0.25)
  # Of the older, slower steps exp(-300 / 30) is left.
  assert progress.steps_per_second == pytest.approx(4.0, rel=1e-3)


def test_lines_where_there_is_no_terminal(clock):
  file = io.StringIO()
  metrics = {"loss": 1.5, "data/clean_kept": 0.812, "other": object()}
  with Progress(
    2000, 1000, "demo", batch_size=64, file=file, clock=clock
  ) as progress:
    run(progress, clock, range(1001, 1026), 1.0, metrics)
    run(progress, clock, [2000], 1.0, metrics)
  lines = file.getvalue().splitlines()
  assert lines[0] == (
    "demo: step 1,010/2,000 (50%), 64 examples/s, 16:30 left, loss 1.500,"
    " clean 81%"
  )
  assert [line.split()[2] for line in lines] == [
    "1,010/2,000",
    "1,020/2,000",
    "2,000/2,000",
  ]
  assert "took 00:26" in lines[-1] and "left" not in lines[-1]
  assert "\r" not in file.getvalue()


def test_metrics_are_read_only_when_shown(clock):
  class Loss:
    reads = 0

    def __float__(self):
      Loss.reads += 1
      return 1.0

  progress = Progress(100, file=io.StringIO(), clock=clock)
  run(progress, clock, range(1, 31), 1.0, {"loss": Loss()})
  assert Loss.reads == 3


def test_bar_on_a_terminal(clock):
  file = Terminal()
  with Progress(
    20, 0, "demo", batch_size=8, file=file, clock=clock
  ) as progress:
    run(progress, clock, range(1, 11), 1.0, {"loss": float("nan")})
    shown = file.getvalue().rsplit("\r", 1)[-1]
    assert shown.startswith("demo:  50%|")
    assert "10/20, 8 examples/s, 00:10 left, loss nan" in shown
    with progress.paused("evaluating"):
      assert "10/20" in file.getvalue().rsplit("\r", 1)[-1]
      assert "evaluating" in file.getvalue().rsplit("\r", 1)[-1]
    progress.write("a message")
  assert "a message\n" in file.getvalue()


def test_steps_a_second_without_a_batch_size(clock):
  file = io.StringIO()
  run(Progress(20, file=file, clock=clock), clock, range(1, 21), 0.5)
  assert "step 20/20 (100%), 2.0 steps/s, took" in file.getvalue()


def test_disabled_shows_nothing(clock):
  file = Terminal()
  with Progress(2, enabled=False, file=file, clock=clock) as progress:
    run(progress, clock, [1, 2], 20.0, {"loss": 1.0})
    progress.write("nothing")
  assert file.getvalue() == ""
