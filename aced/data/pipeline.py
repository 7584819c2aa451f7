"""Batches of a source, in an order that nothing but the seed decides.

Step `s` reads positions `[s * B, (s + 1) * B)` of an endless stream of
shuffled epochs, and each process its contiguous share of them. What stands at
a position depends on `(seed, position)` alone: not on threads, workers or
processes, nor on the step a run began at.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from aced.config import ConfigError
from aced.data.cache import EmbeddingCache
from aced.data.parts import Batch, Loader, Plan, record_index
from aced.data.records import BadRecord, captions
from aced.data.workers import Threads, Workers

__all__ = [
  "Batches",
  "eval_batches",
  "eval_captions",
  "record_index",
  "superbatches",
]

# Rows that one thread or process reads at a time: few enough that a large batch
# is shared out, many enough that handing them on costs nothing.
_PART_ROWS = 64
# How long one record may take before it is named, and its process ended.
STALL_SECONDS = 60.0


class Batches:
  """An iterator of host batches; close it, or use it as a context manager.

  Args:
    assembly: what makes them.
    num_threads: that do so at the same time.
    ahead: parts that are made before they are asked for.
  """

  def __init__(self, assembly: "_Assembly", num_threads: int, ahead: int):
    self._assembly = assembly
    parts = grain.MapDataset.source(assembly).to_iter_dataset(
      grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    )
    per_batch = assembly.plan.per_batch
    self._iterator = iter(parts.batch(per_batch, batch_fn=assembly.whole))

  def metrics(self) -> dict[str, float]:
    """How often a process that reads had to be started anew."""
    return {"data/reader_restarts": float(self._assembly.reader.restarts)}

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    try:
      return next(self._iterator)
    except BaseException:  # StopIteration too: no reader is to be left behind.
      self.close()
      raise

  def close(self) -> None:
    """Ends the threads and processes that read ahead."""
    self._assembly.reader.close()
    self._iterator.close()

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *error) -> None:
    self.close()


def superbatches(
  source: Any,
  tokenizer: Any,
  transform: Any,
  *,
  batch_size: int,
  seed: int,
  num_steps: int,
  start_step: int = 0,
  rows: Sequence[int] | None = None,
  num_threads: int = 2,
  num_workers: int = 0,
  prefetch: int = 2,
  shuffle: bool = True,
  stall_seconds: float = STALL_SECONDS,
  caches: Mapping[str, EmbeddingCache] | None = None,
  image_views: Mapping[str, int] | None = None,
  label_views: Mapping[str, Any] | None = None,
) -> Batches:
  """Returns `num_steps` super-batches, of steps from `start_step` on.

  Args:
    source: of records, see `aced.data.Source`.
    tokenizer: maps `n` texts to `(n, l)` int32.
    transform: maps a record and a random generator to a picture.
    batch_size: `B`, pairs in a super-batch over all processes.
    seed: of order, augmentation and choice among captions; 0 or above.
    num_steps: how many are read: what is left of the run.
    start_step: the first that is read.
    rows: of every batch, that this process reads; None is all of them.
    num_threads: that read, where no processes do.
    num_workers: processes that read; 0 is threads of this one.
    prefetch: batches read ahead.
    shuffle: whether epochs are shuffled.
    stall_seconds: how long one record may take before it is named. A process
      is then ended and started anew; a thread cannot be.
    caches: name -> embeddings of the source by a frozen model.
    image_views: column -> another size of the pictures, with the same crops.
    label_views: column -> another tokenizer of the captions.

  Returns:
    Dicts of `image` `(n, h, w, 3)` uint8, `labels` `(n, l)` int32, `_mask`
    `(n,)` bool, `index` `(n,)` int32, `error` `(n,)` int8 (a code of
    `records.CAUSES`) and, where the source knows it, `fault` `(n,)` int8 (-1
    is unknown); `n = len(rows)`. With caches, `cached/NAME/zimg` and
    `cached/NAME/ztxt`, `(n, d)` bfloat16. A record that cannot be used has a
    black picture, no text, and `_mask` False.

  Raises:
    ConfigError: sizes that do not fit.
  """
  if batch_size > len(source):
    raise ConfigError(
      f"the super-batch of {batch_size} pairs is larger than the data set"
      f" {source!r} of {len(source)}; lower batch_size or"
      " curation.filter_ratio."
    )
  if len(source) > np.iinfo(np.int32).max:
    raise ConfigError(
      f"{source!r} has {len(source):,} records, more than the"
      f" {np.iinfo(np.int32).max:,} that batches can number; split it with"
      " start= and limit=."
    )
  if seed < 0:
    raise ConfigError(f"seed={seed} must be 0 or above.")
  for name, value in (("start_step", start_step), ("num_steps", num_steps)):
    if value < 0:
      raise ConfigError(f"{name}={value} must be 0 or above.")
  reading = _Reading(num_threads, num_workers, prefetch, stall_seconds)
  loader = Loader(
    source,
    tokenizer,
    transform,
    seed=seed,
    caches=caches,
    image_views=image_views,
    label_views=label_views,
  )
  rows = range(batch_size) if rows is None else rows
  if not len(rows) or min(rows) < 0 or max(rows) >= batch_size:
    raise ConfigError(
      f"rows={rows!r} must be some of the {batch_size} rows of a batch."
    )
  plan = Plan(
    len(source),
    rows,
    batch_size=batch_size,
    part_rows=_part_rows(len(rows), reading.readers),
    steps=range(start_step, start_step + num_steps),
    seed=seed,
    shuffle=shuffle,
  )
  return _read(plan, loader, reading)


def eval_batches(
  source: Any,
  tokenizer: Any,
  transform: Any,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
  num_workers: int = 0,
  prefetch: int = 2,
  stall_seconds: float = STALL_SECONDS,
) -> Batches:
  """Returns every record once, in order, in batches of one size.

  The last batch is filled up with rows whose `_mask` is False and `index` -1.
  Only a picture that cannot be read masks a record: its caption may play no
  part in the evaluation. `labels` are those of the first usable caption, or
  of no text; see `eval_captions` for all of them.

  Args:
    source: as in `superbatches`, and so are the arguments not named here.
    tokenizer: as there.
    transform: without augmentation.
    batch_size: records in a batch over all processes.
    process_index: which share of every batch this is.
    process_count: shares of every batch.
    num_threads: that read, where no processes do.
    num_workers: processes that read; 0 is threads of this one.
    prefetch: batches read ahead.
    stall_seconds: how long one record may take before it is named.

  Returns:
    Dicts as of `superbatches`.

  Raises:
    ConfigError: sizes that do not fit.
  """
  reading = _Reading(num_threads, num_workers, prefetch, stall_seconds)
  rows = _local_rows(batch_size, process_index, process_count)
  plan = Plan(
    len(source),
    rows,
    batch_size=batch_size,
    part_rows=_part_rows(len(rows), reading.readers),
    steps=range(-(-len(source) // batch_size)),
    seed=None,
    shuffle=False,
  )
  return _read(plan, Loader(source, tokenizer, transform, seed=None), reading)


def eval_captions(source: Any) -> tuple[list[str], np.ndarray]:
  """Returns all usable captions of a source, and the record of each.

  Args:
    source: of records with one or several captions each, or none.

  Returns:
    `m` captions, and `(m,)` int32 indices of their records.
  """
  read = getattr(source, "fields", source.__getitem__)
  texts, index = [], []
  for i in range(len(source)):
    try:
      found = captions(read(i))
    except BadRecord:
      # Without a caption a picture stays in the gallery, and is no query.
      continue
    texts += found
    index += [i] * len(found)
  return texts, np.array(index, np.int32)


class _Reading(NamedTuple):
  """Who reads, and how far ahead."""

  num_threads: int
  num_workers: int
  prefetch: int
  stall_seconds: float

  @property
  def readers(self) -> int:
    """Parts that are read at the same time."""
    return self.num_workers or self.num_threads

  def check(self) -> None:
    """Refuses numbers that cannot be."""
    for name, least in (("num_threads", 1), ("num_workers", 0)):
      if getattr(self, name) < least:
        raise ConfigError(
          f"{name}={getattr(self, name)} must be {least} or above."
        )
    if self.prefetch < 1:
      raise ConfigError(f"prefetch={self.prefetch} must be 1 or above.")
    if not self.stall_seconds > 0:
      raise ConfigError(f"stall_seconds={self.stall_seconds} must be above 0.")


class _Assembly:
  """Parts of batches, by number, for grain to make in any order.

  A part is made in its place in the arrays of its batch, which are there from
  its first part on until the batch is handed on: `prefetch` batches or so.
  """

  def __init__(self, plan: Plan, loader: Loader, reader: Threads | Workers):
    self.plan, self.reader = plan, reader
    self._columns = loader.columns()
    self._source = repr(loader.source)
    self._batches: dict[int, Batch] = {}
    self._lock = threading.Lock()

  def __len__(self):
    return len(self.plan)

  def __repr__(self):
    return f"batches of {self.plan.batch_size} from {self._source}"

  def __getitem__(self, number: int) -> int:
    """Makes a part; returns the number of its batch."""
    batch, rows, task = self.plan.part(number)
    with self._lock:
      if batch not in self._batches:
        self._batches[batch] = self._empty()
      arrays = self._batches[batch]
    self.reader.load(task, {k: v[rows] for k, v in arrays.items()})
    return batch

  def whole(self, batches: Sequence[int]) -> Batch:
    """The batch whose parts have all been made."""
    with self._lock:
      return self._batches.pop(batches[0])

  def _empty(self) -> Batch:
    count = len(self.plan.rows)
    return {
      name: np.empty((count, *shape), dtype)
      for name, (shape, dtype) in self._columns.items()
    }


def _read(plan: Plan, loader: Loader, reading: _Reading) -> Batches:
  """Reads batches ahead, in order."""
  reading.check()
  if reading.num_workers:
    reader = Workers(
      loader, reading.num_workers, plan.part_rows, reading.stall_seconds
    )
  else:
    reader = Threads(loader, reading.stall_seconds)
  ahead = max(reading.prefetch * plan.per_batch, reading.readers)
  return Batches(_Assembly(plan, loader, reader), reading.readers, ahead)


def _local_rows(batch_size, process_index, process_count) -> range:
  """The rows of a batch that a process reads."""
  if batch_size < 1 or batch_size % process_count:
    raise ConfigError(
      f"a batch of {batch_size} does not divide over {process_count} processes;"
      f" choose a positive multiple of {process_count}."
    )
  if not 0 <= process_index < process_count:
    raise ConfigError(
      f"process_index={process_index} must lie in 0..{process_count - 1}."
    )
  rows = batch_size // process_count
  return range(process_index * rows, (process_index + 1) * rows)


def _part_rows(rows: int, readers: int) -> int:
  """Rows of a part, such that every reader gets some of each batch."""
  return min(_PART_ROWS, -(-rows // max(readers, 1)))
