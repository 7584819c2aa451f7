"""What a chunk adds to the scores of all candidates, in one kernel a product.

The inner loop of joint sampling multiplies every candidate with the chunk that
was selected last, and of the `n x m` block of logits only its row sums are
wanted. The kernel keeps each tile of the block on the chip: product, softplus
and sum happen where the tile was made, and one number a candidate leaves. XLA
fuses `scores.added_scores` to the same effect on a TPU (`benchmarks/fused.py`);
the kernel is for devices where it does not, and for measuring against.

The source is the same for TPU (Mosaic) and GPU (Triton); only tiles differ.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as mosaic
from jax.experimental.pallas import triton

from aced.curation.scores import SignedModels, softplus
from aced.embeddings import PRECISION

# A TPU tile is 1 KiB for each dimension of the embeddings: 256 pairs of
# float32, 512 of bfloat16. The larger a tile, the less often the chunk is read
# (once per tile of candidates). The width stays whole, so that the compiler can
# overlap softplus and product.
TPU_TILE_BYTES = 1024
# What a TPU kernel may use by default. Two buffers of two tiles take 5.8 MB at
# width 1408, and float32 as much again, where it is split for the matrix unit.
# Wider embeddings ask for more than the default, which not every TPU has.
TPU_VMEM_BYTES = 16 * 2**20
# Triton wants powers of two. Slices of the width are 128 bytes, a cache line;
# three stages of them take at most 72 KiB of the shared memory of a block,
# which is 163 KiB on A100. Eight warps keep the sums in registers; four do not.
GPU_CANDIDATES, GPU_SELECTED, GPU_SLICE_BYTES = 128, 64, 128
GPU_WARPS, GPU_STAGES = 8, 3


class Tiling(NamedTuple):
  """How one platform cuts the work.

  Attributes:
    candidates: rows of the block of logits in a tile.
    selected: its columns, of the chunk.
    slice: how much of the width is multiplied at once; None for all of it.
    compiler_params: for `pl.pallas_call`.
  """

  candidates: int
  selected: int
  slice: int | None
  compiler_params: Any


def tpu_tiling(width: int, itemsize: int) -> Tiling:
  """Tiles for a TPU, given the width and the bytes of a number."""
  side = TPU_TILE_BYTES // itemsize
  needed = 8 * TPU_TILE_BYTES * width + 2 * 2**20
  params = mosaic.CompilerParams(
    dimension_semantics=("parallel", "parallel"),
    vmem_limit_bytes=max(TPU_VMEM_BYTES, needed),
  )
  return Tiling(side, side, None, params)


def gpu_tiling(width: int, itemsize: int) -> Tiling:
  """Tiles for a GPU; the width does not matter, as it is cut in slices."""
  del width
  params = triton.CompilerParams(num_warps=GPU_WARPS, num_stages=GPU_STAGES)
  depth = GPU_SLICE_BYTES // itemsize
  return Tiling(GPU_CANDIDATES, GPU_SELECTED, depth, params)


def added_scores(
  models: SignedModels,
  chunk: Sequence[tuple[jax.Array, jax.Array]],
  *,
  interpret: bool = False,
) -> jax.Array:
  """What a newly selected chunk adds to the score of every candidate.

  The sigmoid loss's `sum_{j in chunk} S_ij + S_ji` of joint sampling (JEST,
  arXiv 2406.17711, algorithm 1), where of each model, with its sign,

      S_ij = sign * softplus(t <zimg_i, ztxt_j> + b)

  Products are accumulated in float32: of bfloat16 embeddings in a single pass,
  of all others at full float32 precision. XLA does not divide a kernel over
  devices: on a mesh call this inside `jax.shard_map(..., check_vma=False)`.

  Args:
    models: `(sign, embeddings)` of the `n` candidates; widths may differ.
    chunk: for each model `(zimg_md, ztxt_md)` of the `m` newly selected pairs.
    interpret: run the kernel step by step, on any device; for tests.

  Returns:
    `(n,)` float32, in nats. No array of `n x m` is ever written.

  Raises:
    ValueError: `models` and `chunk` differ in length; or it was neither
      compiled for a GPU or TPU nor interpreted.
  """
  scores = 0.0
  for (sign, model), (zimg_md, ztxt_md) in zip(models, chunk, strict=True):
    zimg_nd, ztxt_nd, *scale = model
    as_image = _row_sums(zimg_nd, ztxt_md, *scale, interpret)
    as_text = _row_sums(ztxt_nd, zimg_md, *scale, interpret)
    scores += sign * (as_image + as_text)
  return scores


def _row_sums(z_nd, z_md, t, b, interpret):
  """`sum_j softplus(t <z_i, z_j> + b)` of every row `i`, `(n,)`."""
  dtype = jnp.result_type(z_nd, z_md)
  if dtype != jnp.bfloat16:
    dtype = jnp.float32
  scale = [jnp.asarray(x, jnp.float32).reshape(1, 1) for x in (t, b)]
  args = (*scale, z_nd.astype(dtype), z_md.astype(dtype))
  tpu = functools.partial(_tiled, tiling=tpu_tiling, interpret=interpret)
  gpu = functools.partial(_tiled, tiling=gpu_tiling, interpret=interpret)
  # By where it is compiled for, which need not be the device at hand.
  return jax.lax.platform_dependent(*args, default=tpu, cuda=gpu, rocm=gpu)


def _tiled(t, b, z_nd, z_md, *, tiling, interpret):
  """Runs the kernel on all tiles and adds what they give."""
  (n, width), m = z_nd.shape, z_md.shape[0]
  rows, columns, depth, params = tiling(width, z_nd.dtype.itemsize)
  z_nd = _pad(z_nd, rows, depth or 1)
  z_md = _pad(z_md, columns, depth or 1)
  padded, width = z_nd.shape
  grid = (padded // rows, z_md.shape[0] // columns)
  scalar = pl.BlockSpec((1, 1), lambda i, j: (0, 0))
  sums = pl.pallas_call(
    functools.partial(_kernel, m=m, depth=depth or width),
    grid=grid,
    in_specs=[
      scalar,
      scalar,
      pl.BlockSpec((rows, width), lambda i, j: (i, 0)),
      pl.BlockSpec((columns, width), lambda i, j: (j, 0)),
    ],
    # Each tile has sums of its own: on a GPU there is no order of tiles in
    # which they could be added up, and adding them here costs 1 / columns.
    out_specs=pl.BlockSpec((None, 1, rows), lambda i, j: (j, 0, i)),
    out_shape=jax.ShapeDtypeStruct((grid[1], 1, padded), jnp.float32),
    # XLA plans with these, as it cannot look inside.
    cost_estimate=pl.CostEstimate(
      flops=2 * padded * z_md.size,
      transcendentals=2 * padded * z_md.shape[0],
      bytes_accessed=z_nd.nbytes + grid[0] * z_md.nbytes + 4 * grid[1] * padded,
    ),
    compiler_params=params,
    interpret=interpret,
    name="added_scores",
  )(t, b, z_nd, z_md)
  return sums.sum(axis=(0, 1))[:n]


def _kernel(t_ref, b_ref, rows_ref, columns_ref, sums_ref, *, m, depth):
  """Sums over one tile, which lies transposed: candidates along the lanes."""
  columns, width = columns_ref.shape
  rows = rows_ref.shape[0]

  def product(part):
    return jax.lax.dot_general(
      columns_ref[:, part],
      rows_ref[:, part],
      (((1,), (1,)), ((), ())),
      precision=PRECISION if rows_ref.dtype == jnp.float32 else None,
      preferred_element_type=jnp.float32,
    )

  if depth == width:
    similarity = product(slice(None))
  else:
    similarity = jax.lax.fori_loop(
      0,
      width // depth,
      lambda k, total: total + product(pl.ds(k * depth, depth)),
      jnp.zeros((columns, rows), jnp.float32),
    )
  terms = softplus(t_ref[...] * similarity + b_ref[...])
  # Padding has the logit b, and softplus(b) is not 0.
  row = jax.lax.broadcasted_iota(jnp.int32, terms.shape, 0)
  selected = pl.program_id(1) * columns + row < m
  sums_ref[...] = jnp.where(selected, terms, 0.0).sum(axis=0, keepdims=True)


def _pad(z, rows, columns):
  """Zeros after `z` up to multiples of `rows` and `columns`."""
  missing = [(0, -z.shape[0] % rows), (0, -z.shape[1] % columns)]
  return jnp.pad(z, missing) if any(after for _, after in missing) else z
