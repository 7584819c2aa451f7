"""Walking over all pairs of a batch in blocks, round the ring of devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aced import meshes
from aced.embeddings import logits

# Logits of a block: 64 MB in float32, which fills any device's matrix units.
BLOCK = 2**24


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


def make_sides(
  student, mask=None, teacher=None, row_scale=None, column_scale=None
) -> Sides:
  """The sides of `pair_sums.pairwise_sum`'s arguments."""
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


def fill(value):
  """Accumulators of one number for each row of a side."""
  return lambda side: jnp.full(side.place.shape, value, jnp.float32)


def _nothing(side):
  """No accumulators."""
  return ()


def walk(block, mesh, sides: Sides, *, rows, columns=_nothing):
  """Accumulates over all blocks; texts and their accumulators go round.

  Args:
    block: `(pairs, rows, columns) -> (rows, columns)`, accumulators in and out.
    mesh: as in `sigmoid_loss`.
    sides: all pairs.
    rows: `side -> accumulators` of pictures, before the first block.
    columns: the same of texts.

  Returns:
    The accumulators of pictures and of texts, `(b, ...)` each.

  Raises:
    ValueError: the batch does not divide over the devices.
  """
  meshes.check_rows(mesh, sides.images.place.shape[0], "batch")
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
  """`walk` on one device's rows."""
  images, texts, scales = sides
  count = texts.place.shape[0]
  parts, width = parts_of(images.place.shape[0], count)
  padding = parts * width - count

  def cut(x, fill=0):
    x = jnp.pad(
      x, [(0, padding), *[(0, 0)] * (x.ndim - 1)], constant_values=fill
    )
    return x.reshape(parts, width, *x.shape[1:])

  def paste(x):
    return x.reshape(-1, *x.shape[2:])[:count]

  def compare(row_sums, part):
    texts, column_sums = part
    pairs = _pairs(images, texts, scales)
    return block(pairs, row_sums, column_sums)

  def turn(_, carry):
    texts, row_sums, column_sums = carry
    # Padding is not valid, and nobody's own.
    texts_cut = jax.tree.map(cut, texts)._replace(place=cut(texts.place, -1))
    sums_cut = jax.tree.map(cut, column_sums)
    row_sums, sums = jax.lax.scan(compare, row_sums, (texts_cut, sums_cut))
    column_sums = jax.tree.map(paste, sums)
    texts, column_sums = _pass_on((texts, column_sums), axes, devices)
    return texts, row_sums, column_sums

  carry = texts, rows(images), columns(texts)
  _, row_sums, column_sums = jax.lax.fori_loop(0, devices, turn, carry)
  return row_sums, column_sums


def parts_of(rows: int, columns: int) -> tuple[int, int]:
  """`(parts, width)` in which columns are taken, so that blocks are small."""
  parts = -(-columns // max(BLOCK // rows, 1))
  return parts, -(-columns // parts)


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
