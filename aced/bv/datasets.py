"""Our sources of pairs as a data source of big_vision, `bv:aced`.

    config.input.data = dict(name="bv:aced", source="jsonl:pairs/train.jsonl")
    config.input.pp = (
        'aced_decode(224)|aced_tokenize("sentencepiece:my.model", 64)'
        '|value_range(-1, 1)|keep("image", "labels", "_mask")')

Records are `image` (encoded bytes), `text`, `_mask` (False where the record
cannot be used), `index`, and `fault` where the source knows the truth. What
stands where is decided by the seed alone, as in our own pipeline, whose order
one process has; several have a part of the source each.
"""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from aced.bv import compat
from aced.data import faults, sources
from aced.data.decoding import decode
from aced.data.parts import record_index
from aced.data.records import BadRecord, captions


class DataSource:
  """What `big_vision.datasets.core.DataSource` asks of a data source.

  Args:
    source: as `aced.data.open_source` takes it.
    seed: of the order of epochs and of the choice among captions.
    start: records of each process that training has seen; our trainer says so
      where it goes on from a checkpoint.
  """

  def __init__(self, source: str, *, seed: int = 0, start: int = 0):
    self.source = sources.open_source(source)
    self.seed, self.start = seed, start

  @property
  def total_examples(self) -> int:
    """Records of the whole source."""
    return len(self.source)

  def num_examples_per_process(self) -> list[int]:
    """Records of each process."""
    return [len(part) for part in self._parts()]

  def get_tfdata(
    self,
    ordered: bool = False,
    *,
    process_split: bool = True,
    allow_cache: bool = True,
  ) -> Any:
    """One epoch as a `tf.data.Dataset`; the next one is shuffled otherwise.

    Args:
      ordered: the order of the source, and the first of several captions.
      process_split: whether this process has its part alone.
      allow_cache: is not heeded: nothing is kept.
    """
    del allow_cache
    compat.find()
    import tensorflow as tf

    part = np.arange(len(self.source))
    if process_split:
      part = self._parts()[jax.process_index()]
    if not len(part):
      raise ValueError(
        f"{self.source!r} has {len(self.source)} records, fewer than the"
        f" {jax.process_count()} processes that share it."
      )
    columns = self._columns()
    seen = 0 if ordered else self.start
    epochs = itertools.count(seen // len(part))

    def positions() -> Iterator[int]:
      # Called anew at the start of each epoch.
      first = next(epochs) * len(part)
      return iter(range(max(first, seen), first + len(part)))

    def read(position):
      values = tf.numpy_function(
        lambda p: self._read(int(p), part, ordered),
        [position],
        list(columns.values()),
      )
      for value in values:
        value.set_shape(())
      return dict(zip(columns, values, strict=True))

    dataset = tf.data.Dataset.from_generator(
      positions, output_signature=tf.TensorSpec((), tf.int64)
    )
    return dataset.map(
      read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

  def _parts(self):
    return np.array_split(np.arange(len(self.source)), jax.process_count())

  def _columns(self):
    import tensorflow as tf

    fault = {"fault": tf.int8} if self.source.has_faults else {}
    return {
      "image": tf.string,
      "text": tf.string,
      "_mask": tf.bool,
      "index": tf.int32,
      **fault,
    }

  def _read(self, position, part, ordered):
    """The columns of the record at a position of the stream of epochs."""
    row = record_index(position, len(part), self.seed, shuffle=not ordered)
    index = int(part[row])
    record = self.source[index]
    fault = ()
    if self.source.has_faults:
      fault = (np.int8(record.get("fault", faults.UNKNOWN)),)
    try:
      texts = captions(record)
      which = 0
      if len(texts) > 1 and not ordered:
        rng = np.random.default_rng((self.seed, position))
        which = int(rng.integers(len(texts)))
      image, text, usable = encoded(record.get("image")), texts[which], True
    except BadRecord:
      image, text, usable = b"", "", False
    return image, text.encode(), np.bool_(usable), np.int32(index), *fault


def encoded(image: Any) -> bytes:
  """A picture as bytes that every decoder reads; arrays become PNG, exactly.

  Raises:
    BadRecord: there is no picture.
  """
  if isinstance(image, bytes | bytearray | memoryview):
    return bytes(image)
  file = io.BytesIO()
  Image.fromarray(decode(image)).save(file, "png")
  return file.getvalue()
