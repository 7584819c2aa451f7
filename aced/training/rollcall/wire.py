"""What companions of training processes say to each other, and how.

JSON lines over pipes and TCP; the standard library only, so that a companion
starts at once. `call.py` tells what companions are for.
"""

import dataclasses
import hmac
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

# Exit codes: the same command goes on (EX_TEMPFAIL), and Ctrl-C in a shell.
GO_ON, INTERRUPTED = 75, 130
WHY_LENGTH, HOST_LENGTH = 500, 255
# Bytes of a line; 500 characters as JSON writes them are 6,000 at most.
LIMIT = 16384
# Seconds: for a connection to be there, and for a hello or its answer to come.
CONNECT_SECONDS, HELLO_SECONDS = 5.0, 10.0
# A machine that vanishes is noticed after 10 s of silence and 4 probes, one
# every 5 s; the same time is given to what was sent and is not confirmed.
_KEEPALIVE = {
  "TCP_KEEPIDLE": 10,  # Seconds.
  "TCP_KEEPINTVL": 5,  # Seconds.
  "TCP_KEEPCNT": 4,
  "TCP_USER_TIMEOUT": 30_000,  # Milliseconds.
}


def goes_on(code: int) -> bool:
  """Whether the same command is to be started again, as launchers see it."""
  return code == GO_ON or (code >= 128 and code != INTERRUPTED)


@dataclasses.dataclass(frozen=True)
class Loss:
  """A process that the others have to do without.

  Attributes:
    process: its number.
    host: its machine.
    why: one line of what it said; empty if it said nothing.
    code: the exit code that it said; None if it went without a word.
    status: how it ended in that case, where it can be told: an exit code, or
      the number of a signal, negative.
  """

  process: int
  host: str
  why: str = ""
  code: int | None = None
  status: int | None = None

  @property
  def exit_code(self) -> int:
    """The code for the others: to go on, or not to, for the same cause."""
    if self.code is None or goes_on(self.code):
      return GO_ON
    return self.code

  def line(self, processes: int) -> str:
    """The loss in words.

    Args:
      processes: how many there were.
    """
    who = f"process {self.process} of {processes} on host {self.host}"
    if self.code is not None:
      said = f": {self.why}" if self.why else f" with exit code {self.code}."
      return f"{who} ended{said}"
    return (
      f"{who} was lost ({self._how()}); this process ends, and the same command"
      " goes on from the last checkpoint."
    )

  def rank(self) -> int:
    """The less, the less likely it is that others were lost before.

    Collectives and jax answer a loss with an abort or an error.
    """
    if self.code is not None:
      return 2
    return int(self.status == -signal.SIGABRT)

  def message(self) -> dict[str, Any]:
    """The loss as it is sent."""
    rest = dataclasses.asdict(self)
    return {"lost": rest.pop("process"), **rest}

  @classmethod
  def of(cls, message: Mapping[str, Any]) -> "Loss":
    """The loss that was sent."""
    names = ("lost", "host", "why", "code", "status")
    return cls(*(message[name] for name in names))

  def _how(self):
    if self.status in (None, -signal.SIGKILL):
      return "it was killed, or its machine is gone"
    try:
      end = signal.Signals(-self.status).name
    except ValueError:  # Not every signal has a name; a code has none.
      number = abs(self.status)
      end = f"{'signal' if self.status < 0 else 'exit code'} {number}"
    return f"{end}; what it wrote itself may tell why"


