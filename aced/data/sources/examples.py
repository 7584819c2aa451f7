"""Records as bytes: `tf.train.Example` messages, as TFDS stores them.

`image` is the encoded picture, `text` a list of captions; strings, whole
numbers and floats, and lists of one of these, are features of their own name.
What else JSON can express stands as JSON in the feature `EXTRA`.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from aced.data.records import BadRecord, Record

EXTRA = "json"


def encode(record: Record) -> bytes:
  """Returns a record as a serialised `tf.train.Example`.

  Args:
    record: with encoded bytes as its `image`.

  Raises:
    TypeError: the image is not bytes, or a field is not what JSON can express.
  """
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  features, extra = example.features.feature, {}
  for name, value in record.items():
    if name == "image":
      features[name].bytes_list.value.append(bytes(value))
    elif name == EXTRA:  # It is not to be taken for one of ours.
      extra[name] = value
    elif not _add(features[name], value):
      del features[name]
      extra[name] = value
  if extra:
    features[EXTRA].bytes_list.value.append(json.dumps(extra).encode())
  return example.SerializeToString(deterministic=True)


def features_of(data: bytes) -> Mapping[str, Any]:
  """Returns the features of a serialised `tf.train.Example`, by name.

  Raises:
    BadRecord: it is not one.
  """
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    return tf_example_pb2.Example.FromString(data).features.feature
  except DecodeError as error:
    raise BadRecord(
      "damaged_record", f"{len(data)} bytes are no tf.train.Example: {error}"
    ) from error


def decode(data: bytes) -> dict[str, Any]:
  """Returns the fields of a serialised `tf.train.Example`.

  A list of one value is that value. Bytes are strings, where they are UTF-8
  and the field is not `image`.

  Raises:
    BadRecord: it is not one.
  """
  fields = {}
  for name, feature in features_of(data).items():
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if kind == "bytes_list" and name != "image":
      values = [_text(value) for value in values]
    fields[name] = values[0] if len(values) == 1 else values
  if isinstance(extra := fields.get(EXTRA), str):
    try:
      found = json.loads(extra)
    except (ValueError, RecursionError):
      found = None
    if isinstance(found, dict):
      del fields[EXTRA]
      fields |= found
  return fields


def _add(feature, value) -> bool:
  """Adds a value to a feature; False if it is of no type that features have."""
  values = value if isinstance(value, list | tuple) else [value]
  kinds = {type(v) for v in values}
  # A list of one would come back as its element, and so would none of any.
  alone = isinstance(value, list | tuple) and len(values) < 2
  if alone or len(kinds) != 1:
    return False
  kind = kinds.pop()
  if kind is str and all(_is_utf8(v) for v in values):
    feature.bytes_list.value.extend(v.encode() for v in values)
  elif kind is int and all(-(2**63) <= v < 2**63 for v in values):
    feature.int64_list.value.extend(values)
  elif kind is float and all(float(np.float32(v)) == v for v in values):
    feature.float_list.value.extend(values)
  else:
    return False
  return True


def _is_utf8(text: str) -> bool:
  return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _text(value: bytes) -> str | bytes:
  try:
    return value.decode()
  except UnicodeDecodeError:
    return value
