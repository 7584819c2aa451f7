"""Which fields of stored records are the picture, the caption, the class."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from aced.config import did_you_mean
from aced.data.records import BadRecord, Record, SourceError


class Fields(NamedTuple):
  """Names of fields, as options of a source give them.

  Attributes:
    image: the picture: encoded bytes, or a table with them as `bytes`.
    text: the caption, or a list of them.
    label: the class name; None is "label", if there.
  """

  image: str = "image"
  text: str = "text"
  label: str | None = None

  def check(self, names: Mapping[str, Any] | list[str], where: str) -> None:
    """Refuses names that the records do not have.

    Raises:
      SourceError: naming the option and the fields that there are.
    """
    for option, name in self._asdict().items():
      if name in names or name is None:
        continue
      raise SourceError(
        f"{option}={name}: the records of {where} have no such field; they"
        f" have {', '.join(sorted(names))}.{did_you_mean(name, names)} Name"
        f" another one, such as ?{option}=NAME."
      )

  def record(self, stored: Mapping[str, Any], picture: bool = True) -> Record:
    """Returns a stored record as sources give it.

    Args:
      stored: its fields; numpy values become those of Python.
      picture: whether the image is wanted.
    """
    record = {
      name: plain(value) for name, value in stored.items() if name != self.image
    }
    record["text"] = record.get(self.text)
    if self.label is not None and self.label in record:
      record["label"] = str(record[self.label])
    record.pop("image", None)
    return record | ({"image": self._picture(stored)} if picture else {})

  def _picture(self, stored):
    image = stored.get(self.image)
    if isinstance(image, Mapping):  # As Hugging Face datasets store pictures.
      image = image.get("bytes")
    if image is None:
      return BadRecord(
        "missing_image", f"the field {self.image!r} holds no picture"
      )
    return image


def plain(value: Any) -> Any:
  """A value as Python has it: no numpy, and strings in the place of bytes."""
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
