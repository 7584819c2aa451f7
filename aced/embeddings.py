"""What curation and objectives see of a model: its embeddings and its scale."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# By default a TPU multiplies float32 in bfloat16: at a temperature of 100 that
# is an error of tenths of a nat in a score.
PRECISION = jax.lax.Precision.HIGHEST


# What a dict may call each part: our name, and that of open_clip.
NAMES = {
  "zimg": "image_features",
  "ztxt": "text_features",
  "t": "logit_scale",
  "b": "logit_bias",
}


class Embeddings(NamedTuple):
  """Embeddings of `n` image-text pairs by one model, at its own scale.

  Attributes:
    zimg: `(n, d)` L2-normalised image embeddings, any float dtype.
    ztxt: `(n, d)` L2-normalised text embeddings, any float dtype.
    t: scalar, the positive temperature that multiplies similarities.
    b: scalar, the bias added to them; 0 for models trained with softmax.
  """

  zimg: jax.Array
  ztxt: jax.Array
  t: jax.Array | float
  b: jax.Array | float = 0.0

  def take(self, indices: jax.Array) -> "Embeddings":
    """Returns the embeddings of the pairs at `indices`, `(m,)` integers."""
    return self._replace(
      zimg=jnp.take(self.zimg, indices, axis=0),
      ztxt=jnp.take(self.ztxt, indices, axis=0),
    )

  def stop_gradient(self) -> "Embeddings":
    """Returns the same embeddings as constants of differentiation."""
    return jax.tree.map(jax.lax.stop_gradient, self)


def named(name: str, model: Any) -> Embeddings:
  """Returns a model's `Embeddings`, given as such, as a tuple or as a dict.

  Values are left as they are, traced or not, of whatever framework.

  Args:
    name: of the argument, for the message.
    model: `(zimg, ztxt, t, b)`, `b` perhaps left out; or a dict with these keys
      or those of open_clip, which has None for a `b` that is not there.

  Raises:
    ValueError: a part is missing.
  """
  found = {}
  if isinstance(model, Mapping):
    ours = {theirs: our for our, theirs in NAMES.items()}
    found = {ours.get(key, key): value for key, value in model.items()}
  elif isinstance(model, tuple | list) and len(model) in (3, 4):
    found = dict(zip(NAMES, model, strict=False))
  missing = [key for key in ("zimg", "ztxt", "t") if found.get(key) is None]
  if missing:
    raise ValueError(
      f"{name}, a {type(model).__name__}, has no {', '.join(missing)}; expected"
      " Embeddings, a tuple (zimg, ztxt, t, b), or a dict with these keys or"
      f" {', '.join(NAMES.values())}."
    )
  b = found.get("b")
  return Embeddings(
    found["zimg"], found["ztxt"], found["t"], 0.0 if b is None else b
  )


def logits(
  zimg: jax.Array,
  ztxt: jax.Array,
  t: jax.Array | float,
  b: jax.Array | float = 0.0,
) -> jax.Array:
  """Scaled similarities `l_ij = t <zimg_i, ztxt_j> + b`, in float32.

  Args:
    zimg: `(n, d)` image embeddings, any float dtype.
    ztxt: `(m, d)` text embeddings, same dtype.
    t: scalar temperature.
    b: scalar bias.

  Returns:
    `(n, m)` float32; products are accumulated in float32 whatever the dtype.
  """
  similarity = jnp.einsum(
    "nd,md->nm",
    zimg,
    ztxt,
    precision=PRECISION,
    preferred_element_type=jnp.float32,
  )
  return jnp.float32(t) * similarity + jnp.float32(b)
