"""Losses of processes, named by those that are left; real processes."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from aced.training.rollcall import call, wire
from aced.training.rollcall.call import Loss, RollCall
from aced.training.rollcall.watch import Leader
from aced.training.rollcall.wire import Channel

SECONDS = 15.0  # For whatever is waited for, on a machine that is busy.
AT_ONCE = 5.0
LOST = (
  "process {} of {} on host {} was lost (it was killed, or its machine is"
  " gone); this process ends, and the same command goes on from the last"
  " checkpoint.\n"
)
# A trainer without jax: its arguments are its number, how many there are, a
# folder, keywords of its roll call, and what it does.
TRAINER = """
import ctypes, os, pathlib, signal, socket, sys, threading, time
from aced.training.rollcall.call import RollCall
process, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder = pathlib.Path(folder)

def write(name, text):
  (folder / "new").write_text(text)
  os.replace(folder / "new", folder / name)

def read(name):
  while not (folder / name).exists():
    time.sleep(0.01)
  return (folder / name).read_text()

with RollCall(
  process,
  processes,
  publish=lambda text: write("published", text),
  lookup=lambda: read("published"),
  host=f"tpu-w-{process}",
  address="localhost",
  **eval(sys.argv[4]),
) as roll:
  print(roll.companion, flush=True)
  exec(sys.argv[5])
