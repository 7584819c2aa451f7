"""The blocks that both towers are made of, with big_vision's parameter tree."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced.models import placement

# Policies of `jax.checkpoint_policies`; others there are makers of policies.
POLICIES = (
  "everything_saveable",
  "nothing_saveable",
  "dots_saveable",
  "checkpoint_dots",
  "dots_with_no_batch_dims_saveable",
  "checkpoint_dots_with_no_batch_dims",
)
REMAT = ("none", "full", *POLICIES)
# Name -> activation of the MLPs. big_vision and SigLIP have "gelu_tanh", CLIP
# as OpenAI trained it "quick_gelu".
ACTIVATIONS = {
  "gelu_tanh": nn.gelu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class MlpBlock(nn.Module):
  """Two dense layers with an activation between them.

  Attributes:
    mlp_dim: width of the hidden layer; four times the input's if None.
    dropout: rate after the activation.
    dtype_mm: dtype of the matrix products.
    activation: a key of `ACTIVATIONS`.
  """

  mlp_dim: int | None = None
  dropout: float = 0.0
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `(n, l, d)` to `(n, l, d)`."""
    init = {
      "kernel_init": nn.initializers.xavier_uniform(),
      "bias_init": nn.initializers.normal(stddev=1e-6),
      "dtype": jnp.dtype(self.dtype_mm),
    }
    width = x.shape[-1]
    x = nn.Dense(self.mlp_dim or 4 * width, name="Dense_0", **init)(x)
    x = ACTIVATIONS[self.activation](placement.rows(x))
    x = nn.Dropout(rate=self.dropout)(x, deterministic=not train)
    return nn.Dense(width, name="Dense_1", **init)(x)


class Block(nn.Module):
  """A pre-norm transformer block: attention, then an MLP, each residual.

  Attributes:
    mlp_dim: width of the MLP's hidden layer.
    num_heads: attention heads.
    dropout: rate on both branches.
    dtype_mm: dtype of the matrix products; the residual stream keeps its own.
    activation: of the MLP, a key of `ACTIVATIONS`.
    norm_eps: what layer norms add to the variance.
    causal: whether a position sees itself and those before it alone.
  """

  mlp_dim: int | None = None
  num_heads: int = 12
  dropout: float = 0.0
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6
  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False):
    """Maps `(n, l, d)` to itself; the second value is a scan's empty output."""
    drop = nn.Dropout(rate=self.dropout, deterministic=not train)
    x = placement.rows(x)
    seen = np.tri(x.shape[1], dtype=bool)[None, None] if self.causal else None
    y = nn.LayerNorm(self.norm_eps, name="LayerNorm_0")(x)
    y = attention(self.num_heads, self.dtype_mm)(y, y, mask=seen)
    x = x + drop(placement.rows(y)).astype(x.dtype)
    y = nn.LayerNorm(self.norm_eps, name="LayerNorm_1")(x)
    y = MlpBlock(
      self.mlp_dim,
      self.dropout,
      self.dtype_mm,
      self.activation,
      name="MlpBlock_0",
    )(y, train)
    return placement.rows(x + drop(y).astype(x.dtype)), None


