"""Our pictures and tokens as preprocessing operations of big_vision.

They run our own code from within tf.data, so pixels and ids are exactly those
of `python -m aced.train`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from aced.data import tokenizers
from aced.data.records import BadRecord
from aced.data.transforms import Transform

Op = Callable[[dict[str, Any]], dict[str, Any]]


def aced_decode(
  size: int,
  resize: str = "bilinear",
  crop_scale: tuple[float, float] | None = None,
  flip: bool = False,
  *,
  key: str | None = None,
  inkey: str = "image",
  outkey: str = "image",
) -> Op:
  """Encoded bytes to `(size, size, 3)` uint8, by `aced.data.Transform`.

  A picture that cannot be used is black, and `_mask` is False.

  Args:
    size: pixels along a side.
    resize: as of `Transform`, and so are the next two.
    crop_scale: random numbers are drawn from TensorFlow's global generator.
    flip: as well.
    key: the column, in the place of both of the next.
    inkey: the column that is read.
    outkey: the column that is made.
  """
  transform = Transform(
    size, resize, tuple(crop_scale) if crop_scale else None, flip
  )

  def decode(data, seed):
    try:
      picture = transform({"image": _bytes(data)}, np.random.default_rng(seed))
      return np.ascontiguousarray(picture), np.bool_(True)
    except BadRecord:
      return np.zeros((size, size, 3), np.uint8), np.bool_(False)

  def apply(data):
    import tensorflow as tf

    seed = tf.random.uniform((), maxval=2**31 - 1, dtype=tf.int32)
    image, usable = tf.numpy_function(
      decode, [data[key or inkey], seed], [tf.uint8, tf.bool]
    )
    image.set_shape((size, size, 3))
    usable.set_shape(())
    mask = tf.logical_and(data.get("_mask", True), usable)
    return data | {key or outkey: image, "_mask": mask}

  return apply


def aced_tokenize(
  tokenizer: str,
  length: int,
  *,
  key: str | None = None,
  inkey: str = "text",
  outkey: str = "labels",
) -> Op:
  """A caption to `(length,)` int32 token ids, by our tokenizers.

  Args:
    tokenizer: as `aced.data.load_tokenizer` takes it, such as
      "sentencepiece:my.model" or "bytes".
    length: tokens of a caption.
    key: the column, in the place of both of the next.
    inkey: the column that is read.
    outkey: the column that is made.
  """
  tokens = tokenizers.load_tokenizer(tokenizer, length)

  def tokenize(text):
    return tokens([_bytes(text).decode("utf-8", errors="replace")])[0]

  def apply(data):
    import tensorflow as tf

    labels = tf.numpy_function(tokenize, [data[key or inkey]], tf.int32)
    labels.set_shape((length,))
    return data | {key or outkey: labels}

  return apply


def vocab_sizes(pipeline: str | None) -> dict[str, int]:
  """Column -> ids of the tokenizer of ours that makes it.

  Args:
    pipeline: `pp` of a config; big_vision's own operations name no vocabulary.
  """
  from big_vision.pp.registry import parse_name

  sizes = {}
  for text in filter(None, (pipeline or "").split("|")):
    name, args, kwargs = parse_name(text)
    if name == aced_tokenize.__name__:
      given = inspect.signature(aced_tokenize).bind(*args, **kwargs)
      given.apply_defaults()
      column = given.arguments["key"] or given.arguments["outkey"]
      tokens = tokenizers.load_tokenizer(*given.args)
      sizes[column] = tokens.vocab_size
  return sizes


def _bytes(value):
  """A string of TensorFlow; outside of graphs it comes as an array."""
  return value.item() if isinstance(value, np.ndarray) else value


OPS = {"aced_decode": aced_decode, "aced_tokenize": aced_tokenize}
