"""A two-tower model as both trainers call it: pictures of any dtype, float32.

big_vision's models take pictures as floats in [-1, 1], and give embeddings in
the dtype that they compute in.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aced.models.two_towers import to_float
from aced.training.views import View

STUDENT = View()  # What the student sees: the columns `image` and `labels`.


@dataclasses.dataclass(frozen=True, eq=False)
class Towers:
  """A flax module with big_vision's contract of two towers.

  Attributes:
    module: `apply(variables, image, text, train=...)` gives `(zimg, ztxt,
      out)`; either input may be None.
  """

  module: nn.Module

  def init(self, rng: Any, image: jax.Array, text: jax.Array) -> Any:
    """Random variables of the module."""
    return self.module.init(rng, to_float(image), text)

  def apply(
    self,
    variables: Any,
    image: jax.Array | None,
    text: jax.Array | None = None,
    train: bool = False,
    rngs: Any = None,
  ) -> tuple[jax.Array | None, jax.Array | None, dict[str, Any]]:
    """Embeds pictures, texts or both.

    Args:
      variables: `{"params": ...}`.
      image: `(n, h, w, 3)` uint8, or float in [-1, 1]; or None.
      text: `(n, l)` integers; or None.
      train: whether dropout is on.
      rngs: of dropout.

    Returns:
      `(zimg, ztxt, out)`: `(n, d)` float32 embeddings, None where the input is;
      and what the module names, "t" and perhaps "b" among it.
    """
    zimg, ztxt, out = self.module.apply(
      variables,
      None if image is None else to_float(image),
      text,
      train=train,
      rngs=rngs,
    )
    return _float32(zimg), _float32(ztxt), out


def init_params(
  model: Towers, spec: Mapping[str, Any], rng: Any, view: View = STUDENT
) -> Any:
  """Random parameters of a model, for the batches of a data set.

  Args:
    model: to initialise.
    spec: column -> its `tf.TensorSpec`, with a leading axis of rows.
    rng: of the parameters.
    view: the columns that the model sees.
  """
  image, labels = (
    jnp.zeros(spec[c].shape, spec[c].dtype.as_numpy_dtype) for c in view[:2]
  )
  return model.init(rng, image, labels)["params"]


def widths(
  model: Towers, spec: Mapping[str, Any], view: View = STUDENT
) -> tuple[int, int]:
  """Widths of a model's picture and text embeddings; as `init_params`."""

  def embed(rng):
    params = init_params(model, spec, rng, view)
    image, labels = (
      jnp.zeros(spec[c].shape, spec[c].dtype.as_numpy_dtype) for c in view[:2]
    )
    return model.apply({"params": params}, image, labels)[:2]

  # A key that is not made: a guard may forbid what that moves to a device.
  zimg, ztxt = jax.eval_shape(embed, jax.eval_shape(jax.random.key, 0))
  return zimg.shape[1], ztxt.shape[1]


def _float32(z):
  return None if z is None else z.astype(jnp.float32)
