"""Moving the selected rows of a super-batch so that every device has as many.

A joint selection takes more rows from some devices than from others. Rows stay
where they are as far as they fit; only the surplus of one device goes to the
free places of another, each row once, in all-to-alls of a fixed size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Placement(NamedTuple):
  """Where `b` selected rows come from and go to; known to every device.

  All are `(b,)` int32, by place in the batch: device `p // (b / devices)` has
  place `p`.

  Attributes:
    order: which item of the selection is there.
    source: the device that has it now.
    row: the row of that device's part of the super-batch.
    turn: -1 where it is there already, else its number among the rows that go
      from the one device to the other.
  """

  order: jax.Array
  source: jax.Array
  row: jax.Array
  turn: jax.Array


def place(indices: jax.Array, rows: int, devices: int) -> Placement:
  """Decides which selected row goes where.

  Every device keeps up to `b / devices` of its own rows, the first selected
  first. What is left over fills the free places of the others by turns, so
  that what one device sends is spread over many.

  Args:
    indices: `(b,)` positions in the super-batch, each once; `b` divides over
      the devices.
    rows: of the super-batch on each device.
    devices: how many.
  """
  size = indices.shape[0]
  quota = size // devices
  owner = indices // rows
  held = jnp.bincount(owner, length=devices)
  stays = jnp.minimum(held, quota)
  # The selection by owner, and each item's rank among those of its owner.
  by_owner = jnp.argsort(owner, stable=True)
  ranks = jnp.arange(size) - (jnp.cumsum(held) - held)[owner[by_owner]]
  leaves = ranks >= quota

  # Free places by how deep they lie, then by device: by turns.
  place_device, place_slot = jnp.divmod(jnp.arange(size), quota)
  depth = place_slot - stays[place_device]
  turns = jnp.where(depth < 0, size, depth) * devices + place_device
  free = jnp.argsort(turns)
  surplus = jnp.cumsum(leaves) - leaves
  to = jnp.where(leaves, free[surplus], owner[by_owner] * quota + ranks)

  order = jnp.zeros(size, jnp.int32).at[to].set(by_owner.astype(jnp.int32))
  source = owner[order]
  return Placement(
    order=order,
    source=source.astype(jnp.int32),
    row=(indices[order] - source * rows).astype(jnp.int32),
    turn=_turns(source, place_device, devices),
  )


def _turns(source, place_device, devices):
  """Number of each moved place among those of its `(source, device)`."""
  size = source.shape[0]
  pair = source * devices + place_device
  by_pair = jnp.argsort(pair, stable=True)
  starts = jnp.searchsorted(pair[by_pair], pair[by_pair], side="left")
  turn = jnp.zeros(size, jnp.int32)
  turn = turn.at[by_pair].set((jnp.arange(size) - starts).astype(jnp.int32))
  return jnp.where(source == place_device, -1, turn)


def exchange(
  tree: Any, placement: Placement, mesh: jax.sharding.Mesh, *, moves: bool
) -> Any:
  """Takes the placed rows of every array.

  Args:
    tree: of `(B, ...)` arrays, rows split over all axes of the mesh.
    placement: of `place`, for `B / devices` rows on each.
    mesh: of the devices.
    moves: False if it is known that every row is where it is to be, as in a
      selection with scope "per_device"; then nothing is communicated.

  Returns:
    The tree of `(b, ...)` arrays, split alike.
  """
  axes, devices = tuple(mesh.axis_names), mesh.size
  if devices == 1:
    return jax.tree.map(lambda x: jnp.take(x, placement.row, axis=0), tree)

  def local(tree, placement):
    size = placement.order.shape[0]
    quota = size // devices
    mine = jax.lax.axis_index(axes)
    own = jax.lax.dynamic_slice_in_dim(placement.row, mine * quota, quota)
    rows = jax.tree.leaves(tree)[0].shape[0]
    # Rows of other devices are overwritten below.
    kept = jax.tree.map(lambda x: x[jnp.minimum(own, rows - 1)], tree)
    if not moves:
      return kept
    lanes = -(-quota // devices)
    rounds = (placement.turn.max() + lanes) // lanes

    def send(carry):
      number, kept = carry
      return number + 1, _send(tree, kept, placement, number, lanes, axes)

    return jax.lax.while_loop(
      lambda carry: carry[0] < rounds, send, (jnp.int32(0), kept)
    )[1]

  split, whole = jax.P(axes), jax.P()
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(split, whole),
    out_specs=split,
    check_vma=False,
  )(tree, placement)


def _send(tree, kept, placement, number, lanes, axes):
  """One all-to-all: `lanes` rows from every device to every other.

  Both ends read off the placement which row travels in which lane.
  """
  devices = jax.lax.axis_size(axes)
  size = placement.order.shape[0]
  mine, places = jax.lax.axis_index(axes), jnp.arange(size)
  target, slot = jnp.divmod(places, size // devices)
  lane = placement.turn - number * lanes
  now = (placement.turn >= 0) & (lane >= 0) & (lane < lanes)
  nowhere = devices * lanes

  def table(applies, other, values, empty):
    """`(devices * lanes,)` values of the places that apply, by lane."""
    at = jnp.where(now & applies, other * lanes + lane, nowhere)
    return jnp.full(nowhere, empty, jnp.int32).at[at].set(values, mode="drop")

  sent = table(placement.source == mine, target, placement.row, 0)
  outside = size  # A lane that carries nothing for this device.
  received = table(target == mine, placement.source, slot, outside)

  def move(x, kept):
    travelling = jax.lax.all_to_all(x[sent], axes, 0, 0, tiled=True)
    return kept.at[received].set(travelling, mode="drop")

  return jax.tree.map(move, tree, kept)
