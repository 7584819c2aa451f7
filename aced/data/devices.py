"""Batches on the devices ahead of their use, and what was wrong with them."""

import collections
import functools
import inspect
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from aced.data.decoding import decode
from aced.data.records import CAUSE_NAMES, BadRecord, captions
from aced.embeddings import Embeddings

DEVICE_KEYS = ("image", "labels", "_mask", "index", "error", "fault")
# What stays on the host as well, to name records by.
HOST_KEYS = ("index", "error")

# Name of a frozen model -> temperature and bias of its cached embeddings.
Scales = Mapping[str, tuple[float, float]]

Info = dict[str, np.ndarray]


class DeviceBatches:
  """Iterates over `(batch on the devices, what names its records)`.

  A thread takes batches from the host iterator and starts their transfer, so
  that both go on while the devices compute. Close it, or use it as a context
  manager; the host iterator is closed with it.

  Attributes:
    seconds_waited: how long the caller has waited for data so far, the first
      batch left out.
  """

  def __init__(
    self,
    iterator: Iterable[Mapping[str, np.ndarray]],
    sharding_for: Callable[[str, np.ndarray], jax.sharding.Sharding],
    depth: int = 2,
    scales: Scales | None = None,
  ):
    if depth < 1:
      raise ValueError(f"depth={depth} must be 1 or above.")
    self.seconds_waited = 0.0
    # When the first batch was handed on, and when metrics were last asked for.
    self._first = self._since = None
    self._source = iterator
    self._ready: queue.SimpleQueue = queue.SimpleQueue()
    self._room = threading.Semaphore(depth)
    self._stop = threading.Event()
    self._ended: BaseException | None = None
    # The thread knows nothing of this object, which can thus be collected.
    arguments = (
      iter(iterator),
      functools.partial(_place, sharding_for, scales or {}),
      self._ready,
      self._room,
      self._stop,
    )
    self._thread = threading.Thread(
      target=_fill, args=arguments, name="to_devices", daemon=True
    )
    self._finalizer = weakref.finalize(self, _halt, self._stop, self._room)
    self._thread.start()

  def __iter__(self) -> "DeviceBatches":
    return self

  def __next__(self) -> tuple[dict[str, jax.Array], Info]:
    if self._ended is not None:
      raise self._ended
    start = time.perf_counter()
    item, error = self._ready.get()
    now = time.perf_counter()
    if self._first is None:
      self._first, self._since = now, (now, 0.0)
    else:
      self.seconds_waited += now - start
    if error is not None:
      self._ended = error
      self.close()
      raise error
    self._room.release()
    return item

  def metrics(self) -> dict[str, float]:
    """The share of the time since the last call spent waiting for data."""
    now = time.perf_counter()
    then, waited = self._since or (now, 0.0)
    self._since = (now, self.seconds_waited)
    share = (self.seconds_waited - waited) / max(now - then, 1e-9)
    of_host = self._source.metrics() if hasattr(self._source, "metrics") else {}
    return {"time/waiting": share, **of_host}

  @property
  def share_waited(self) -> float:
    """The share of the time since the first batch spent waiting for data."""
    if self._first is None:
      return 0.0
    elapsed = time.perf_counter() - self._first
    return self.seconds_waited / max(elapsed, 1e-9)

  def close(self) -> None:
    """Stops reading ahead, and closes the host iterator."""
    self._finalizer()
    self._ended = self._ended or StopIteration()
    if inspect.isgenerator(self._source):
      self._thread.join()  # One that is running cannot be closed.
    if hasattr(self._source, "close"):
      self._source.close()  # The thread may be waiting for a batch of it.
    self._thread.join()

  def __enter__(self) -> "DeviceBatches":
    return self

  def __exit__(self, *error) -> None:
    self.close()


