"""The text decoder that reads pictures: LiT-Decoder (arXiv 2303.17376).

A transformer that writes a text token by token and looks at the tokens of a
frozen image encoder. It knows no tasks: a prompt at the start of the text, such
as "caption:" or a question, says what is to be written.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced.models import placement, transformer, variants
from aced.models.build import plain, tower_fields


class Cache(NamedTuple):
  """What a decoder keeps between steps, of every layer.

  `n` pictures have `rows` texts, as many each, those of a picture side by side.

  Attributes:
    keys: `(depth, rows, length, heads, d)` of the texts' own tokens.
    values: as `keys`.
    memory_keys: `(depth, n, m, heads, d)` of the pictures' tokens.
    memory_values: as `memory_keys`.
  """

  keys: jax.Array
  values: jax.Array
  memory_keys: jax.Array
  memory_values: jax.Array


class Attention(nn.Module):
  """Multi-head attention whose keys and values can be kept.

  Its parameters are those of `nn.MultiHeadDotProductAttention`.

  Attributes:
    width: of what asks and of what is returned.
    num_heads: attention heads.
    dtype_mm: dtype of the matrix products.
  """

  width: int
  num_heads: int
  dtype_mm: str = "float32"

  def setup(self):
    """Makes the four projections."""
    init = {
      "kernel_init": nn.initializers.xavier_uniform(),
      "dtype": jnp.dtype(self.dtype_mm),
    }
    heads = (self.num_heads, self.width // self.num_heads)
    self.query = nn.DenseGeneral(heads, **init)
    self.key = nn.DenseGeneral(heads, **init)
    self.value = nn.DenseGeneral(heads, **init)
    self.out = nn.DenseGeneral(self.width, axis=(-2, -1), **init)

  def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values `(n, m, heads, d)` of `(n, m, any width)`."""
    return self.key(x), self.value(x)

  def __call__(self, x, keys, values, mask=None) -> jax.Array:
    """Maps `(n, l, width)` to itself; what `(n, heads, l, m)` masks is seen."""
    fields = {"dtype": jnp.dtype(self.dtype_mm), "force_fp32_for_softmax": True}
    y = nn.dot_product_attention(
      self.query(x), keys, values, mask=mask, **fields
    )
    return self.out(y)


class DecoderBlock(nn.Module):
  """A pre-norm block: causal attention, attention to a picture, an MLP.

  Attributes:
    width: of the residual stream.
    mlp_dim: width of the MLP's hidden layer.
    num_heads: attention heads, of either attention.
    dropout: rate on all three branches.
    dtype_mm: see `transformer.Block`.
    activation: see `transformer.Block`.
    norm_eps: see `transformer.Block`.
  """

  width: int
  mlp_dim: int
  num_heads: int
  dropout: float = 0.0
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6

  def setup(self):
    """Makes the branches, with the names that flax would count out."""
    self.norm, self.cross_norm, self.mlp_norm = (
      nn.LayerNorm(self.norm_eps, name=f"LayerNorm_{k}") for k in range(3)
    )
    self.attend, self.cross = (
      Attention(
        self.width,
        self.num_heads,
        self.dtype_mm,
        name=f"MultiHeadDotProductAttention_{k}",
      )
      for k in range(2)
    )
    self.mlp = transformer.MlpBlock(
      self.mlp_dim,
      self.dropout,
      self.dtype_mm,
      self.activation,
      name="MlpBlock_0",
    )
    self.drop = nn.Dropout(rate=self.dropout)

  def __call__(self, x: jax.Array, memory: jax.Array, train: bool = False):
    """Maps `(n, l, width)` to itself, with `memory` `(n, m, dm)` in sight.

    The second value is a scan's empty output.
    """
    y = self.norm(placement.rows(x))
    seen = np.tri(x.shape[1], dtype=bool)[None, None]
    y = self.attend(y, *self.attend.project(y), seen)
    return self._finish(x, y, self.cross.project(memory), train), None

  def remember(self, carry: None, memory: jax.Array):
    """Keys and values of `memory` `(n, m, dm)`, the carry of a scan before."""
    return carry, self.cross.project(memory)

  def step(self, carry, layer, memory, position):
    """As a call, at one position, with what those before it left in a cache.

    Args:
      carry: `(rows, 1, width)`, and the keys and values of all layers.
      layer: index of this one.
      memory: its keys and values of the pictures.
      position: of the token in its text, one for all rows.

    Returns:
      The carry, with the keys and values of this position written, and a
      scan's empty output.
    """
    x, kept = carry
    y = self.norm(placement.rows(x))
    # Written in place, where a layer's cache as a scan's output is a new one.
    at = (layer, 0, position, 0, 0)
    kept = tuple(
      jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), at)
      for old, new in zip(kept, self.attend.project(y), strict=True)
    )
    own = [jax.lax.dynamic_index_in_dim(x, layer, 0, False) for x in kept]
    seen = (jnp.arange(own[0].shape[1]) <= position)[None, None, None]
    y = self.attend(y, *own, seen)
    return (self._finish(x, y, memory, False), kept), None

  def _finish(self, x, y, memory, train):
    """The residual stream after its own attention `y` and the branches left."""

    def add(x, y):
      y = self.drop(placement.rows(y), deterministic=not train)
      return x + y.astype(x.dtype)

    x = add(x, y)
    # Texts of one picture ask it as one, so that it is kept once.
    y = self.cross_norm(x).reshape(len(memory[0]), -1, self.width)
    x = add(x, self.cross(y, *memory).reshape(x.shape))
    return placement.rows(add(x, self.mlp(self.mlp_norm(x), train)))


