"""Processes that write shards, each with its own view of the source."""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from aced.config import ConfigError
from aced.data.convert import shard_files
from aced.data.records import BadRecord, Source, SourceError
from aced.data.sources import open_source
from aced.data.transforms import own_process

_POLL_SECONDS = 0.5
_TICK_RECORDS = 64  # Progress is told after as many.


class ConvertError(ConfigError):
  """A conversion that cannot be begun, or go on."""


class Job(NamedTuple):
  """What is to be written.

  Attributes:
    spec: of the source.
    folder: of the shards.
    format: a key of `shard_files.FORMATS`.
    records: of the source.
    shard_records: records of the source that go into a shard.
    verify: whether pictures are decoded.
  """

  spec: str
  folder: pathlib.Path
  format: str
  records: int
  shard_records: int
  verify: bool

  @property
  def shards(self) -> int:
    """The number of shards."""
    return -(-self.records // self.shard_records)

  def rows(self, number: int) -> range:
    """The records of the source that go into a shard."""
    first = number * self.shard_records
    return range(first, min(first + self.shard_records, self.records))

  def path(self, number: int) -> pathlib.Path:
    """The file of a shard."""
    name = shard_files.shard_name(self.format, number, self.shards)
    return self.folder / name


class Shard(NamedTuple):
  """A shard that is whole.

  Attributes:
    number: from 0.
    written: records in it.
    dropped: cause -> records that could not be used.
    left_out: field that JSON cannot express -> records that had it.
    size: its bytes.
  """

  number: int
  written: int
  dropped: dict[str, int]
  left_out: dict[str, int]
  size: int


class _Stopped(Exception):
  """Another shard failed, or the user has had enough."""


def write_shards(
  job: Job, numbers: Sequence[int], workers: int, bar: Any
) -> Iterator[Shard]:
  """Yields shards as they become whole.

  Args:
    job: what is written.
    numbers: of the shards.
    workers: processes.
    bar: a progress bar of records.

  Raises:
    ConvertError: a shard cannot be written, or a process died.
  """
  if not numbers:
    return
  workers, begun = min(workers, len(numbers)), bar.n
  context = multiprocessing.get_context("spawn")
  done, stop = context.Value("q", 0), context.Value("b", 0)
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, _begin, (done, stop)
  ) as pool:
    try:
      yield from _in_turn(
        pool,
        job,
        numbers,
        ahead=2 * workers,
        look=lambda: bar.update(begun + done.value - bar.n),
      )
    except BrokenProcessPool as error:
      raise ConvertError(
        "a process that writes shards died: killed for want of memory, or by a"
        " picture that its decoder cannot stand. Whole shards stay; run the"
        " same command again, with fewer --workers, or without --verify."
      ) from error
    finally:
      stop.value = 1  # Or it would wait for the shards in hand.


def write_shard(
  job: Job, number: int, source: Source, tick: Callable[[], None]
) -> Shard:
  """Writes a shard, whole or not at all.

  Args:
    job: what is written.
    number: of the shard.
    source: opened from the spec of the job.
    tick: called before each record.

  Raises:
    ConvertError: the source cannot be read, or the file not written.
  """
  path = job.path(number)
  part = path.with_name(f".{path.name}.part-{os.getpid()}")
  dropped, left_out = collections.Counter(), collections.Counter()
  open_shard, _ = shard_files.FORMATS[job.format]
  written = 0
  try:
    with open_shard(part) as add:
      for index in job.rows(number):
        tick()
        try:
          record = shard_files.usable(_read(source, index), job.verify)
        except BadRecord as bad:
          dropped[bad.cause] += 1
          continue
        left_out.update(_add(add, index, record))
        written += 1
    size = shard_files.publish(part, path)
  except (OSError, RuntimeError) as error:
    raise ConvertError(
      f"{path} cannot be written: {error}. Whole shards stay; make room, and"
      " run the same command again."
    ) from error
  finally:
    part.unlink(missing_ok=True)
  return Shard(number, written, dict(dropped), dict(left_out), size)


def _in_turn(pool, job, numbers, ahead, look) -> Iterator[Shard]:
  """Yields results; a few shards are waiting at any time, not all."""
  numbers, waiting = iter(numbers), set()
  while True:
    for number in itertools.islice(numbers, ahead - len(waiting)):
      waiting.add(pool.submit(_task, job, number))
    if not waiting:
      return
    finished, waiting = concurrent.futures.wait(
      waiting, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
    )
    look()
    yield from (future.result() for future in finished)


def _read(source, index):
  """A record; what ends the whole conversion is told with its index."""
  try:
    return source[index]
  except (OSError, RuntimeError, SourceError) as error:
    raise ConvertError(
      f"record {index} of {source!r} cannot be read: {error}. Whole shards"
      " stay; run the same command again to go on."
    ) from error


def _add(add, index, record) -> list[str]:
  """Adds a record; returns the fields that had to be left out."""
  try:
    add(index, record)
  except TypeError:
    record, left_out = shard_files.expressible(record)
    add(index, record)
    return left_out
  return []


# What a worker process has: it is told once, when the process begins.
_WORKER: dict[str, Any] = {}


def _begin(done, stop):
  """Readies a worker process."""
  _WORKER.update(done=done, stop=stop)
  own_process()
  # The terminal interrupts all processes; the first one tells the others.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  """Ends this process when the first one was killed: it could not tell."""
  parent = multiprocessing.parent_process()
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)


_open = functools.cache(open_source)


def _task(job, number) -> Shard:
  """Writes a shard in a worker process."""
  done, stop = _WORKER["done"], _WORKER["stop"]
  count = itertools.count(1)

  def tick():
    if next(count) % _TICK_RECORDS == 0:
      with done.get_lock():
        done.value += _TICK_RECORDS
      if stop.value:
        raise _Stopped

  shard = write_shard(job, number, _open(job.spec), tick)
  with done.get_lock():
    done.value += len(job.rows(number)) % _TICK_RECORDS
  return shard