def to_devices(
  iterator: Iterable[Mapping[str, np.ndarray]],
  sharding_for: Callable[[str, np.ndarray], jax.sharding.Sharding],
  depth: int = 2,
  scales: Scales | None = None,
) -> DeviceBatches:
  """Sends batches to the devices ahead of use.

  Args:
    iterator: of host batches; every process gives its share of the rows. Its
      `metrics()`, if it has any, are passed on.
    sharding_for: maps the name and the local array of a column to the sharding
      of the global array.
    depth: the most batches on the devices that have not been asked for.
    scales: name -> `(t, b)` of the frozen models whose embeddings the batches
      carry as `cached/NAME/zimg` and `cached/NAME/ztxt`.

  Returns:
    An iterator of pairs: the columns `DEVICE_KEYS` as global arrays, with
    `Embeddings` by name under "cached"; and the columns `HOST_KEYS` of this
    process, as they are. What the iterator raises, it raises.
  """
  return DeviceBatches(iterator, sharding_for, depth, scales)


def _fill(batches: Iterator, place, ready, room, stop) -> None:
  """Puts `(item, None)` for each batch, then `(None, why it ended)`."""
  try:
    while True:
      room.acquire()
      if stop.is_set():
        return
      ready.put((place(next(batches)), None))
  except BaseException as error:  # StopIteration too: the caller raises it.
    ready.put((None, error))


def _halt(stop, room):
  stop.set()
  room.release()


def _place(sharding_for, scales: Scales, batch):
  """A host batch as what goes to the devices, and the rest."""
  of_models = [
    f"cached/{name}/{z}" for name in scales for z in ("zimg", "ztxt")
  ]
  # Other sizes of the pictures, and other tokens: `image@...`, `labels@...`.
  of_models += [key for key in batch if "@" in key]
  placed = {
    key: jax.make_array_from_process_local_data(
      sharding_for(key, batch[key]), batch[key]
    )
    for key in (*DEVICE_KEYS, *of_models)
    if key in batch
  }
  rest = {k: batch[k] for k in HOST_KEYS if k in batch}
  cached = {
    name: Embeddings(
      *(placed.pop(f"cached/{name}/{z}") for z in ("zimg", "ztxt")),
      *map(np.float32, scale),
    )
    for name, scale in scales.items()
  }
  return placed | ({"cached": cached} if cached else {}), rest


class BadRecords:
  """Counts the records that could not be used, by cause.

  The first of each cause that this process reads is logged in one line, with
  its index and source. Those of all processes are counted, by the steps.

  Args:
    source: the records come from.

  Attributes:
    counts: cause -> records of it that were read so far.
  """

  def __init__(self, source: Any = None):
    self.counts: collections.Counter[str] = collections.Counter()
    self._source = source
    self._named: set[str] = set()

  @property
  def total(self) -> int:
    """Records that could not be used, of any cause."""
    return self.counts.total()

  def count(self, errors: np.ndarray) -> None:
    """Counts the records of a step.

    Args:
      errors: `(causes,)` records of each code of a cause, of all processes.
    """
    for code, number in enumerate(errors.astype(int).tolist()):
      if code and number:
        self.counts[CAUSE_NAMES[code]] += number

  def name(self, info: Mapping[str, np.ndarray], source: Any = None) -> None:
    """Logs the first record of each cause.

    Args:
      info: holds `error` and `index`, `(n,)` integers each.
      source: that of these records, if another one.
    """
    source = self._source if source is None else source
    for row in np.flatnonzero(info["error"]):
      cause = CAUSE_NAMES[int(info["error"][row])]
      if cause not in self._named:
        self._named.add(cause)
        index = int(info["index"][row])
        logging.warning(
          "record %d of %r is masked, %s; more of this cause are counted, not"
          " logged",
          index,
          source,
          _explain(source, index, cause),
        )

  def metrics(self) -> dict[str, float]:
    """The counts, as metrics of a run."""
    counts = {f"data/bad/{k}": float(v) for k, v in self.counts.items()}
    return {"data/bad_records": float(self.total)} | counts


# Causes that reading a record once more would bring about again, here.
_NOT_AGAIN = ("reader_died", "reader_hung")


def _explain(source: Any, index: int, cause: str) -> str:
  """What is wrong with a record, read once more for its details."""
  if source is None or cause in _NOT_AGAIN:
    return cause
  try:
    record = source[index]
    captions(record)
    decode(record.get("image"))
  except BadRecord as bad:
    return str(bad)
  except Exception as error:  # It is masked already, and must not end a run.
    return f"{cause} ({type(error).__name__}: {error})"
  return cause
