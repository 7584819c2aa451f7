"""Facts of many records of a source, by processes, and how fast it is read."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from aced.data.check.facts import (
  CAPTION,
  PICTURE,
  Facts,
  attempt,
  count_causes,
  examine,
  join,
)
from aced.data.records import Source, SourceError, captions
from aced.data.tokenizers import Tokenizer
from aced.data.transforms import Transform, own_process

# Records that a process takes at a time: few, so that the bar moves.
CHUNK = 32
# Records that are read before the clock starts.
WARM = 8
# More records than this that end the process which reads them are no accident.
MOST_DEATHS = 8


class Speed(NamedTuple):
  """How long one process took for some records.

  Attributes:
    records: read, transformed and tokenized.
    seconds: by the clock.
    cpu_seconds: by all threads of the process together.
  """

  records: int
  seconds: float
  cpu_seconds: float

  @property
  def per_core(self) -> float:
    """Records a second of one core: threads that a decoder starts count."""
    return self.records / max(self.seconds, self.cpu_seconds, 1e-9)

  @property
  def waiting(self) -> float:
    """Share of the time in which the process waited."""
    return max(0.0, 1 - self.cpu_seconds / max(self.seconds, 1e-9))


def cores() -> int:
  """Returns the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def spread(size: int, most: int) -> np.ndarray:
  """Returns positions in `[0, size)`, evenly spread; 0 is all of them."""
  count = min(size, most) if most else size
  return np.arange(count, dtype=np.int64) * size // max(count, 1)


def survey(
  source: Source,
  tokenizer: Tokenizer,
  indices: np.ndarray,
  workers: int = 0,
) -> Facts:
  """Looks at records of a source, with a progress bar on stderr.

  A record that cannot be read, whatever the reason, is counted and does not end
  the survey; neither does one that ends the process which reads it.

  Args:
    source: of records.
    tokenizer: long enough for any caption: longer ones are cut.
    indices: of the records, ascending.
    workers: processes; 0 and 1 are this one, which a record may then end.

  Raises:
    SourceError: record after record ends the process that reads it.
  """
  chunks = [indices[k : k + CHUNK] for k in range(0, len(indices), CHUNK)]
  workers = min(workers, len(chunks))
  with tqdm(
    total=len(indices), unit=" records", desc="reading", disable=None
  ) as bar:

    def seen(facts):
      bar.update(facts.read)
      return facts

    if workers > 1:
      pool = _Pools(source, tokenizer, workers)
      return join(pool.examine(chunks, seen))
    return join([seen(examine(source, tokenizer, c)) for c in chunks])


def measure(
  source: Source,
  tokenizer: Tokenizer,
  transform: Transform,
  indices: np.ndarray,
  most_seconds: float = 20.0,
) -> Speed:
  """Times what a run does to a record: reading, transform and tokens.

  Args:
    source: of records.
    tokenizer: as a run has it.
    transform: as a run has it.
    indices: of records that can be read.
    most_seconds: when to stop, if they are not all done by then.
  """
  # The first picture of a process waits for what decodes it to be loaded.
  _load(source, tokenizer, transform, indices[:WARM])
  done, clock, cpu = 0, time.perf_counter(), time.process_time()
  with tqdm(
    total=len(indices), unit=" records", desc="timing", disable=None
  ) as bar:
    for k in range(0, len(indices), CHUNK):
      part = indices[k : k + CHUNK]
      done += _load(source, tokenizer, transform, part)
      bar.update(len(part))
      if time.perf_counter() - clock > most_seconds:
        break
  return Speed(done, time.perf_counter() - clock, time.process_time() - cpu)


def _load(source, tokenizer, transform, indices) -> int:
  """Reads records as a run does; returns how many could be read."""

  def load(index):
    record = source[index]
    transform(record)
    return captions(record)[0]

  # They were read before: what fails now is a matter of the moment, and the
  # report is worth more.
  found = [attempt(load, int(index)) for index in indices]
  texts = [text for text, why in found if why is None]
  tokenizer(texts)
  return len(texts)


class _Pools:
  """Processes that examine chunks of records, and may die of them."""

  def __init__(self, source, tokenizer, workers: int):
    self.source, self.tokenizer, self.workers = source, tokenizer, workers
    self._deaths = 0

  def examine(self, chunks, seen) -> list[Facts]:
    """Facts of every chunk, in order; `seen` is called with each at once."""
    found = {}
    while left := [k for k in range(len(chunks)) if k not in found]:
      try:
        with self._pool(self.workers) as pool:
          tasks = {pool.submit(_examine, chunks[k]): k for k in left}
          for task in futures.as_completed(tasks):
            found[tasks[task]] = seen(task.result())
      except BrokenProcessPool:
        # A process died, of one of the chunks in hand: no telling which.
        in_hand = [k for k in left if k not in found][: 2 * self.workers + 1]
        with futures.ThreadPoolExecutor(self.workers) as threads:
          parts = threads.map(self._alone, [chunks[k] for k in in_hand])
          for k, facts in zip(in_hand, parts):
            found[k] = seen(facts)
    return [found[k] for k in range(len(chunks))]

  def _alone(self, indices) -> Facts:
    """Facts of records, read in a process that dies with none but them."""
    try:
      with self._pool(1) as pool:
        return pool.submit(_examine, indices).result()
    except BrokenProcessPool:
      if len(indices) == 1:
        return self._died(int(indices[0]))
    half = len(indices) // 2
    return join([self._alone(indices[:half]), self._alone(indices[half:])])

  def _died(self, index) -> Facts:
    self._deaths += 1
    where = self.source.where(index)
    if self._deaths > MOST_DEATHS:
      raise SourceError(
        f"{self._deaths} records, the last of them {where}, ended the process"
        " that read them: something is wrong with more than the records; the"
        " reason may stand above, and --workers 0 reads them in this process."
      )
    detail = "reading it ended the process"
    causes = count_causes(self.source, [(index, "reader_died", detail)])
    none = np.zeros(0, PICTURE), np.zeros(0, CAPTION)
    return Facts(1, *none, *causes, {}, {})

  @contextlib.contextmanager
  def _pool(self, workers) -> Iterator[futures.ProcessPoolExecutor]:
    pool = futures.ProcessPoolExecutor(
      workers,
      # Forked processes would hold the locks of threads that they lack.
      mp_context=multiprocessing.get_context("spawn"),
      initializer=_begin,
      initargs=(self.source, self.tokenizer),
    )
    try:
      yield pool
    finally:
      pool.shutdown(cancel_futures=True)


# What a worker process examines; set once, as a source may be large.
_work: tuple[Source, Tokenizer] | None = None


def _begin(source, tokenizer):
  global _work
  own_process()
  _work = source, tokenizer


def _examine(indices):
  return examine(*_work, indices)
