"""Who fills parts of batches: threads of this process, or others.

A process that dies is started anew with the records that it held; one that is
at one record for too long is named, ended and treated alike. A record that has
brought that about twice is masked.
"""

import atexit
import collections
import multiprocessing
import os
import pickle
import queue
import shutil
import signal
import socket
import threading
import time
import traceback
from multiprocessing import connection, shared_memory
from typing import Any

import numpy as np
from absl import logging

from aced.data.parts import TOGETHER, Batch, Loader, Task
from aced.data.records import CAUSES
from aced.data.transforms import own_process

# Times that a record may bring its process down before it is masked.
TRIES = 2
# Starts of a process that come to nothing before the run ends, and how long one
# may take: it imports what it needs, and opens the source.
STARTS = 3
START_SECONDS = 120.0
_ALIGN = 64
_SHARED = "/dev/shm"  # Of Linux; elsewhere there is no such limit.
_ENDED = "the processes that read were ended."
# Seconds between two looks at a process that is at work, and until a source has
# to have said where a record is.
_LOOK, _ASK = 0.2, 2.0


class WorkerError(RuntimeError):
  """A process that reads could not be started, or failed."""


class Threads:
  """Loads in the calling thread; names the records that do not come.

  Args:
    loader: what fills arrays.
    stall_seconds: after which a record is named.
  """

  restarts = 0

  def __init__(self, loader: Loader, stall_seconds: float):
    self._loader, self._stall = loader, stall_seconds
    self._at: dict[int, tuple[float, int]] = {}  # Thread -> since, record.
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name="stalled records", daemon=True
    )
    self._thread.start()

  def load(self, task: Task, out: Batch) -> None:
    """Fills the arrays with the rows of a task."""
    me = threading.get_ident()

    def at(row):
      index = task.indices[row] if row >= 0 else -1
      self._at[me] = (time.monotonic(), index)

    try:
      self._loader.load(task, out, at)
    finally:
      self._at.pop(me, None)

  def close(self) -> None:
    """Ends the watch."""
    self._stop.set()
    self._thread.join()

  def _watch(self):
    named = set()
    while not self._stop.wait(min(self._stall / 4, 5.0)):
      for since, index in list(self._at.values()):
        if time.monotonic() - since > self._stall and since not in named:
          named.add(since)
          _warn(self._loader.source, index, f"hangs for {self._stall:g} s")


class Workers:
  """Loads in other processes, one task at a time in each.

  Args:
    loader: what fills arrays, sent to every process.
    num_workers: how many processes.
    rows: the most rows of a task.
    stall_seconds: after which a process that is at one record is ended.

  Attributes:
    restarts: how many processes have been started anew.
  """

  def __init__(
    self, loader: Loader, num_workers: int, rows: int, stall_seconds: float
  ):
    self.restarts = 0
    self._loader, self._stall = loader, stall_seconds
    self._closed = threading.Event()
    _check_memory(num_workers * _layout(loader.columns(), rows)[1])
    self._workers = [_Worker(loader, rows) for _ in range(num_workers)]
    self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in self._workers:
      self._idle.put(worker)
    atexit.register(self.close)

  def load(self, task: Task, out: Batch) -> None:
    """Fills the arrays with the rows of a task.

    Raises:
      WorkerError: processes do not start.
      Exception: what the loader raised.
    """
    worker = self._idle.get()
    try:
      if self._closed.is_set():
        raise WorkerError(_ENDED)
      self._load(worker, task, out)
    finally:
      self._idle.put(worker)

  def close(self) -> None:
    """Ends the processes; closing twice is harmless."""
    self._closed.set()
    for worker in self._workers:
      worker.end()
    atexit.unregister(self.close)

  def _load(self, worker, task, out):
    strikes: collections.Counter[int] = collections.Counter()
    skip = dict(task.skip)
    while True:
      try:
        worker.work(task._replace(skip=skip), out, self._stall, self._closed)
        return
      except _Lost as lost:
        worker.end()
        if self._closed.is_set():
          raise WorkerError(_ENDED) from lost
        self.restarts += 1
        strikes[lost.row] += 1
        self._consider(task, lost, strikes[lost.row], skip)

  def _consider(self, task, lost, count, skip):
    """Names the record a process was lost at; masks one that does it again."""
    if lost.row in skip or (lost.row == TOGETHER and count >= TRIES):
      raise WorkerError(
        f"a process that reads was lost {count} times at the caches or the"
        f" tokenizers, with records {min(task.indices)} to"
        f" {max(task.indices)}: {lost.why}."
      )
    if lost.row < 0:
      if count >= STARTS:
        raise WorkerError(
          f"a process that reads was lost {count} times before its first record"
          f" ({lost.why}); its own words are above. Processes import the script"
          " that trains: it must be a file, and do so below"
          " `if __name__ == '__main__':`. config.input.num_workers=0 reads"
          " without processes."
        )
      logging.warning("a process that reads is started anew: %s", lost.why)
      return
    if count >= TRIES:
      skip[lost.row] = CAUSES[lost.cause]
    what = "is masked" if count >= TRIES else "is read again"
    index = task.indices[lost.row]
    _warn(self._loader.source, index, f"{what}: {lost.why}")


