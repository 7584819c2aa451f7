"""Embeddings of every record of a source by a frozen model, on disk.

A folder holds `cache.json`, which says of which model, data, tokenizer and
transform, and ArrayRecord shards in which record `i` of the source is entry
`i % shard_records` of shard `i // shard_records`: in bfloat16, the embedding of
its picture and then of each usable caption; one byte for a record that has
none. `aced.cache` writes it.
"""

import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from array_record.python import array_record_module as array_record

from aced import files
from aced.config import ConfigError

FILE = "cache.json"
FORMAT = 1
DTYPE = np.dtype(ml_dtypes.bfloat16)
UNUSABLE = b"\0"
# One entry at a time is read; and noise of 16 bits does not compress.
OPTIONS = "group_size:1,uncompressed"


class CacheError(ConfigError):
  """A cache that is not whole, or not of what a run is about to use."""


class Contents(NamedTuple):
  """What a cache holds, and of what; the content of `cache.json`.

  Attributes:
    identities: "model", "input.source", "input.tokenizer", "input.transform".
    records: of the source.
    shard_records: entries of a shard; the last may have fewer.
    width: of the embeddings.
    t: temperature of the model.
    b: bias of the model.
    format: of the files.
  """

  identities: dict[str, str]
  records: int
  shard_records: int
  width: int
  t: float
  b: float
  format: int = FORMAT

  @property
  def shards(self) -> int:
    """Number of shards."""
    return -(-self.records // self.shard_records)

  def rows(self, shard: int) -> range:
    """The records of a shard."""
    start = shard * self.shard_records
    return range(start, min(start + self.shard_records, self.records))


def shard_path(folder: pathlib.Path, shard: int, shards: int) -> pathlib.Path:
  """Where a shard is."""
  return folder / f"embeddings-{shard:05d}-of-{shards:05d}.array_record"


def read_contents(folder: str | os.PathLike) -> Contents:
  """Reads `cache.json`.

  Raises:
    CacheError: there is none, or it is of another format.
  """
  path = pathlib.Path(folder) / FILE
  try:
    content = json.loads(path.read_text())
    found = Contents(**content)
  except OSError as error:
    raise CacheError(
      f"no cache of embeddings at {folder}: {error.strerror}; make one with"
      " python -m aced.cache."
    ) from error
  except (ValueError, TypeError) as error:
    raise CacheError(
      f"{path} is not what python -m aced.cache writes: {error}; move the"
      " folder away and make the cache anew."
    ) from error
  if found.format != FORMAT:
    raise CacheError(
      f"{path} is of format {found.format}; this version reads {FORMAT}. Make"
      " the cache anew."
    )
  return found


def whole(folder: pathlib.Path, shard: int, contents: Contents) -> bool:
  """Whether a shard is there with all of its entries."""
  path = shard_path(folder, shard, contents.shards)
  try:
    if not path.stat().st_size:
      return False
    reader = array_record.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()  # Of a file that is cut short this raises as well.
  except (OSError, RuntimeError, ValueError):
    return False
  return count == len(contents.rows(shard))


def write_shard(
  folder: pathlib.Path, shard: int, contents: Contents, entries: Sequence[bytes]
) -> None:
  """Writes a shard, which appears whole or not at all."""
  path = shard_path(folder, shard, contents.shards)
  with files.whole(path) as part:
    writer = array_record.ArrayRecordWriter(str(part), OPTIONS)
    for entry in entries:
      writer.write(entry)
    writer.close()


def encode(zimg: np.ndarray | None, ztxt: Sequence[np.ndarray]) -> bytes:
  """The entry of a record: `(d,)` of its picture, `(d,)` of each caption."""
  if zimg is None or not len(ztxt):
    return UNUSABLE
  return np.stack([zimg, *ztxt]).astype(DTYPE).tobytes()


class EmbeddingCache:
  """A cache that is whole, for reading. Can be pickled; safe from threads.

  Args:
    folder: where it is.

  Attributes:
    path: the folder.
    contents: of the cache.

  Raises:
    CacheError: it is not there, or some of its shards are missing or cut short.
  """

  def __init__(self, folder: str | os.PathLike):
    self.path = pathlib.Path(folder).expanduser().absolute()
    self.contents = read_contents(self.path)
    self._lock, self._readers = threading.Lock(), {}
    shards = range(self.contents.shards)
    broken = [k for k in shards if not whole(self.path, k, self.contents)]
    if broken:
      raise CacheError(
        f"the cache {self.path} is not whole: {len(broken)} of"
        f" {self.contents.shards} shards are missing or cut short, first"
        f" {shard_path(self.path, broken[0], self.contents.shards).name}. Run"
        " python -m aced.cache with the same arguments again: it makes those"
        " and keeps the rest."
      )

  @property
  def width(self) -> int:
    """Of the embeddings."""
    return self.contents.width

  @property
  def scales(self) -> tuple[float, float]:
    """The model's temperature and bias."""
    return self.contents.t, self.contents.b

  @property
  def fingerprint(self) -> str:
    """Of the model's parameters."""
    return self.contents.identities["model"]

  def check(self, identities: Mapping[str, str]) -> None:
    """Refuses a cache that was made of something else.

    Args:
      identities: name -> what a run uses, of those in `Contents.identities`.

    Raises:
      CacheError: naming what differs.
    """
    check_identities(self.path, self.contents.identities, identities)

  def read(
    self, indices: Sequence[int], captions: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the embeddings of records.

    Args:
      indices: `n` records.
      captions: which usable caption of each.

    Returns:
      `(n, d)` bfloat16 of the pictures and of the captions, and `(n,)` bool,
      False where the cache has none, and zeros.
    """
    zimg = np.zeros((len(indices), self.width), DTYPE)
    ztxt, usable = np.zeros_like(zimg), np.zeros(len(indices), bool)
    for row, entry in self._entries(indices):
      found = np.frombuffer(entry, np.uint8)
      if found.size % (self.width * DTYPE.itemsize):
        continue
      found = found.view(DTYPE).reshape(-1, self.width)
      if captions[row] + 1 < len(found):
        zimg[row], ztxt[row] = found[0], found[captions[row] + 1]
        usable[row] = True
    return zimg, ztxt, usable

  def _entries(self, indices) -> Iterator[tuple[int, bytes]]:
    """Yields `(row, entry)`, shard by shard."""
    size = self.contents.shard_records
    shards, entries = np.divmod(np.asarray(indices), size)
    for shard in np.unique(shards):
      rows = np.flatnonzero(shards == shard)
      wanted = entries[rows].tolist()
      try:
        found = self._reader(int(shard)).read(wanted)
      except RuntimeError as error:  # Its checksums do not agree.
        path = shard_path(self.path, int(shard), self.contents.shards)
        raise CacheError(
          f"{path} is damaged: {error}. Remove it and run python -m aced.cache"
          " with the same arguments again, which makes it anew."
        ) from error
      yield from zip(rows.tolist(), found, strict=True)

  def _reader(self, shard):
    with self._lock:
      if shard not in self._readers:
        path = shard_path(self.path, shard, self.contents.shards)
        self._readers[shard] = array_record.ArrayRecordReader(
          str(path), "readahead_buffer_size:0"
        )
      return self._readers[shard]

  def __getstate__(self):
    return {"path": self.path, "contents": self.contents}

  def __setstate__(self, state: Mapping[str, Any]):
    self.__dict__.update(state)
    self._lock, self._readers = threading.Lock(), {}


def check_identities(
  folder: pathlib.Path, made_of: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
  """Raises CacheError, naming what differs, unless a cache is of `wanted`."""
  lines = [
    f"  {name}: it was made of {made_of.get(name)}, and now it is {value}"
    for name, value in wanted.items()
    if made_of.get(name) != value
  ]
  if lines:
    listing = "\n".join(lines)
    raise CacheError(
      f"the cache {folder} is of something else:\n{listing}\nUse what it was"
      " made of, or make another one with python -m aced.cache in another"
      " folder."
    )
