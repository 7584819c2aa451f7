"""What CLIP has otherwise, folded into parameters that our towers have.

None of it changes what a model computes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aced.models.trees import ParamsError


def pixels(
  params: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
  """Folds the pixels' mean and spread into the patch embedding.

  Our models take pixels `x` in [-1, 1], these take `(y - mean) / std` of `y` in
  [0, 1]. A patch embedding is linear, so it takes over the difference.

  Args:
    params: of a model.
    mean: of each colour, 0 to 1.
    std: of each colour.
  """
  known = [x for x in (*mean, *std) if np.isfinite(x)]
  if len(mean) != 3 or len(std) != 3 or len(known) != 6 or min(std) <= 0:
    raise ParamsError(
      f"pixels have the mean {mean} and the spread {std}; expected three"
      " numbers each, and spreads above 0."
    )
  scale = 0.5 / np.asarray(std, np.float64)
  shift = (0.5 - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
  if np.all(scale == 1) and np.all(shift == 0):
    return dict(params)
  image = dict(params["img"])
  kernel = np.asarray(image["embedding"]["kernel"], np.float64)
  bias = np.asarray(image["embedding"]["bias"], np.float64)
  image["embedding"] = {
    "kernel": (kernel * scale[:, None]).astype(np.float32),
    "bias": (bias + np.einsum("hwcd,c->d", kernel, shift)).astype(np.float32),
  }
  return {**params, "img": image}


def class_token(params: Mapping[str, Any]) -> dict[str, Any]:
  """Gives the class token its position, and leaves the patches theirs.

  In CLIP the first position is that of the class token; our towers add none to
  it.
  """
  image = dict(params["img"])
  positions = np.asarray(image["pos_embedding"], np.float32)
  token = np.asarray(image["cls"], np.float32).reshape(1, 1, -1)
  image |= {
    "cls": token + positions[:, :1],
    "pos_embedding": positions[:, 1:],
  }
  return {**params, "img": image}


def biases(params: Mapping[str, Any]) -> dict[str, Any]:
  """Gives biases of zeros to the patch embedding and the heads without any."""
  params = {
    k: dict(v) if isinstance(v, Mapping) else v for k, v in params.items()
  }
  for tower, name in (("img", "embedding"), ("img", "head"), ("txt", "head")):
    layer = params[tower].get(name)
    if layer and "bias" not in layer:
      zeros = np.zeros(layer["kernel"].shape[-1], np.float32)
      params[tower][name] = {**layer, "bias": zeros}
  return params
