"""A super-batch whose rows are split over devices, as a sampler sees it.

Candidates stay where they are: a device scores its own rows, its best are
merged with those of the others, and of the embeddings only those of the newest
chunk travel. Positions are always those in the whole super-batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

SCOPES = ("global", "per_device")


@dataclasses.dataclass(frozen=True)
class Shards:
  """This device's share of the rows, inside `jax.shard_map`.

  Without axes there is one share, the whole, and nothing is communicated.

  Attributes:
    axes: names of the mesh axes over which rows are split.
    count: number of shares.
    scope: "global" draws the best of all shares, "per_device" the same number
      from each.
  """

  axes: tuple[str, ...] = ()
  count: int = 1
  scope: str = "global"

  @property
  def quotas(self) -> bool:
    """Whether every share gives the same number of rows."""
    return self.scope == "per_device" and self.count > 1

  def offset(self, rows: int) -> jax.Array | int:
    """Position of this share's first row, of `rows` in each share."""
    return jax.lax.axis_index(self.axes) * rows if self.axes else 0

  def sum(self, x: jax.Array) -> jax.Array:
    """Sum of `x` over the shares."""
    return jax.lax.psum(x, self.axes) if self.axes else x

  def join(self, x: jax.Array) -> jax.Array:
    """All shares' `(k, ...)`, one after the other."""
    if not self.axes:
      return x
    return jax.lax.all_gather(x, self.axes, tiled=True)

  def noise(self, rng: jax.Array, rows: int) -> jax.Array:
    """This share's part of Gumbel noise that depends on the key alone."""
    whole = jax.random.gumbel(rng, (rows * self.count,), jnp.float32)
    return jax.lax.dynamic_slice_in_dim(whole, self.offset(rows), rows)

  def top(self, keys: jax.Array, size: int) -> jax.Array:
    """Positions `(size,)` of the highest keys, equal ones in order of position.

    With quotas, `size / count` of each share, one share after the other.

    Args:
      keys: `(rows,)` of this share.
      size: how many, of all shares together.
    """
    rows = keys.shape[0]
    if not self.axes:
      return jax.lax.top_k(keys, size)[1]
    if self.quotas:
      _, local = jax.lax.top_k(keys, size // self.count)
      return self.join(local + self.offset(rows))
    # No share can give more than it has, or more than are asked for.
    best, local = jax.lax.top_k(keys, min(size, rows))
    positions = self.join(local + self.offset(rows))
    return positions[jax.lax.top_k(self.join(best), size)[1]]

  def take(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rows of `x` at `positions`, `(m, ...)`, on every device.

    Args:
      x: `(rows, ...)` of this share.
      positions: `(m,)`, the same on every device; of `top` if there are quotas.
    """
    if not self.axes:
      return x[positions]
    if self.quotas:
      mine = self.offset(len(positions) // self.count)
      own = jax.lax.dynamic_slice_in_dim(
        positions, mine, len(positions) // self.count
      )
      return self.join(x[own - self.offset(x.shape[0])])
    # One share has the row and the others add zero, which changes no bit.
    own, local = self._locate(positions, x.shape[0])
    own = own.reshape(own.shape + (1,) * (x.ndim - 1))
    found = jnp.where(own, x[local], jnp.zeros((), x.dtype))
    return self.sum(found)

  def clear(self, flags: jax.Array, positions: jax.Array) -> jax.Array:
    """`(rows,)` flags of this share, False at `positions`."""
    own, local = self._locate(positions, flags.shape[0])
    outside = flags.shape[0]  # Unlike a negative index, it is left out.
    return flags.at[jnp.where(own, local, outside)].set(False, mode="drop")

  def _locate(self, positions, rows):
    """Whether each position is in this share, and which row of it that is."""
    local = positions - self.offset(rows)
    own = (local >= 0) & (local < rows)
    return own, jnp.where(own, local, 0)


def split(mesh: jax.sharding.Mesh | None, scope: str) -> Shards:
  """The shares of a mesh, whose axes all split the rows, in their order."""
  if mesh is None or mesh.size == 1:
    return Shards(scope=scope)
  return Shards(tuple(mesh.axis_names), mesh.size, scope)
