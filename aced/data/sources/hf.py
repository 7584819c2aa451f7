"""Data sets of Hugging Face, by the package `datasets`."""

import os

from aced.config import did_you_mean
from aced.data.records import Source, SourceError
from aced.data.sources import arrow
from aced.data.sources.fields import (
  Fields,
  class_name,
  damaged,
  unreadable,
)


class HuggingFace(Source):
  """One split of a data set that `datasets` loads or has saved.

  Args:
    where: `name:split` of the hub, or of a folder of data files; or a folder
      that `save_to_disk` wrote, with `:split` if it has several.
    config: of the data set, where it has several.
    fields: which columns are picture and caption.

  Raises:
    SourceError: `datasets` is not installed, or there is no such data set,
      split or column.
  """

  def __init__(
    self, where: str, config: str = "", fields: Fields | None = None
  ):
    try:
      import datasets
    except ImportError as error:
      raise SourceError(
        "hf: needs the package datasets: pip install -e '.[formats]'."
      ) from error
    self._where, self._config = where, config
    self._fields = fields or Fields()
    # As Arrow has it: nothing is decoded, opened or fetched by `datasets`.
    self._data = self._load(datasets).with_format("arrow")
    name, _ = self._parts()
    self._folder = name if os.path.isdir(name) else None
    features = self._data.features
    self._fields.check(list(features), repr(self))
    label = self._fields.label or "label"
    self._names = getattr(features.get(label), "names", None)
    self._others = [n for n in features if n != self._fields.image]

  def __len__(self):
    return len(self._data)

  def __repr__(self):
    config = f"?config={self._config}" if self._config else ""
    return f"hf:{self._where}{config}"

  def __getitem__(self, index):
    return self._row(self._data, index, picture=True)

  def fields(self, index):
    """The record at `index`; its picture is not read."""
    return self._row(
      self._data.select_columns(self._others), index, picture=False
    )

  def _row(self, data, index, picture):
    import pyarrow

    index = self._check(index)
    try:
      row = arrow.row(data[index : index + 1], 0)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
      return unreadable(damaged(self.where(index), error), picture)
    return self._record(row, picture)

  def _record(self, row, picture):
    label = self._fields.label or "label"
    if self._names is not None:
      row = {**row, label: class_name(self._names, row.get(label))}
    return self._fields.record(row, picture, self._folder)

  def _load(self, datasets):
    name, split = self._parts()
    try:
      if os.path.exists(os.path.join(name, "state.json")) or os.path.exists(
        os.path.join(name, "dataset_dict.json")
      ):
        found = datasets.load_from_disk(name)
      else:
        found = datasets.load_dataset(name, self._config or None)
    except Exception as error:
      # Of files that are damaged or do not fit it can be of almost any type.
      why = _cause(datasets, name, self._config, error)
      raise SourceError(
        f"hf:{self._where}: {why}. Expected hf:NAME:SPLIT, of the hub or of a"
        " folder."
      ) from error
    if isinstance(found, datasets.Dataset):
      if split and split != str(found.split or ""):
        raise SourceError(
          f"hf:{self._where}: {name} is one data set without splits; leave out"
          f" :{split}."
        )
      return found
    split = split or next(iter(found))
    if split not in found:
      raise SourceError(
        f"hf:{self._where}: there is no split {split!r}; there are"
        f" {', '.join(found)}.{did_you_mean(split, found)}"
      )
    return found[split]

  def _parts(self) -> tuple[str, str]:
    """Name and split; a folder may have a colon in its name."""
    name, _, split = self._where.rpartition(":")
    if not name or os.path.isdir(self._where):
      return self._where, ""
    return name, split


# What reads files of rows, each of which can be read alone.
_OF_ROWS = ("arrow", "csv", "json", "parquet", "text")


def _cause(datasets, name: str, config: str, error: BaseException) -> str:
  """What went wrong, and in which file, where that can be told."""
  found = ""
  if os.path.isdir(name) and not getattr(error, "errno", None):
    found = _bad_file(datasets, name, config)
  while not found and error.__cause__ is not None:
    error = error.__cause__
  return found or " ".join(f"{type(error).__name__}: {error}".split())


def _bad_file(datasets, name: str, config: str) -> str:
  """The first file of a folder that cannot be read, or has other columns.

  Errors of `datasets` name no file, so that each is read alone, up to that one.
  """
  try:
    builder = datasets.load_dataset_builder(name, config or None)
  except Exception:
    return ""  # The error that is there already says what is wrong.
  if builder.name.partition("-")[0] not in _OF_ROWS:
    return ""
  for files in builder.config.data_files.values():
    columns: dict[str, list[str]] = {}
    for path in map(str, files):
      try:
        columns[path] = _columns(datasets, builder.name, path)
      except Exception as error:
        why = " ".join(str(error).split()).rstrip(".")
        return f"{path} cannot be read: {why}"
      first = next(iter(columns))
      if columns[path] != columns[first]:
        return (
          f"{path} has the columns {', '.join(columns[path])}, and {first} has"
          f" {', '.join(columns[first])}; expected the same in all files"
        )
  return ""


def _columns(datasets, kind: str, path: str) -> list[str]:
  """The columns of a file, of which every row is read."""
  rows = datasets.load_dataset(
    kind, data_files=[path], split="train", streaming=True
  )
  names: set[str] = set()
  for row in rows:
    names |= row.keys()
  return sorted(names)
