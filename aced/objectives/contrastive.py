"""Contrastive losses, dense: the `b x b` logits are built."""

import jax
import jax.numpy as jnp

from aced.embeddings import Embeddings, logits


def sigmoid_loss(
  embeddings: Embeddings, mask: jax.Array | None = None
) -> jax.Array:
  """The SigLIP loss, `1/b sum_i sum_j nll_ij` (arXiv 2303.15343, eq. 1).

  Args:
    embeddings: of `b` matching pairs.
    mask: `(b,)` bool; pairs where it is False are neither positives nor
      negatives, as if they were not there.

  Returns:
    Scalar float32, nats per pair; 0 if every pair is masked.
  """
  l_bb = logits(*embeddings)
  sign_bb = 2 * jnp.eye(*l_bb.shape, dtype=l_bb.dtype) - 1
  return pairwise_mean(jax.nn.softplus(-sign_bb * l_bb), mask)


def softmax_loss(
  embeddings: Embeddings, mask: jax.Array | None = None
) -> jax.Array:
  """The CLIP loss: cross-entropy over rows and columns, averaged.

  Args:
    embeddings: of `b` matching pairs. A bias has no effect on this loss.
    mask: `(b,)` bool; pairs where it is False are neither positives nor
      negatives, as if they were not there.

  Returns:
    Scalar float32, nats per pair; 0 if every pair is masked.
  """
  l_bb = logits(*embeddings)
  own_b = jnp.diagonal(l_bb)
  rows_b = jax.nn.logsumexp(mask_candidates(l_bb, mask), axis=1)
  columns_b = jax.nn.logsumexp(mask_candidates(l_bb.T, mask), axis=1)
  return masked_mean(0.5 * (rows_b + columns_b) - own_b, mask)


def masked_mean(x_b: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Mean of `(b,)` values over the valid ones; 0 if there are none."""
  if mask is None:
    return x_b.mean()
  return jnp.where(mask, x_b, 0.0).sum() / pair_count(x_b, mask)


def pair_count(x_b: jax.Array, mask: jax.Array | None) -> jax.Array | int:
  """How many of the rows of `x_b` count, and 1 if none does."""
  return x_b.shape[0] if mask is None else jnp.maximum(mask.sum(), 1)


def pairwise_mean(x_bb: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Sum over columns, mean over rows, of the valid rows and columns."""
  if mask is None:
    return x_bb.sum(axis=1).mean()
  valid = mask[:, None] & mask[None, :]
  return jnp.where(valid, x_bb, 0.0).sum() / pair_count(x_bb, mask)


def mask_candidates(l_bb: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Logits with masked columns out of every softmax over a row.

  A masked column is -inf except on the diagonal, which keeps the rows of
  masked pairs finite; those rows are left out of every mean.
  """
  if mask is None:
    return l_bb
  keep = mask[None, :] | jnp.eye(*l_bb.shape, dtype=bool)
  return jnp.where(keep, l_bb, -jnp.inf)
