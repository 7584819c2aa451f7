"""The losses of a large batch, block by block: the `b x b` logits never exist.

Every device keeps its own pictures, and the texts go round the ring of devices
(SigLIP, arXiv 2303.15343, section 3.2); of what arrives, as many columns are
compared at a time as fit a block. The backward pass goes round once more and
computes each block again, so that memory does not grow with the number of
devices. Values and gradients are those of the dense losses.

Everything is made of two sums over all pairs, `pairwise_sum` and `logsumexps`,
whose gradients are both a weight for each logit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aced.embeddings import PRECISION, Embeddings, logits
from aced.objectives.contrastive import masked_mean, pair_count

# Logits of a block: 64 MB in float32, which fills any device's matrix units.
BLOCK = 2**24


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
    mesh: over whose devices the rows are split, by all axes in their order;
      None is one device.

  Returns:
    Scalar float32, nats per pair.
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


class Pairs(NamedTuple):
  """A block of pairs: `r` pictures and `s` texts.

  Attributes:
    similarity: `(r, s)` float32 inner products.
    logits: `(r, s)` of the student.
    images: `(r, d)` embeddings.
    texts: `(s, d)` embeddings.
    own: `(r, s)` bool, whether picture and text belong together.
    rows: `(r, 1)` bool, pictures that count.
    columns: `(1, s)` bool, texts that count.
    teacher: `(r, s)` logits, or None.
    row_scale: `(r, 1)` what was given for each picture, or None.
    column_scale: `(1, s)` what was given for each text, or None.
  """

  similarity: jax.Array
  logits: jax.Array
  images: jax.Array
  texts: jax.Array
  own: jax.Array
  rows: jax.Array
  columns: jax.Array
  teacher: jax.Array | None
  row_scale: Any
  column_scale: Any


def _sigmoid(l_rs, pairs: Pairs):
  nll_rs = jax.nn.softplus(jnp.where(pairs.own, -l_rs, l_rs))
  return jnp.where(pairs.rows & pairs.columns, nll_rs, 0.0)


def _soft_sigmoid(l_rs, pairs: Pairs):
  p_rs = jax.nn.sigmoid(pairs.teacher)
  nll_rs = jax.nn.softplus(l_rs) - p_rs * l_rs
  return jnp.where(pairs.rows & pairs.columns, nll_rs, 0.0)


def _soft_means(l_rs, pairs: Pairs):
  return l_rs * _softmax_weights(
    pairs.teacher,
    pairs,
    pairs.row_scale,
    pairs.column_scale,
    0.5 * pairs.rows,
    0.5 * pairs.columns,
  )


def _softmax_weights(l_rs, pairs, rows, columns, by_row, by_column):
  """Softmaxes over texts and over pictures, weighted by row and by column."""
  over_texts = jnp.where(pairs.columns | pairs.own, jnp.exp(l_rs - rows), 0.0)
  over_images = jnp.where(pairs.rows | pairs.own, jnp.exp(l_rs - columns), 0.0)
  return by_row * over_texts + by_column * over_images


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def pairwise_sum(
  value: Callable[[jax.Array, Pairs], jax.Array],
  mesh: jax.sharding.Mesh | None,
  student: Embeddings,
  mask: jax.Array | None = None,
  teacher: Embeddings | None = None,
  row_scale: jax.Array | None = None,
  column_scale: jax.Array | None = None,
) -> jax.Array:
  """Sum of a function of the logit over all `b x b` pairs.

  Args:
    value: `(logits, pairs) -> values`, each element by itself.
    mesh: as in `sigmoid_loss`.
    student: embeddings of `b` pairs; the only differentiable argument.
    mask: `(b,)` bool, pairs that count.
    teacher: embeddings of the same pairs, for `pairs.teacher`.
    row_scale: `(b,)`, for `pairs.row_scale`.
    column_scale: `(b,)`, for `pairs.column_scale`.

  Returns:
    Scalar float32.
  """

  def block(pairs, rows, columns):
    return rows + value(pairs.logits, pairs).sum(axis=1), columns

  sides = _sides(student, mask, teacher, row_scale, column_scale)
  return _walk(block, mesh, sides, rows=_filled(0.0))[0].sum()


def _pairwise_forward(value, mesh, *args):
  return pairwise_sum(value, mesh, *args), args


def _pairwise_backward(value, mesh, args, cotangent):
  def weights(pairs):
    _, pull = jax.vjp(lambda x: value(x, pairs), pairs.logits)
    return pull(jnp.ones_like(pairs.logits))[0]

  student, *others = args
  gradient = _pull(weights, mesh, student, _sides(student, *others))
  gradient = jax.tree.map(lambda x: (cotangent * x).astype(x.dtype), gradient)
  return gradient, *(None for _ in others)


pairwise_sum.defvjp(_pairwise_forward, _pairwise_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def logsumexps(
  mesh: jax.sharding.Mesh | None,
  student: Embeddings,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-sum-exps of the logits over texts and over pictures.

  Args:
    mesh: as in `sigmoid_loss`.
    student: embeddings of `b` pairs; the only differentiable argument.
    mask: `(b,)` bool; what is masked is in no sum but its own.

  Returns:
    `(b,)` float32 for every picture, and `(b,)` for every text.
  """

  def block(pairs, rows, columns):
    l_rs = pairs.logits
    by_row = jnp.where(pairs.columns | pairs.own, l_rs, -jnp.inf)
    by_column = jnp.where(pairs.rows | pairs.own, l_rs, -jnp.inf)
    return (
      jnp.logaddexp(rows, jax.nn.logsumexp(by_row, axis=1)),
      jnp.logaddexp(columns, jax.nn.logsumexp(by_column, axis=0)),
    )

  nothing = _filled(-jnp.inf)
  return _walk(
    block, mesh, _sides(student, mask), rows=nothing, columns=nothing
  )


