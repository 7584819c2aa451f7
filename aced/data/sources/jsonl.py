"""Image-text pairs in a JSON Lines file, with pictures beside it."""

import errno
import json
import os
import pathlib
import weakref
from collections.abc import Iterator

import numpy as np

from aced.config import did_you_mean
from aced.data.records import BadRecord, Record, Source, SourceError

# Lines that begin before this byte are parsed when the file is opened, so that
# a malformed one is told before a run starts and opening stays quick.
CHECKED_BYTES = 2**26
# No photograph is longer; a file that is would only fill the memory.
MAX_IMAGE_BYTES = 2**28
# A path that the system cannot follow is a fault of the record; any other
# failure to read (a disk, a network) is not, and propagates.
_BAD_PATH = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EACCES,
  errno.ELOOP,
  errno.ENAMETOOLONG,
}


class Jsonl(Source):
  """One record a line; picture paths are relative to the file.

  Of the text only the offset of each line is held, eight bytes a record. Blank
  lines are skipped. Every field of a line is kept.

  Args:
    path: the file.
    image: the field that holds the path of the picture.
    text: the field that holds the caption, or a list of captions.
    label: the field that holds the class name; None is "label", if there.

  Raises:
    SourceError: no such file, no record in it, a field that the first record
      lacks, or a line that is not a JSON object.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    image: str = "image",
    text: str = "text",
    label: str | None = None,
  ):
    self.path = pathlib.Path(path).expanduser().absolute()
    self.image, self.text, self.label = image, text, label
    self._open()
    self._ends = np.fromiter(self._scan(), np.int64).reshape(-1, 2)
    if not len(self._ends):
      raise SourceError(
        f"{self.path} holds no records; expected one JSON object on each line."
      )
    first = self._parse(0)
    for option, field in (("image", image), ("text", text), ("label", label)):
      chosen = field not in (None, option)
      if chosen and field not in first:
        raise SourceError(
          f"{option}={field}: the records of {self.path} have no such field;"
          f" the first has {', '.join(first)}.{did_you_mean(field, first)}"
        )

  def __len__(self):
    return len(self._ends)

  def __getitem__(self, index):
    record = self._record(index)
    if isinstance(record.get("image"), BadRecord):
      return record
    return record | {"image": self._read_image(record.get(self.image), record)}

  def fields(self, index):
    """The record at `index`; its picture is not read."""
    record = self._record(index)
    record.pop("image", None)
    return record

  def _record(self, index) -> Record:
    try:
      record = self._parse(self._check(index))
    except SourceError as error:
      # Beyond what was checked at the start: it must not end a long run.
      return {
        "image": BadRecord("bad_line", str(error)),
        "text": "(unreadable)",
      }
    record["text"] = record.get(self.text)
    if self.label is not None and self.label in record:
      record["label"] = str(record[self.label])
    return record

  def __repr__(self):
    return f"jsonl:{self.path}"

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "_file"}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def _open(self):
    try:
      self._file = os.open(self.path, os.O_RDONLY)
    except OSError as error:
      folder = self.path.parent
      near = [p.name for p in folder.glob("*.jsonl")] if folder.is_dir() else []
      raise SourceError(
        f"cannot open {self.path}: {error.strerror}; expected a file of JSON"
        f" lines.{did_you_mean(self.path.name, near)}"
      ) from error
    weakref.finalize(self, os.close, self._file)

  def _scan(self) -> Iterator[int]:
    """Yields the first byte and the end of every line that is not blank."""
    start = 0
    try:
      with open(self.path, "rb") as file:
        for line in file:
          end = start + len(line)
          if line.strip():
            if start < CHECKED_BYTES:
              self._loads(line, start)
            yield from (start, end)
          start = end
    except IsADirectoryError as error:
      raise SourceError(
        f"{self.path} is a folder; give the .jsonl file in it."
      ) from error

  def _parse(self, index: int) -> Record:
    start, end = map(int, self._ends[index])
    # Unlike seek and read, pread is safe from several threads.
    return self._loads(os.pread(self._file, end - start, start), start)

  def _loads(self, line: bytes, start: int) -> Record:
    try:
      record = json.loads(line)
      problem = f"it is of type {type(record).__name__}"
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
      record, problem = None, str(error)
    if isinstance(record, dict):
      return record
    with open(self.path, "rb") as file:
      number = 1 + sum(chunk.count(b"\n") for chunk in _chunks(file, start))
    raise SourceError(
      f"{self.path}, line {number}: expected one JSON object, but {problem};"
      f" correct or remove the line, which begins {line[:60]!r}."
    )

  def _read_image(self, name, record) -> bytes | BadRecord:
    """Bytes of a picture in the folder of the file, or why there are none."""
    if name is None:
      fields = ", ".join(sorted(k for k in record if k != "text"))
      return BadRecord(
        "missing_image",
        f"there is no field {self.image!r}; there are {fields or 'none'}, and"
        " ?image=NAME takes one of them",
      )
    if not isinstance(name, str) or not name:
      return BadRecord(
        "missing_image", f"the field {self.image!r} is {name!r:.60}, not a path"
      )
    # Links inside the folder are followed: who owns the folder made them.
    if os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
      return BadRecord(
        "outside_folder", f"{name!r} is not below {self.path.parent}"
      )
    path = self.path.parent / name
    try:
      with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
          return BadRecord("too_large", f"{path} is {size:,} bytes long")
        return file.read()
    except OSError as error:
      if error.errno not in _BAD_PATH:
        raise
      return BadRecord("missing_image", f"{path}: {error.strerror}")
    except ValueError as error:  # A null character in the path.
      return BadRecord("missing_image", f"{name!r}: {error}")


def _chunks(file, length, size=2**20):
  """Yields the first `length` bytes of a file in pieces."""
  while length > 0 and (chunk := file.read(min(size, length))):
    length -= len(chunk)
    yield chunk
