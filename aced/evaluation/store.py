"""Embeddings of data sets, part by part on disk: none is made twice."""

import hashlib
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from aced.data.records import Slice, Source
from aced.evaluation import embed
from aced.evaluation.embed import Embed, Rows
from aced.files import whole
from aced.models.formats.npz import DAMAGED

PART_RECORDS = 8192  # What is lost at most where a process is killed.


class Store:
  """A folder of the embedded pictures of data sets.

  Several processes keep nothing on disk: they may share none.

  Args:
    folder: where parts are kept while they may be needed.
    part_records: of a part.
  """

  def __init__(
    self, folder: pathlib.Path, part_records: int = PART_RECORDS
  ) -> None:
    self.folder, self.part_records = folder, part_records
    self._keeps = jax.process_count() == 1

  def images(
    self,
    source: Source,
    identity: str,
    embed_image: Embed,
    transform: Callable[..., Any],
    tokenizer: Any,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda records: None,
  ) -> tuple[Rows, float]:
    """Embeds every picture of a source that can be read.

    Args:
      source: of the pictures.
      identity: of source, transform and model; others are other embeddings.
      embed_image: maps `(n, h, w, 3)` pictures to `(n, d)`.
      transform: makes a picture of a record.
      tokenizer: of the batches; its ids are not used.
      batch_size: pictures at a time, of all processes together.
      progress: told how many records were done.

    Returns:
      The rows in the order of the source, and the seconds that they took, in
      this process and in those before it.
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    parts, seconds = [], 0.0
    for start in range(0, len(source), self.part_records):
      stop = min(start + self.part_records, len(source))
      path = self.folder / name / f"{start:09}-{stop:09}.npz"
      part = self._read(path)
      if part is None:
        began = time.perf_counter()
        batches = embed.read_batches(
          Slice(source, start, stop),
          tokenizer,
          transform,
          batch_size,
          len(source),
        )
        with batches:
          rows = embed.embed_images(embed_image, batches)
        part = rows.z, rows.index + start, time.perf_counter() - began
        self._write(path, part)
      parts.append(Rows(*part[:2]))
      seconds += float(part[2])
      progress(stop - start)
    return join(parts), seconds

  def clear(self) -> None:
    """Removes what was kept."""
    if self._keeps and self.folder.exists():
      shutil.rmtree(self.folder)

  def _read(self, path):
    """`(z, index, seconds)` of a part; None if it is to be made."""
    if not self._keeps or not path.exists():
      return None
    try:
      # Opened here, since numpy leaves a damaged archive's file open.
      with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
        return part["z"], part["index"], part["seconds"]
    except (*DAMAGED, ValueError, KeyError) as error:
      logging.warning(
        "%s is damaged, and its embeddings are made anew: %s", path, error
      )
      return None

  def _write(self, path, part):
    if not self._keeps:
      return
    with whole(path) as unfinished, unfinished.open("wb") as file:
      np.savez(file, **dict(zip(("z", "index", "seconds"), part, strict=True)))


def join(parts: list[Rows]) -> Rows:
  """One after another; parts without rows have no width, and are left out."""
  parts = [part for part in parts if len(part.z)]
  if not parts:
    return Rows(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))
  return Rows(
    np.concatenate([part.z for part in parts]),
    np.concatenate([part.index for part in parts]),
  )
