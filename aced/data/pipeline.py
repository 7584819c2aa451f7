"""Batches of a source, in an order that nothing but the seed decides.

Step `s` reads positions `[s * B, (s + 1) * B)` of an endless stream of
shuffled epochs, and each process its contiguous share of them. What stands at
a position depends on `(seed, position)` alone: not on threads, workers or
processes, nor on the step a run began at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from aced.config import ConfigError
from aced.data.cache import EmbeddingCache
from aced.data.parts import Batch, Parts, record_index
from aced.data.records import BadRecord, captions

__all__ = [
  "Batches",
  "eval_batches",
  "eval_captions",
  "record_index",
  "superbatches",
]

# Rows that one thread reads at a time: few enough that a large batch is shared
# out, many enough that handing them on costs nothing.
_PART_ROWS = 256


class Batches:
  """An iterator of host batches; close it, or use it as a context manager."""

  def __init__(self, dataset: grain.IterDataset):
    self._iterator = iter(dataset)

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    try:
      return next(self._iterator)
    except StopIteration:
      self.close()
      raise

  def close(self) -> None:
    """Ends the threads and processes that read ahead."""
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
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
  num_workers: int = 0,
  prefetch: int = 2,
  shuffle: bool = True,
  caches: Mapping[str, EmbeddingCache] | None = None,
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
    process_index: which share of every batch this is.
    process_count: shares of every batch.
    num_threads: that read, in each process that does.
    num_workers: processes that read; 0 is this one.
    prefetch: batches read ahead.
    shuffle: whether epochs are shuffled.
    caches: name -> embeddings of the source by a frozen model.

  Returns:
    Dicts of `image` `(n, h, w, 3)` uint8, `labels` `(n, l)` int32, `_mask`
    `(n,)` bool, `index` `(n,)` int32, `error` `(n,)` int8 (a code of
    `records.CAUSES`) and, where the source knows it, `fault` `(n,)` int8 (-1
    is unknown); `n = B / process_count`. With caches, `cached/NAME/zimg` and
    `cached/NAME/ztxt`, `(n, d)` bfloat16. A record that cannot be used is all
    zeros with `_mask` False.

  Raises:
    ConfigError: sizes that do not fit.
  """
  if batch_size > len(source):
    raise ConfigError(
      f"the super-batch of {batch_size} pairs is larger than the data set"
      f" {source!r} of {len(source)}; lower batch_size or"
      " curation.filter_ratio."
    )
  if seed < 0:
    raise ConfigError(f"seed={seed} must be 0 or above.")
  for name, value in (("start_step", start_step), ("num_steps", num_steps)):
    if value < 0:
      raise ConfigError(f"{name}={value} must be 0 or above.")
  rows = _local_rows(batch_size, process_index, process_count)
  parts = Parts(
    source,
    tokenizer,
    transform,
    rows,
    batch_size=batch_size,
    part_rows=_part_rows(len(rows), num_threads * max(num_workers, 1)),
    steps=range(start_step, start_step + num_steps),
    seed=seed,
    shuffle=shuffle,
    caches=caches,
  )
  return _read(parts, num_threads, num_workers, prefetch)


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
    num_threads: that read, in each process that does.
    num_workers: processes that read; 0 is this one.
    prefetch: batches read ahead.

  Returns:
    Dicts as of `superbatches`.

  Raises:
    ConfigError: sizes that do not fit.
  """
  rows = _local_rows(batch_size, process_index, process_count)
  parts = Parts(
    source,
    tokenizer,
    transform,
    rows,
    batch_size=batch_size,
    part_rows=_part_rows(len(rows), num_threads * max(num_workers, 1)),
    steps=range(-(-len(source) // batch_size)),
    seed=None,
    shuffle=False,
  )
  return _read(parts, num_threads, num_workers, prefetch)


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


def _read(parts, num_threads, num_workers, prefetch) -> Batches:
  """Reads parts ahead, in order, and joins them to batches."""
  for name, value, least in (
    ("num_threads", num_threads, 1),
    ("num_workers", num_workers, 0),
    ("prefetch", prefetch, 1),
  ):
    if value < least:
      raise ConfigError(f"{name}={value} must be {least} or above.")
  ahead = max(prefetch * parts.per_batch, num_threads)
  per_worker = -(-ahead // max(num_workers, 1))
  dataset = grain.MapDataset.source(parts).to_iter_dataset(
    grain.ReadOptions(
      num_threads=num_threads,
      prefetch_buffer_size=num_threads if num_workers else ahead,
    )
  )
  if num_workers:
    if not flags.FLAGS.is_parsed():
      # Grain hands its flags to the workers, and reads them to do so. A program
      # that does not use absl never parses them: their defaults hold.
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=per_worker
      )
    )
  return Batches(dataset.batch(parts.per_batch, batch_fn=_join))


def _join(parts: Sequence[Batch]) -> Batch:
  return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


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
