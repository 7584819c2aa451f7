"""Roll call: who was lost, when one of several training processes is.

The collectives of those that are left wait, and jax ends them after a minute or
more, or at once when process 0 is lost, without naming a host. So each process
has a companion, a small process that outlives it by seconds: companions notice
each other's end, name the first that was lost, and have the others end with a
code that launchers understand.
"""

import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable

from absl import logging

import aced
from aced.training.rollcall import watch, wire
from aced.training.rollcall.wire import Loss

# Seconds that a companion gets to answer `leave`, and to end.
_ANSWER, _END = 5.0, 5.0


class NoRollCall(RuntimeError):
  """The companion of this process could not begin its work."""


def exit_code(error: BaseException) -> int:
  """The exit code of a process that an exception ends.

  Args:
    error: the exception.
  """
  if isinstance(error, KeyboardInterrupt):
    return wire.INTERRUPTED
  if not isinstance(error, SystemExit):
    return 1
  if error.code is None:
    return 0
  return error.code & 0xFF if isinstance(error.code, int) else 1


class RollCall:
  """Companion of this process while the context is entered.

  When a process is lost or leaves with an error, each other's companion prints
  one line that names it, and `on_loss` is called, which ends the process. If it
  still is there after `kill_seconds`, its companion kills it (SIGKILL).

  Where roll call cannot begin, a warning says so and training goes on. A
  companion that is killed takes its process with it in the eyes of the others:
  they end, and name that process. A clean end is not a loss; where all have
  agreed to stop, each calls `leave(0)`, whatever code it is to exit with.

  Args:
    process: number of this process, from 0.
    processes: how many there are; with one there is no roll call.
    publish: called by process 0 with what the others need to reach it.
    lookup: called by the others; waits for that text and returns it.
    host: how this machine is named to people; None: its host name.
    address: a name or address at which the others reach process 0, without a
      port; None: its host name, and what the system says.
    on_loss: called with the loss, in a thread of its own; None: the process
      ends at once with `loss.exit_code`, that is 75 (the same command goes on)
      or the code that the lost process said if that one forbids to go on.
    code_for: exit code that the process will have after an exception.
    start_seconds: for companions to find each other.
    kill_seconds: from the loss on.
    settle_seconds: until it is decided who was the first; errors that follow
      from a loss may be known before it.

  Raises:
    ValueError: there is no such process.
  """

  def __init__(
    self,
    process: int,
    processes: int,
    *,
    publish: Callable[[str], None],
    lookup: Callable[[], str],
    host: str | None = None,
    address: str | None = None,
    on_loss: Callable[[Loss], None] | None = None,
    code_for: Callable[[BaseException], int] = exit_code,
    start_seconds: float = 60.0,
    kill_seconds: float = 10.0,
    settle_seconds: float = 0.5,
  ):
    if not 0 <= process < processes:
      raise ValueError(
        f"process {process} of {processes}: expected 0 to {processes - 1}."
      )
    self._publish, self._lookup, self._address = publish, lookup, address
    self._on_loss, self._code_for = on_loss or _exit, code_for
    self._settings = {
      "process": process,
      "processes": processes,
      "host": host or socket.gethostname(),
      "parent": os.getpid(),
      "start_seconds": start_seconds,
      "kill_seconds": kill_seconds,
      "settle_seconds": settle_seconds,
    }
    self._lock = threading.Lock()
    self._companion: subprocess.Popen | None = None
    self._thread: threading.Thread | None = None
    self._left = self._clean = False
    self._reply: dict = {}
    self._replied, self._settled = threading.Event(), threading.Event()

  def __enter__(self) -> "RollCall":
    if self._settings["processes"] > 1:
      try:
        self._begin()
      except Exception as error:  # Of any type: `publish` may be anyone's.
        self.leave(0)
        logging.warning(
          "host %s: no roll call, so that a process that is lost will not be"
          " named: %s: %s",
          self._settings["host"],
          type(error).__name__,
          wire.one_line(str(error)),
        )
      except BaseException as error:  # An interrupt is not a loss.
        self.__exit__(type(error), error, error.__traceback__)
        raise
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    if error is None:
      self.leave(0)
    else:
      words = wire.one_line(str(error))
      name = type(error).__name__
      self.leave(self._code_for(error), f"{name}: {words}" if words else name)

  @property
  def companion(self) -> int | None:
    """The process id of the companion; None where there is none."""
    return self._companion and self._companion.pid

  def leave(self, code: int, why: str = "") -> None:
    """Takes leave of the others; a second time is harmless.

    With an error, waits a moment until it is known who was the first. If that
    was another whose end asks for something else (it was killed, say, and the
    error here follows from that), `on_loss` is called.

    Args:
      code: exit code that the process will have; 0 is a clean end.
      why: one line for the others, if there is an error.
    """
    code &= 0xFF  # As the system has it.
    with self._lock:
      left, self._left = self._left, True
      self._clean = self._clean or code == 0
    if left or self._companion is None:
      return
    if code == 0:
      self._send({"bye": True})
    else:
      self._send({"leave": code, "why": wire.one_line(why)})
      if threading.current_thread() is not self._thread:
        self._settled.wait(_ANSWER)
    self._close()

  def _begin(self):
    if self._settings["process"] > 0:
      self._settings |= _invited(self._lookup())
      self._start()
      return
    self._settings["token"] = token = secrets.token_hex(16)
    invitation = {}
    try:
      port = self._start()["port"]
      host, at = self._settings["host"], wire.addresses(self._address)
      invitation = {
        "token": token,
        "leader": {"host": host, "addresses": at, "port": port},
      }
    finally:  # An empty one, so that nobody waits for it.
      self._publish(json.dumps(invitation))

  def _start(self):
    """Starts the companion; returns what it says when it has begun."""
    # A folder that is not installed must be found, and no other be looked at.
    paths = (pathlib.Path(aced.__file__).parents[1], os.getenv("PYTHONPATH"))
    path = os.pathsep.join(str(p) for p in paths if p)
    # Signals wait until the companion has got to ignoring them.
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, watch.IGNORED)
    try:
      self._companion = subprocess.Popen(
        [sys.executable, "-P", "-m", watch.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": path},
      )
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, kept)
    self._thread = threading.Thread(
      target=self._listen, name="roll call", daemon=True
    )
    self._thread.start()
    self._send(self._settings)
    if not self._replied.wait(self._settings["start_seconds"] + _ANSWER):
      raise NoRollCall("the companion does not answer.")
    if not self._works():
      raise NoRollCall(self._reply.get("failed", "the companion has ended."))
    return self._reply

  def _works(self):
    return bool(self._reply.keys() & {"port", "joined"})

  def _send(self, message):
    try:
      self._companion.stdin.write(json.dumps(message).encode() + b"\n")
    except OSError:  # The companion is gone, which `_listen` tells.
      return

  def _listen(self):
    """Acts on what the companion says, until it ends."""
    with self._companion.stdout as lines:
      for line in lines:
        self._hear(json.loads(line))
    code = self._companion.wait()
    self._replied.set()
    self._settled.set()
    if self._works() and not self._left:
      logging.warning(
        "host %s: the companion of process %d has ended (exit code %d): no roll"
        " call any more. The others may take this process for lost, and end.",
        self._settings["host"],
        self._settings["process"],
        code,
      )

  def _hear(self, message):
    if "lost" in message:
      try:
        if not self._clean:
          self._on_loss(Loss.of(message))
      finally:
        self._settled.set()
    elif "settled" in message:
      self._settled.set()
    elif "absent" in message:
      logging.warning(
        "host %s: of %d processes, these have not come to the roll call within"
        " %g s, and will not be named if they are lost: %s",
        self._settings["host"],
        self._settings["processes"],
        self._settings["start_seconds"],
        ", ".join(map(str, message["absent"])),
      )
    else:
      self._reply = message
      self._replied.set()

  def _close(self):
    """Ends the companion, which has been told why."""
    companion = self._companion
    companion.stdin.close()
    try:
      companion.wait(_END)
    except subprocess.TimeoutExpired:
      companion.kill()
      companion.wait()
    if threading.current_thread() is not self._thread:
      self._thread.join(_END)


def _invited(text: str) -> dict:
  """Settings of a follower, from what process 0 has published."""
  invitation = json.loads(text)
  if not invitation:
    raise NoRollCall("process 0 has none; its log tells why.")
  return {key: invitation[key] for key in ("token", "leader")}


def _exit(loss: Loss) -> None:
  """Ends the process at once: the main thread may wait for one who is lost."""
  os._exit(loss.exit_code)
