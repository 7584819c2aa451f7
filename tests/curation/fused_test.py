"""The fused kernel against float64 numpy, and compiled for chips not here."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.curation import fused
from aced.embeddings import Embeddings

EPS = np.finfo(np.float32).eps


def problem(make_embeddings, n, m, scales, dtype=np.float32):
  """Signed models of `n` candidates, and a chunk of `m` pairs of each."""
  models, chunk = [], []
  for seed, (sign, d, t, b) in enumerate(scales):
    pairs = make_embeddings(seed, n + m, d, t, b, dtype=dtype)
    candidates = Embeddings(pairs.zimg[:n], pairs.ztxt[:n], t, b)
    models.append((sign, candidates))
    chunk.append((pairs.zimg[n:], pairs.ztxt[n:]))
  return models, chunk


def expected(models, chunk):
  """The sums in float64, and how far float32 may be from each.

  A logit is off by `t sqrt(d) eps` (a sum of `d` products that add up to at
  most 1, each rounded) and some `eps` of its own size; softplus hands that on
  by its slope, the sigmoid; a sum of `m` terms is off by at most `m eps` of the
  sum of their sizes. Products of bfloat16 are exact in float32.
  """
  want, bound = 0.0, 0.0
  for (sign, model), others in zip(models, chunk, strict=True):
    for z_nd, z_md in zip(model[:2], reversed(others), strict=True):
      z_nd, z_md = (np.asarray(z, np.float64) for z in (z_nd, z_md))
      l_nm = model.t * z_nd @ z_md.T + model.b
      m, d = z_md.shape
      off = EPS * (model.t * (np.sqrt(d) + 2) + 2 * abs(model.b))
      terms = np.logaddexp(0.0, l_nm)
      want += sign * terms.sum(axis=1)
      bound += (off / (1 + np.exp(-l_nm))).sum(axis=1)
      bound += m * EPS * terms.sum(axis=1)
  return want, bound


def assert_close(got, models, chunk):
  want, bound = expected(models, chunk)
  assert got.dtype == jnp.float32
  assert got.shape == want.shape
  np.testing.assert_array_less(np.abs(np.asarray(got) - want), bound)


@pytest.mark.parametrize("tiling", ["tpu_tiling", "gpu_tiling"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("t, b", [(10.0, -10.0), (100.0, -10.0), (3.0, 2.0)])
def test_equals_float64_at_sizes_that_no_tile_divides(
  make_embeddings, monkeypatch, tiling, dtype, t, b
):
  monkeypatch.setattr(fused, "tpu_tiling", getattr(fused, tiling))
  scales = [(1.0, 57, t, b), (-1.0, 130, 2 * t, b - 1)]
  models, chunk = problem(make_embeddings, 530, 517, scales, dtype)
  # Scales as arguments, as in training: they are not known when compiling.
  added = jax.jit(
    lambda embeddings, chunk: fused.added_scores(
      list(zip((1.0, -1.0), embeddings, strict=True)), chunk, interpret=True
    )
  )
  assert_close(added([e for _, e in models], chunk), models, chunk)


@pytest.mark.parametrize("n, m, d", [(1, 1, 1), (5, 3, 2), (256, 256, 128)])
def test_one_model_of_few_pairs(make_embeddings, n, m, d):
  models, chunk = problem(make_embeddings, n, m, [(-1.0, d, 20.0, -3.0)])
  got = fused.added_scores(models, chunk, interpret=True)
  assert_close(got, models, chunk)


def test_float16_is_multiplied_as_float32(make_embeddings):
  scales = [(1.0, 8, 10.0, -10.0)]
  models, chunk = problem(make_embeddings, 6, 4, scales, jnp.float16)
  got = fused.added_scores(models, chunk, interpret=True)
  assert_close(got, models, chunk)


def test_each_device_of_a_mesh_scores_its_own_candidates(make_embeddings):
  models, chunk = problem(make_embeddings, 64, 6, [(1.0, 16, 10.0, -5.0)])
  kind = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
  rows, whole = jax.P("data"), jax.P()
  added = jax.shard_map(
    lambda model, chunk: fused.added_scores(
      [(1.0, model)], chunk, interpret=True
    ),
    mesh=mesh,
    in_specs=(Embeddings(rows, rows, whole, whole), whole),
    out_specs=rows,
    check_vma=False,
  )
  model = jax.tree.map(jnp.asarray, models[0][1])
  assert_close(jax.jit(added)(model, chunk), models, chunk)


def test_what_cannot_run_is_refused(make_embeddings):
  models, chunk = problem(make_embeddings, 4, 2, [(1.0, 8, 10.0, -10.0)])
  with pytest.raises(ValueError, match="interpret"):
    fused.added_scores(models, chunk)
  with pytest.raises(ValueError, match="zip"):
    fused.added_scores(models, [], interpret=True)


@pytest.mark.skipif(
  jax.__version_info__ > (0, 10, 2),
  reason="later JAX compiles Triton when lowering, with its CUDA plugin",
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_to_triton_without_a_gpu(dtype):
  def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, dtype if sizes else jnp.float32)

  models = [Embeddings(*2 * [shape(640, d)], shape(), shape()) for d in (72, 9)]
  chunk = [(shape(192, d), shape(192, d)) for d in (72, 9)]
  lowered = (
    jax.jit(lambda e, c: fused.added_scores(list(zip((1.0, -1.0), e)), c))
    .trace(models, chunk)
    .lower(lowering_platforms=("cuda",))
    .as_text()
  )
  assert lowered.count("triton") >= 4  # a kernel for each product
  assert "640x192x" not in lowered


# This process is held to its CPU devices, so another one compiles. No chip is
# touched, so libtpu need not be kept from others that compile.
COMPILE = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from aced.curation import Embeddings, fused

topology = topologies.get_topology_desc(
  platform="tpu", topology_name="v5e:2x2"
)
mesh = jax.sharding.Mesh(np.asarray(topology.devices[:1]), ("data",))
whole = jax.sharding.NamedSharding(mesh, jax.P())

def temporaries(n, m, d, dtype):
  def shape(*sizes):
    kind = dtype if sizes else jnp.float32
    return jax.ShapeDtypeStruct(sizes, kind, sharding=whole)
  model = Embeddings(shape(n, d), shape(n, d), shape(), shape())
  added = jax.jit(lambda e, c: fused.added_scores([(1.0, e)], c))
  compiled = added.lower(model, [(shape(m, d), shape(m, d))]).compile()
  assert "tpu_custom_call" in compiled.as_text()
  return compiled.memory_analysis().temp_size_in_bytes

print(json.dumps([
  temporaries(640, 2048, d, dtype)
  for d in (768, 1408) for dtype in (jnp.float32, jnp.bfloat16)
]))
"""


@pytest.mark.tpu
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the compiler for TPUs, is not installed",
)
def test_compiles_for_a_tpu_that_is_not_here(repository):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  done = subprocess.run(
    [sys.executable, "-c", COMPILE],
    capture_output=True,
    text=True,
    env=env,
    cwd=repository,
  )
  assert not done.returncode, done.stderr
  block = 4 * 640 * 2048
  assert max(json.loads(done.stdout)) < block
