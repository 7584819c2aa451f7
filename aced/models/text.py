"""The text tower: a transformer over token ids."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aced.models import transformer
from aced.models.variants import expand_text

POOLS = ("last", "first", "argmax", "map", "gap")


class TextTransformer(nn.Module):
  """A transformer over token ids.

  Attributes:
    variant: such as "B", a width of `variants.WIDTHS`; or "" with the next four
      fields given. What is given wins over it.
    width: of the residual stream.
    depth: number of blocks.
    mlp_dim: of the MLPs' hidden layers.
    num_heads: attention heads.
    vocab_size: number of token ids.
    pool_type: "last" (the last position, padding or not, as SigLIP), "first",
      "argmax" (the position of the highest id, as CLIP), "map" or "gap".
    num_classes: width of the output head; no head if None or 0.
    dropout: rate in the blocks and on their input.
    scan: see `transformer.Encoder`.
    remat: see `transformer.Encoder`.
    dtype_mm: dtype of the matrix products, "float32" or "bfloat16".
    activation: see `transformer.Block`.
    norm_eps: see `transformer.Block`.
    causal: whether a token sees itself and those before it alone, as in CLIP;
      else attention goes in both directions.
  """

  variant: str = ""
  width: int = 0
  depth: int = 0
  mlp_dim: int | None = None
  num_heads: int = 0
  vocab_size: int = 32_000
  pool_type: str = "last"
  num_classes: int | None = None
  dropout: float = 0.0
  scan: bool = False
  remat: str = "none"
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6
  causal: bool = False

  @nn.compact
  def __call__(
    self, text: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Embeds texts.

    Args:
      text: `(n, l)` integers, token ids below `vocab_size`.
      train: whether dropout is on.

    Returns:
      `(n, d)` float32 embeddings, not normalised, and intermediates by name:
      "encoded" `(n, l, d)`, "pre_logits" `(n, d)`.

    Raises:
      ValueError: an unknown pool_type.
    """
    shape = expand_text(self)
    x = nn.Embed(self.vocab_size, shape.width, name="Embed_0")(text)
    x = x + transformer.learned_positions(self, text.shape[1], shape.width)
    x = nn.Dropout(rate=self.dropout)(x, deterministic=not train)
    x = transformer.Encoder(
      depth=shape.depth,
      mlp_dim=shape.mlp_dim,
      num_heads=shape.num_heads,
      dropout=self.dropout,
      scan=self.scan,
      remat=self.remat,
      dtype_mm=self.dtype_mm,
      activation=self.activation,
      norm_eps=self.norm_eps,
      causal=self.causal,
      name="Encoder_0",
    )(x, train)
    out = {"encoded": x}
    x = self._pool(x, text, shape)
    out["pre_logits"] = x
    if self.num_classes:
      init = nn.initializers.lecun_normal()
      x = transformer.head(self.num_classes, init, self.dtype_mm)(x)
    return x.astype(jnp.float32), out

  def _pool(self, x, text, shape):
    if self.pool_type == "last":
      return x[:, -1]
    if self.pool_type == "first":
      return x[:, 0]
    if self.pool_type == "argmax":
      return jnp.take_along_axis(
        x, jnp.argmax(text, axis=1)[:, None, None], axis=1
      )[:, 0]
    if self.pool_type == "gap":
      return x.mean(axis=1)
    if self.pool_type == "map":
      return transformer.MAPHead(
        num_heads=shape.num_heads,
        mlp_dim=shape.mlp_dim,
        dtype_mm=self.dtype_mm,
        activation=self.activation,
        norm_eps=self.norm_eps,
        name="MAPHead_0",
      )(x)
    raise ValueError(
      f"text pool_type={self.pool_type!r} is not known; it is one of"
      f" {', '.join(POOLS)}."
    )