class Decoder(nn.Module):
  """A transformer that writes texts about pictures.

  The pictures' tokens go through one layer norm, since encoders differ in the
  scale of theirs, and then to every layer's cross-attention, which has them
  mapped from their width to its own. The output's matrix is the embedding of
  the input (arXiv 1608.05859): with 32,000 ids and a small width, another one
  would be much of the model.

  Attributes:
    variant: such as "S", a width of `variants.WIDTHS`; or "" with width, depth
      and num_heads given. What is given wins over it.
    width: of the residual stream.
    depth: number of blocks.
    mlp_dim: of the MLPs' hidden layers.
    num_heads: attention heads.
    vocab_size: number of token ids.
    max_length: most tokens of a text, its prompt among them.
    dropout: rate in the blocks and on their input.
    scan: see `transformer.Encoder`.
    remat: see `transformer.Encoder`.
    dtype_mm: dtype of the matrix products and of the cache, "float32" or
      "bfloat16".
    activation: see `transformer.Block`.
    norm_eps: see `transformer.Block`.
  """

  variant: str = ""
  width: int = 0
  depth: int = 0
  mlp_dim: int | None = None
  num_heads: int = 0
  vocab_size: int = 32_000
  max_length: int = 64
  dropout: float = 0.0
  scan: bool = False
  remat: str = "none"
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6

  def setup(self):
    """Makes the embedding, the blocks and the norms."""
    shape = expand(self)
    self.embed = nn.Embed(self.vocab_size, shape.width, name="Embed_0")
    self.positions = transformer.learned_positions(
      self, self.max_length, shape.width
    )
    self.drop = nn.Dropout(rate=self.dropout)
    self.memory_norm = nn.LayerNorm(self.norm_eps)
    self.blocks = self._blocks(shape)
    self.decoder_norm = nn.LayerNorm(self.norm_eps)

  def __call__(
    self, tokens: jax.Array, memory: jax.Array, train: bool = False
  ) -> jax.Array:
    """Scores every next token of texts.

    Args:
      tokens: `(n, l)` integers, token ids below `vocab_size`.
      memory: `(n, m, dm)` float, the tokens of the pictures.
      train: whether dropout is on.

    Returns:
      `(n, l, vocab_size)` float32 logits; those at `[:, i]` are of the token
      that follows `tokens[:, i]`, and know nothing of tokens after it.

    Raises:
      ValueError: texts and pictures differ in number, or texts are longer than
        `max_length`.
    """
    (n, length), (pictures, *_) = tokens.shape, memory.shape
    if n != pictures:
      raise ValueError(
        f"{n} texts and the tokens of {pictures} pictures; expected a picture"
        " for every text."
      )
    _check_length(self, length)
    x = self.embed(tokens) + self.positions[:, :length]
    x = self.drop(x, deterministic=not train)
    memory = self.memory_norm(memory)
    if self.scan:
      x, _ = self.blocks(x, memory, train)
    else:
      for block in self.blocks:
        x, _ = block(x, memory, train)
    return self._logits(x)

  def start(self, memory: jax.Array, length: int, texts: int = 1) -> Cache:
    """A cache with the pictures read and no text written.

    Args:
      memory: `(n, m, dm)` float, the tokens of the pictures.
      length: of the texts that it has room for.
      texts: for each picture.

    Raises:
      ValueError: `length` is above `max_length`.
    """
    _check_length(self, length)
    memory = self.memory_norm(memory)
    if self.scan:
      _, (keys, values) = self.blocks.remember(None, memory)
    else:
      kept = [block.remember(None, memory)[1] for block in self.blocks]
      keys, values = map(jnp.stack, zip(*kept, strict=True))
    depth, n, _, *heads = keys.shape
    empty = jnp.zeros((depth, n * texts, length, *heads), keys.dtype)
    return Cache(empty, empty, keys, values)

  def step(
    self, tokens: jax.Array, cache: Cache, position: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """Reads one token of each text.

    Args:
      tokens: `(rows,)` integers.
      cache: of `start` or of the step at the position before.
      position: of these tokens in their texts, an integer, one for all.

    Returns:
      `(rows, vocab_size)` float32 logits of the tokens that follow, and the
      cache that has these.
    """
    here = jax.lax.dynamic_slice_in_dim(self.positions, position, 1, axis=1)
    carry = self.embed(tokens[:, None]) + here, (cache.keys, cache.values)
    memory = cache.memory_keys, cache.memory_values
    if self.scan:
      layers = jnp.arange(len(cache.keys))
      carry, _ = self.blocks.step(carry, layers, memory, position)
    else:
      for k, block in enumerate(self.blocks):
        read = tuple(x[k] for x in memory)
        carry, _ = block.step(carry, k, read, position)
    x, (keys, values) = carry
    return self._logits(x)[:, 0], cache._replace(keys=keys, values=values)

  def _blocks(self, shape):
    """The blocks, or one that is scanned, by the names `trees` stacks them."""
    same = "dropout", "dtype_mm", "activation", "norm_eps"
    fields = {name: getattr(self, name) for name in same}
    fields |= {k: getattr(shape, k) for k in ("width", "mlp_dim", "num_heads")}
    block = transformer.rematerialised(
      DecoderBlock, self.remat, self.scan, train=3
    )
    if not self.scan:
      names = [f"encoderblock_{k}" for k in range(shape.depth)]
      return [block(name=name, **fields) for name in names]
    scan = {
      "variable_axes": {"params": 0},
      "split_rngs": {"params": True, "dropout": True},
      "length": shape.depth,
    }
    whole = {**scan, "in_axes": nn.broadcast}
    layers = {**scan, "in_axes": (0, 0, nn.broadcast)}
    methods = {"__call__": whole, "remember": whole, "step": layers}
    return nn.scan(block, methods=methods)(name="encoderblock", **fields)

  def _logits(self, x):
    dtype = jnp.dtype(self.dtype_mm)
    return jnp.einsum(
      "nld,vd->nlv",
      self.decoder_norm(x).astype(dtype),
      self.embed.embedding.astype(dtype),
      preferred_element_type=jnp.float32,
    )


def build_decoder(config: Mapping[str, Any]) -> Decoder:
  """Builds a decoder from a table of a config.

  Args:
    config: fields of `Decoder`.

  Raises:
    ValueError: an unknown field, variant or choice, a value of another type,
      or sizes that are missing or do not fit.
  """
  decoder = Decoder(**tower_fields("decoder", Decoder, plain(config)))
  for name in ("vocab_size", "max_length"):
    if getattr(decoder, name) < 1:
      raise ValueError(
        f"decoder.{name}={getattr(decoder, name)} must be at least 1."
      )
  expand(decoder)
  return decoder


def expand(decoder: Decoder) -> variants.Shape:
  """The shape of a decoder; as `variants.expand_text`, of a text tower."""
  try:
    return variants.expand_text(decoder)
  except ValueError as error:
    raise ValueError(f"decoder: {error}") from error


def _check_length(decoder, length):
  if length > decoder.max_length:
    raise ValueError(
      f"texts of {length} tokens; this decoder has"
      f" max_length={decoder.max_length} positions."
    )
