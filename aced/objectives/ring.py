"""The losses of a large batch, block by block: the `b x b` logits never exist.

Every device keeps its own pictures, and the texts go round the ring of devices
(SigLIP, arXiv 2303.15343, section 3.2); of what arrives, as many columns are
compared at a time as fit a block. The backward pass goes round once more and
computes each block again, so that memory does not grow with the number of
devices. Values and gradients are those of the dense losses; derivatives go
backwards alone (`jax.grad`, `jax.vjp`).
"""

import jax
import jax.numpy as jnp

from aced.embeddings import Embeddings
from aced.objectives.blocks import Pairs
from aced.objectives.contrastive import masked_mean, pair_count
from aced.objectives.pair_sums import (
  logsumexps,
  pairwise_sum,
  softmax_weights,
)


def sigmoid_loss(
  embeddings: Embeddings,
  mask: jax.Array | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
  """`objectives.sigmoid_loss`, in blocks.

  Args:
    embeddings: of `b` matching pairs.
    mask: `(b,)` bool.
    mesh: over whose devices the rows are split, by all axes in their order,
      which must be Auto; None is one device.

  Returns:
    Scalar float32, nats per pair.

  Raises:
    ValueError: the batch does not divide over the devices.
  """
  total = pairwise_sum(_sigmoid, mesh, embeddings, mask)
  return total / pair_count(embeddings.zimg, mask)


def sigmoid_distillation(
  student: Embeddings,
  teacher: Embeddings,
  mask: jax.Array | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
  """`objectives.sigmoid_distillation`, in blocks; arguments as above."""
  total = pairwise_sum(_soft_sigmoid, mesh, student, mask, teacher)
  return total / pair_count(student.zimg, mask)


def softmax_loss(
  embeddings: Embeddings,
  mask: jax.Array | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
  """`objectives.softmax_loss`, in blocks; arguments as above."""
  rows_b, columns_b = logsumexps(mesh, embeddings, mask)
  own_b = _own_logits(embeddings)
  return masked_mean(0.5 * (rows_b + columns_b) - own_b, mask)


def softmax_distillation(
  student: Embeddings,
  teacher: Embeddings,
  mask: jax.Array | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
  """`objectives.softmax_distillation`, in blocks; arguments as above.

  As the teacher's probabilities sum to one, the cross-entropy of a row is the
  student's log-sum-exp less the teacher's mean of the student's logits.
  """
  teacher = teacher.stop_gradient()
  scales = logsumexps(mesh, teacher, mask)
  rows_b, columns_b = logsumexps(mesh, student, mask)
  means = pairwise_sum(_soft_means, mesh, student, mask, teacher, *scales)
  total = masked_mean(0.5 * (rows_b + columns_b), mask)
  return total - means / pair_count(student.zimg, mask)


def _sigmoid(l_rs, pairs: Pairs):
  nll_rs = jax.nn.softplus(jnp.where(pairs.own, -l_rs, l_rs))
  return jnp.where(pairs.rows & pairs.columns, nll_rs, 0.0)


def _soft_sigmoid(l_rs, pairs: Pairs):
  p_rs = jax.nn.sigmoid(pairs.teacher)
  nll_rs = jax.nn.softplus(l_rs) - p_rs * l_rs
  return jnp.where(pairs.rows & pairs.columns, nll_rs, 0.0)


def _soft_means(l_rs, pairs: Pairs):
  return l_rs * softmax_weights(
    pairs.teacher,
    pairs,
    pairs.row_scale,
    pairs.column_scale,
    0.5 * pairs.rows,
    0.5 * pairs.columns,
  )


def _own_logits(embeddings: Embeddings) -> jax.Array:
  """Logits `l_ii`, `(b,)` float32."""
  zimg, ztxt, t, b = embeddings
  own_b = (zimg.astype(jnp.float32) * ztxt.astype(jnp.float32)).sum(axis=1)
  return jnp.float32(t) * own_b + jnp.float32(b)