def one_line(text: str, length: int = WHY_LENGTH) -> str:
  """The first line of a text that is not blank, fit for a terminal."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  shown = "".join(c if c.isprintable() else " " for c in "".join(lines[:1]))
  return shown if len(shown) <= length else shown[: length - 3] + "..."


class Channel:
  """JSON lines, read from one file descriptor and written to another.

  Attributes:
    ended: the other side is gone, or what it says is not JSON lines.
  """

  def __init__(self, reading: int, writing: int):
    self.ended = False
    self._reading, self._writing = reading, writing
    self._rest = b""

  def fileno(self) -> int:
    """What a selector waits for."""
    return self._reading

  def receive(self) -> list[dict[str, Any]]:
    """What has come since the last call; call it when there is something."""
    try:
      data = os.read(self._reading, LIMIT)
    except BlockingIOError:
      return []
    except OSError:  # Reset, or silent for too long: as good as closed.
      data = b""
    *lines, self._rest = (self._rest + data).split(b"\n")
    self.ended = not data or len(self._rest) > LIMIT
    try:
      return [_parsed(line) for line in lines]
    except (ValueError, RecursionError):  # Nobody who belongs here says so.
      self.ended = True
      return []

  def send(self, message: Mapping[str, Any]) -> None:
    """Says something; one who is gone does not hear it."""
    try:
      os.write(self._writing, json.dumps(message).encode() + b"\n")
    except OSError:  # `receive` finds the end, which is the place to act on it.
      return


class Link(Channel):
  """A connection between two companions."""

  def __init__(self, connection: socket.socket):
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):  # Not every platform has them all.
        option = getattr(socket, name)
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    self._connection = connection
    super().__init__(connection.fileno(), connection.fileno())

  def hang_up(self) -> None:
    """Says no more, and still hears; so that what was said arrives."""
    try:
      self._connection.shutdown(socket.SHUT_WR)
    except OSError:  # The other side was first.
      return

  def close(self) -> None:
    """Ends the connection."""
    self._connection.close()


def listen() -> socket.socket:
  """A socket on all interfaces, at a port that the system chooses."""
  if socket.has_dualstack_ipv6():
    try:
      return socket.create_server(
        ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
      )
    except OSError:  # A machine whose IPv6 is turned off has still the other.
      pass
  return socket.create_server(("", 0), backlog=1024)


def addresses(given: str | None) -> list[str]:
  """Where others may reach this machine, the likeliest first.

  Args:
    given: a name or an address that is known to be right, if any is.
  """
  found = [given and given.strip("[]"), socket.gethostname()]
  for family, elsewhere in (
    (socket.AF_INET, "192.0.2.1"),
    (socket.AF_INET6, "2001:db8::1"),
  ):
    # Nothing is sent: this asks which way a packet would leave.
    try:
      with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))
        found.append(probe.getsockname()[0])
    except OSError:  # No such way.
      continue
  found.append("localhost")  # Of use where all processes share a machine.
  return list(dict.fromkeys(name for name in found if name))


def hello(token: str, process: int, host: str) -> dict[str, Any]:
  """What a follower's companion says first."""
  return {"hello": token, "process": process, "host": host}


def is_hello(message: Mapping[str, Any], token: str, processes: int) -> bool:
  """Whether this is how one of ours says hello."""
  said, process = message.get("hello"), message.get("process")
  return (
    isinstance(said, str)
    and hmac.compare_digest(said.encode(errors="replace"), token.encode())
    and type(process) is int
    and 0 < process < processes
    and isinstance(message.get("host"), str)
  )


def connect(
  leader: Mapping[str, Any],
  greeting: Mapping[str, Any],
  seconds: float,
  wanted: Callable[[], bool],
) -> Link:
  """Connects to the leader's companion at the first address where it is.

  Args:
    leader: its "addresses" and "port".
    greeting: the hello.
    seconds: for how long all addresses are tried.
    wanted: false ends the trying.

  Raises:
    OSError: nobody answered as the leader's companion does.
  """
  end, why = time.monotonic() + seconds, {}
  while time.monotonic() < end:
    for address in leader["addresses"]:
      if not wanted():
        raise OSError("the process itself is gone")
      try:
        return _greet(address, leader["port"], greeting)
      except OSError as error:
        why[address] = f"{address}: {error}"
    time.sleep(0.2)
  raise OSError("; ".join(why.values()))


def _greet(address, port, greeting) -> Link:
  link = socket.create_connection((address, port), CONNECT_SECONDS)
  try:
    link.settimeout(HELLO_SECONDS)
    link.sendall(json.dumps(greeting).encode() + b"\n")
    # Byte by byte: what follows the welcome is left for the channel.
    with link.makefile("rb", buffering=0) as file:
      if file.readline(LIMIT) != b'{"welcome": true}\n':
        raise OSError("no welcome; another program may listen there")
    return Link(link)
  except BaseException:
    link.close()
    raise


def _parsed(line: bytes) -> dict[str, Any]:
  if len(line) > LIMIT:
    raise ValueError(f"a line of {len(line)} bytes, of at most {LIMIT}.")
  message = json.loads(line)
  if not isinstance(message, dict):
    raise ValueError(f"{type(message).__name__} in place of an object.")
  return message