def _logsumexps_forward(mesh, student, mask=None):
  found = logsumexps(mesh, student, mask)
  return found, (student, mask, found)


def _logsumexps_backward(mesh, kept, cotangents):
  student, mask, (rows_b, columns_b) = kept

  def weights(pairs):
    (rows, by_row), (columns, by_column) = pairs.row_scale, pairs.column_scale
    return _softmax_weights(
      pairs.logits, pairs, rows, columns, by_row, by_column
    )

  scales = (rows_b, cotangents[0]), (columns_b, cotangents[1])
  sides = _sides(student, mask, None, *scales)
  return _pull(weights, mesh, student, sides), None


logsumexps.defvjp(_logsumexps_forward, _logsumexps_backward)


def _own_logits(embeddings: Embeddings) -> jax.Array:
  """Logits `l_ii`, `(b,)` float32."""
  zimg, ztxt, t, b = embeddings
  own_b = (zimg.astype(jnp.float32) * ztxt.astype(jnp.float32)).sum(axis=1)
  return jnp.float32(t) * own_b + jnp.float32(b)


def _pull(weights, mesh, student: Embeddings, sides) -> Embeddings:
  """Gradient of the embeddings, from `weights(pairs)` of the logits."""

  def block(pairs, rows, columns):
    w_rs = weights(pairs)
    rows = (
      rows[0] + _product("rs,sd->rd", w_rs, pairs.texts),
      rows[1] + (w_rs * pairs.similarity).sum(axis=1),
      rows[2] + w_rs.sum(axis=1),
    )
    return rows, columns + _product("rs,rd->sd", w_rs, pairs.images)

  def like(side):
    return jnp.zeros(side.z.shape, jnp.float32)

  (zimg, t, b), ztxt = _walk(
    block,
    mesh,
    sides,
    rows=lambda side: (like(side), *(_filled(0.0)(side),) * 2),
    columns=like,
  )
  scale = jnp.float32(student.t)
  gradient = Embeddings(scale * zimg, scale * ztxt, t.sum(), b.sum())
  return jax.tree.map(
    lambda g, x: g.astype(jnp.result_type(x)).reshape(jnp.shape(x)),
    gradient,
    student,
  )


def _product(spec, x, y):
  return jnp.einsum(
    spec,
    x,
    y.astype(jnp.float32),
    precision=PRECISION,
    preferred_element_type=jnp.float32,
  )


class Side(NamedTuple):
  """One side of all pairs, pictures or texts: `(b, ...)` arrays, or None."""

  z: jax.Array
  place: jax.Array
  valid: jax.Array
  teacher: jax.Array | None
  scale: Any


