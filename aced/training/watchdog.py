"""Says where a run stands when its steps stop coming."""

import collections
import contextlib
import math
import os
import pathlib
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TextIO

_WINDOW = 50  # Steps whose median time is what a step takes.
_LEAST_TIMES = 3  # Below it, nothing is known of that.
_SLOWEST_LOOK, _FASTEST_LOOK = 1.0, 0.01  # Seconds between two looks.
_LOOKS = 10  # Of them, within the time that a step may take.
_LAST_WAIT = 5.0  # Seconds, for a thread that is just writing.


class Watchdog:
  """Writes down the stacks of all threads when no step ends for too long.

  Once in each stall, to standard error and to a file; nothing is stopped. A
  context manager, whose thread looks at the clock while it is open. The thread
  needs the interpreter: code of a library that hangs and never lets go of it is
  not seen.

  Args:
    factor: median step times that a step may take; 0 is off.
    least_seconds: which it may take in any case.
    first_seconds: which it may take while fewer than three step times are
      known, compilation included.
    path: of a file to which stacks are appended as well, such as
      `WORKDIR/stacks.txt`. One that cannot be written is told on `file`.
    file: in the place of standard error.
    clock: returns seconds.

  Attributes:
    stalls: how many there have been.

  Raises:
    ValueError: an argument out of its range.
  """

  def __init__(
    self,
    *,
    factor: float = 10.0,
    least_seconds: float = 30.0,
    first_seconds: float = 600.0,
    path: str | os.PathLike | None = None,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    if factor != 0 and not 1 < factor < math.inf:
      raise ValueError(
        f"factor={factor} of Watchdog must be above 1, or 0 for none."
      )
    if not (least_seconds > 0 and first_seconds > 0):
      raise ValueError(
        f"least_seconds={least_seconds} and first_seconds={first_seconds} of"
        " Watchdog must be above 0."
      )
    self.stalls = 0
    self._factor, self._least = factor, least_seconds
    self._first, self._clock = first_seconds, clock
    self._path = None if path is None else pathlib.Path(path)
    self._file = file
    self._times: collections.deque[float] = collections.deque(maxlen=_WINDOW)
    self._step: int | None = None
    self._last, self._paused, self._stalled = clock(), 0, False
    self._since = self._last  # When the pause began.
    self._lock, self._end = threading.Lock(), threading.Event()
    self._thread: threading.Thread | None = None

  def beat(self, step: int) -> None:
    """Says that a step has ended."""
    with self._lock:
      now = self._clock()
      took, self._last = now - self._last, now
      # Before the first one, what passed was no step.
      if self._step is not None:
        self._times.append(took)
      self._step = step
      stalled, self._stalled = self._stalled, False
    if stalled:
      self._tell(f"{_who()}: steps go on: step {step} came after {took:.1f} s.")

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the time inside out, such as that of evaluating and saving.

    It may take `first_seconds`, each time.
    """
    with self._lock:
      self._paused += 1
      start = self._clock()
      if self._paused == 1:
        self._since = start
    try:
      yield
    finally:
      with self._lock:
        self._paused -= 1
        if not self._paused:
          self._last += self._clock() - start

  def look(self) -> bool:
    """Writes the stacks if a step takes too long, and has not been told yet.

    The thread does this now and then.

    Returns:
      Whether it wrote them.
    """
    with self._lock:
      since = self._since if self._paused else self._last
      limit = self._first if self._paused else self._limit()
      waited = self._clock() - since
      fine = self._stalled or waited <= limit
      if fine or not self._factor:
        return False
      self._stalled = True
      self.stalls += 1
      step = "no step" if self._step is None else f"step {self._step}"
    report = (
      f"{_who()}: {step} was the last to end, {waited:.1f} s ago; expected"
      f" another one within {limit:.1f} s. The run goes on waiting; this is"
      f" where its threads stand:\n{stacks()}"
    )
    self._tell(report)
    self._append(report)
    return True

  def __enter__(self) -> "Watchdog":
    self._last = self._clock()
    if self._factor:
      self._thread = threading.Thread(
        target=self._watch, name="watchdog", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._end.set()
    if self._thread is not None:
      self._thread.join(_LAST_WAIT)
      self._thread = None

  def _watch(self):
    while not self._end.wait(self._interval()):
      self.look()

  def _interval(self) -> float:
    """Seconds until the next look."""
    with self._lock:
      interval = self._limit() / _LOOKS
    return min(max(interval, _FASTEST_LOOK), _SLOWEST_LOOK)

  def _limit(self) -> float:
    """Seconds that a step may take."""
    if len(self._times) < _LEAST_TIMES:
      return max(self._first, self._least)
    return max(self._factor * statistics.median(self._times), self._least)

  def _tell(self, text):
    file = sys.stderr if self._file is None else self._file
    if file is None:
      return  # A process without standard error.
    try:
      print(text, file=file, flush=True)
    except (OSError, ValueError) as error:  # It is closed, or its reader gone.
      # Where there is no file, there is nobody to tell.
      self._append(f"{_who()}: standard error cannot be written: {error}.")

  def _append(self, text):
    if self._path is None:
      return
    try:
      with self._path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    except OSError as error:
      file = sys.stderr if self._file is None else self._file
      # Where that cannot be written either, there is nobody to tell.
      with contextlib.suppress(OSError, ValueError):
        print(
          f"{_who()}: stacks cannot be appended to {self._path}:"
          f" {error.strerror or error}. Free space, or make it writable.",
          file=file,
          flush=True,
        )


def stacks() -> str:
  """The stacks of all threads but the one that asks, by their names."""
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  parts = []
  for ident, frame in sys._current_frames().items():
    if ident == threading.get_ident():
      continue
    # Threads that a library has started by itself have no name.
    name = names.get(ident, "unnamed")
    lines = "".join(traceback.format_stack(frame))
    parts.append(f"thread {name} ({ident}):\n{lines}")
  return "".join(parts).rstrip()


def _who() -> str:
  """The host and the process, of which there may be many."""
  return f"host {socket.gethostname()}, process {os.getpid()}"
