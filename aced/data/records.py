"""Records, sources of records, and the causes for which a record is no use."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from aced.config import ConfigError

Record = dict[str, Any]

# Cause -> the code that batches carry, an int8; 0 is a record that is fine.
CAUSES = {
  "none": 0,
  "missing_image": 1,
  "outside_folder": 2,
  "empty_image": 3,
  "not_an_image": 4,
  "damaged_image": 5,
  "too_large": 6,
  "too_small": 7,
  "empty_caption": 8,
  "caption_not_text": 9,
  "bad_line": 10,
  "not_cached": 11,
  "cut_short": 12,  # Its file ends before it does.
  "damaged_record": 13,  # What holds picture and caption cannot be read.
  "reader_died": 14,  # Reading it ended the process, again and again.
  "reader_hung": 15,  # Reading it did not come to an end.
  "unknown_range": 16,  # Of greys: nothing says what is black and white.
}
CAUSE_NAMES = {code: name for name, code in CAUSES.items()}


class SourceError(ConfigError):
  """A source, or an option of one, that cannot be opened or read."""


class BadRecord(ValueError):
  """A record that cannot be used; it is masked and counted, never fatal.

  A source may put one in place of a picture that it could not give.

  Attributes:
    cause: a key of `CAUSES`.
    detail: what exactly was wrong.
  """

  def __init__(self, cause: str, detail: str):
    super().__init__(cause, detail)
    self.cause = cause
    self.detail = detail

  def __str__(self):
    return f"{self.cause}: {self.detail}"

  @property
  def code(self) -> int:
    """The code of the cause, for the `error` column of batches."""
    return CAUSES[self.cause]


class Source(ABC):
  """A data set: `len`, `[index] -> record`, `repr`.

  A record holds `image` (encoded bytes, a uint8 array `(h, w, 3)`, or a
  `BadRecord`) and `text` (a string or a list of them). It may hold `label` (a
  class name), `fault` and `clean` (the truth about the pair, see
  `aced.data.faults`) and any other field that JSON can express. Sources can be
  pickled and read from several threads; a record is a new dict each time.

  Attributes:
    has_faults: whether the records know what is wrong with them.
  """

  has_faults: bool = False

  @abstractmethod
  def __len__(self) -> int:
    """The number of records."""

  @abstractmethod
  def __getitem__(self, index: int) -> Record:
    """The record at `index`, from 0; an IndexError past the end."""

  def fields(self, index: int) -> Record:
    """The record without its picture, where that is cheaper to get."""
    return {k: v for k, v in self[index].items() if k != "image"}

  def where(self, index: int) -> str:
    """Says where the record at `index` is stored, for messages."""
    return f"record {self._check(index)} of {self!r}"

  def damage(self) -> list[str]:
    """What is wrong with whole files, and may have cost records."""
    return []

  def _check(self, index: int) -> int:
    """Returns the index as an int, which numpy's integers are not."""
    if not 0 <= index < len(self):
      raise IndexError(
        f"record {index} of {self!r}, which has {len(self)}: expected"
        f" 0..{len(self) - 1}."
      )
    return int(index)


class Slice(Source):
  """Records `start` to `stop` of another source."""

  def __init__(self, source: Source, start: int, stop: int):
    if not 0 <= start < min(stop, len(source)):
      limit = stop - start if stop != len(source) else "none"
      raise SourceError(
        f"start={start} and limit={limit} leave nothing of {source!r}, which"
        f" has {len(source)} records; lower start or raise limit."
      )
    self.source = source
    self.start = start
    self.stop = min(stop, len(source))
    self.has_faults = source.has_faults

  def __len__(self):
    return self.stop - self.start

  def __getitem__(self, index):
    return self.source[self.start + self._check(index)]

  def fields(self, index):
    """The record at `index` without its picture."""
    return self.source.fields(self.start + self._check(index))

  def damage(self):
    """What is wrong with whole files."""
    return self.source.damage()

  def where(self, index):
    """Where the record at `index` is stored."""
    return self.source.where(self.start + self._check(index))

  def __repr__(self):
    return f"{self.source!r}[{self.start}:{self.stop}]"


def captions(record: Mapping[str, Any]) -> list[str]:
  """Returns the captions of a record that are text and not empty.

  Raises:
    BadRecord: there is none.
  """
  text = record.get("text")
  if isinstance(text, BadRecord):
    raise text
  texts = text if isinstance(text, list | tuple) else [text]
  why = [_not_text(value) for value in texts]
  good = [t for t, no in zip(texts, why, strict=True) if not no and t.strip()]
  if good:
    return good
  if text is None:
    fields = ", ".join(sorted(k for k in record if k not in ("text", "image")))
    raise BadRecord(
      "caption_not_text",
      f"there is no caption; other fields are {fields or 'none'}, and"
      " ?text=NAME takes one of them",
    )
  for problem in filter(None, why):
    raise BadRecord("caption_not_text", problem)
  raise BadRecord("empty_caption", f"the caption is {text!r:.60}")


def _not_text(value: Any) -> str | None:
  """Says why a value is no caption; None for a text."""
  if isinstance(value, bytes):
    marked = value.startswith((b"\xff\xfe", b"\xfe\xff"))
    what = "UTF-16" if marked else "not UTF-8"
    return f"the caption is {what}: {value!r:.60}; write it anew as UTF-8"
  if not isinstance(value, str):
    return (
      f"the caption is {value!r:.60} of type {type(value).__name__}, not a"
      " string"
    )
  if "\0" in value:
    return f"the caption has null characters, as UTF-16 has: {value!r:.60}"
  return None