class Sides(NamedTuple):
  """Pictures, texts, and the `(t, b)` of student and teacher."""

  images: Side
  texts: Side
  scales: Any


def _sides(student, mask, teacher=None, row_scale=None, column_scale=None):
  size = student.zimg.shape[0]
  place = jnp.arange(size)
  valid = jnp.ones(size, bool) if mask is None else mask
  zimg, ztxt, *of_teacher = (None, None) if teacher is None else teacher
  scales = tuple(student[2:]), tuple(of_teacher)
  return Sides(
    Side(student.zimg, place, valid, zimg, row_scale),
    Side(student.ztxt, place, valid, ztxt, column_scale),
    jax.tree.map(jnp.float32, scales),
  )


def _filled(value):
  """Accumulators of one number for each row of a side."""
  return lambda side: jnp.full(side.place.shape, value, jnp.float32)


def _nothing(side):
  """No accumulators."""
  return ()


def _walk(block, mesh, sides: Sides, *, rows, columns=_nothing):
  """Accumulates over all blocks; texts and their accumulators go round.

  Args:
    block: `(pairs, rows, columns) -> (rows, columns)`, accumulators in and out.
    mesh: as in `sigmoid_loss`.
    sides: all pairs.
    rows: `side -> accumulators` of pictures, before the first block.
    columns: the same of texts.

  Returns:
    The accumulators of pictures and of texts, `(b, ...)` each.
  """
  if mesh is None or mesh.size == 1:
    return _walk_local(block, sides, rows, columns, axes=(), devices=1)
  axes = tuple(mesh.axis_names)
  split, whole = jax.P(axes), jax.P()
  return jax.shard_map(
    lambda sides: _walk_local(block, sides, rows, columns, axes, mesh.size),
    mesh=mesh,
    in_specs=(Sides(split, split, whole),),
    out_specs=split,
    check_vma=False,
  )(sides)


def _walk_local(block, sides, rows, columns, axes, devices):
  """`_walk` on one device's rows."""
  images, texts, scales = sides
  sizes = images.place.shape[0], texts.place.shape[0]
  parts = _parts(*sizes)

  def cut(x):
    return x.reshape(parts, sizes[1] // parts, *x.shape[1:])

  def compare(row_sums, part):
    texts, column_sums = part
    pairs = _pairs(images, texts, scales)
    return block(pairs, row_sums, column_sums)

  def turn(_, carry):
    texts, row_sums, column_sums = carry
    cut_up = jax.tree.map(cut, (texts, column_sums))
    row_sums, column_sums = jax.lax.scan(compare, row_sums, cut_up)
    column_sums = jax.tree.map(
      lambda x: x.reshape(sizes[1], *x.shape[2:]), column_sums
    )
    texts, column_sums = _pass_on((texts, column_sums), axes, devices)
    return texts, row_sums, column_sums

  carry = texts, rows(images), columns(texts)
  _, row_sums, column_sums = jax.lax.fori_loop(0, devices, turn, carry)
  return row_sums, column_sums


def _parts(rows, columns):
  """In how many parts columns are taken, so that a block is not too large."""
  return next(
    k
    for k in range(1, columns + 1)
    if columns % k == 0 and (rows * columns // k <= BLOCK or k == columns)
  )


def _pass_on(tree, axes, devices):
  """Everything to the next device of the ring."""
  if not axes:
    return tree
  ring = [(k, (k + 1) % devices) for k in range(devices)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, ring), tree)


def _pairs(images: Side, texts: Side, scales) -> Pairs:
  """The pairs of a block."""
  (t, b), of_teacher = scales
  similarity = logits(images.z, texts.z, 1.0)
  teacher = None
  if of_teacher:
    teacher = logits(images.teacher, texts.teacher, *of_teacher)
  return Pairs(
    similarity=similarity,
    logits=t * similarity + b,
    images=images.z,
    texts=texts.z,
    own=images.place[:, None] == texts.place[None, :],
    rows=images.valid[:, None],
    columns=texts.valid[None, :],
    teacher=teacher,
    row_scale=jax.tree.map(lambda x: x[:, None], images.scale),
    column_scale=jax.tree.map(lambda x: x[None, :], texts.scale),
  )
