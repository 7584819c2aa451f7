"""An image and a text tower that meet in one space (SigLIP, CLIP)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced.models.text import TextTransformer
from aced.models.vit import ViT


class TwoTowers(nn.Module):
  """Two towers, a temperature and perhaps a bias.

  Attributes:
    image: fields of `ViT`.
    text: fields of `TextTransformer`.
    out_dim: widths of the image and text heads, None for no head; one number
      for both.
    temperature_init: first value of the temperature `t`; the parameter is its
      logarithm.
    bias_init: first value of the bias `b`; no bias if None.
  """

  image: Mapping[str, Any]
  text: Mapping[str, Any]
  out_dim: int | tuple[int | None, int | None] = (None, None)
  temperature_init: float = 10.0
  bias_init: float | None = None

  @nn.compact
  def __call__(
    self,
    image: jax.Array | None,
    text: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array | None, jax.Array | None, dict[str, Any]]:
    """Embeds pictures, texts or both.

    Args:
      image: `(n, h, w, 3)` uint8, or float in [-1, 1]; or None.
      text: `(n, l)` integers; or None.
      train: whether dropout is on.

    Returns:
      `(zimg, ztxt, out)`: L2-normalised `(n, d)` float32 embeddings, None where
      the input is; and `out`: "t" `(1,)` the temperature, "t/parameter" its
      logarithm, "b" `(1,)` where there is a bias, and what the towers name,
      under "img/" and "txt/".

    Raises:
      ValueError: pictures of another dtype, or as the towers raise it.
    """
    out_dim = heads(self.out_dim)
    out, zimg, ztxt = {}, None, None
    if text is not None:
      ztxt, named = TextTransformer(
        **{"num_classes": out_dim[1], **self.text}, name="txt"
      )(text, train)
      out |= {f"txt/{k}": v for k, v in named.items()}
      out["txt/norm"] = _norm(ztxt)
      ztxt = out["txt/normalized"] = ztxt / (out["txt/norm"] + 1e-8)
    if image is not None:
      zimg, named = ViT(
        **{"num_classes": out_dim[0], **self.image}, name="img"
      )(to_float(image), train)
      out |= {f"img/{k}": v for k, v in named.items()}
      out["img/norm"] = _norm(zimg)
      zimg = out["img/normalized"] = zimg / (out["img/norm"] + 1e-8)
    t = self.param(
      "t",
      nn.initializers.constant(np.log(self.temperature_init)),
      (1,),
      jnp.float32,
    )
    out["t/parameter"] = t
    out["t"] = jnp.exp(t)
    if self.bias_init is not None:
      out["b"] = self.param(
        "b", nn.initializers.constant(self.bias_init), (1,), jnp.float32
      )
    return zimg, ztxt, out


def heads(
  out_dim: int | tuple[int | None, int | None] | None,
) -> tuple[int | None, int | None]:
  """Widths of the image and the text head, from `TwoTowers.out_dim`."""
  if isinstance(out_dim, int) or out_dim is None:
    return out_dim, out_dim
  return out_dim


def to_float(image: jax.Array) -> jax.Array:
  """Maps uint8 pixels to [-1, 1]; leaves floats alone; refuses the rest."""
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 127.5 - 1.0
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(
      f"pictures are of dtype {image.dtype}; expected uint8 in 0 to 255, or"
      " float in -1 to 1."
    )
  return image


def _norm(z):
  return jnp.linalg.norm(z, axis=-1, keepdims=True)
