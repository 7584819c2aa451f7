"""How long a model takes for one picture and for one text, on one device."""

import statistics
import time
from typing import Any

import jax
import numpy as np

REPEATS = 20


def latency(
  model: Any,
  params: Any,
  image_size: int,
  text_length: int,
  *,
  batch_size: int = 1,
  repeats: int = REPEATS,
) -> dict[str, float]:
  """Median milliseconds of a forward pass of each tower, compiled before.

  Args:
    model: a two-tower model.
    params: its parameters.
    image_size: side of the picture in pixels.
    text_length: tokens of the text.
    batch_size: pictures or texts at a time.
    repeats: passes that are timed.

  Returns:
    `image_ms`, `text_ms`, `batch_size` and `repeats`.
  """
  device = jax.local_devices()[0]
  params = jax.device_put(params, device)
  picture = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
  tokens = np.zeros((batch_size, text_length), np.int32)

  def image(params, rows):
    return model.apply({"params": params}, rows, None, train=False)[0]

  def text(params, rows):
    return model.apply({"params": params}, None, rows, train=False)[1]

  return {
    "image_ms": _median(
      image, params, jax.device_put(picture, device), repeats
    ),
    "text_ms": _median(text, params, jax.device_put(tokens, device), repeats),
    "batch_size": batch_size,
    "repeats": repeats,
  }


def _median(function, params, rows, repeats):
  compiled = jax.jit(function).lower(params, rows).compile()
  compiled(params, rows).block_until_ready()
  taken = []
  for _ in range(repeats):
    began = time.perf_counter()
    compiled(params, rows).block_until_ready()
    taken.append(1e3 * (time.perf_counter() - began))
  return statistics.median(taken)
