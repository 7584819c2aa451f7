"""A large batch in small pieces, and its exact gradient (GradCache).

The loss of a batch needs the embeddings of all its pairs, but not their
activations (arXiv 2101.06983): embed in microbatches without a gradient,
differentiate the loss by the embeddings, then embed once more, microbatch by
microbatch, and pull that gradient back to the parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aced.embeddings import Embeddings


class Pass(NamedTuple):
  """Rows that the student embeds with a gradient.

  Attributes:
    rows: the tree of `(n, ...)` arrays.
    rng: of dropout; each microbatch folds its number in.
    known: their embeddings, where they are known already.
  """

  rows: Any
  rng: jax.Array
  known: Embeddings | None = None


def split(tree: Any, size: int) -> Any:
  """Cuts `(n, ...)` arrays into `(n / size, size, ...)` microbatches.

  Microbatch `k` takes every `n / size`-th row from `k` on. With rows split over
  devices in blocks, each device then works on its own rows throughout.
  """

  def cut(x):
    x = x.reshape(size, x.shape[0] // size, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0)

  return jax.tree.map(cut, tree)


def join(tree: Any) -> Any:
  """The inverse of `split`."""

  def paste(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(-1, *x.shape[2:])

  return jax.tree.map(paste, tree)


def map_rows(
  embed: Callable[..., Embeddings],
  rows: Any,
  size: int,
  rng: jax.Array | None = None,
) -> Embeddings:
  """Embeds `size` rows at a time: `embed(rows, rng)`, one after the other."""
  parts = split(rows, size)
  count = jax.tree.leaves(parts)[0].shape[0]

  def one(numbered):
    number, part = numbered
    return embed(part, None if rng is None else jax.random.fold_in(rng, number))

  zimg, ztxt, t, b = jax.lax.map(one, (jnp.arange(count), parts))
  return Embeddings(*join((zimg, ztxt)), t[0], b[0])


def gradients(
  embed: Callable[[Any, Any, jax.Array], Embeddings],
  loss: Callable[..., tuple[jax.Array, Any]],
  params: Any,
  passes: Sequence[Pass],
  size: int,
) -> tuple[tuple[jax.Array, Any], Any]:
  """The loss of whole batches and its exact gradient, `size` rows at a time.

  Args:
    embed: `(params, rows, rng) -> embeddings`, each row by itself.
    loss: `(params, *embeddings) -> (value, aux)`, of one `Embeddings` for each
      pass; it may use parameters of its own.
    params: by which is differentiated.
    passes: the batches. Without `known` embeddings, each is embedded twice.
    size: rows of a microbatch; divides those of every pass.

  Returns:
    `((value, aux), gradient)`, as `jax.value_and_grad(..., has_aux=True)`.
  """
  embedded = [
    (
      map_rows(lambda rows, rng: embed(params, rows, rng), p.rows, size, p.rng)
      if p.known is None
      else p.known
    )
    for p in passes
  ]
  embedded = [e.stop_gradient() for e in embedded]

  def of_loss(params, embedded):
    return loss(params, *embedded)

  result, (total, by_embedding) = jax.value_and_grad(
    of_loss, argnums=(0, 1), has_aux=True
  )(params, embedded)
  for one, cotangent in zip(passes, by_embedding, strict=True):
    total = _pull(embed, params, one, cotangent, size, total)
  return result, total


def _pull(embed, params, one, cotangent, size, total):
  """Adds the gradient of one pass, microbatch by microbatch."""
  parts = split((one.rows, cotangent.zimg, cotangent.ztxt), size)
  count = jax.tree.leaves(parts)[0].shape[0]
  # Every microbatch sees the scales; their gradients are to count once.
  scales = cotangent.t / count, cotangent.b / count

  def add(total, numbered):
    number, (rows, zimg, ztxt) = numbered
    rng = jax.random.fold_in(one.rng, number)
    _, pull = jax.vjp(lambda p: embed(p, rows, rng), params)
    (gradient,) = pull(Embeddings(zimg, ztxt, *scales))
    return jax.tree.map(jnp.add, total, gradient), None

  return jax.lax.scan(add, total, (jnp.arange(count), parts))[0]
