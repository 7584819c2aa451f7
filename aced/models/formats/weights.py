"""What a file or folder of weights holds, and what it says of itself."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aced.models import trees
from aced.models.build import build
from aced.models.trees import ParamsError


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """Weights, with what it takes to use them.

  Attributes:
    kind: of what was found, in words.
    where: it was found.
    params: nested dicts of numpy arrays, in our layout.
    config: of the model, as `build` takes it.
    image_size: side of the pictures in pixels.
    text_length: tokens of a text.
    resize: how pictures are brought to that size, "bilinear" or "bicubic"; ""
      where nothing says.
    tokenizer: the spec of the tokenizer; "" where nothing says.
    step: of a run, the step of the checkpoint; None of other weights.
    released: whether a tokenizer has to lie beside them.
  """

  kind: str
  where: pathlib.Path
  params: Mapping[str, Any]
  config: Mapping[str, Any]
  image_size: int
  text_length: int
  resize: str = ""
  tokenizer: str = ""
  step: int | None = None
  released: bool = False

  def fitted(self) -> "Weights":
    """The same, with every parameter in the place that the model has for it.

    Raises:
      ParamsError: listing every name that is missing, extra or of another
        shape.
    """
    try:
      like = shapes(self.config, self.image_size, self.text_length)
      params = trees.merge(self.params, like)
    except ValueError as error:
      raise ParamsError(f"{self.where}: {error}") from error
    return dataclasses.replace(self, params=params)


# More than any of these has, and less than takes long to be refused.
LARGEST = {"depth": 1000, "norm_eps": 0.1}


def check_fields(where: pathlib.Path, *towers: Mapping[str, Any]) -> None:
  """Refuses sizes that no tower has; raises ParamsError with the field."""
  for tower in towers:
    for name, value in tower.items():
      if name in ("activation", "pool_type", "causal", "pre_norm"):
        continue
      whole = name != "norm_eps"
      sizes = value if isinstance(value, tuple) else (value,)
      number = all(
        isinstance(x, int if whole else int | float) and not isinstance(x, bool)
        for x in sizes
      )
      if not number or not all(0 < x <= LARGEST.get(name, 1e7) for x in sizes):
        raise ParamsError(f"{where} gives a tower {name}={value!r}.")


def shapes(config: Mapping[str, Any], image_size: int, text_length: int) -> Any:
  """The tree of parameters of a model, as shapes."""
  model = build(config)

  def init(rng):
    image = jnp.zeros((1, image_size, image_size, 3))
    labels = jnp.zeros((1, text_length), jnp.int32)
    return model.init(rng, image, labels)["params"]

  return jax.eval_shape(init, jax.random.key(0))
