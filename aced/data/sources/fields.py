"""From stored values to records: the rules that all kinds of sources share.

Which field is the picture, the caption and the class; what text is cleaned of;
what a label is; what JSON is taken; what stands for a record that is damaged.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aced.config import did_you_mean
from aced.data.records import BadRecord, Record, SourceError
from aced.data.sources.picture_files import read_picture

_MARK = "\ufeff"  # The byte-order mark.
_PLAIN = (str, int, float, type(None))


class Fields(NamedTuple):
  """Names of fields, as options of a source give them.

  Attributes:
    image: the picture: encoded bytes, or a table with them as `bytes`, or the
      path of a file as `path`.
    text: the caption, or a list of them.
    label: the class name; None is "label", if there.
    lines: whether each line of a caption is a caption of its own.
  """

  image: str = "image"
  text: str = "text"
  label: str | None = None
  lines: bool = False

  def check(self, names: Mapping[str, Any] | list[str], where: str) -> None:
    """Refuses names that the records do not have.

    Raises:
      SourceError: naming the option and the fields that there are.
    """
    for option in ("image", "text", "label"):
      name = getattr(self, option)
      if name in names or name is None:
        continue
      raise SourceError(
        f"{option}={name}: the records of {where} have no such field; they"
        f" have {', '.join(sorted(names))}.{did_you_mean(name, names)} Name"
        f" another one, such as ?{option}=NAME."
      )

  def record(
    self,
    stored: Mapping[str, Any],
    picture: bool = True,
    folder: str | None = None,
  ) -> Record:
    """Returns a stored record as sources give it.

    Args:
      stored: its fields; numpy values become those of Python.
      picture: whether the image is wanted.
      folder: where pictures that are stored as paths are; None is nowhere.
    """
    record = {
      name: value if isinstance(value, _PLAIN) else plain(value)
      for name, value in stored.items()
      if name != self.image or isinstance(value, str)  # A path is kept.
    }
    record["text"] = texts(record.get(self.text), self.lines)
    label = self.label or "label"
    if label in record:
      record["label"] = label_of(record[label])
    record.pop("image", None)
    return record | (
      {"image": self._picture(stored, folder)} if picture else {}
    )

  def _picture(self, stored, folder) -> Any:
    image = stored.get(self.image)
    if isinstance(image, Mapping):  # As Hugging Face datasets store pictures.
      known = image.get("bytes") is not None
      image = image["bytes"] if known else image.get("path")
    if isinstance(image, str) and image:
      if folder is not None:
        return read_picture(folder, image)
      return BadRecord(
        "missing_image",
        f"the field {self.image!r} is the text {image!r:.60}; expected the"
        " encoded bytes of the picture",
      )
    if isinstance(image, bytes | bytearray | memoryview | np.ndarray):
      return image
    if self.image not in stored:
      there = ", ".join(sorted(stored)) or "none"
      why = (
        f"there is no field {self.image!r}; there are {there}, and ?image=NAME"
        " takes one of them"
      )
    elif image is None or image == "":
      empty = "null" if image is None else "empty"
      why = f"the field {self.image!r} is {empty}"
    else:
      why = (
        f"the field {self.image!r} is {image!r:.60} of type"
        f" {type(image).__name__}; expected encoded bytes, or a path"
      )
    return BadRecord("missing_image", why)


def unreadable(bad: BadRecord, picture: bool = True) -> Record:
  """The record in the place of one that is damaged as a whole."""
  return {"text": bad} | ({"image": bad} if picture else {})


def damaged(where: str, error: Exception) -> BadRecord:
  """The fault of a record whose storage cannot be decoded.

  Raises:
    OSError: the error, if it is of a disk or network and not of what is there.
    SourceError: the error, if it is of a whole file.
  """
  if getattr(error, "errno", None) or isinstance(error, SourceError):
    raise error
  return BadRecord("damaged_record", f"{where}: {error}")


def texts(value: Any, lines: bool = False) -> Any:
  """A caption, or a list of them, as records hold it.

  A byte-order mark, carriage returns and outer blanks are taken off. What is no
  text stays as it is, for `records.captions` to refuse.

  Args:
    value: as `plain` returns it.
    lines: whether each line that is not empty is a caption of its own.
  """
  if isinstance(value, list):
    found = (texts(v, lines) for v in value)
    found = (v if isinstance(v, list) else [v] for v in found)
    return list(itertools.chain.from_iterable(found))
  if not isinstance(value, str):
    return value
  value = value.removeprefix(_MARK).replace("\r\n", "\n").replace("\r", "\n")
  if lines:
    return [line for line in map(str.strip, value.split("\n")) if line]
  return value.strip()


def label_of(value: Any) -> Any:
  """The class name that a stored value stands for; None is no class.

  Numbers become text, a whole one without a point: columns of whole numbers in
  which some are missing are stored as floats. What is no name stays as it is.
  """
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if isinstance(value, float):
    if not math.isfinite(value):
      return None
    value = int(value) if value.is_integer() else value
  if isinstance(value, int | float):
    return str(value)
  return texts(value)


def class_name(names: Sequence[str], number: Any) -> str | None:
  """The name of a class that is stored as a number; None is no class.

  A class of -1 is one that is not told; in Python it would be the last.
  """
  known = isinstance(number, int) and 0 <= number < len(names)
  return names[number] if known else None


def plain(value: Any) -> Any:
  """A value as Python has it: no numpy, and strings in the place of bytes.

  Bytes that are no UTF-8 stay bytes.
  """
  if isinstance(value, np.ndarray):
    return (
      [plain(v) for v in value.tolist()] if value.ndim else plain(value.item())
    )
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  return value


def json_object(data: bytes) -> Record:
  """Returns the fields of a JSON object.

  Raises:
    BadRecord: the bytes are no JSON, or another value.
  """
  try:
    found = json.loads(data)
  # A ValueError is also raised for numbers of thousands of digits.
  except (ValueError, RecursionError) as error:
    raise BadRecord("bad_line", f"it cannot be read: {error}") from error
  if not isinstance(found, dict):
    raise BadRecord("bad_line", f"it is of type {type(found).__name__}")
  return found
