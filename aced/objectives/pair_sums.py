"""Two sums over all pairs of a batch, of which the ring losses are made.

The gradient of both is a weight for each logit, which goes back to the
embeddings by the same walk over blocks as the sums themselves.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from aced.embeddings import PRECISION, Embeddings
from aced.objectives.blocks import Pairs, fill, make_sides, walk


def softmax_weights(l_rs, pairs, rows, columns, by_row, by_column):
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

  sides = make_sides(student, mask, teacher, row_scale, column_scale)
  return walk(block, mesh, sides, rows=fill(0.0))[0].sum()


def _pairwise_forward(value, mesh, *args):
  return pairwise_sum(value, mesh, *args), args


def _pairwise_backward(value, mesh, args, cotangent):
  def weights(pairs):
    _, pull = jax.vjp(lambda x: value(x, pairs), pairs.logits)
    return pull(jnp.ones_like(pairs.logits))[0]

  student, *others = args
  gradient = _pull(weights, mesh, student, make_sides(student, *others))
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

  nothing = fill(-jnp.inf)
  return walk(
    block, mesh, make_sides(student, mask), rows=nothing, columns=nothing
  )


def _logsumexps_forward(mesh, student, mask=None):
  found = logsumexps(mesh, student, mask)
  return found, (student, mask, found)


def _logsumexps_backward(mesh, kept, cotangents):
  student, mask, (rows_b, columns_b) = kept

  def weights(pairs):
    (rows, by_row), (columns, by_column) = pairs.row_scale, pairs.column_scale
    return softmax_weights(
      pairs.logits, pairs, rows, columns, by_row, by_column
    )

  scales = (rows_b, cotangents[0]), (columns_b, cotangents[1])
  sides = make_sides(student, mask, None, *scales)
  return _pull(weights, mesh, student, sides), None


logsumexps.defvjp(_logsumexps_forward, _logsumexps_backward)


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

  (zimg, t, b), ztxt = walk(
    block,
    mesh,
    sides,
    rows=lambda side: (like(side), *(fill(0.0)(side),) * 2),
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
