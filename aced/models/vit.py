"""The image tower: a vision transformer (arXiv 2010.11929)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced.models import transformer
from aced.models.variants import expand_image

POOLS = ("map", "gap", "tok", "none")
POSITIONS = ("learn", "sincos2d")


def kept_tokens(length: int, token_drop: float) -> np.ndarray:
  """Places of the patch tokens that are kept, evenly spaced, at least one."""
  count = max(round(length * (1 - token_drop)), 1)
  return ((np.arange(count) + 0.5) * length / count).astype(int)


class ViT(nn.Module):
  """A vision transformer.

  Attributes:
    variant: such as "B/16": a width of `variants.WIDTHS` and the patch size;
      or "" with the next five fields given. What is given wins over it.
    width: of the residual stream.
    depth: number of blocks.
    mlp_dim: of the MLPs' hidden layers.
    num_heads: attention heads.
    patch_size: `(height, width)` in pixels.
    posemb: "learn" or "sincos2d".
    pool_type: "map" (attention pooling), "gap" (mean of tokens), "tok" (a class
      token) or "none" (tokens stay).
    num_classes: width of the output head; no head if None or 0.
    dropout: rate in the blocks and on their input.
    token_drop: share of the patch tokens that are left out, evenly spaced: a
      cheaper look at the whole picture.
    scan: see `transformer.Encoder`.
    remat: see `transformer.Encoder`.
    dtype_mm: dtype of the matrix products, "float32" or "bfloat16".
    activation: see `transformer.Block`.
    norm_eps: see `transformer.Block`.
    pre_norm: whether a layer norm stands before the blocks, as in CLIP.
  """

  variant: str = ""
  width: int = 0
  depth: int = 0
  mlp_dim: int | None = None
  num_heads: int = 0
  patch_size: tuple[int, ...] = ()
  posemb: str = "learn"
  pool_type: str = "map"
  num_classes: int | None = None
  dropout: float = 0.0
  token_drop: float = 0.0
  scan: bool = False
  remat: str = "none"
  dtype_mm: str = "float32"
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6
  pre_norm: bool = False

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Embeds pictures.

    Args:
      image: `(n, h, w, 3)` float in [-1, 1].
      train: whether dropout is on.

    Returns:
      `(n, d)` float32 embeddings, not normalised (`(n, l, d)` tokens with
      pool_type="none"), and intermediates by name: "encoded" `(n, l, d)`,
      "head_input" `(n, d)`, "pre_logits" `(n, d)`.

    Raises:
      ValueError: the picture does not divide into patches, or a field has an
        unknown value.
    """
    shape = expand_image(self)
    out = {}
    x = self._patches(image, shape)
    n, h, w, d = x.shape
    x = x.reshape(n, h * w, d) + self._positions(h, w, d)
    if self.token_drop:
      x = x[:, kept_tokens(h * w, self.token_drop)]
    if self.pool_type == "tok":
      token = self.param("cls", nn.initializers.zeros, (1, 1, d))
      x = jnp.concatenate([jnp.tile(token, (n, 1, 1)), x], axis=1)
    if self.pre_norm:
      x = nn.LayerNorm(self.norm_eps, name="pre_norm")(x)
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
      name="Transformer",
    )(x, train)
    x, out["encoded"] = self._pool(x, shape)
    out["head_input"] = out["pre_logits"] = x
    if self.num_classes:
      # A head that starts at zero would make every picture the same.
      init = nn.initializers.xavier_uniform()
      x = transformer.head(self.num_classes, init, self.dtype_mm)(x)
    return x.astype(jnp.float32), out

  def _patches(self, image, shape):
    """`(n, h / p, w / p, d)`: each patch mapped to the width."""
    for side, size, patch in zip(
      ("height", "width"), image.shape[1:3], shape.patch_size, strict=True
    ):
      if size % patch:
        raise ValueError(
          f"a picture of {side} {size} does not divide into patches of {patch}"
          " pixels; choose an image_size that is a multiple of the patch size."
        )
    x = nn.Conv(
      shape.width,
      shape.patch_size,
      strides=shape.patch_size,
      padding="VALID",
      name="embedding",
      dtype=jnp.dtype(self.dtype_mm),
    )(image)
    return x.astype(jnp.float32)

  def _positions(self, h, w, d):
    if self.posemb == "learn":
      return transformer.learned_positions(self, h * w, d)
    if self.posemb == "sincos2d":
      return jnp.asarray(transformer.sincos2d_positions(h, w, d))
    raise ValueError(
      f"posemb={self.posemb!r} is not known; it is one of"
      f" {', '.join(POSITIONS)}."
    )

  def _pool(self, x, shape):
    """The pooled embedding, and the patch tokens."""
    if self.pool_type == "map":
      pooled = transformer.MAPHead(
        num_heads=shape.num_heads,
        mlp_dim=shape.mlp_dim,
        dtype_mm=self.dtype_mm,
        activation=self.activation,
        norm_eps=self.norm_eps,
        name="MAPHead_0",
      )(x)
      return pooled, x
    if self.pool_type == "gap":
      return x.mean(axis=1), x
    if self.pool_type == "tok":
      return x[:, 0], x[:, 1:]
    if self.pool_type == "none":
      return x, x
    raise ValueError(
      f"image pool_type={self.pool_type!r} is not known; it is one of"
      f" {', '.join(POOLS)}."
    )
