"""Stopping in time: a signal or a notice, agreed upon by all processes.

A request to stop (SIGTERM, SIGINT, a notice of the cloud) is only noted. The
loop asks at every step, and evaluation at every batch, whether to stop now;
with several processes all of them get the same answer at the same question, so
that none is left behind in a collective and all save the same step.
"""

import http.client
import itertools
import os
import signal
import threading
from collections.abc import Callable

from absl import logging

from aced.training import distributed

# The same command goes on from what was saved (EX_TEMPFAIL of sysexits.h).
EXIT_AGAIN = 75
EXIT_INTERRUPTED = 130  # As a shell has it for SIGINT.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 0.2
# How long processes wait for each other's answers. One may still be compiling,
# and the others then wait for it anyway; one that is lost ends the others.
_AGREE_SECONDS = 900.0


class Preempted(BaseException):
  """A run was asked to stop, and has saved what it could.

  Not an `Exception`: it says nothing is wrong, and no handler of errors on the
  way may hold it up.

  Attributes:
    step: the last step that was taken.
    why: what asked for it, such as "SIGTERM".
    code: the exit code that says so.
  """

  def __init__(self, step: int, why: str, saved: bool):
    self.step, self.why = step, why
    interrupted = why.startswith(signal.SIGINT.name)
    self.code = EXIT_INTERRUPTED if interrupted else EXIT_AGAIN
    kept = f"step {step} is saved" if saved else "nothing new could be saved"
    super().__init__(f"stopped by {why}: {kept}, and the same command goes on.")


class StopNow(BaseException):
  """Raised within an evaluation, where a stop is due."""


class Stop:
  """Whether a run has been asked to stop; a context manager.

  Within it, a signal is noted. A second SIGINT, from a keyboard, ends the
  process at once; further SIGTERMs change nothing, as schedulers send several.
  It is meant for the main thread; elsewhere no signal is taken, and `request`
  alone stops the run.

  Args:
    process: which process this is.
    processes: how many there are. More than one talk by
      `aced.training.distributed`.

  Attributes:
    why: what asked for it, or "".
  """

  _stops = itertools.count()  # Alike on every process, to tell them apart.

  def __init__(self, process: int = 0, processes: int = 1):
    self.why = ""
    self._process, self._processes = process, processes
    self._name = f"stop/{next(self._stops)}"
    self._interrupted = self._said = False
    self._asked = 0  # Questions answered so far.
    self._last: int | None = None  # The one that is answered by yes.
    # Held while an answer is given, and while processes agree on the last.
    self._lock = threading.Lock()
    self._requested = False  # Set in a handler, which may take no lock.
    self._closed = threading.Event()
    self._before: dict[int, object] = {}
    self._thread: threading.Thread | None = None

  def request(self, why: str) -> None:
    """Asks to stop; the first reason stays."""
    self.why = self.why or why
    self._requested = True

  def due(self) -> bool:
    """Whether to stop now; every process asks equally often."""
    if self._processes == 1:
      return self._requested
    with self._lock:
      self._asked += 1
      return self._last is not None and self._asked >= self._last

  def check(self) -> None:
    """Raises `StopNow` if a stop is due."""
    if self.due():
      raise StopNow

  def __enter__(self) -> "Stop":
    if threading.current_thread() is threading.main_thread():
      self._before = {s: signal.signal(s, self._signalled) for s in SIGNALS}
    if self._processes > 1:
      self._thread = threading.Thread(
        target=self._listen, name="agrees on a stop", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._closed.set()
    if self._thread is not None:
      # Nobody is to wait for an answer of a process that asks no more.
      with self._lock:
        self._say()
      self._thread.join()
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _signalled(self, number, frame):
    if number == signal.SIGINT and self._interrupted:
      # The last checkpoint is whole, whatever is being written now.
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self._interrupted |= number == signal.SIGINT
    if not self._requested:
      name = signal.Signals(number).name
      # Not by `print`, which the signal may have interrupted.
      os.write(2, f"\n{name}: the step is finished and saved first\n".encode())
    self.request(signal.Signals(number).name)

  def _listen(self):
    """Tells the others of a request, hears of theirs, and agrees on a time."""
    while not self._closed.wait(_LOOK_SECONDS):
      try:
        if self._requested:
          distributed.put(f"{self._name}/why/{self._process}", self.why)
        reasons = distributed.told(f"{self._name}/why")
        if reasons:
          process, why = min(reasons.items())
          self.request(f"{why} on {distributed.host(int(process))}")
          self._agree()
          return
      except Exception as error:
        # The others are gone, or about to be; what follows tells who.
        logging.warning("processes cannot agree on a stop: %s", error)
        return

  def _agree(self):
    """Stops after the question that the process furthest ahead was at."""
    with self._lock:
      # Nobody is given an answer until all have said how far they are.
      self._say()
      asked = [
        int(distributed.get(f"{self._name}/at/{process}", _AGREE_SECONDS))
        for process in range(self._processes)
      ]
      self._last = max(asked) + 1

  def _say(self):
    """Tells how many questions have been asked here, once."""
    if not self._said:
      self._said = True
      distributed.put(f"{self._name}/at/{self._process}", str(self._asked))


class Notices:
  """Listens for notices of the cloud that this machine will be taken away.

  A context manager with a thread. On Google Cloud, the metadata server tells of
  preemption and of maintenance that ends the machine. What it tells already at
  the start is logged and not acted upon: a run that was started again before
  the event would otherwise stop at once.

  Args:
    request: called with what is told.
    url: of the metadata of the machine; None finds out whether there is any.
    seconds: between two looks.
  """

  # Below `url`, and the value that says that the machine will end.
  ENDS = (
    ("preempted", "TRUE"),
    ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
  )

  def __init__(
    self,
    request: Callable[[str], None],
    url: str | None = None,
    seconds: float = 5.0,
  ):
    self._request, self._seconds = request, seconds
    self._url = metadata_url() if url is None else url
    self._closed = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Notices":
    if self._url:
      self._thread = threading.Thread(
        target=self._listen, name="notices of the cloud", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._closed.set()
    if self._thread is not None:
      self._thread.join()

  def _listen(self):
    seen, told = {}, False
    while True:
      for name, end in self.ENDS:
        try:
          value = _fetch(f"{self._url}/{name}", self._seconds)
        except (OSError, http.client.HTTPException) as error:
          if not told:
            logging.warning("no notices from %s: %s", self._url, error)
          told = True
          continue
        if value == end and name not in seen:
          logging.warning("%s is %s since before this start", name, value)
        elif value == end != seen[name]:
          self._request(f"the notice {name}={value}")
        seen[name] = value
      if self._closed.wait(self._seconds):
        return


def metadata_url() -> str:
  """Where Google Cloud tells a machine of itself; "" on other machines."""
  given = os.environ.get("GCE_METADATA_HOST")
  if not given:
    try:
      with open("/sys/class/dmi/id/product_name") as file:
        if "Google" not in file.read():
          return ""
    except OSError:
      return ""
  name = given or "metadata.google.internal"
  return f"http://{name}/computeMetadata/v1/instance"


def _fetch(url, seconds) -> str:
  import urllib.request

  request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
  # No proxy: the address is of this machine.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with opener.open(request, timeout=seconds) as reply:
    return reply.read(1000).decode("utf-8", "replace").strip()
