"""Files of pairs as conversion writes them, and what a pair must be for it."""

import contextlib
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from aced.data import picture_formats
from aced.data.records import BadRecord, Record, captions
from aced.data.transforms import decode

# Adds a record, and its index in the source, to a shard.
Add = Callable[[int, Record], None]


def usable(record: Record, verify: bool = False) -> Record:
  """Returns a record that can be stored: its image is encoded bytes.

  Encoded pictures stay as they are; arrays become PNG, which keeps the pixels.

  Args:
    record: as sources give it.
    verify: whether encoded pictures are decoded, to see that they can be.

  Raises:
    BadRecord: there is no picture, or no caption.
  """
  image = record.get("image")
  if isinstance(image, np.ndarray):
    image = _png(decode(image))
  elif verify or not isinstance(image, bytes | bytearray | memoryview):
    decode(image)  # Says what is wrong with it.
  if not image:
    raise BadRecord("empty_image", "the image is zero bytes long")
  captions(record)
  return record | {"image": bytes(image)}


def expressible(record: Record) -> tuple[Record, list[str]]:
  """Returns the part of a record that JSON can express, and what is left out.

  Args:
    record: of encoded bytes as `image`, which stays.
  """
  left_out = [k for k, v in record.items() if k != "image" and not _is_json(v)]
  return {k: v for k, v in record.items() if k not in left_out}, left_out


@contextlib.contextmanager
def array_record_shard(path: pathlib.Path) -> Iterator[Add]:
  """Writes an ArrayRecord file of `tf.train.Example` messages.

  Raises:
    RuntimeError: it cannot be written.
    TypeError: of `Add`: a field is not what JSON can express.
  """
  from array_record.python import array_record_module

  from aced.data.sources import examples

  # Groups of one: a record is read without its neighbours.
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  yield lambda index, record: writer.write(examples.encode(record))
  writer.close()


@contextlib.contextmanager
def tar_shard(path: pathlib.Path) -> Iterator[Add]:
  """Writes a tar of `KEY.jpg`, `KEY.txt`, `KEY.json`; KEY is the index.

  The text is the first caption; the JSON has all, and every other field.

  Raises:
    OSError: it cannot be written.
    TypeError: of `Add`: a field is not what JSON can express.
  """
  with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
    yield lambda index, record: _add_members(tar, index, record)


# Format -> what opens a shard of it for writing, and the names of shards.
FORMATS: dict[str, tuple[Any, str]] = {
  "array_record": (
    array_record_shard,
    "pairs-{number:0{width}}-of-{shards:0{width}}.array_record",
  ),
  "webdataset": (tar_shard, "pairs-{number:0{width}}.tar"),
}
# Format -> the spec of what lies in a folder.
SPECS = {
  "array_record": "array_record:{folder}/*.array_record",
  "webdataset": "webdataset:{folder}/*.tar?text=json.text",
}


def shard_name(format: str, number: int, shards: int) -> str:
  """The name of a shard; names sort as numbers do."""
  width = max(5, len(str(shards)))
  return FORMATS[format][1].format(number=number, shards=shards, width=width)


def publish(part: pathlib.Path, path: pathlib.Path) -> int:
  """Gives a file its name once it is on the disk; returns its size.

  Raises:
    OSError: the disk does not take it.
  """
  with open(part, "rb") as file:
    os.fsync(file.fileno())
    size = os.fstat(file.fileno()).st_size
  os.replace(part, path)
  return size


def picture_kind(image: bytes) -> str:
  """The kind of member for a picture, by its bytes; "img" if nothing tells."""
  form = picture_formats.find(image)
  return form.endings[0] if form else "img"


def _add_members(tar, index, record):
  image, caption = record["image"], captions(record)[0]
  others = {k: v for k, v in record.items() if k != "image"}
  # All is encoded before anything is written: the JSON may fail.
  members = {
    picture_kind(image): image,
    "txt": caption.encode("utf-8", "replace"),
    "json": json.dumps(others).encode(),
  }
  for kind, data in members.items():
    # Owner, mode and time are those of a new TarInfo: always the same.
    member = tarfile.TarInfo(f"{index:09}.{kind}")
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def _is_json(value: Any) -> bool:
  try:
    json.dumps(value)
  except (TypeError, ValueError):
    return False
  return True
