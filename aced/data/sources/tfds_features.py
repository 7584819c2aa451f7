"""What a feature of TensorFlow Datasets becomes in a record.

TFDS can read without TensorFlow too, but it then decodes every picture: its
`SkipDecoding` knows no sequences.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from aced.data.records import BadRecord
from aced.data.sources import examples
from aced.data.sources.fields import class_name


class Leaf(NamedTuple):
  """A feature that is stored as values of one kind.

  Attributes:
    kind: "picture"; "encoded", bytes that stand for something else; "text",
      which may be any bytes; "number"; "truth"; or "class".
    shape: of one value; () is a number or a string.
    in_list: whether a record has a list of them.
    names: of the classes.
  """

  kind: str
  shape: tuple[int | None, ...] = ()
  in_list: bool = False
  names: tuple[str, ...] = ()

  @property
  def may_be_picture(self) -> bool:
    """Whether a record has one value of it, of bytes."""
    return self.kind in ("picture", "text") and not self.in_list


def leaves(features: Any) -> dict[str, Leaf]:
  """Returns the features of a data set by the names that they have in files.

  Args:
    features: a `tfds.features.FeaturesDict`. Data sets in a data set, and lists
      of lists, are left out.
  """
  return dict(sorted(_walk(features, (), 0)))


def parse(
  data: bytes, features: Mapping[str, Leaf], image: str
) -> dict[str, Any]:
  """Returns the values of a serialised `tf.train.Example`.

  Args:
    data: the message.
    features: as `leaves` returns them.
    image: the picture; what else is encoded is left out.

  Raises:
    BadRecord: it is no such message, or its features are others.
  """
  stored, record = examples.features_of(data), {}
  for name, leaf in features.items():
    left_out = leaf.kind in ("picture", "encoded") and name != image
    kind = stored[name].WhichOneof("kind") if name in stored else None
    if left_out or kind is None:
      continue
    try:
      value = _value(list(getattr(stored[name], kind).value), leaf)
    except (ValueError, TypeError, IndexError) as error:
      raise BadRecord(
        "damaged_record", f"the feature {name!r} is no {leaf.kind}: {error}"
      ) from error
    if value is not None:
      record[name] = value
  return record


def _walk(feature, path, depth) -> Iterator[tuple[str, Leaf]]:
  from tensorflow_datasets import features

  if isinstance(feature, features.Dataset):
    return
  if isinstance(feature, features.FeaturesDict):
    for name, inner in feature.items():
      yield from _walk(inner, (*path, name), depth)
  elif isinstance(feature, features.Sequence):
    yield from _walk(feature.feature, path, depth + 1)
  elif depth < 2:
    yield "/".join(path), _leaf(feature, in_list=depth > 0)


def _leaf(feature, in_list) -> Leaf:
  from tensorflow_datasets import features

  seen, stored = feature.get_tensor_info(), feature.get_serialized_info()
  if isinstance(feature, features.ClassLabel):
    names = tuple(feature.int2str(k) for k in range(feature.num_classes))
    return Leaf("class", in_list=in_list, names=names)
  if stored.np_dtype in (np.object_, np.str_, np.bytes_):
    kind = "text" if seen.np_dtype == stored.np_dtype else "encoded"
    if isinstance(feature, features.Image):
      kind = "picture"
    return Leaf(kind, in_list=in_list)
  kind = "truth" if stored.np_dtype == np.bool_ else "number"
  return Leaf(kind, tuple(stored.shape), in_list)


def _value(values: list, leaf: Leaf) -> Any:
  """What stands in a record; None where it is not known."""
  if leaf.kind == "class":
    values = [class_name(leaf.names, v) for v in values]
  elif leaf.kind == "truth":
    values = [bool(v) for v in values]
  if leaf.shape:
    sides = (*((-1,) if leaf.in_list else ()), *leaf.shape)
    sides = [-1 if side is None else side for side in sides]
    return np.reshape(np.array(values), sides).tolist()
  if leaf.in_list:
    return values
  (value,) = values
  return value
