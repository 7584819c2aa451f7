"""Pairs in Parquet files: a column of encoded pictures, one of captions."""

import collections
import os
import threading

import numpy as np
from absl import logging

from aced.data.records import Source, SourceError
from aced.data.sources import arrow, storage
from aced.data.sources.fields import Fields, damaged, unreadable

# Row groups kept decoded by one reader. A record costs the reading of its whole
# group, so files to be read in any order should have small ones.
KEPT_GROUPS = 8
KEPT_FILES = 128
_LARGE_GROUP = 2**26


class Parquet(Source):
  """Rows of Parquet files.

  Args:
    pattern: of the files, as `storage.expand` takes it.
    fields: which columns are picture and caption; the picture may be a column
      of bytes, or a struct with `bytes`, as Hugging Face writes it.

  Raises:
    SourceError: no such files, one that is no Parquet file, no rows, a column
      that is not there, or pyarrow is not installed.
  """

  def __init__(self, pattern: str, fields: Fields | None = None):
    try:
      import pyarrow.parquet as _  # noqa: F401
    except ImportError as error:
      raise SourceError(
        "parquet: needs pyarrow: pip install -e '.[formats]'."
      ) from error
    self.pattern, self._fields = pattern, fields or Fields()
    self._paths = storage.expand(pattern)
    self._start()
    groups = [
      (number, group, rows, size)
      for number in range(len(self._paths))
      for group, (rows, size) in enumerate(self._row_groups(number))
    ]
    self._groups = np.array([g[:2] for g in groups], np.int64).reshape(-1, 2)
    self._ends = np.cumsum([g[2] for g in groups], dtype=np.int64)
    if not len(self._ends) or not self._ends[-1]:
      raise SourceError(f"{pattern} holds no rows.")
    size = max(size for *_, size in groups)
    if size > _LARGE_GROUP:
      logging.warning(
        "%r has row groups of %d MB, and in any order a record costs all of its"
        " group; python -m aced.data convert writes it anew.",
        self,
        size // 2**20,
      )

  def __len__(self):
    return int(self._ends[-1])

  def __repr__(self):
    return f"parquet:{self.pattern}"

  def __getitem__(self, index):
    return self._get(index, picture=True)

  def fields(self, index):
    """The record at `index`; the column of pictures is not read."""
    return self._get(index, picture=False)

  def where(self, index):
    """The file of a row, and which one it is."""
    number, group, row = self._find(index)
    return f"row {row} of row group {group} of {self._paths[number]}"

  def _get(self, index, picture):
    import pyarrow

    number, group, row = self._find(index)
    try:
      table = self._table(number, group, picture)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
      return unreadable(damaged(self.where(index), error), picture)
    stored = arrow.row(table, row)
    path = self._paths[number]
    folder = None if storage.is_remote(path) else os.path.dirname(path)
    return self._fields.record(stored, picture, folder)

  def _find(self, index):
    index = self._check(index)
    place = int(np.searchsorted(self._ends, index, "right"))
    first = int(self._ends[place - 1]) if place else 0
    number, group = map(int, self._groups[place])
    return number, group, index - first

  def _table(self, number, group, picture):
    """A decoded row group; the ones used last are kept."""
    key = number, group, picture
    with self._lock:  # Files of pyarrow are not for several threads.
      table = self._tables.pop(key, None)
      if table is None:
        file = self._file(number)
        names = file.schema_arrow.names
        if not picture:
          names = [name for name in names if name != self._fields.image]
        table = file.read_row_group(group, names, use_threads=False)
      self._tables[key] = table
      if len(self._tables) > KEPT_GROUPS:
        self._tables.popitem(last=False)
      return table

  def _row_groups(self, number) -> list[tuple[int, int]]:
    """The rows and bytes of each row group of a file, whose columns fit.

    A file without rows has no groups, if what wrote it was given nothing.
    """
    file, path = self._file(number), self._paths[number]
    names = file.schema_arrow.names
    for name in {name for name in names if names.count(name) > 1}:
      raise SourceError(
        f"{path} has several columns {name!r}; expected one of each name: write"
        " it anew."
      )
    meta = file.metadata
    groups = [meta.row_group(k) for k in range(meta.num_row_groups)]
    if meta.num_rows:
      self._fields.check(names, path)
    return [(group.num_rows, group.total_byte_size) for group in groups]

  def _file(self, number):
    import pyarrow
    import pyarrow.parquet

    file = self._files.pop(number, None)
    if file is None:
      path = self._paths[number]
      try:
        source = path
        if storage.is_remote(path):
          source = storage.filesystem(path).open(path)
        file = pyarrow.parquet.ParquetFile(source)
      except pyarrow.ArrowInvalid as error:
        why = str(error).rstrip(".")
        if "footer" in why and _begins(path):
          raise SourceError(
            f"{path} is cut short: {why}. Fetch it again."
          ) from error
        raise SourceError(
          f"{path} is no Parquet file: {why}.{storage.what_it_is(path)}"
        ) from error
      except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    self._files[number] = file
    if len(self._files) > KEPT_FILES:
      self._files.popitem(last=False)[1].close(force=True)
    return file

  def _start(self):
    self._lock = threading.Lock()
    self._files = collections.OrderedDict()
    self._tables = collections.OrderedDict()

  def __getstate__(self):
    left_out = ("_lock", "_files", "_tables")
    return {k: v for k, v in self.__dict__.items() if k not in left_out}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._start()


def _begins(path: str) -> bool:
  """Whether a file begins as Parquet does."""
  return storage.Storage([path]).read(0, 0, 4) == b"PAR1"