"""
SLEEP = "time.sleep(60)"
WAIT = "read('go')"


def is_there(pid):
  """Whether a process runs; one that nobody has waited for does not."""
  try:
    os.kill(pid, 0)
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
  except (ProcessLookupError, FileNotFoundError):
    return False
  return state.split()[0] not in "ZX"


def until(condition, seconds=SECONDS):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.02)


class Team:
  """Trainers, and what they say.

  Args:
    folder: for their files.
    acts: what each does.
    keywords: of every roll call, as Python has them.
  """

  def __init__(self, folder, acts, keywords=""):
    self.folder, self.companions, self.trainers = folder, [], []
    for process, act in enumerate(acts):
      with (folder / f"err{process}").open("wb") as err:
        trainer = subprocess.Popen(
          [sys.executable, "-c", TRAINER, str(process), str(len(acts))]
          + [str(folder), f"dict({keywords})", act],
          stdout=subprocess.PIPE,
          stderr=err,
          process_group=self.trainers[0].pid if self.trainers else 0,
        )
      self.trainers.append(trainer)

  def gather(self):
    """Waits for all to be at work."""
    for trainer in self.trainers:
      pid = trainer.stdout.readline().decode().strip()
      assert pid, self.said()
      if pid != "None":
        self.companions.append(int(pid))

  def go(self):
    (self.folder / "go").touch()

  def codes(self, seconds=SECONDS):
    """Waits for all to end."""
    end = time.monotonic() + seconds
    return [
      trainer.wait(max(end - time.monotonic(), 0.01))
      for trainer in self.trainers
    ]

  def said(self):
    """What each, and its companion, wrote to standard error."""
    return [
      (self.folder / f"err{process}").read_text()
      for process in range(len(self.trainers))
    ]

  def nobody_is_left(self):
    until(lambda: not any(map(is_there, self.companions)))

  def close(self):
    for trainer in self.trainers:
      trainer.kill()
      trainer.wait()
      trainer.stdout.close()


@pytest.fixture
def start(tmp_path):
  """Returns a starter of teams, all of which must leave nothing behind."""
  teams = []

  def start(*acts, keywords=""):
    teams.append(Team(tmp_path, acts, keywords))
    teams[-1].gather()
    return teams[-1]

  yield start
  for team in teams:
    team.close()
  for team in teams:
    team.nobody_is_left()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_is_named_by_the_others(start, victim):
  team = start(SLEEP, SLEEP, SLEEP)
  team.trainers[victim].kill()
  codes = team.codes(AT_ONCE)
  team.nobody_is_left()
  line = LOST.format(victim, 3, f"tpu-w-{victim}")
  for process in range(3):
    was = process == victim
    assert codes[process] == (-signal.SIGKILL if was else 75)
    assert team.said()[process] == ("" if was else line)


# As jax's coordination service: one process has it, and who loses it aborts.
SERVE = """
server = socket.create_server(("localhost", 0))
write("port", str(server.getsockname()[1]))
links = [server.accept()[0] for _ in range(2)]
write("go", "")
time.sleep(60)
"""
ABORT = """
link = socket.create_connection(("localhost", int(read("port"))))
link.recv(1)
os.abort()
"""
FORK = "if not os.fork(): time.sleep(9)\n"  # A child keeps its pipes open.


@pytest.mark.parametrize(
  ("victim", "acts"),
  [
    (0, (SERVE, ABORT, ABORT)),
    (0, (FORK + SERVE, ABORT, ABORT)),
    (1, (ABORT, SERVE, ABORT)),
  ],
)
def test_aborts_that_follow_do_not_change_who_is_named(start, victim, acts):
  team = start(*acts)
  until((team.folder / "go").exists)
  team.trainers[victim].kill()
  try:
    team.nobody_is_left()  # Before trainers are waited for: as zombies tell
    codes = team.codes(AT_ONCE)  # how they ended.
  finally:  # The child too.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(team.trainers[0].pid, signal.SIGKILL)
  line = LOST.format(victim, 3, f"tpu-w-{victim}")
  for process, text in enumerate(team.said()):
    if process != victim:
      # Its companion may be as quick as the abort.
      assert codes[process] in (75, -signal.SIGABRT)
      assert line in text and text.count("was lost") == 1


def test_an_error_is_told_in_its_own_words_and_code(start):
  error = "raise ValueError('\\n  width = 3: expected 4.\\nMore.')"
  team = start(SLEEP, SLEEP, f"{WAIT}\n{error}")
  team.go()
  assert team.codes(AT_ONCE) == [1, 1, 1]
  said = team.said()
  line = (
    "process 2 of 3 on host tpu-w-2 ended: ValueError: width = 3: expected 4.\n"
  )
  assert said[:2] == [line, line]
  assert "Traceback" in said[2] and "on host" not in said[2]


@pytest.mark.parametrize(
  ("code", "others"), [(3, 3), (75, 75), (130, 130), (143, 75)]
)
def test_codes_of_the_others(start, code, others):
  team = start(f"{WAIT}\nsys.exit({code})", SLEEP)
  team.go()
  assert team.codes(AT_ONCE) == [code, others]
  line = f"process 0 of 2 on host tpu-w-0 ended: SystemExit: {code}\n"
  assert team.said() == ["", line]


def test_an_error_that_follows_from_a_loss_is_not_taken_for_the_cause(start):
  follows = f"{WAIT}\nraise OSError('connection reset by peer')"
  first = f"{WAIT}\ntime.sleep(0.1)\nos.kill(os.getpid(), 9)"
  team = start(follows, follows, first, keywords="settle_seconds=1.5")
  team.go()
  assert team.codes(AT_ONCE) == [75, 75, -9]
  line = LOST.format(2, 3, "tpu-w-2").strip() + (
    " (What ended this process: OSError: connection reset by peer)\n"
  )
  assert team.said() == [line, line, ""]


def test_an_error_of_all_is_each_ones_own(start):
  wrong = f"{WAIT}\nraise ValueError(f'mine, {{process}}')"
  team = start(wrong, wrong, wrong, keywords="settle_seconds=1.5")
  team.go()
  assert team.codes(AT_ONCE) == [1, 1, 1]
  for process, text in enumerate(team.said()):
    assert f"ValueError: mine, {process}\n" in text and "on host" not in text


@pytest.mark.parametrize("order", ["012", "210", "111"])
def test_clean_ends_in_any_order(start, order):
  acts = [f"{WAIT}\ntime.sleep({0.3 * int(place)})" for place in order]
  team = start(*acts)
  team.go()
  assert team.codes() == [0, 0, 0]
  assert team.said() == ["", "", ""]


def test_a_stop_that_all_agree_upon_is_no_loss(start):
  stop = f"{WAIT}\nroll.leave(0)\ntime.sleep(0.4 * process)\nsys.exit(75)"
  team = start(stop, stop)
  team.go()
  assert team.codes() == [75, 75]
  assert team.said() == ["", ""]


def test_signals_to_all_are_not_for_companions(start):
  act = """
