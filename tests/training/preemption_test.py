"""Stopping: signals, notices, and one answer for all processes."""

import contextlib
import http.server
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from aced.training import preemption
from aced.training.preemption import Notices, Preempted, Stop, StopNow


def kill(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noted_and_handlers_come_back(number):
  before = [signal.getsignal(s) for s in preemption.SIGNALS]
  with Stop() as stop:
    assert not stop.due()
    stop.check()
    kill(number)
    assert stop.due() and stop.why == number.name
    with pytest.raises(StopNow):
      stop.check()
  assert [signal.getsignal(s) for s in preemption.SIGNALS] == before


def test_exit_codes_say_whether_to_start_again():
  assert Preempted(5, "SIGTERM", True).code == 75
  assert Preempted(5, "SIGINT", True).code == 130
  assert Preempted(5, "SIGTERM on host a (process 1)", True).code == 75
  assert "step 5 is saved" in str(Preempted(5, "SIGTERM", True))
  assert "nothing new" in str(Preempted(5, "SIGTERM", False))


@pytest.mark.parametrize(
  ("sent", "status"),
  [
    ("SIGINT SIGINT", -signal.SIGINT),
    ("SIGTERM SIGINT SIGINT", -signal.SIGINT),
    # Schedulers send several, and mean one.
    ("SIGTERM SIGTERM SIGTERM", 0),
    ("SIGTERM SIGINT", 0),
  ],
)
def test_a_second_interrupt_ends_at_once(sent, status):
  program = (
    "import os, signal, sys\n"
    "from aced.training.preemption import Stop\n"
    "with Stop() as stop:\n"
    "  for name in sys.argv[1].split():\n"
    "    os.kill(os.getpid(), getattr(signal, name))\n"
    "    assert stop.due()\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, sent], timeout=60, capture_output=True
  )
  assert done.returncode == status, done.stderr


def test_outside_the_main_thread_requests_alone_count():
  found = []

  def body():
    with Stop() as stop:
      stop.request("a notice")
      found.append((stop.due(), stop.why))

  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert found == [(True, "a notice")]


class Store:
  """In the place of the store that processes share, for threads."""

  def __init__(self):
    self._values, self._changed = {}, threading.Condition()

  def put(self, key, value):
    with self._changed:
      assert key not in self._values
      self._values[key] = value
      self._changed.notify_all()

  def get(self, key, seconds):
    with self._changed:
      if not self._changed.wait_for(lambda: key in self._values, seconds):
        raise TimeoutError(key)
      return self._values[key]

  def told(self, prefix):
    with self._changed:
      return {
        k.removeprefix(f"{prefix}/"): v
        for k, v in self._values.items()
        if k.startswith(f"{prefix}/")
      }

  def host(self, process):
    return f"host-{process}"


@pytest.mark.parametrize("asked_by", [0, 2])
def test_processes_stop_at_the_same_question(monkeypatch, asked_by):
  store = Store()
  for name in ("put", "get", "told", "host"):
    monkeypatch.setattr(preemption.distributed, name, getattr(store, name))
  monkeypatch.setattr(preemption, "_LOOK_SECONDS", 0.005)
  # As steps do, nobody is more than two ahead of anybody else.
  asked, moved = [0] * 3, threading.Condition()

  stops = [Stop(process, 3) for process in range(3)]
  for stop in stops:
    stop._name = "stop/test"
  ended = {}

  def body(process):
    with stops[process] as stop:
      while not stop.due():
        with moved:
          asked[process] += 1
          moved.notify_all()
          moved.wait_for(lambda: min(asked) >= asked[process] - 2, 10)
        if process == asked_by and asked[process] == 40:
          stop.request("SIGTERM")
        time.sleep(0.0003 * (process + 1))
      ended[process] = asked[process]
      with moved:
        asked[process] = 10**9
        moved.notify_all()

  threads = [threading.Thread(target=body, args=(k,)) for k in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert len(ended) == 3 and len(set(ended.values())) == 1
  assert ended[0] >= 40
  others = [k for k in range(3) if k != asked_by]
  assert [stops[k].why for k in others] == [f"SIGTERM on host-{asked_by}"] * 2


class Metadata:
  """A metadata server that tells what it is set to."""

  def __init__(self):
    self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
    self.asked = 0
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        outer.asked += 1
        assert self.headers["Metadata-Flavor"] == "Google"
        body = outer.values[self.path.rsplit("/", 1)[1]].encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

      def log_message(self, *args):
        pass

    self.server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)

  @property
  def url(self):
    return f"http://localhost:{self.server.server_port}/computeMetadata"

  def __enter__(self):
    self.thread = threading.Thread(target=self.server.serve_forever)
    self.thread.start()
    return self

  def __exit__(self, *error):
    self.server.shutdown()
    self.thread.join()
    self.server.server_close()


def until(condition, seconds=10):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.005)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("preempted", "TRUE"),
    ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
  ],
)
def test_notices_are_heard(name, value):
  told = []
  with Metadata() as server, Notices(told.append, server.url, 0.01):
    until(lambda: server.asked >= 4)
    assert told == []
    server.values[name] = "MIGRATE_ON_HOST_MAINTENANCE"
    until(lambda: server.asked >= 8)
    assert told == []
    server.values[name] = value
    until(lambda: told)
  assert told == [f"the notice {name}={value}"]


def test_a_notice_from_before_is_told_and_not_acted_upon(caplog):
  told = []
  with Metadata() as server:
    server.values["preempted"] = "TRUE"
    with (
      caplog.at_level("WARNING", logger="absl"),
      Notices(told.append, server.url, 0.01),
    ):
      until(lambda: server.asked >= 6)
  assert told == []
  assert "preempted is TRUE since before this start" in caplog.text


def test_without_a_server_one_line_says_so(caplog):
  with (
    caplog.at_level("WARNING", logger="absl"),
    Notices(lambda why: None, "http://localhost:9/x", 0.01),
  ):
    until(lambda: caplog.records)
    time.sleep(0.1)
  assert len(caplog.records) == 1 and "no notices from" in caplog.text


def test_other_machines_have_no_metadata(monkeypatch):
  monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
  with contextlib.suppress(FileNotFoundError):
    text = pathlib.Path("/sys/class/dmi/id/product_name").read_text()
    if "Google" in text:
      pytest.skip("this is a machine of Google Cloud")
  assert preemption.metadata_url() == ""
  monkeypatch.setenv("GCE_METADATA_HOST", "localhost:1")
  assert preemption.metadata_url().startswith("http://localhost:1/")
