"""What curation and objectives see of a model: its embeddings and its scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# By default a TPU multiplies float32 in bfloat16: at a temperature of 100 that
# is an error of tenths of a nat in a score.
PRECISION = jax.lax.Precision.HIGHEST


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
