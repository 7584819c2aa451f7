"""What stands where in the stream of records, and making arrays of it.

A batch is read in parts. What a part holds is said by a `Task`, which needs
nothing but arithmetic; a `Loader` fills arrays with it, in this process or in
another one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aced.data import faults
from aced.data.cache import DTYPE, EmbeddingCache
from aced.data.records import CAUSES, BadRecord, captions

Batch = dict[str, np.ndarray]

# In the place of a row: what concerns all rows of a task, which is caches.
TOGETHER = -2


def record_index(
  position: int, size: int, seed: int, shuffle: bool = True
) -> int:
  """Returns the record at a position of the stream of epochs.

  Args:
    position: from 0, of the endless stream.
    size: records of an epoch.
    seed: 0 or above; every epoch is a permutation of its own.
    shuffle: False is the order of the source, again and again.
  """
  epoch, index = divmod(position, size)
  if not shuffle:
    return index
  return _shuffle()(
    index, max_index=size - 1, seed=_epoch_seed(seed, epoch), rounds=4
  )


@functools.cache
def _shuffle():
  # Grain brings jax with it, which processes that only load do without.
  from grain import experimental

  return experimental.index_shuffle


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
  return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


class Task(NamedTuple):
  """Some rows of a batch.

  Attributes:
    positions: of the rows in the stream of records; randomness depends on them.
    indices: of their records; -1 is a row without one.
    skip: row -> the code of a cause for which its record is not to be read.
  """

  positions: Sequence[int]
  indices: Sequence[int]
  skip: Mapping[int, int] = {}


class Plan:
  """Which task is which part of which batch.

  Args:
    size: records of the source.
    rows: of every batch that this process reads.
    batch_size: rows of a batch over all processes.
    part_rows: the most rows of a task.
    steps: the batches that are read.
    seed: of the order; None is evaluation: one pass in order, filled up.
    shuffle: whether epochs are shuffled.
  """

  def __init__(
    self,
    size: int,
    rows: Sequence[int],
    *,
    batch_size: int,
    part_rows: int,
    steps: range,
    seed: int | None,
    shuffle: bool,
  ):
    self.size, self.rows, self.batch_size = size, rows, batch_size
    self.part_rows, self.steps = part_rows, steps
    self.seed, self.shuffle = seed, shuffle
    self.per_batch = -(-len(rows) // part_rows)

  def __len__(self):
    return len(self.steps) * self.per_batch

  def part(self, number: int) -> tuple[int, slice, Task]:
    """The batch, the rows in it, and the task of part `number`."""
    batch, part = divmod(number, self.per_batch)
    first = part * self.part_rows
    rows = self.rows[first : first + self.part_rows]
    start = self.steps[batch] * self.batch_size
    positions = [start + row for row in rows]
    task = Task(positions, [self._record(p) for p in positions])
    return batch, slice(first, first + len(rows)), task

  def _record(self, position):
    if self.seed is None:
      return position if position < self.size else -1
    return record_index(position, self.size, self.seed, self.shuffle)


class Loader:
  """Fills arrays with records. Can be pickled.

  Args:
    source: of records.
    tokenizer: of the column `labels`.
    transform: of the column `image`, and of other sizes of the same picture.
    seed: of augmentation and choice among captions; None is evaluation, where
      neither is, and no caption is needed.
    caches: name -> embeddings by a frozen model.
    image_views: column -> another size of the picture.
    label_views: column -> another tokenizer.
  """

  def __init__(
    self,
    source: Any,
    tokenizer: Any,
    transform: Any,
    *,
    seed: int | None,
    caches: Mapping[str, EmbeddingCache] | None = None,
    image_views: Mapping[str, int] | None = None,
    label_views: Mapping[str, Any] | None = None,
  ):
    self.source, self.transform, self.seed = source, transform, seed
    self.caches = dict(caches or {})
    self.sizes = {"image": transform.image_size, **(image_views or {})}
    self.tokenizers = {"labels": tokenizer, **(label_views or {})}
    self.faults = bool(getattr(source, "has_faults", False))

  def columns(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> shape of a row and dtype, of every column."""
    found = {
      "_mask": ((), bool),
      "index": ((), np.int32),
      "error": ((), np.int8),
      **({"fault": ((), np.int8)} if self.faults else {}),
      **{k: ((size, size, 3), np.uint8) for k, size in self.sizes.items()},
      **{k: (_row(t), np.int32) for k, t in self.tokenizers.items()},
    }
    for name, cache in self.caches.items():
      for part in ("zimg", "ztxt"):
        found[f"cached/{name}/{part}"] = ((cache.width,), DTYPE)
    return {k: (shape, np.dtype(dtype)) for k, (shape, dtype) in found.items()}

  def load(
    self, task: Task, out: Batch, at: Callable[[int], None] = lambda row: None
  ) -> None:
    """Fills the rows of every column.

    Args:
      task: `n` rows.
      out: every column of `columns`, `n` rows each; overwritten.
      at: told the row whose record is about to be read, or `TOGETHER`.
    """
    count = len(task.positions)
    out["_mask"][:], out["error"][:] = False, 0
    out["index"][:] = task.indices
    if self.faults:
      out["fault"][:] = faults.UNKNOWN
    texts, chosen = [""] * count, [0] * count
    for row in range(count):
      at(row)
      self._load_row(task, row, out, texts, chosen)
    at(TOGETHER)
    for name, found in self.caches.items():
      self._read_cache(out, texts, chosen, name, found)
    for name in self.sizes:
      out[name][~out["_mask"]] = 0
    for row in range(count):
      at(row)
      for name, tokenizer in self.tokenizers.items():
        out[name][row] = tokenizer(texts[row : row + 1])[0]

  def _load_row(self, task, row, out, texts, chosen) -> None:
    """Fills a row of the columns but labels; notes its caption, and which."""
    index = task.indices[row]
    if row in task.skip:
      out["error"][row] = task.skip[row]
      return
    if index < 0:
      return
    evaluates = self.seed is None
    rng = None
    if not evaluates:
      rng = np.random.default_rng((self.seed, task.positions[row]))
    record = self.source[index]
    if self.faults:
      out["fault"][row] = record.get("fault", faults.UNKNOWN)
    choose = _first_caption if evaluates else _any_caption
    try:
      # The caption goes first, so that the draws do not depend on the picture.
      text, which = choose(record, rng)
      views = self.transform.views(record, tuple(self.sizes.values()), rng)
    except BadRecord as bad:
      out["error"][row] = bad.code
      return
    for name, view in zip(self.sizes, views, strict=True):
      out[name][row] = view
    out["_mask"][row] = True
    texts[row], chosen[row] = text, which

  def _read_cache(self, out, texts, chosen, name, found) -> None:
    """Adds the embeddings of a frozen model; masks what it has not."""
    indices = np.maximum(out["index"], 0)
    zimg, ztxt, usable = found.read(indices, chosen)
    out[f"cached/{name}/zimg"][:] = zimg
    out[f"cached/{name}/ztxt"][:] = ztxt
    for row in np.flatnonzero(out["_mask"] & ~usable):
      out["_mask"][row], texts[row] = False, ""
      out["error"][row] = CAUSES["not_cached"]


def _row(tokenizer) -> tuple[int, ...]:
  """The shape of a row of ids; of any function, by what it makes."""
  if hasattr(tokenizer, "length"):
    return (tokenizer.length,)
  return np.shape(tokenizer([""]))[1:]


def _any_caption(
  record: Mapping[str, Any], rng: np.random.Generator
) -> tuple[str, int]:
  texts = captions(record)
  which = int(rng.integers(len(texts))) if len(texts) > 1 else 0
  return texts[which], which


def _first_caption(record: Mapping[str, Any], rng: None) -> tuple[str, int]:
  try:
    return captions(record)[0], 0
  except BadRecord:
    return "", 0
