"""What stands where in the stream of records, and reading parts of it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from grain import experimental

from aced.data import faults
from aced.data.cache import EmbeddingCache
from aced.data.records import CAUSES, BadRecord, captions

Batch = dict[str, np.ndarray]


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
  return experimental.index_shuffle(
    index, max_index=size - 1, seed=_epoch_seed(seed, epoch), rounds=4
  )


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
  return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


class Parts:
  """Parts of batches, by number, for grain to read in any order.

  Part `k` is the rows `[p, p + part_rows)` of this process's share of a step.
  `seed` None is evaluation: one pass, nothing random, no caption needed.
  """

  def __init__(
    self,
    source,
    tokenizer,
    transform,
    rows: range,
    *,
    batch_size: int,
    part_rows: int,
    steps: range,
    seed: int | None,
    shuffle: bool,
    caches: Mapping[str, EmbeddingCache] | None = None,
  ):
    self.source, self.tokenizer = source, tokenizer
    self.caches = caches or {}
    self.transform, self.rows = transform, rows
    self.batch_size, self.part_rows = batch_size, part_rows
    self.steps, self.seed, self.shuffle = steps, seed, shuffle
    self.per_batch = -(-len(rows) // part_rows)

  def __len__(self):
    return len(self.steps) * self.per_batch

  def __repr__(self):
    return f"super-batches of {self.batch_size} from {self.source!r}"

  def __getitem__(self, number: int) -> Batch:
    step, part = divmod(number, self.per_batch)
    first = part * self.part_rows
    start = self.steps[step] * self.batch_size
    rows = self.rows[first : first + self.part_rows]
    return self._load([start + row for row in rows])

  def _load(self, positions: Sequence[int]) -> Batch:
    count, side = len(positions), self.transform.image_size
    batch = {
      "image": np.zeros((count, side, side, 3), np.uint8),
      "_mask": np.zeros(count, bool),
      "index": np.full(count, -1, np.int32),
      "error": np.zeros(count, np.int8),
    }
    if getattr(self.source, "has_faults", False):
      batch["fault"] = np.full(count, faults.UNKNOWN, np.int8)
    texts, chosen = [""] * count, [0] * count
    for row, position in enumerate(positions):
      texts[row], chosen[row] = self._load_row(batch, row, position)
    for name, found in self.caches.items():
      self._read_cache(batch, texts, chosen, name, found)
    return batch | {"labels": self.tokenizer(texts)}

  def _read_cache(self, batch, texts, chosen, name, found) -> None:
    """Adds the embeddings of a frozen model; masks what it has not."""
    zimg, ztxt, usable = found.read(batch["index"], chosen)
    batch |= {f"cached/{name}/zimg": zimg, f"cached/{name}/ztxt": ztxt}
    for row in np.flatnonzero(batch["_mask"] & ~usable):
      batch["_mask"][row], texts[row] = False, ""
      batch["image"][row] = 0
      batch["error"][row] = CAUSES["not_cached"]

  def _load_row(self, batch: Batch, row: int, position: int) -> tuple[str, int]:
    """Fills a row of a batch; returns its caption, and which one it is."""
    size = len(self.source)
    if self.seed is None:
      index, rng, choose = position, None, _first_caption
      if index >= size:
        return "", 0
    else:
      index = record_index(position, size, self.seed, self.shuffle)
      rng = np.random.default_rng((self.seed, position))
      choose = _any_caption
    batch["index"][row] = index
    record = self.source[index]
    if "fault" in batch:
      batch["fault"][row] = record.get("fault", faults.UNKNOWN)
    try:
      # The caption goes first, so that the draws do not hang on the picture.
      text, which = choose(record, rng)
      batch["image"][row] = self.transform(record, rng)
    except BadRecord as bad:
      batch["error"][row] = bad.code
      return "", 0
    batch["_mask"][row] = True
    return text, which


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
