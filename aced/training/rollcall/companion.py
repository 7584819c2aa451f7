"""What a companion does for its own training process.

`call.py` tells what companions are for, `watch.py` what they do
for each other.
"""

import abc
import os
import pathlib
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from aced.training.rollcall.wire import GO_ON, Channel, Link, Loss

# Seconds: between looks at the parent; for news, once the parent is gone; and
# for the others to have heard the last words.
_LOOK, _NEWS, _LINGER = 0.25, 5.0, 2.0
# Places in /proc/PID/stat of Linux, after the name; and PF_EXITING.
_FLAGS, _STATUS, _EXITING = 6, 49, 0x4


class Companion(abc.ABC):
  """What the leader's companion and the others' have in common.

  Args:
    settings: of the roll call, as `RollCall` sends them.
    parent: the pipes to the parent.
  """

  def __init__(self, settings: Mapping[str, Any], parent: Channel):
    self.process: int = settings["process"]
    self.settings, self.parent = settings, parent
    self.loss: Loss | None = None  # The first of all.
    self.own: Loss | None = None  # How the parent ends without a bye.
    self.selector = selectors.DefaultSelector()
    self.selector.register(parent, selectors.EVENT_READ, self._hear_parent)
    self._gone = self._done = False
    self._timers: list[tuple[float, Callable[[], None]]] = []

  @abc.abstractmethod
  def _report(self, own: Loss) -> None:
    """Has it known that the parent is gone, or is leaving with an error."""

  @abc.abstractmethod
  def _bye(self) -> None:
    """Has it known that the parent comes to a clean end."""

  @abc.abstractmethod
  def _open(self) -> list[Link]:
    """The connections that there are."""

  def run(self) -> None:
    """Listens until the parent is gone and all is said."""
    while not self._done:
      now = time.monotonic()
      pause = min([_LOOK, *(at - now for at, _ in self._timers)])
      for key, _ in self.selector.select(max(pause, 0)):
        if self.selector.get_map().get(key.fd) is key:  # Not dropped since.
          key.data()
      if self.parent_is_gone():
        self._part()
      now, timers = time.monotonic(), self._timers
      self._timers = [timer for timer in timers if timer[0] > now]
      for at, action in timers:
        if at <= now:
          action()
    self._linger()

  def later(self, seconds: float, action: Callable[[], None]) -> None:
    """Has something done in a while."""
    self._timers.append((time.monotonic() + seconds, action))

  def parent_is_gone(self) -> bool:
    """Whether the parent has ended, or has begun to."""
    # Children of the parent may hold its end of the pipe open.
    pid = self.settings["parent"]
    return self._gone or os.getppid() != pid or _ending(pid)[0]

  def silent(self) -> Loss:
    """The parent as one that has gone without a word."""
    _, status = _ending(self.settings["parent"])
    return Loss(self.process, self.settings["host"], status=status)

  def learn(self, loss: Loss) -> None:
    """Takes in who was lost first, and says so where that is news."""
    if self.loss:
      return
    self.loss, own = loss, self.own
    said = own is not None and own.code is not None
    if loss.process == self.process or (said and _alike(own, loss)):
      self.parent.send({"settled": True})  # Its own end is the one to tell.
    else:
      met = f" (What ended this process: {own.why})" if said else ""
      say(loss.line(self.settings["processes"]) + met)
      self.parent.send(loss.message())
      self.later(self.settings["kill_seconds"], self._kill)
    self._done = self._done or self._gone

  def drop(self, link: Link) -> None:
    """Ends a connection."""
    self.selector.unregister(link)
    link.close()

  def _hear_parent(self):
    for message in self.parent.receive():
      if "bye" in message:
        self._bye()
        self._done = True
      elif "leave" in message:
        self._leave(message["leave"], message["why"])
    if self.parent.ended:
      self._part()

  def _leave(self, code, why):
    self.own = Loss(self.process, self.settings["host"], why, code)
    if self.loss:
      self.parent.send({"settled": True})  # It has been told whom.
    else:
      self._report(self.own)

  def _part(self):
    """The parent is gone: has that known, and waits for news a last time."""
    if self._gone or self._done:
      return
    self._gone = True
    self.selector.unregister(self.parent)
    if self.loss:
      self._done = True
      return
    self.later(_NEWS, self._finish)
    if self.own is None:
      self.own = self.silent()
      self._report(self.own)

  def _finish(self):
    self._done = True

  def _kill(self):
    if self.parent_is_gone():
      return
    say(
      f"process {self.process} of {self.settings['processes']} on host"
      f" {self.settings['host']} has not ended in"
      f" {self.settings['kill_seconds']:g} s since, and is killed."
    )
    os.kill(self.settings["parent"], signal.SIGKILL)

  def _linger(self):
    """Hangs up, and waits until the others have; so that all is heard."""
    left, end = self._open(), time.monotonic() + _LINGER
    with selectors.DefaultSelector() as selector:
      for link in left:
        link.hang_up()
        selector.register(link, selectors.EVENT_READ)
      while selector.get_map() and time.monotonic() < end:
        for key, _ in selector.select(_LOOK):
          key.fileobj.receive()
          if key.fileobj.ended:
            selector.unregister(key.fileobj)


def say(text: str) -> None:
  """Writes a line to standard error, at once and in one piece."""
  try:
    os.write(2, f"{text}\n".encode(errors="replace"))
  except OSError:  # Nobody reads it; the parent has yet to be told.
    return


def _alike(one: Loss, other: Loss) -> bool:
  """Whether launchers do the same after both."""
  return (one.exit_code == GO_ON) == (other.exit_code == GO_ON)


def _ending(pid: int) -> tuple[bool, int | None]:
  """Whether a process has begun to end, and its exit status if it has.

  The files of one that ends are closed one by one, some of them slowly: others
  may notice by a connection what its companion has yet to see. Where neither
  can be told, the answer is `(False, None)`.
  """
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    if int(fields[_FLAGS]) & _EXITING:
      return True, os.waitstatus_to_exitcode(int(fields[_STATUS])) or None
  except (OSError, ValueError, IndexError):  # Gone by now, or not Linux.
    pass
  return False, None
