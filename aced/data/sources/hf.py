"""Data sets of Hugging Face, by the package `datasets`."""

import os
import pathlib

from aced.config import did_you_mean
from aced.data.records import Source, SourceError
from aced.data.sources.fields import Fields


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
    self._data = self._load(datasets)
    features = self._data.features
    self._fields.check(list(features), repr(self))
    if isinstance(features[self._fields.image], datasets.Image):
      # Its bytes as they are stored; decoding is done elsewhere.
      self._data = self._data.cast_column(
        self._fields.image, datasets.Image(decode=False)
      )
    label = self._fields.label or "label"
    self._names = getattr(features.get(label), "names", None)
    self._others = [n for n in features if n != self._fields.image]

  def __len__(self):
    return len(self._data)

  def __repr__(self):
    config = f"?config={self._config}" if self._config else ""
    return f"hf:{self._where}{config}"

  def __getitem__(self, index):
    return self._record(self._data[self._check(index)], picture=True)

  def fields(self, index):
    """The record at `index`; its picture is not read."""
    row = self._data.select_columns(self._others)[self._check(index)]
    return self._record(row, picture=False)

  def _record(self, row, picture):
    if picture:
      row = {**row, self._fields.image: self._read(row[self._fields.image])}
    label = self._fields.label or "label"
    if self._names is not None and row.get(label) is not None:
      row = {**row, "label": self._names[row[label]]}
    record = self._fields.record(row, picture)
    if self._names is not None and "label" in row:
      record["label"] = row["label"]
    return record

  def _read(self, image):
    """The bytes of a picture that is stored as a path in a local folder."""
    if not isinstance(image, dict) or image.get("bytes") is not None:
      return image
    folder = pathlib.Path(self._where.rpartition(":")[0] or self._where)
    path = pathlib.Path(image.get("path") or "")
    if not path.is_file() or folder.resolve() not in path.resolve().parents:
      return None
    return path.read_bytes()

  def _load(self, datasets):
    name, _, split = self._where.rpartition(":")
    if not name:
      name, split = self._where, ""
    try:
      if os.path.exists(os.path.join(name, "state.json")) or os.path.exists(
        os.path.join(name, "dataset_dict.json")
      ):
        found = datasets.load_from_disk(name)
      else:
        found = datasets.load_dataset(name, self._config or None)
    except (OSError, ValueError, RuntimeError) as error:
      raise SourceError(
        f"hf:{self._where}: {error}. Expected hf:NAME:SPLIT, of the hub or of a"
        " folder."
      ) from error
    if isinstance(found, datasets.Dataset):
      return found
    split = split or next(iter(found))
    if split not in found:
      raise SourceError(
        f"hf:{self._where}: there is no split {split!r}; there are"
        f" {', '.join(found)}.{did_you_mean(split, found)}"
      )
    return found[split]
