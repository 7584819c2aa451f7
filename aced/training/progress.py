"""How far a run is: a bar on a terminal, a plain line now and then in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

# Steps whose mean speed is shown, in the manner of an exponential average.
_WINDOW = 30
_SECONDS_BETWEEN_REFRESHES = 0.1

LOSS = "loss"
CLEAN = "data/clean_kept"


@contextmanager
def unless_it_fails():
  """For what is only shown: a log on a full disk must not end a run."""
  with contextlib.suppress(OSError):  # There is nowhere left to tell it.
    yield


class Progress:
  """Shows steps, speed, time left, loss and the share of clean pairs.

  The speed is a moving average over some thirty steps. It leaves out what
  came before the first `update`, which is mostly compilation, and what runs
  within `paused`, such as an evaluation.

  Args:
    total: steps of the run.
    initial: the step it goes on from.
    desc: the name of the run.
    enabled: False shows nothing.
    batch_size: examples trained on in a step; 0 shows steps a second.
    seconds_between_lines: how often a line is printed where the output is
      not a terminal.
    file: where it is shown; standard error if None.
    clock: returns seconds.
  """

  def __init__(
    self,
    total: int,
    initial: int = 0,
    desc: str = "",
    enabled: bool = True,
    *,
    batch_size: int = 0,
    seconds_between_lines: float = 10.0,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.perf_counter,
  ):
    self.total, self.step, self.desc = total, initial, desc
    self.batch_size = batch_size
    self._file = sys.stderr if file is None else file
    self._clock = clock
    self._speed = _Speed(initial)
    self._every = seconds_between_lines
    self._began = self._shown = clock()
    self._text = ""
    self._enabled, self._bar = enabled, None
    if enabled and self._file.isatty():
      self._bar = _make_bar(total, initial, desc, self._file)

  def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Shows that `step` steps are done.

    Args:
      step: steps done since the run began, resumed ones included.
      metrics: scalars; `loss` and `data/clean_kept` are shown where present.
        They are read only when something is drawn.
    """
    now = self._clock()
    self._speed.update(step, now)
    self.step = step
    if not self._enabled:
      return
    every = self._every if self._bar is None else _SECONDS_BETWEEN_REFRESHES
    if step < self.total and now - self._shown < every:
      return
    self._shown = now
    self._text = "".join(f", {text}" for text in self._details(metrics or {}))
    if self._bar is None:
      with unless_it_fails():
        print(self._position() + self._text, file=self._file, flush=True)
    else:
      self._draw()

  def write(self, line: str) -> None:
    """Prints a line without tearing the bar."""
    if self._enabled:
      with unless_it_fails():
        tqdm.write(line, file=self._file)
        self._file.flush()

  @contextmanager
  def paused(self, what: str = ""):
    """Leaves the time inside out of the speed, and says what it is spent on."""
    start = self._clock()
    if self._bar is not None and what:
      self._draw(f", {what}")
    try:
      yield
    finally:
      self._speed.skip(self._clock() - start)
      if self._bar is not None and what:
        self._draw()

  def close(self) -> None:
    """Leaves the bar as it stands; closing twice is harmless."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    self._enabled = False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def steps_per_second(self) -> float | None:
    """The moving average, or None before there is one."""
    return self._speed.steps_per_second

  def _draw(self, more=""):
    self._bar.n = self.step
    self._bar.unit = self._position() + self._text + more
    with unless_it_fails():
      self._bar.refresh()

  def _position(self):
    position = f"{self.step:,}/{self.total:,}"
    if self._bar is not None:
      return position
    prefix = f"{self.desc}: " if self.desc else ""
    share = self.step / max(self.total, 1)
    return f"{prefix}step {position} ({share:.0%})"

  def _details(self, metrics):
    """Yields what is known, in the order it is shown."""
    speed = self.steps_per_second
    if speed is not None:
      yield (
        f"{speed * self.batch_size:,.0f} examples/s"
        if self.batch_size
        else f"{speed:,.1f} steps/s"
      )
    if self.step >= self.total:
      yield f"took {tqdm.format_interval(self._shown - self._began)}"
    elif speed is not None:
      left = (self.total - self.step) / speed
      yield f"{tqdm.format_interval(left)} left"
    # Of fixed width, or the bar would jump.
    if LOSS in metrics:
      yield f"loss {float(metrics[LOSS]):.3f}"
    if CLEAN in metrics:
      yield f"clean {float(metrics[CLEAN]):3.0%}"


class _Speed:
  """A moving average of steps a second."""

  def __init__(self, step):
    self._step, self._time = step, None
    self._steps = self._seconds = 0.0

  def update(self, step, now):
    """Counts the steps done since the last call."""
    if self._time is not None and step > self._step:
      # Both sums fade alike, so their ratio is right from the first step on.
      fade = (1 - 1 / _WINDOW) ** (step - self._step)
      self._steps = self._steps * fade + (step - self._step)
      self._seconds = self._seconds * fade + (now - self._time)
    self._step, self._time = step, now

  def skip(self, seconds):
    """Leaves out seconds that were not spent on steps."""
    if self._time is not None:
      self._time += seconds

  @property
  def steps_per_second(self):
    """Steps over seconds, or None while there is nothing to divide."""
    return self._steps / self._seconds if self._seconds > 0 else None


def _make_bar(total, initial, desc, file):
  return tqdm(
    total=total,
    initial=initial,
    desc=desc or None,
    file=file,
    dynamic_ncols=True,
    mininterval=0,
    # The text stands in `unit`, as tqdm writes a comma before its postfix.
    bar_format="{l_bar}{bar}| {unit}",
    unit="compiling",
  )
