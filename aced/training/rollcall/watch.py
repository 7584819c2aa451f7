"""Companion of a training process: `python -m aced.training.rollcall.watch`.

`call.RollCall` starts it, and tells what it is for. The first line on
standard input holds its settings; when standard input or the parent ends, the
parent is gone. All tell the leader's companion who is gone or leaves with an
error; that one decides who was the first, and tells all.
"""

import selectors
import signal
from collections.abc import Mapping
from typing import Any

from aced.training.rollcall import wire
from aced.training.rollcall.companion import Companion
from aced.training.rollcall.wire import Channel, Link, Loss

# These are for the trainer, though they may be sent to all of a group.
IGNORED = (
  signal.SIGINT,
  signal.SIGTERM,
  signal.SIGHUP,
  signal.SIGUSR1,
  signal.SIGUSR2,
)
# Connections without a hello yet, beyond one for each process.
_STRANGERS = 64


class Follower(Companion):
  """The companion of a process that is not the first.

  Raises:
    OSError: the leader's companion cannot be reached.
  """

  def __init__(self, settings: Mapping[str, Any], parent: Channel):
    super().__init__(settings, parent)
    self._link: Link | None = wire.connect(
      settings["leader"],
      wire.hello(settings["token"], self.process, settings["host"]),
      settings["start_seconds"],
      lambda: not self.parent_is_gone(),
    )
    self.selector.register(self._link, selectors.EVENT_READ, self._hear)
    parent.send({"joined": True})

  def _report(self, own):
    if self._link:
      self._link.send(own.message())
    else:
      self.learn(own)  # The leader has left: there is nobody to ask.

  def _bye(self):
    if self._link:
      self._link.send({"bye": True})

  def _open(self):
    return [self._link] if self._link else []

  def _hear(self):
    for message in self._link.receive():
      if "lost" in message:
        self.learn(Loss.of(message))
      elif "bye" in message:
        self._leader_left(self.own)
        return
    if self._link.ended:
      self._leader_left(Loss(0, self.settings["leader"]["host"]))

  def _leader_left(self, loss):
    self.drop(self._link)
    self._link = None
    if loss:
      self.learn(loss)


class Leader(Companion):
  """The companion of process 0, which decides who was the first."""

  def __init__(self, settings: Mapping[str, Any], parent: Channel):
    super().__init__(settings, parent)
    self._links: dict[int, Link] = {}
    self._hosts = {0: settings["host"]}  # Of all who have ever joined.
    self._strangers: set[Link] = set()
    self._reports: list[Loss] = []
    self._server = wire.listen()
    self._server.setblocking(False)
    self.selector.register(self._server, selectors.EVENT_READ, self._accept)
    self.later(settings["start_seconds"], self._name_absent)
    parent.send({"port": self._server.getsockname()[1]})

  def _report(self, own):
    self._note(own)

  def _bye(self):
    if self._reports and not self.loss:
      self._tell(self._first())
    for link in self._links.values():
      link.send({"bye": True})

  def _open(self):
    return list(self._links.values())

  def _accept(self):
    try:
      connection, _ = self._server.accept()
    except OSError:  # It went away again, or there is no room for it.
      return
    if len(self._strangers) >= self.settings["processes"] + _STRANGERS:
      connection.close()
      return
    link = Link(connection)
    self._strangers.add(link)
    self.selector.register(
      link, selectors.EVENT_READ, lambda: self._greet(link)
    )
    self.later(wire.HELLO_SECONDS, lambda: self._refuse(link))

  def _refuse(self, link):
    if link in self._strangers:
      self._strangers.remove(link)
      self.drop(link)

  def _greet(self, link):
    """Takes the hello of a follower; anything else ends the connection."""
    messages = link.receive()
    if not messages:
      if link.ended:
        self._refuse(link)
      return
    first, *rest = messages
    token, processes = self.settings["token"], self.settings["processes"]
    if (
      not wire.is_hello(first, token, processes)
      or first["process"] in self._hosts
    ):
      self._refuse(link)
      return
    self._join(link, first["process"], first["host"])
    self._take(first["process"], rest)

  def _join(self, link, process, host):
    self._strangers.remove(link)
    self._links[process] = link
    self._hosts[process] = wire.one_line(host, wire.HOST_LENGTH)
    self.selector.modify(
      link,
      selectors.EVENT_READ,
      lambda: self._take(process, link.receive()),
    )
    link.send({"welcome": True})
    if self.loss:
      link.send(self.loss.message())

  def _take(self, process, messages):
    """Acts on what a follower says, and on its end."""
    link, left = self._links[process], False
    for message in messages:
      if "lost" in message:
        said = message | {"lost": process, "host": self._hosts[process]}
        self._note(Loss.of(said))
      left = left or "bye" in message
    if not (left or link.ended):
      return
    del self._links[process]
    self.drop(link)
    if not left:
      self._note(Loss(process, self._hosts[process]))

  def _note(self, report):
    """Keeps who is lost; the first report starts the time for others."""
    if self.loss or any(r.process == report.process for r in self._reports):
      return
    if report.process and self.parent_is_gone():
      # The others go because process 0 did, whose pipe has yet to be closed.
      self._note(self.silent())
    if not self._reports:
      self.later(self.settings["settle_seconds"], self._decide)
    self._reports.append(report)

  def _first(self):
    """The likeliest to be lost before the others, else the first reported."""
    return min(self._reports, key=Loss.rank)

  def _decide(self):
    if not self.loss:
      self._tell(self._first())
      self.learn(self._first())

  def _tell(self, loss):
    for link in self._links.values():
      link.send(loss.message())

  def _name_absent(self):
    absent = sorted(set(range(self.settings["processes"])) - set(self._hosts))
    if absent:
      self.parent.send({"absent": absent})


def main() -> None:
  """Runs the companion of the process that has started this one."""
  for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
  parent, messages = Channel(0, 1), []
  while not messages and not parent.ended:
    messages = parent.receive()
  if not messages:
    return
  settings = messages[0]
  kind = Leader if settings["process"] == 0 else Follower
  try:
    companion = kind(settings, parent)
  except OSError as error:
    parent.send({"failed": str(error)})
    return
  companion.run()


if __name__ == "__main__":
  main()
