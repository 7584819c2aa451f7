"""Pairs to convert, and reading what became of them."""

import io

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from aced.data.convert import shard_files
from aced.data.records import BadRecord
from aced.data.sources import open_source

FORMATS = tuple(shard_files.FORMATS)


SCENES = "synthetic:train?size=3000"


def picture(kind, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


DROPPED = {"missing_image": 1, "empty_caption": 1, "empty_image": 1}


def kept(spec):
  """`(index, record)` of what is to come out, found by other means."""
  source = open_source(spec)
  for index in range(len(source)):
    record = source[index]
    text = record["text"]
    texts = text if isinstance(text, list) else [text]
    bad = isinstance(record["image"], BadRecord) or not len(record["image"])
    if not bad and any(text.strip() for text in texts):
      yield index, record


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder):
  return sorted(p for p in folder.iterdir() if p.name.startswith("pairs-"))


def examples(path):
  """The features of each message in a file."""
  reader = ArrayRecordReader(str(path))
  for data in reader.read_all() if reader.num_records() else []:
    yield tf_example_pb2.Example.FromString(data).features.feature


def check_equal(spec, expected):
  """Every field and every byte of the pictures came back."""
  source = open_source(spec)
  assert len(source) == len(expected)
  for k, (_, record) in enumerate(expected):
    again = source[k]
    assert bytes(again.pop("image")) == bytes(record.pop("image"))
    assert again == record
