"""The same image tower at another patch size or resolution (FlexiViT).

The patch embedding is resampled so that a patch that is enlarged keeps its
token, and position embeddings are resampled with the grid (arXiv 2212.08013,
PI-resize). Both are linear, so gradients flow through them to the one set of
parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced.models.two_towers import TwoTowers, to_float
from aced.models.variants import expand_image
from aced.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Flexed:
  """A two-tower model that reads pictures otherwise, with the same parameters.

  Attributes:
    model: the module, of the other patch size.
    resolution: side of its pictures in pixels.
    patch_size: `(height, width)` in pixels.
  """

  model: nn.Module
  resolution: int
  patch_size: tuple[int, int]

  def params(self, params: Any) -> Any:
    """The parameters of the plain model, resampled for this one."""
    image = dict(params["img"])
    embedding = dict(image["embedding"])
    embedding["kernel"] = resize_patches(embedding["kernel"], self.patch_size)
    grid = tuple(self.resolution // side for side in self.patch_size)
    image |= {
      "embedding": embedding,
      "pos_embedding": resize_positions(image["pos_embedding"], grid),
    }
    return {**params, "img": image}

  def images(self, images: jax.Array) -> jax.Array:
    """Pictures `(n, h, w, 3)` at the resolution of this one, as floats."""
    shape = (images.shape[0], self.resolution, self.resolution, 3)
    if images.shape == shape:
      return images
    return jax.image.resize(to_float(images), shape, "bilinear")


def flex(
  model: nn.Module,
  image_size: int,
  *,
  patch_size: int = 0,
  resolution: int = 0,
  token_drop: float = 0.0,
) -> Flexed:
  """A two-tower model at another patch size or resolution.

  Args:
    model: a `TwoTowers` with learnt positions.
    image_size: side of the pictures it is given, in pixels.
    patch_size: in pixels; 0 is its own.
    resolution: side to which pictures are resampled; 0 is their own.
    token_drop: share of the patch tokens that are left out; 0 is its own.

  Raises:
    ValueError: another kind of model, positions that are not learnt or of no
      square grid, or sizes that do not divide.
  """
  if not isinstance(model, TwoTowers):
    raise ValueError(
      "scoring at another patch size or resolution resamples the image tower of"
      f" 'two_towers'; it cannot do so for a {type(model).__name__}."
    )
  tower = ViT(**model.image)
  if tower.posemb != "learn":
    raise ValueError(
      f"image.posemb={tower.posemb!r} has no positions to resample; scoring at"
      " another patch size or resolution needs posemb='learn'."
    )
  own = expand_image(tower).patch_size
  if own[0] != own[1]:
    raise ValueError(
      f"image.patch_size={own} gives position embeddings of no square grid,"
      " which scoring at another patch size or resolution cannot resample."
    )
  patch = (patch_size,) * 2 if patch_size else own
  resolution = resolution or image_size
  if resolution > image_size or any(resolution % side for side in patch):
    raise ValueError(
      f"scoring.resolution={resolution} with patches of {patch} pixels: it must"
      f" be at most input.image_size={image_size}, its value unless set, and a"
      " multiple of scoring.patch_size or of the model's own."
    )
  fields = {
    **model.image,
    "patch_size": patch,
    "token_drop": token_drop or tower.token_drop,
  }
  return Flexed(model.clone(image=fields), resolution, patch)


def resample(
  params: Mapping[str, Any], like: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
  """Resamples the patches and positions of an image tower to those of another.

  Args:
    params: of a two-tower model; any other tree is returned as it is.
    like: the tree to fit to; shapes will do.

  Returns:
    The parameters, and what was done to them, in words.
  """
  try:
    image, wanted = dict(params["img"]), like["img"]
    kernel, positions = image["embedding"]["kernel"], image["pos_embedding"]
    patch = tuple(wanted["embedding"]["kernel"].shape[:2])
    length = wanted["pos_embedding"].shape[1]
  except (KeyError, TypeError):
    return dict(params), []  # Not two towers: `merge` will say what differs.
  done = []
  if kernel.shape[:2] != patch:
    resized = resize_patches(jnp.asarray(kernel), patch)
    image["embedding"] = {**image["embedding"], "kernel": np.asarray(resized)}
    done.append(
      f"patches of {_by(kernel.shape[:2])} pixels became {_by(patch)}"
    )
  side, old = round(length**0.5), round(positions.shape[1] ** 0.5)
  square = side * side == length and old * old == positions.shape[1]
  if positions.shape[1] != length and square:
    resized = resize_positions(jnp.asarray(positions), (side, side))
    image["pos_embedding"] = np.asarray(resized)
    done.append(f"positions of {old}x{old} patches became {side}x{side}")
  return {**params, "img": image}, done


def _by(sides):
  return "x".join(map(str, sides))


def resize_patches(kernel: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resamples a patch embedding by the pseudo-inverse of a bilinear resize.

  With `B` the matrix that resizes a patch `x`, the new weights `v` minimise
  `E |<x, w> - <B x, v>|^2` over white patches (PI-resize, arXiv 2212.08013);
  for larger patches the two products are equal.

  Args:
    kernel: `(h, w, c, d)`.
    size: of the new patches, in pixels.

  Returns:
    `(*size, c, d)`.
  """
  if kernel.shape[:2] == tuple(size):
    return kernel
  down, across = (
    jnp.asarray(_inverse_resize(old, new), kernel.dtype)
    for old, new in zip(kernel.shape[:2], size, strict=True)
  )
  return jnp.einsum(
    "yh,xw,hwcd->yxcd",
    down,
    across,
    kernel,
    precision=jax.lax.Precision.HIGHEST,
  )


def resize_positions(positions: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Resamples position embeddings `(1, l, d)` of a square grid, bilinearly.

  Returns:
    `(1, grid[0] * grid[1], d)`.

  Raises:
    ValueError: `l` is not the square of a whole number.
  """
  _, length, width = positions.shape
  side = round(length**0.5)
  if (side, side) == tuple(grid):
    return positions
  if side * side != length:
    raise ValueError(
      f"{length} position embeddings are not those of a square grid, and"
      " cannot be resampled."
    )
  square = positions.reshape(1, side, side, width)
  resized = jax.image.resize(square, (1, *grid, width), "bilinear")
  return resized.reshape(1, -1, width)


def _inverse_resize(old: int, new: int) -> np.ndarray:
  """`(new, old)`: the pseudo-inverse of a bilinear resize, transposed.

  A resize in two dimensions is the product of two in one, and so is its
  pseudo-inverse.
  """
  with jax.ensure_compile_time_eval():
    resize = jax.image.resize(jnp.eye(old), (new, old), "bilinear")
    return np.linalg.pinv(np.asarray(resize, np.float64)).T
