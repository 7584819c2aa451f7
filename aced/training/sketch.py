"""A sketch of which records were chosen, small enough to be summed over a run.

The "tug-of-war" sketch of Alon, Matias and Szegedy (STOC 1996): every record
`i` has `K` fixed signs `s_k(i)`, and `z_k` is the sum of those of the records
that were chosen. Sketches of several steps add up to that of all their records.
Where record `i` was chosen `c_i` times, `z_k^2` has the mean `sum_i c_i^2`, and
of `K` of them the mean a relative standard deviation of `sqrt(2 / K)`: the
number of records plays no part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 64  # Signs of a record; `alarms.Repeats` says why as many.
# 2^32 over the golden ratio, whose multiples are far apart.
_STRIDE = 0x9E3779B9
_ROWS = 2**16  # Records whose signs are added at a time.


def sketch(index: jax.Array, mask: jax.Array, width: int = WIDTH) -> jax.Array:
  """The sketch of some records.

  Args:
    index: `(b,)` int32 records, from 0.
    mask: `(b,)` bool, False for rows that do not count.
    width: `K`, signs of a record.

  Returns:
    `(width,)` float32 whole numbers, exact below 2^24: `sum s_k(index)`.
  """
  counted = jnp.where(mask[:, None], signs(index, width), 0)
  return counted.sum(axis=0).astype(jnp.float32)


def signs(index: jax.Array, width: int = WIDTH) -> jax.Array:
  """The signs of records, `(b, width)` int32 of -1 and 1.

  Each is a bit of a hash of record and `k`. They are the same on every machine
  and in every version: no random state has a part in them.
  """
  salts = mixed(jnp.arange(1, width + 1, dtype=jnp.uint32) * _u32(_STRIDE))
  spread = mixed(index.astype(jnp.uint32) + _u32(_STRIDE))
  bits = mixed(spread[:, None] ^ salts[None, :]) >> 31
  return 1 - 2 * bits.astype(jnp.int32)


def mixed(x: jax.Array) -> jax.Array:
  """The finalizer of MurmurHash3 (32 bits): every bit depends on every other.

  Args:
    x: uint32 of any shape.
  """
  x = (x ^ (x >> 16)) * _u32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * _u32(0xC2B2AE35)
  return x ^ (x >> 16)


def sketch_of_all(records: int, width: int = WIDTH) -> np.ndarray:
  """The sketch of records `0..records - 1`, once each.

  A CPU core adds some tens of millions of records a second.

  Args:
    records: how many, at most 2^31 - 1, which an index can name.
    width: signs of a record.

  Returns:
    `(width,)` int64.
  """
  total = np.zeros(width, np.int64)
  for start in range(0, records, _ROWS):
    left = min(records - start, _ROWS)
    total += np.asarray(_sketch_of_rows(start, left, width), np.int64)
  return total


@functools.partial(jax.jit, static_argnums=2)
def _sketch_of_rows(start, count, width):
  rows = jnp.arange(_ROWS, dtype=jnp.int32)
  return sketch(rows + start, rows < count, width)


def _u32(value: int) -> jax.Array:
  return jnp.uint32(value)
