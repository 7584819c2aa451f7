"""Prepared data sets of TensorFlow Datasets, read without TensorFlow."""

import os
import re
from typing import Any

import numpy as np

from aced.data.records import BadRecord, Source, SourceError
from aced.data.sources import tfds_features, tfds_folders
from aced.data.sources.examples import EXTRA
from aced.data.sources.fields import (
  Fields,
  damaged,
  json_object,
  unreadable,
)

_FORMAT = "array_record"
_TRIED = 64  # Records, until one can be read.


class Tfds(Source):
  """Records of a data set that `tfds build` has stored as ArrayRecord.

  It is read from its files alone: its code need not be installed, and nothing
  is ever downloaded or built. Features within others have the names that they
  have in the files, such as `captions/text`, and class labels are names. Other
  pictures, and what else is stored encoded, are left out. Fields that stand as
  JSON in a feature `json` are fields of the record.

  Args:
    where: `name/config/version:split`, or the folder of one version and a
      split. Config, version and split may be left out: they are the default
      one, the newest and `train`. Splits are as TFDS has them, such as
      `train[:10%]` or `train+test`.
    data_dir: the folder of prepared data sets; "" is the one of TFDS.
    fields: which features are picture, caption and class.

  Raises:
    SourceError: it is not there, not stored as ArrayRecord, or has no such
      config, version, split or feature.
  """

  def __init__(
    self, where: str, data_dir: str = "", fields: Fields | None = None
  ):
    self._spec, self._fields = f"tfds:{where}", fields or Fields()
    name, self._split = parts(where)
    self.folder = tfds_folders.find(name, data_dir)
    self._open()
    self._fields.check({**self._leaves, **self._sample()}, repr(self))
    self._check_image()

  def __len__(self):
    return int(self._ends[-1])

  def __repr__(self):
    return self._spec

  def __getitem__(self, index):
    return self._get(index, picture=True)

  def fields(self, index):
    """The record at `index` without its picture."""
    return self._get(index, picture=False)

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the classes of `label`, in the order of their numbers.

    Raises:
      SourceError: there is no such feature, or it is no class.
    """
    leaf = self._leaves.get(self._fields.label or "label")
    if leaf is None or not leaf.names:
      raise SourceError(
        f"label={self._fields.label}: that is no class of {self!r}."
      )
    return leaf.names

  def where(self, index):
    """The file of a record, and which one it is there."""
    index = self._check(index)
    number = int(np.searchsorted(self._ends, index, "right"))
    file = self._files[number]
    first = int(self._ends[number]) - file.take
    return f"record {file.skip + index - first} of {file.filename}"

  def _sample(self) -> dict[str, Any]:
    """The first record that is not damaged."""
    problem = None
    for index in range(min(len(self), _TRIED)):
      try:
        return self._read(index)
      except BadRecord as bad:
        problem = bad
    raise SourceError(
      f"the first {min(len(self), _TRIED)} records of {self!r} cannot be read:"
      f" {problem}. Prepare it anew."
    )

  def _check_image(self):
    leaf = self._leaves.get(self._fields.image)
    if leaf is None or not leaf.may_be_picture:
      pictures = [
        name
        for name, leaf in self._leaves.items()
        if leaf.kind == "picture" and not leaf.in_list
      ]
      raise SourceError(
        f"image={self._fields.image}: that is no picture of {self!r}; its"
        f" pictures are {', '.join(pictures) or 'none'}. Name another one with"
        " ?image=NAME."
      )

  def _get(self, index, picture):
    try:
      return self._fields.record(self._read(self._check(index)), picture)
    except BadRecord as bad:
      return unreadable(bad, picture)

  def _read(self, index) -> dict[str, Any]:
    """The features of a record, and the fields of its JSON.

    Raises:
      BadRecord: it is damaged.
    """
    try:
      data = self._data[index]
    except (RuntimeError, ValueError) as error:  # Its checksums do not agree.
      raise damaged(self.where(index), error) from error
    if not data:  # So is all of a file that was cut at certain places.
      raise BadRecord("damaged_record", f"{self.where(index)} is empty")
    stored = tfds_features.parse(data, self._leaves, self._fields.image)
    text = stored.get(self._fields.text)
    if isinstance(text, list) and len(text) == 1:
      stored[self._fields.text] = text[0]  # As other sources have a lone one.
    try:
      extra = json_object(stored.get(EXTRA, b""))
    except (BadRecord, TypeError):  # It is something else of that name.
      return stored
    del stored[EXTRA]
    extra.pop(self._fields.image, None)
    return stored | extra

  def __getstate__(self):
    kept = ("_spec", "_fields", "_split", "folder")
    return {k: v for k, v in self.__dict__.items() if k in kept}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def _open(self):
    """Finds the files of the split; they are opened when they are read."""
    import tensorflow_datasets as tfds

    builder = _builder(self.folder)
    _check_split(builder, self._split)
    self._leaves = tfds_features.leaves(builder.info.features)
    self._data = builder.as_data_source(
      self._split,
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
      file_format=_FORMAT,
    )
    self._files = builder.info.splits[self._split].file_instructions
    for file in self._files:
      if not os.path.exists(file.filename):
        raise SourceError(
          f"{self!r}: there is no file {file.filename}, which"
          f" {self.folder}/dataset_info.json names; copy the folder anew."
        )
    self._ends = np.cumsum([file.take for file in self._files])


def parts(where: str) -> tuple[str, str]:
  """Splits `name:split`; the colons of a split or of gs:// are not the one."""
  name, split = re.fullmatch(r"(.*?)(?::(?!//)(.*))?", where).groups()
  if not name:
    raise SourceError(
      "tfds: needs a data set, such as tfds:coco_captions/2014:train, or the"
      " folder of a prepared one."
    )
  return name, split or "train"


