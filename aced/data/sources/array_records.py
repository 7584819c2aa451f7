"""Pairs in ArrayRecord files, as `python -m aced.data convert` writes them."""

import collections
import threading

import numpy as np
from array_record.python import array_record_module as array_record

from aced.data.records import BadRecord, Source, SourceError
from aced.data.sources import examples, storage
from aced.data.sources.fields import Fields, damaged, unreadable

# Files kept open; those used longest ago are closed.
OPEN_READERS = 512


class ArrayRecords(Source):
  """Records of `tf.train.Example`, see `aced.data.sources.examples`.

  Args:
    pattern: of the files, as `storage.expand` takes it.
    fields: which are picture and caption.

  Raises:
    SourceError: no such files, one that is no ArrayRecord file, no record, or
      a field that the first record lacks.
  """

  def __init__(self, pattern: str, fields: Fields | None = None):
    self.pattern, self._fields = pattern, fields or Fields()
    self._paths = storage.expand(pattern)
    if any(map(storage.is_remote, self._paths)):
      raise SourceError(
        f"{pattern}: ArrayRecord files are read from disks; mount the bucket"
        " (gcsfuse, s3fs), or copy the files."
      )
    self._start()
    counts = [self._count(number) for number in range(len(self._paths))]
    self._ends = np.cumsum(counts)
    if not len(self):
      raise SourceError(f"{pattern} holds no records.")
    for index in range(len(self)):
      try:
        first = self._read(index)
      except BadRecord:  # It is masked when its turn comes.
        continue
      self._fields.check(first, repr(self))
      break

  def __len__(self):
    return int(self._ends[-1])

  def __repr__(self):
    return f"array_record:{self.pattern}"

  def __getitem__(self, index):
    return self._get(index, picture=True)

  def fields(self, index):
    """The record at `index` without its picture."""
    return self._get(index, picture=False)

  def where(self, index):
    """The file of a record, and which one it is there."""
    number, entry = self._find(index)
    return f"record {entry} of {self._paths[number]}"

  def _get(self, index, picture):
    try:
      return self._fields.record(self._read(self._check(index)), picture)
    except BadRecord as bad:
      return unreadable(bad, picture)

  def _read(self, index):
    number, entry = self._find(index)
    try:
      data = self._reader(number).read([entry])[0]
    except (RuntimeError, ValueError) as error:  # Its checksums do not agree.
      raise damaged(self.where(index), error) from error
    if not data:  # Of a file that is cut short, the reader says nothing.
      raise BadRecord("damaged_record", f"{self.where(index)}: nothing is left")
    return examples.decode(data)

  def _find(self, index):
    number = int(np.searchsorted(self._ends, self._check(index), "right"))
    first = int(self._ends[number - 1]) if number else 0
    return number, int(index) - first

  def _count(self, number):
    path = self._paths[number]
    try:
      reader = self._reader(number)
      if reader.ok():
        return reader.num_records()
      problem = "its end is missing"
    except (RuntimeError, ValueError, OSError) as error:
      problem = error
    raise SourceError(
      f"{path} is not a whole ArrayRecord file: {problem}. Make it anew with"
      " python -m aced.data convert, or leave it out."
      f"{storage.what_it_is(path)}"
    )

  def _reader(self, number):
    with self._lock:
      reader = self._readers.pop(number, None)
      if reader is None:
        reader = array_record.ArrayRecordReader(
          self._paths[number], "readahead_buffer_size:0"
        )
      self._readers[number] = reader
      if len(self._readers) > OPEN_READERS:
        # Closed once no other thread is reading from it.
        self._readers.popitem(last=False)
      return reader

  def _start(self):
    self._lock = threading.Lock()
    self._readers = collections.OrderedDict()

  def __getstate__(self):
    return {
      k: v for k, v in self.__dict__.items() if k not in ("_lock", "_readers")
    }

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._start()