class _Lost(Exception):
  """A process has ended, or had to be.

  Attributes:
    row: of the task, at which it was; -1 is before the first.
    cause: a key of `CAUSES`.
    why: in words.
  """

  def __init__(self, row, cause, why):
    super().__init__(why)
    self.row, self.cause, self.why = row, cause, why


class _Worker:
  """One process, and the memory that it fills.

  The lock is held while the process works and while its memory is copied from,
  so that nobody takes the memory away; `end` kills the process before it asks
  for the lock, and who holds it finds the process gone.
  """

  def __init__(self, loader, rows):
    self._loader, self._rows = loader, rows
    self._columns = loader.columns()
    self._process = None
    self._ready = False  # Whether it has been heard of since it was started.
    self._lock = threading.RLock()

  def work(
    self, task: Task, out: Batch, stall: float, closed: threading.Event
  ) -> None:
    """Has a task done, and copies what was made.

    Raises:
      _Lost: the process is no more.
      Exception: what the loader raised there.
    """
    with self._lock:
      if self._process is None:
        self._start()
      self._at[0] = -1
      try:
        self._pipe.send(task)
        reply = self._reply(stall, closed)
        self._ready = True
      except (BrokenPipeError, EOFError, ConnectionResetError) as error:
        raise self._lost() from error
      if reply is not None:
        raise _unpacked(reply)
      for name, array in self._arrays.items():
        out[name][:] = array[: len(task.positions)]

  def end(self) -> None:
    """Ends the process, whatever it is at."""
    process = self._process
    if process is not None:
      process.kill()
    with self._lock:
      if self._process is None:
        return
      self._process.kill()
      self._process.join()
      self._process = None
      self._pipe.close()
      self._arrays, self._at = {}, None
      self._memory.close()
      self._memory.unlink()

  def _reply(self, stall, closed):
    """Waits for the process to be done; looks whether it gets on."""
    seen, since = -1, time.monotonic()
    while True:
      if connection.wait([self._pipe, self._process.sentinel], _LOOK):
        if self._pipe.poll():
          return self._pipe.recv()
        raise self._lost()
      if closed.is_set():
        raise _Lost(-1, "reader_died", _ENDED)
      now, at = time.monotonic(), int(self._at[0])
      starts = at == -1 and not self._ready
      limit = max(stall, START_SECONDS) if starts else stall
      if at != seen:
        seen, since = at, now
      elif now - since > limit:
        raise _Lost(at, "reader_hung", f"it hangs for {limit:g} s")

  def _lost(self):
    self._process.join(timeout=5)
    code = self._process.exitcode
    name = code
    if code is not None and code < 0:
      name = signal.Signals(-code).name
    why = f"reading it ended the process ({name})"
    return _Lost(int(self._at[0]), "reader_died", why)

  def _start(self):
    layout, size = _layout(self._columns, self._rows)
    self._memory = shared_memory.SharedMemory(create=True, size=size)
    self._arrays = _arrays(layout, self._memory.buf)
    self._at = self._arrays.pop(_AT)
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    process = context.Process(
      target=_serve,
      args=(self._loader, theirs, self._memory.name, layout),
      name="reader",
      daemon=True,
    )
    # An interrupt from the keyboard is for the parent, which ends this process.
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      process.start()
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, kept)
    theirs.close()
    self._process, self._ready = process, False


