"""Short names of what a run reads, by content and not by path.

Two that are equal stand for the same data, as far as a sample can tell; a
cache or a checkpoint that was made with another is refused by them.
"""

import hashlib
import json
from typing import Any

import numpy as np

from aced.data.records import BadRecord, Source

SAMPLED = 64  # Records of a source that are read, spread evenly over it.


def of_source(source: Source) -> str:
  """Names a source by its size and by the content of some of its records."""
  digest = hashlib.sha256()
  size = len(source)
  for index in np.unique(
    np.linspace(0, size - 1, min(SAMPLED, size), dtype=int)
  ):
    record = source[int(index)]
    text = json.dumps(record.get("text"), default=_described)
    digest.update(text.encode())
    digest.update(_image_bytes(record.get("image")))
  return f"{size} records, {digest.hexdigest()[:16]}"


def of_tokenizer(tokenizer: Any) -> str:
  """Names a tokenizer by what it makes ids of, and of which length."""
  content = hashlib.sha256(tokenizer.content).hexdigest()[:16]
  return (
    f"{tokenizer.vocab_size} token ids, length {tokenizer.length}, {content}"
  )


def _described(value: Any) -> str:
  return value.cause if isinstance(value, BadRecord) else repr(value)


def _image_bytes(image: Any) -> bytes:
  if isinstance(image, BadRecord):
    return image.cause.encode()
  if isinstance(image, np.ndarray):
    return f"{image.dtype}{image.shape}".encode() + image.tobytes()
  return b"" if image is None else bytes(image)
