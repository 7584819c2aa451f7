"""Pairs in ArrayRecord files, as `python -m aced.data convert` writes them."""

import threading

import numpy as np
from array_record.python import array_record_module as array_record

from aced.data.records import BadRecord, Source, SourceError
from aced.data.sources import examples, storage
from aced.data.sources.fields import Fields


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
    self._start()
    counts = [self._count(number) for number in range(len(self._paths))]
    self._ends = np.cumsum(counts)
    if not len(self):
      raise SourceError(f"{pattern} holds no records.")
    self._fields.check(self._read(0), repr(self))

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
      return {"text": "(unreadable)"} | ({"image": bad} if picture else {})

  def _read(self, index):
    number, entry = self._find(index)
    try:
      data = self._reader(number).read([entry])[0]
    except (RuntimeError, ValueError) as error:  # Its checksums do not agree.
      raise BadRecord("damaged_record", f"{self.where(index)}: {error}") from (
        error
      )
    return examples.decode(data)

  def _find(self, index):
    number = int(np.searchsorted(self._ends, self._check(index), "right"))
    first = int(self._ends[number - 1]) if number else 0
    return number, int(index) - first

  def _count(self, number):
    path = self._paths[number]
    try:
      return self._reader(number).num_records()
    except (RuntimeError, ValueError, OSError) as error:
      raise SourceError(
        f"{path} is not a whole ArrayRecord file: {error}. Make it anew with"
        " python -m aced.data convert, or leave it out."
      ) from error

  def _reader(self, number):
    with self._lock:
      if number not in self._readers:
        self._readers[number] = array_record.ArrayRecordReader(
          self._paths[number], "readahead_buffer_size:0"
        )
      return self._readers[number]

  def _start(self):
    self._lock, self._readers = threading.Lock(), {}

  def __getstate__(self):
    return {
      k: v for k, v in self.__dict__.items() if k not in ("_lock", "_readers")
    }

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._start()
