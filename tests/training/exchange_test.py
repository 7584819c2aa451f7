"""The exchange of rows: each arrives, few move, every device has as many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.training import sharding
from aced.training.exchange import exchange, place

ROWS, DEVICES = 20, 8
POOLS = {
  "mixed": np.arange(160),
  "one device has most": np.concatenate([np.arange(20), np.arange(100, 160)]),
  "first devices": np.arange(80),
  "last device": np.concatenate([np.arange(140, 160), np.arange(60)]),
}


placed_by = jax.jit(place, static_argnums=(1, 2))


def draw(pool, seed, size=64):
  drawn = np.random.default_rng(seed).permutation(POOLS[pool])[:size]
  return jnp.asarray(drawn, jnp.int32)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("seed", range(3))
def test_placed_rows_are_the_selected_ones(pool, seed):
  indices = draw(pool, seed)
  placed = placed_by(indices, ROWS, DEVICES)
  assert sorted(placed.order.tolist()) == list(range(64))
  held = np.bincount(np.asarray(indices) // ROWS, minlength=DEVICES)
  # No more rows move than must, and a device never sends and receives.
  moved = np.asarray(placed.turn) >= 0
  assert moved.sum() == np.maximum(held - 8, 0).sum()
  target = np.arange(64) // 8
  assert not set(target[moved]) & set(np.asarray(placed.source)[moved])
  # Those that stay are the first that were drawn of each device.
  for device in range(DEVICES):
    stays = (target == device) & ~moved
    own = np.flatnonzero(np.asarray(indices) // ROWS == device)
    assert sorted(placed.order[stays].tolist()) == own[:8].tolist()


@pytest.mark.parametrize("pool", POOLS)
def test_what_one_device_sends_is_spread(pool):
  placed = placed_by(draw(pool, 0), ROWS, DEVICES)
  moved = np.asarray(placed.turn) >= 0
  pairs = np.asarray(placed.source) * DEVICES + np.arange(64) // 8
  for pair in np.unique(pairs[moved]):
    turns = sorted(np.asarray(placed.turn)[moved & (pairs == pair)].tolist())
    assert turns == list(range(len(turns)))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("pool", POOLS)
def test_every_row_arrives_once(pool, devices):
  mesh = sharding.make_mesh(
    {"data": -1, "fsdp": 2 if devices > 1 else 1}, jax.devices()[:devices]
  )
  indices = draw(pool, 7)
  tree = {
    "image": jnp.arange(160 * 12).reshape(160, 2, 2, 3).astype(jnp.uint8),
    "labels": jnp.arange(160),
    "z": jnp.arange(320.0).reshape(160, 2).astype(jnp.bfloat16),
  }
  tree = sharding.shard_rows(tree, mesh)

  @jax.jit
  def run(tree, indices):
    placed = place(indices, 160 // devices, devices)
    return exchange(tree, placed, mesh, moves=True), placed.order

  got, order = run(tree, indices)
  for name, x in tree.items():
    np.testing.assert_array_equal(got[name], x[indices[order]])
    assert got[name].addressable_shards[0].data.shape[0] == 64 // devices


def test_nothing_is_sent_where_nothing_moves():
  mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
  indices = jnp.arange(160).reshape(8, 20)[:, 3:11].reshape(-1)
  x = sharding.shard_rows(jnp.arange(160), mesh)
  placed = placed_by(indices, ROWS, DEVICES)
  run = jax.jit(lambda x, p: exchange(x, p, mesh, moves=False))
  np.testing.assert_array_equal(run(x, placed), indices)
  text = run.lower(x, placed).compile().as_text()
  for kind in ("all-to-all", "all-gather", "all-reduce", "collective-permute"):
    assert kind not in text