class Encoder(nn.Module):
  """`depth` blocks and a final layer norm.

  Attributes:
    depth: number of blocks.
    mlp_dim: width of each MLP's hidden layer.
    num_heads: attention heads.
    dropout: rate in every block.
    scan: one block's program run `depth` times; its parameters are stacked
      under "encoderblock" with a leading axis, and compiling is faster.
    remat: "none", "full", or one of `POLICIES`: what is kept from the forward
      pass instead of being computed again.
    dtype_mm: dtype of the matrix products.
    activation: see `Block`.
    norm_eps: see `Block`.
    causal: see `Block`.
  """

  depth: int
  mlp_dim: int | None = None
  num_heads: int = 12
  dropout: float = 0.0
  scan: bool = False
  remat: str = "none"
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6
  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `(n, l, d)` to `(n, l, d)`."""
    block = rematerialised(Block, self.remat, self.scan)
    fields = {
      "mlp_dim": self.mlp_dim,
      "num_heads": self.num_heads,
      "dropout": self.dropout,
      "dtype_mm": self.dtype_mm,
      "activation": self.activation,
      "norm_eps": self.norm_eps,
      "causal": self.causal,
    }
    if self.scan:
      x, _ = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=self.depth,
      )(name="encoderblock", **fields)(x, train)
    else:
      for k in range(self.depth):
        x, _ = block(name=f"encoderblock_{k}", **fields)(x, train)
    return nn.LayerNorm(self.norm_eps, name="encoder_norm")(x)


class MAPHead(nn.Module):
  """Multi-head attention pooling by one learnt probe (Set Transformer).

  Attributes:
    mlp_dim: width of the MLP's hidden layer.
    num_heads: attention heads.
    dtype_mm: dtype of the matrix products.
    activation: see `Block`.
    norm_eps: see `Block`.
  """

  mlp_dim: int | None = None
  num_heads: int = 12
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `(n, l, d)` to `(n, d)`."""
    n, _, d = x.shape
    probe = self.param(
      "probe", nn.initializers.xavier_uniform(), (1, 1, d), jnp.float32
    )
    probe = jnp.tile(probe.astype(x.dtype), (n, 1, 1))
    x = attention(self.num_heads, self.dtype_mm)(probe, x).astype(x.dtype)
    y = nn.LayerNorm(self.norm_eps, name="LayerNorm_0")(x)
    y = MlpBlock(
      self.mlp_dim,
      dtype_mm=self.dtype_mm,
      activation=self.activation,
      name="MlpBlock_0",
    )(y)
    return (x + y.astype(x.dtype))[:, 0]


def attention(num_heads: int, dtype_mm: str) -> nn.Module:
  """Multi-head attention under the name that checkpoints have for it."""
  return nn.MultiHeadDotProductAttention(
    num_heads=num_heads,
    kernel_init=nn.initializers.xavier_uniform(),
    deterministic=True,
    dtype=jnp.dtype(dtype_mm),
    force_fp32_for_softmax=True,
    name="MultiHeadDotProductAttention_0",
  )


def learned_positions(
  module: nn.Module, length: int, width: int, dtype: Any = jnp.float32
) -> jax.Array:
  """A learnt `(1, length, width)` position embedding, "pos_embedding"."""
  init = nn.initializers.normal(stddev=1 / np.sqrt(width))
  return module.param("pos_embedding", init, (1, length, width), dtype)


def sincos2d_positions(height: int, width: int, dim: int) -> np.ndarray:
  """Fixed sine-cosine positions of a grid (MoCo v3, arXiv 2104.02057).

  Args:
    height: rows of the grid.
    width: columns of the grid.
    dim: width of the embedding, a multiple of 4.

  Returns:
    `(1, height * width, dim)` float32.

  Raises:
    ValueError: `dim` is not a multiple of 4.
  """
  if dim % 4:
    raise ValueError(
      f"sincos2d positions need a width that is a multiple of 4, not {dim}."
    )
  rows, columns = np.mgrid[:height, :width]
  omega = 10_000.0 ** -np.linspace(0, 1, dim // 4)
  angles = [x.reshape(-1, 1) * omega[None, :] for x in (columns, rows)]
  waves = [f(a) for a in angles for f in (np.sin, np.cos)]
  return np.concatenate(waves, axis=1)[None].astype(np.float32)


def head(width: int, kernel_init: Callable, dtype_mm: str) -> nn.Module:
  """The dense layer at the end of a tower, "head"."""
  return nn.Dense(
    width, name="head", kernel_init=kernel_init, dtype=jnp.dtype(dtype_mm)
  )


def rematerialised(
  block: type[nn.Module], remat: str, scanned: bool, train: int = 2
) -> type[nn.Module]:
  """The block, recomputed in the backward pass as `remat` says.

  Args:
    block: a kind of module.
    remat: one of `REMAT`.
    scanned: whether it is run in a scan.
    train: which of its call's arguments is `train`; 0 is the module itself.

  Raises:
    ValueError: `remat` is not known.
  """
  if remat in ("none", ""):
    return block
  if remat not in REMAT:
    raise ValueError(
      f"remat={remat!r} is not known; it is one of {', '.join(REMAT)}."
    )
  policy = None if remat == "full" else getattr(jax.checkpoint_policies, remat)
  # In a scan the loop keeps XLA from merging the two passes, elsewhere the
  # barrier does.
  return nn.remat(
    block, prevent_cse=not scanned, policy=policy, static_argnums=(train,)
  )
