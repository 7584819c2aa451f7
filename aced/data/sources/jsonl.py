"""Image-text pairs in JSON Lines files, with pictures beside them."""

import bisect
import itertools
import os
from collections.abc import Iterator

import numpy as np

from aced.config import did_you_mean
from aced.data.records import BadRecord, Record, Source, SourceError
from aced.data.sources import storage
from aced.data.sources.fields import Fields, json_object, unreadable

# Lines that begin before this byte are parsed when the files are opened, so
# that a malformed one is told before a run starts and opening stays quick.
CHECKED_BYTES = 2**26


class Jsonl(Source):
  """One record a line; picture paths are relative to the file of the line.

  Of the text only where each line begins and ends is held, 16 bytes a record.
  Blank lines are skipped. Every field of a line is kept.

  Args:
    pattern: of the files, as `storage.expand` takes it.
    fields: which are picture, caption and class.

  Raises:
    SourceError: no such files, no record in them, a field that the first record
      lacks, or a line that is not a JSON object.
  """

  def __init__(self, pattern: str | os.PathLike, fields: Fields | None = None):
    self.pattern, self._fields = os.fspath(pattern), fields or Fields()
    paths = storage.expand(self.pattern)
    if any(map(storage.is_remote, paths)):
      raise SourceError(
        f"{self.pattern}: JSON lines and their pictures are read from disks;"
        " mount the bucket (gcsfuse, s3fs), or convert to shards."
      )
    self._storage = storage.Storage(paths)
    self._folders = [os.path.dirname(path) for path in paths]
    scans = [np.fromiter(self._scan(k), np.int64) for k in range(len(paths))]
    self._places = np.concatenate(scans).reshape(-1, 2)
    self._ends = list(itertools.accumulate(len(scan) // 2 for scan in scans))
    if not len(self):
      raise SourceError(
        f"{self.pattern} holds no records; expected one JSON object on each"
        f" line.{storage.what_it_is(paths[0])}"
      )
    self._check_fields()

  def __len__(self):
    return len(self._places)

  def __repr__(self):
    paths = self._storage.paths
    return f"jsonl:{paths[0] if len(paths) == 1 else self.pattern}"

  def __getitem__(self, index):
    return self._get(index, picture=True)

  def fields(self, index):
    """The record at `index`; its picture is not read."""
    return self._get(index, picture=False)

  def where(self, index):
    """The file of a record and its line there."""
    number, start, _ = self._find(index)
    return f"line {self._line(number, start)} of {self._storage.paths[number]}"

  def _get(self, index, picture) -> Record:
    number, start, end = self._find(index)
    try:
      stored = self._parse(number, start, end)
    except SourceError as error:
      # Beyond what was checked at the start: it must not end a long run.
      return unreadable(BadRecord("bad_line", str(error)), picture)
    try:
      return self._fields.record(stored, picture, self._folders[number])
    except RecursionError as error:
      return unreadable(BadRecord("bad_line", f"nested: {error}"), picture)

  def _find(self, index) -> tuple[int, int, int]:
    """The number of the file of a record, and where its line is there."""
    index = self._check(index)
    number = bisect.bisect_right(self._ends, index)
    return number, *self._places[index].tolist()

  def _check_fields(self):
    """Refuses a field that was asked for and the first record lacks."""
    first = self._parse(*self._find(0))
    for option, default in Fields()._asdict().items():
      name = getattr(self._fields, option)
      if isinstance(name, str) and name not in (default, *first):
        raise SourceError(
          f"{option}={name}: the records of {self.pattern} have no such field;"
          f" the first has {', '.join(first)}.{did_you_mean(name, first)}"
        )

  def _scan(self, number: int) -> Iterator[int]:
    """Yields the first byte and the end of every line that is not blank."""
    path, start = self._storage.paths[number], 0
    try:
      with open(path, "rb") as file:
        for line in file:
          end = start + len(line)
          if line.strip():
            if start < CHECKED_BYTES:
              self._loads(number, line, start)
            yield from (start, end)
          start = end
    except OSError as error:
      raise SourceError(
        f"cannot open {path}: {error.strerror}; expected a file of JSON lines."
      ) from error

  def _parse(self, number: int, start: int, end: int) -> Record:
    line = self._storage.read(number, start, end - start)
    return self._loads(number, line, start)

  def _loads(self, number: int, line: bytes, start: int) -> Record:
    try:
      return json_object(line)
    except BadRecord as bad:
      path = self._storage.paths[number]
      raise SourceError(
        f"{path}, line {self._line(number, start)}: expected one JSON object,"
        f" but {bad.detail}; correct or remove the line, which begins"
        f" {line[:60]!r}.{storage.what_it_is(path)}"
      ) from bad

  def _line(self, number, start) -> int:
    """The number of the line that begins at a byte of a file, from 1."""
    with open(self._storage.paths[number], "rb") as file:
      return 1 + sum(chunk.count(b"\n") for chunk in _chunks(file, start))


def _chunks(file, length, size=2**20):
  """Yields the first `length` bytes of a file in pieces."""
  while length > 0 and (chunk := file.read(min(size, length))):
    length -= len(chunk)
    yield chunk