def _builder(folder: str):
  """What reads a prepared data set without its code.

  Raises:
    SourceError: it cannot, or the data set is not stored as ArrayRecord.
  """
  import tensorflow_datasets as tfds

  tfds_folders.check_classes(folder)
  try:
    builder = tfds.builder_from_directory(folder)
  except ImportError as error:
    raise SourceError(
      f"{folder} has features that need TensorFlow, such as sound or video:"
      f" {error}. Install it, or build the set without them."
    ) from error
  except Exception as error:
    # Of damaged JSON, or of unknown features, it can be of almost any type.
    raise SourceError(
      f"{folder} is not a data set that tfds has prepared:"
      f" {type(error).__name__}: {error}"
    ) from error
  formats = sorted(f.value for f in builder.info.available_file_formats())
  if _FORMAT not in formats:
    command = tfds_folders.how_to_build(
      builder.name, builder.builder_config_name or "", "FOLDER"
    )
    raise SourceError(
      f"{folder} is stored as {' and '.join(formats)}, which cannot be read in"
      " any order. Store it as ArrayRecord too: tfds convert_format"
      f" --dataset_version_dir={folder} --out_file_format={_FORMAT}; or prepare"
      f" it anew in another folder, and add ?data_dir=FOLDER: {command}."
    )
  return builder


def _check_split(builder, split):
  """Refuses a split that is not there, or is empty."""
  splits, name = builder.info.splits, builder.info.full_name
  known = ", ".join(
    f"{k} ({v.num_examples:,} records)" for k, v in splits.items()
  )
  try:
    files, problem = splits[split].file_instructions, "It holds no records."
  except Exception as error:
    # What is wrong with a split is told by errors of several types.
    files, problem = [], str(error).partition("\n")[0]
  if not files:
    version = tfds_folders.VERSION.match(split)
    hint = (
      f" A version stands before: {builder.name}/{split}." if version else ""
    )
    raise SourceError(
      f"split {split!r} of {name}: {problem} There are {known}, and parts such"
      f" as train[:10%].{hint}"
    )
