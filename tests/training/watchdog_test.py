"""A run that hangs says where; one that does not is left alone."""

import io
import os
import socket
import sys
import threading

import pytest

from aced.training import watchdog as watchdog_lib
from aced.training.watchdog import Watchdog


class Clock:
  """Seconds that pass when they are told to."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now

  def wait(self, seconds):
    self.now += seconds


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def out():
  return io.StringIO()


@pytest.fixture
def make(clock, out):
  """Returns a maker of watchdogs that are asked to look by hand."""

  def make(beats=4, every=2.0, **options):
    given = {"factor": 10.0, "least_seconds": 5.0, "file": out, "clock": clock}
    made = Watchdog(**given | options)
    for step in range(1, beats + 1):
      clock.wait(every)
      made.beat(step)
    return made

  return make


def look(dog):
  """Looks from a thread of its own, as the watchdog does."""
  found = []
  thread = threading.Thread(target=lambda: found.append(dog.look()))
  thread.start()
  thread.join(10)
  return found == [True]


def test_stacks_are_written_once_when_no_step_ends(make, clock, out):
  dog = make()
  clock.wait(20.0)
  assert not dog.look() and not out.getvalue()
  clock.wait(0.1)
  assert dog.look() and dog.stalls == 1
  clock.wait(1000.0)
  assert not dog.look() and dog.stalls == 1
  first, *lines = out.getvalue().splitlines()
  assert first.startswith(
    f"host {socket.gethostname()}, process {os.getpid()}: step 4 was the last"
    " to end, 20.1 s ago; expected another one within 20.0 s."
  )
  assert lines


def test_steps_that_go_on_are_told_and_a_second_stall_as_well(make, clock, out):
  dog = make()
  clock.wait(30.0)
  dog.look()
  out.truncate(out.seek(0))
  dog.beat(5)
  assert out.getvalue().count("\n") == 1
  assert "steps go on: step 5 came after 30.0 s" in out.getvalue()
  clock.wait(2.0)
  dog.beat(6)
  assert out.getvalue().count("\n") == 1
  assert not dog.look()
  clock.wait(25.0)
  assert dog.look() and dog.stalls == 2


def test_the_stacks_of_all_other_threads_are_there_by_name(make, clock, out):
  ready, end = threading.Event(), threading.Event()

  def stand_here_in_the_test():
    ready.set()
    end.wait(10)

  thread = threading.Thread(target=stand_here_in_the_test, name="a reader")
  thread.start()
  ready.wait(10)
  dog = make()
  clock.wait(30.0)
  try:
    looking = threading.Thread(target=dog.look, name="who looks")
    looking.start()
    looking.join(10)
  finally:
    end.set()
    thread.join(10)
  text = out.getvalue()
  assert f"thread a reader ({thread.ident}):" in text
  assert "in stand_here_in_the_test\n    end.wait(10)" in text
  assert "thread MainThread" in text
  assert "thread who looks" not in text


def test_the_limit_is_the_larger_of_the_two(make, clock):
  dog = make(every=0.1, least_seconds=5.0)
  clock.wait(5.0)
  assert not dog.look()
  clock.wait(0.1)
  assert dog.look()


def test_the_median_is_that_of_the_last_fifty_steps(make, clock):
  dog = make(beats=60, every=1.0)
  for step in range(61, 87):  # 26 of 50 take twice as long.
    clock.wait(2.0)
    dog.beat(step)
  clock.wait(20.0)
  assert not dog.look()
  clock.wait(0.1)
  assert dog.look()


@pytest.mark.parametrize("beats", [0, 1, 3])
def test_first_steps_have_a_longer_time(make, clock, out, beats):
  dog = make(beats=beats, first_seconds=100.0)
  clock.wait(100.0)
  assert not dog.look()
  clock.wait(0.1)
  assert dog.look()
  assert ("no step was the last" in out.getvalue()) == (not beats)


def test_what_comes_before_the_first_step_is_no_step_time(make, clock):
  dog = make(beats=0)
  clock.wait(500.0)  # Compilation.
  for step in range(1, 5):
    dog.beat(step)
    clock.wait(2.0)
  clock.wait(18.1)
  assert dog.look()


def test_evaluation_and_saving_are_left_out(make, clock):
  dog = make(first_seconds=2000.0)
  clock.wait(1.0)
  with dog.paused():
    clock.wait(1000.0)
    assert not dog.look()
    with dog.paused():
      clock.wait(1000.0)
    assert not dog.look()
  assert not dog.look()
  clock.wait(19.0)
  assert not dog.look()
  clock.wait(0.1)
  assert dog.look()
  dog.beat(5)
  assert max(dog._times) == pytest.approx(20.1)


def test_a_pause_without_end_is_a_stall(make, clock, out):
  dog = make(first_seconds=100.0)
  with dog.paused():
    clock.wait(99.0)
    assert not dog.look()
    clock.wait(2.0)
    assert dog.look() and "another one within 100.0 s" in out.getvalue()


def test_a_pause_that_fails_ends_too(make, clock):
  dog = make()
  with pytest.raises(KeyError), dog.paused():
    raise KeyError
  clock.wait(21.0)
  assert dog.look()


def test_stacks_are_appended_to_a_file(make, clock, tmp_path):
  path = tmp_path / "stacks.txt"
  path.write_text("before\n")
  dog = make(path=path)
  for step in (5, 6):
    clock.wait(600.0)
    assert look(dog)
    dog.beat(step)
  text = path.read_text()
  assert text.startswith("before\n")
  assert text.count("was the last to end") == 2
  assert text.count("thread MainThread") == 2


def test_a_file_that_cannot_be_written_is_told_and_changes_nothing(
  make, clock, out, tmp_path
):
  dog = make(path=tmp_path / "not there" / "stacks.txt")
  clock.wait(30.0)
  assert dog.look()
  *_, last = out.getvalue().splitlines()
  assert "stacks cannot be appended to" in last and "No such file" in last
  dog.beat(5)
  clock.wait(30.0)
  assert dog.look()


def test_a_full_disk_is_told(make, clock, out):
  if not os.path.exists("/dev/full"):
    pytest.skip("there is no /dev/full here")
  dog = make(path="/dev/full")
  clock.wait(30.0)
  assert dog.look()
  assert "No space left" in out.getvalue().splitlines()[-1]


def test_an_output_that_is_closed_leaves_the_file(make, clock, tmp_path):
  closed = io.StringIO()
  closed.close()
  path = tmp_path / "stacks.txt"
  dog = make(file=closed, path=path)
  clock.wait(30.0)
  assert look(dog)
  assert "standard error cannot be written" in path.read_text()
  assert "thread MainThread" in path.read_text()


def test_no_output_at_all(make, clock, monkeypatch):
  monkeypatch.setattr(sys, "stderr", None)
  dog = make(file=None)
  clock.wait(30.0)
  assert dog.look()


def test_standard_error_is_the_one_of_that_moment(make, clock, capsys):
  dog = make(file=None)
  clock.wait(30.0)
  dog.look()
  assert "step 4 was the last" in capsys.readouterr().err


def test_its_thread_sees_a_stall_and_ends(out, clock):
  found = threading.Event()

  class Told(io.StringIO):
    def write(self, text):
      found.set()
      return super().write(text)

  file = Told()
  before = threading.active_count()
  short = {"least_seconds": 0.01, "first_seconds": 0.01}
  with Watchdog(**short, file=file, clock=clock) as dog:
    for step in range(5):
      clock.wait(0.01)
      dog.beat(step)
    assert not found.wait(0.05)
    clock.wait(10.0)
    assert found.wait(10)
  assert dog.stalls == 1
  assert "thread MainThread" in file.getvalue()
  assert threading.active_count() == before


def test_looks_are_as_often_as_the_limit_asks_for(make):
  assert make(every=0.001, least_seconds=0.5)._interval() == 0.05
  assert make(every=100.0)._interval() == 1.0
  assert make(every=1e-6, least_seconds=1e-6)._interval() == 0.01


def test_a_factor_of_zero_is_off(make, clock, out):
  before = threading.active_count()
  with make(factor=0) as dog:
    assert threading.active_count() == before
    clock.wait(1e6)
    assert not dog.look()
    dog.beat(5)
  assert not out.getvalue()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"factor": 1.0}, "factor=1.0 of Watchdog must be above 1"),
    ({"factor": -1}, "factor=-1"),
    ({"least_seconds": 0}, "least_seconds=0"),
    ({"first_seconds": float("nan")}, "first_seconds=nan"),
  ],
)
def test_arguments_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Watchdog(**options)


def test_threads_without_a_name_are_told_too(monkeypatch):
  monkeypatch.setattr(threading, "enumerate", list)
  frames = {1: sys._getframe()}
  monkeypatch.setattr(sys, "_current_frames", lambda: frames)
  assert watchdog_lib.stacks().startswith("thread unnamed (1):\n")