def note(number, _):
  (folder / f"{process} has {number}").touch()
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
note(0, None)
"""
  team = start(act + WAIT, act + WAIT)
  for number in (0, int(signal.SIGTERM), int(signal.SIGINT)):
    os.killpg(team.trainers[0].pid, number)
    for process in (0, 1):
      until((team.folder / f"{process} has {number}").exists)
    time.sleep(0.1)
    assert all(map(is_there, team.companions))
  team.go()
  assert team.codes() == [0, 0]
  assert team.said() == ["", ""]


def strangers(port, token):
  """Connections of those who do not belong here."""
  hello = wire.hello
  lines = [
    json.dumps(hello("0" * 32, 1, "evil")),
    json.dumps(hello(token, 7, "evil")),
    json.dumps(hello(token, 0, "evil")),
    json.dumps(hello(token, 1, "evil")),  # Process 1 is there already.
    json.dumps({"hello": None, "process": "1"}),
    json.dumps({"lost": 1, "host": "evil", "why": "", "code": None}),
    "[]",
    "[" * 9999,
    "\udcff",
    "x" * 50_000,
  ]
  for line in lines:
    link = socket.create_connection(("localhost", port), SECONDS)
    with contextlib.suppress(ConnectionError):  # Refused before its end.
      link.sendall(line.encode("utf-8", "surrogateescape") + b"\n")
    yield link
  for data in (b"", b"GET", b'{"hello": "'):  # And never a line.
    link = socket.create_connection(("localhost", port), SECONDS)
    link.sendall(data)
    yield link


def closed(link):
  """Whether the other side has closed without an answer."""
  try:
    return link.recv(100) == b""
  except ConnectionError:
    return True


def test_strangers_change_nothing(start):
  team = start(WAIT, WAIT)
  published = json.loads((team.folder / "published").read_text())
  links = list(strangers(published["leader"]["port"], published["token"]))
  try:
    assert all(map(closed, links[:-3]))
    links[-1].setblocking(False)
    with pytest.raises(BlockingIOError):
      links[-1].recv(100)
    team.go()
    assert team.codes() == [0, 0]
  finally:
    for link in links:
      link.close()
  assert team.said() == ["", ""]


@pytest.mark.parametrize(
  ("act", "keywords"),
  [
    ("ctypes.PyDLL(None).sleep(60)", ""),  # Holds Python's lock.
    (SLEEP, "on_loss=print,"),  # Does nothing about it.
  ],
)
def test_a_process_that_does_not_end_is_killed(start, act, keywords):
  keywords += "kill_seconds=0.5"
  team = start(act, SLEEP, keywords=keywords)
  team.trainers[1].kill()
  assert team.codes(AT_ONCE) == [-signal.SIGKILL, -signal.SIGKILL]
  line, killed = team.said()[0].splitlines()
  assert line + "\n" == LOST.format(1, 2, "tpu-w-1")
  assert killed.startswith("process 0 of 2 on host tpu-w-0 has not ended in")


def test_a_companion_that_is_killed_costs_no_more_than_a_warning(start):
  team = start(WAIT, SLEEP)
  os.kill(team.companions[0], signal.SIGKILL)
  assert team.trainers[1].wait(AT_ONCE) == 75
  until(lambda: team.said()[0].endswith("\n"))
  team.go()
  assert team.codes() == [0, 75]
  said = team.said()
  assert said[1] == LOST.format(0, 2, "tpu-w-0")
  assert said[0].count("\n") == 1
  assert "companion of process 0 has ended (exit code -9)" in said[0]


def test_absent_processes_are_named(tmp_path, caplog):
  published = []
  roll = RollCall(
    0,
    3,
    publish=published.append,
    lookup=str,
    host="a",
    start_seconds=0.2,
  )
  with caplog.at_level("WARNING", "absl"), roll:
    assert is_there(roll.companion)
    until(lambda: caplog.records)
  assert "of 3 processes, these have not come" in caplog.text
  assert caplog.text.strip().endswith("1, 2")
  assert not is_there(roll.companion)
  assert set(json.loads(published[0])) == {"token", "leader"}


def unreachable():
  with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
  leader = {"host": "a", "addresses": ["localhost"], "port": port}
  return json.dumps({"token": "t", "leader": leader})


def failing():
  raise LookupError("no key")


@pytest.mark.parametrize(
  ("lookup", "why"),
  [
    (unreachable, "refused"),
    (failing, "LookupError: no key"),
    (lambda: "{}", "process 0 has none"),
    (lambda: "?", "JSONDecodeError"),
  ],
)
def test_without_a_roll_call_training_goes_on(caplog, lookup, why):
  roll = RollCall(1, 2, publish=print, lookup=lookup, start_seconds=0.5)
  with caplog.at_level("WARNING", "absl"), roll:
    assert len(caplog.records) == 1
  assert "no roll call" in caplog.text and why in caplog.text


def test_a_companion_that_does_not_start_is_told(caplog, monkeypatch):
  published = []
  monkeypatch.setattr(sys, "executable", "/nowhere/python")
  with (
    caplog.at_level("WARNING", "absl"),
    RollCall(0, 2, publish=published.append, lookup=str) as roll,
  ):
    assert roll.companion is None
  assert published == ["{}"]  # The others do not wait.
  assert "/nowhere/python" in caplog.text


def test_one_process_has_no_companion():
  with RollCall(0, 1, publish=print, lookup=str) as roll:
    assert roll.companion is None
  with pytest.raises(ValueError, match="process 2 of 2: expected 0 to 1"):
    RollCall(2, 2, publish=print, lookup=str)


def test_the_companion_is_light():
  program = (
    "import sys, aced.training.rollcall.watch;"
    "print({m.split('.')[0] for m in sys.modules} & {'jax', 'numpy', 'absl'})"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "set()"


def test_exit_codes():
  codes = [
    (ValueError("x"), 1),
    (KeyboardInterrupt(), 130),
    (SystemExit(), 0),
    (SystemExit(75), 75),
    (SystemExit("words"), 1),
  ]
  for error, code in codes:
    assert call.exit_code(error) == code
  assert Loss(1, "a", status=1).exit_code == 75
  said = {None: 75, 1: 1, 3: 3, 75: 75, 130: 130, 137: 75, 134: 75}
  for code, others in said.items():
    assert Loss(1, "a", "", code).exit_code == others


def test_how_a_process_was_lost():
  killed = LOST.format(1, 2, "a").strip()
  assert Loss(1, "a").line(2) == Loss(1, "a", status=-9).line(2) == killed
  for status, how in [(-11, "SIGSEGV"), (9, "exit code 9"), (-63, "signal 63")]:
    line = Loss(1, "a", status=status).line(2)
    assert f"was lost ({how}; what it wrote itself may tell why); " in line


def test_words_fit_a_line():
  assert wire.one_line("\n \na\x1b[2J\tb \nc") == "a [2J b"
  assert len(wire.one_line("é" * 600)) == 500
  assert Loss(1, "h", "", 3).line(2).endswith("ended with exit code 3.")


@pytest.fixture
def leader(monkeypatch):
  """The leader's companion in a thread; what it hears and says is at hand."""
  monkeypatch.setattr(wire, "HELLO_SECONDS", 0.3)
  (theirs, mine), (heard, said) = os.pipe(), os.pipe()
  settings = {
    "process": 0,
    "processes": 2,
    "host": "a",
    "parent": os.getppid(),
    "token": "t",
    "start_seconds": 60.0,
    "kill_seconds": 60.0,
    "settle_seconds": 0.2,
  }
  companion = Leader(settings, Channel(theirs, said))
  thread = threading.Thread(target=companion.run)
  thread.start()
  parent = Channel(heard, mine)
  yield parent, parent.receive()[0]["port"]
  parent.send({"bye": True})
  thread.join(SECONDS)
  companion.selector.close()
  companion._server.close()
  for fd in (theirs, mine, heard, said):
    os.close(fd)


def test_who_says_nothing_is_refused_in_time(leader):
  _, port = leader
  with socket.create_connection(("localhost", port), SECONDS) as link:
    assert link.recv(1) == b""


def test_who_comes_late_is_told_who_is_lost(leader):
  parent, port = leader
  parent.send({"leave": 1, "why": "wrong"})
  assert parent.receive() == [{"settled": True}]
  where = {"addresses": ["localhost"], "port": port}
  greeting = wire.hello("t", 1, "b")
  link = wire.connect(where, greeting, SECONDS, lambda: True)
  messages = []

  def heard():
    messages.extend(link.receive())
    return messages

  until(heard)
  link.close()
  assert messages == [Loss(0, "a", "wrong", 1).message()]
