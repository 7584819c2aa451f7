"""Rows split over eight devices, against the same rows on one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.curation import (
  check_mesh,
  sample_independently,
  sample_jointly,
  sample_uniformly,
)
from aced.curation.shards import Shards, split
from tests.curation.samplers_test import full_scores

N, B, CHUNKS = 160, 64, 4


@pytest.fixture
def mesh():
  return jax.make_mesh(
    (4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


@pytest.fixture
def models(make_embeddings):
  return (
    make_embeddings(0, n=N, d=16, t=10.0, b=-5.0),
    make_embeddings(1, n=N, d=24, t=20.0, b=-8.0),
  )


def drawn_by(sampler, models, **options):
  """A selection; compiled as a whole, which is far quicker than op by op."""
  rng = jax.random.key(options.pop("seed", 0))
  return jax.jit(lambda *m: sampler(rng, *m, **options))(*models)


def on_shards(function, mesh, *args, scope="global"):
  """Runs `function(shards, *args)` with every array split over the mesh."""
  return jax.shard_map(
    partial(function, split(mesh, scope)),
    mesh=mesh,
    in_specs=jax.P(mesh.axis_names),
    out_specs=jax.P(),
    check_vma=False,
  )(*args)


@pytest.mark.parametrize("size", [3, 8, 50, 160])
def test_top_is_that_of_all_rows_in_the_same_order(mesh, size):
  rng = np.random.default_rng(size)
  keys = rng.integers(0, 20, N).astype(np.float32)  # Many are equal.
  keys[rng.integers(0, N, 30)] = -np.inf
  got = on_shards(lambda s, x: s.top(x, size), mesh, keys)
  np.testing.assert_array_equal(got, jax.lax.top_k(keys, size)[1])


def test_quotas_take_the_best_of_every_share(mesh):
  keys = np.random.default_rng(0).permutation(N).astype(np.float32)
  got = on_shards(lambda s, x: s.top(x, 16), mesh, keys, scope="per_device")
  shares = keys.reshape(8, 20)
  want = np.argsort(-shares, axis=1)[:, :2] + 20 * np.arange(8)[:, None]
  np.testing.assert_array_equal(got, want.reshape(-1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_taken_rows_are_the_rows(mesh, dtype):
  x = jnp.asarray(np.random.default_rng(1).normal(0, 9, (N, 5)), dtype)
  positions = jnp.asarray([159, 3, 77, 20, 19, 0, 41, 3])
  got = on_shards(lambda s, x: s.take(x, positions), mesh, x)
  np.testing.assert_array_equal(got, x[positions])


def test_cleared_flags_are_those_at_the_positions(mesh):
  flags = np.ones(N, bool)
  flags[7] = False
  positions = jnp.asarray([0, 19, 20, 159])
  got = on_shards(lambda s, x: s.join(s.clear(x, positions)), mesh, flags)
  flags[[0, 19, 20, 159]] = False
  np.testing.assert_array_equal(got, flags)


def test_noise_hangs_on_the_key_alone(mesh):
  key = jax.random.key(3)
  got = on_shards(lambda s, x: s.join(s.noise(key, len(x))), mesh, np.ones(N))
  np.testing.assert_array_equal(got, Shards().noise(key, N))


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_joint_selection_is_the_same_on_eight_devices(
  mesh, models, loss, temperature
):
  mask = np.ones(N, bool)
  mask[[3, 41, 42, 159]] = False

  def draw(mesh):
    return jax.jit(
      lambda student, reference: sample_jointly(
        jax.random.key(0),
        student,
        reference,
        batch_size=B,
        num_chunks=CHUNKS,
        loss=loss,
        temperature=temperature,
        mask=mask,
        mesh=mesh,
      )
    )(*models)

  one, eight = draw(None), draw(mesh)
  np.testing.assert_array_equal(one.indices, eight.indices)
  np.testing.assert_array_equal(one.mask, eight.mask)
  for a, b in zip(one[1:], eight[1:], strict=True):
    # The same sums in another order; a score is a sum of 64 of size 10.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sampler", [sample_independently, sample_uniformly])
def test_other_samplers_are_the_same_on_eight_devices(mesh, models, sampler):
  one, eight = (
    drawn_by(sampler, models, seed=1, batch_size=B, mesh=m)
    for m in (None, mesh)
  )
  np.testing.assert_array_equal(one.indices, eight.indices)
  np.testing.assert_allclose(one.scores, eight.scores, rtol=1e-5)


def greedy_per_device(models, mask):
  """Quotas drawn greedily from a full matrix in float64."""
  s_nn = full_scores(*models)
  scores, free = np.diagonal(s_nn).copy(), mask.copy()
  chosen = []
  for _ in range(CHUNKS):
    keys = np.where(free, scores, -np.inf).reshape(8, N // 8)
    best = np.argsort(-keys, axis=1, kind="stable")[:, : B // CHUNKS // 8]
    chunk = best + (N // 8) * np.arange(8)[:, None]
    chosen.append(chunk)
    chunk = chunk.reshape(-1)
    free[chunk] = False
    scores = scores + s_nn[:, chunk].sum(1) + s_nn[chunk].sum(0)
  return np.stack(chosen, axis=1).reshape(-1)  # By device, then by chunk.


def test_per_device_is_greedy_quotas_of_the_full_matrix(mesh, models):
  mask = np.ones(N, bool)
  mask[[0, 25, 99]] = False
  got = drawn_by(
    sample_jointly,
    models,
    batch_size=B,
    num_chunks=CHUNKS,
    temperature=0.0,
    mask=mask,
    scope="per_device",
    mesh=mesh,
  )
  np.testing.assert_array_equal(got.indices, greedy_per_device(models, mask))
  owners = np.asarray(got.indices) // (N // 8)
  np.testing.assert_array_equal(owners, np.repeat(np.arange(8), B // 8))


def test_the_scopes_are_two_algorithms(mesh, models):
  """Where one device has all the good pairs, quotas leave them behind."""
  student, reference = models
  # The first 20 rows are easy for the reference and hard for the student.
  easy = reference._replace(
    ztxt=reference.ztxt.at[:20].set(reference.zimg[:20]), b=-18.0
  )
  kept = {}
  for scope in ("global", "per_device"):
    drawn = drawn_by(
      sample_jointly,
      (student, easy),
      batch_size=16,
      num_chunks=2,
      scope=scope,
      mesh=mesh,
    )
    kept[scope] = int((np.asarray(drawn.indices) < 20).sum())
  assert kept["per_device"] == 2
  assert kept["global"] > 10


def test_a_share_that_runs_out_is_masked(mesh, models):
  mask = np.ones(N, bool)
  mask[:15] = False  # Five are left of the first twenty, for a quota of 8.
  drawn = drawn_by(
    sample_jointly,
    models,
    batch_size=B,
    num_chunks=CHUNKS,
    mask=mask,
    scope="per_device",
    mesh=mesh,
  )
  valid = np.asarray(drawn.mask).reshape(8, 8)
  np.testing.assert_array_equal(valid.sum(1), [5, *[8] * 7])


def test_effective_sample_size_of_a_uniform_draw_is_all_of_it(mesh, models):
  for scope in ("global", "per_device"):
    drawn = drawn_by(
      sample_uniformly,
      models,
      mask=np.ones(N, bool),
      batch_size=B,
      scope=scope,
      mesh=mesh,
    )
    assert float(drawn.effective_sample_size[0]) == pytest.approx(N, rel=1e-5)


def test_sizes_that_do_not_divide_are_refused(mesh, models):
  with pytest.raises(ValueError, match="chunk of 4 pairs does not divide"):
    sample_jointly(
      jax.random.key(0),
      *models,
      batch_size=16,
      num_chunks=4,
      scope="per_device",
      mesh=mesh,
    )
  with pytest.raises(ValueError, match="super-batch of 100 pairs"):
    check_mesh(100, 16, "global", mesh)
  with pytest.raises(ValueError, match="Did you mean 'per_device'"):
    check_mesh(160, 16, "per_devise", mesh)


def test_kernels_are_checked(models):
  with pytest.raises(ValueError, match="kernel='triton' is not known"):
    sample_jointly(jax.random.key(0), *models, batch_size=B, kernel="triton")
  with pytest.raises(ValueError, match="sigmoid loss alone"):
    sample_jointly(
      jax.random.key(0), *models, batch_size=B, kernel="pallas", loss="softmax"
    )