def _check_memory(needed: int) -> None:
  """Refuses more shared memory than there is: writing to it would be fatal."""
  if not os.path.isdir(_SHARED):
    return
  free = shutil.disk_usage(_SHARED).free
  if needed > free:
    raise WorkerError(
      f"the processes that read need {needed / 1e6:,.0f} MB of shared memory,"
      f" and {_SHARED} has {free / 1e6:,.0f} MB left. Give the container more"
      " (docker run --shm-size=8g), lower config.input.num_workers, or set it"
      " to 0."
    )


# Name of the column that tells at which row a process is.
_AT = "at"


def _layout(columns, rows):
  """Name -> (offset, shape, dtype) of arrays in one memory, and its size."""
  offset, layout = 0, {}
  shapes = {name: ((rows, *s), dtype) for name, (s, dtype) in columns.items()}
  for name, (shape, dtype) in {
    _AT: ((1,), np.dtype(np.int64)),
    **shapes,
  }.items():
    layout[name] = (offset, shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    offset += -(-size // _ALIGN) * _ALIGN
  return layout, offset


def _arrays(layout, memory) -> Batch:
  return {
    name: np.ndarray(shape, dtype, memory, offset)
    for name, (offset, shape, dtype) in layout.items()
  }


def _serve(loader: Loader, pipe: Any, name: str, layout: Any) -> None:
  """What a process does: tasks, until the other end of the pipe is gone."""
  own_process()
  memory = shared_memory.SharedMemory(name)
  arrays = _arrays(layout, memory.buf)
  at = arrays.pop(_AT)

  def note(row):
    at[0] = row

  while True:
    try:
      task = pipe.recv()
    except (EOFError, ConnectionResetError):
      return
    count = len(task.positions)
    try:
      loader.load(task, {k: v[:count] for k, v in arrays.items()}, note)
      reply = None
    except Exception as error:
      reply = _packed(error)
    pipe.send(reply)


def _packed(error: Exception) -> tuple[bytes, str]:
  """An exception as it can be sent, and its traceback."""
  # What is pickled goes from a process of this run to its parent, as all that
  # multiprocessing sends; no data set has a part in it.
  text = traceback.format_exc()
  try:
    content = pickle.dumps(error)
    pickle.loads(content)  # Not all that can be written can be read.
  except Exception:  # Of any type: it is the exception's own code that runs.
    content = pickle.dumps(WorkerError(f"{type(error).__name__}: {error}"))
  return content, text


def _unpacked(reply) -> Exception:
  content, text = reply
  error = pickle.loads(content)
  error.add_note(f"In a process that reads:\n{text}")
  return error


def _warn(source, index, what):
  """One line that names host, place and record."""
  logging.warning(
    "host %s: record %d, %s, %s",
    socket.gethostname(),
    index,
    _where(source, index),
    what,
  )


def _where(source, index) -> str:
  """Where a record is; what hangs or fails when it is read may do so here."""
  if index < 0:
    return "which is none"
  found = []

  def ask():
    try:
      found.append(source.where(index))
    except Exception as error:
      found.append(f"whose place cannot be told ({error})")

  thread = threading.Thread(target=ask, name="where", daemon=True)
  thread.start()
  thread.join(_ASK)
  return found[0] if found else "whose place cannot be told"
