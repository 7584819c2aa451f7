"""Losses that pull a student's batch towards a frozen teacher's, dense."""

import jax
import jax.numpy as jnp

from aced.embeddings import Embeddings, logits
from aced.objectives.contrastive import (
  mask_candidates,
  masked_mean,
  pairwise_mean,
)


def softmax_distillation(
  student: Embeddings,
  teacher: Embeddings,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Cross-entropy from the teacher's softmaxes to the student's.

  `-1/2 E_i [ sum_j p_ij log q_ij + sum_j p'_ji log q'_ji ]` with `p, q` the
  softmaxes over texts and `p', q'` over images, each model at its own scale
  (the distillation loss of ACED, arXiv 2411.18674, section 3.3).

  Args:
    student: embeddings of `b` pairs.
    teacher: the same pairs by the teacher; its width may differ. No gradient
      flows to it.
    mask: `(b,)` bool; pairs where it is False are as if they were not there.

  Returns:
    Scalar float32, nats per pair.
  """
  student_bb, teacher_bb = logits(*student), logits(*teacher.stop_gradient())

  def direction(student_bb, teacher_bb):
    p_bb = jax.nn.softmax(mask_candidates(teacher_bb, mask), axis=1)
    log_q_bb = jax.nn.log_softmax(mask_candidates(student_bb, mask), axis=1)
    # Where p is 0, log q may be -inf; 0 * -inf would be NaN.
    products = jnp.where(p_bb > 0, p_bb * log_q_bb, 0.0)
    return masked_mean(-products.sum(axis=1), mask)

  return 0.5 * (
    direction(student_bb, teacher_bb) + direction(student_bb.T, teacher_bb.T)
  )


def sigmoid_distillation(
  student: Embeddings,
  teacher: Embeddings,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Binary cross-entropy of every pair against the teacher's probability.

  `1/b sum_ij [p_ij softplus(-l_ij) + (1 - p_ij) softplus(l_ij)]` with
  `p = sigmoid(l_teacher)`: the sigmoid loss with the teacher's soft labels.

  Args:
    student: embeddings of `b` pairs.
    teacher: the same pairs by the teacher; its width may differ. No gradient
      flows to it.
    mask: `(b,)` bool; pairs where it is False are as if they were not there.

  Returns:
    Scalar float32, nats per pair.
  """
  l_bb = logits(*student)
  p_bb = jax.nn.sigmoid(logits(*teacher.stop_gradient()))
  # p softplus(-l) + (1 - p) softplus(l) = softplus(l) - p l.
  return pairwise_mean(jax.nn.softplus(l_bb) - p_bb * l_bb, mask)


def feature_distillation(
  student: Embeddings,
  teacher: Embeddings,
  mask: jax.Array | None = None,
  projections: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Mean squared error between the embeddings of the two models.

  Averaged over pairs, over the width and over both modalities.

  Args:
    student: embeddings of `b` pairs, width `d`.
    teacher: the same pairs by the teacher, width `e`. No gradient flows to it.
    mask: `(b,)` bool; pairs where it is False are as if they were not there.
    projections: `(d, e)` linear maps of the student's image and text
      embeddings, learnt with the student; needed where `d != e`.

  Returns:
    Scalar float32.

  Raises:
    ValueError: the widths differ and there are no projections.
  """
  pairs = []
  widths = student.zimg.shape[1], teacher.zimg.shape[1]
  if projections is None and widths[0] != widths[1]:
    raise ValueError(
      f"feature_distillation from width {widths[1]} (teacher) to width"
      f" {widths[0]} (student) needs `projections`, two linear maps of shape"
      f" {widths}."
    )
  for k, (ours, theirs) in enumerate(
    zip(student[:2], teacher[:2], strict=True)
  ):
    ours = ours.astype(jnp.float32)
    if projections is not None:
      ours = ours @ projections[k].astype(jnp.float32)
    error = ours - jax.lax.stop_gradient(theirs).astype(jnp.float32)
    pairs.append(jnp.square(error).mean(axis=1))
  return masked_mean(0.5 * (pairs[0] + pairs[1]), mask)
