"""The config of a model, read off the shapes of its parameters."""

from collections.abc import Mapping
from typing import Any

from aced.models import trees
from aced.models.trees import ParamsError


def infer(params: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
  """Returns `(config, image_size, text_length)` of a two-tower tree.

  Shapes do not tell how a text is pooled, which activation or which epsilon a
  tower has; they are SigLIP's: the last position, tanh GELU, 1e-6.

  Args:
    params: of the model, in our layout, layers stacked or apart.

  Raises:
    ParamsError: the tree is not one of two towers, or has no learnt positions
      of a square grid.
  """
  shapes = {k: tuple(v.shape) for k, v in trees.flatten(params).items()}
  needed = (
    "img/embedding/kernel",
    "img/pos_embedding",
    "txt/Embed_0/embedding",
    "txt/pos_embedding",
    "t",
  )
  missing = [name for name in needed if name not in shapes]
  if missing:
    raise ParamsError(
      f"these are not the parameters of two towers: {', '.join(missing)} not"
      f" found; at the top are {', '.join(sorted(params)[: trees.SHOWN])}."
    )
  patch = shapes["img/embedding/kernel"][:2]
  tokens = shapes["img/pos_embedding"][1]
  side = round(tokens**0.5)
  if side * side != tokens or patch[0] != patch[1]:
    raise ParamsError(
      f"{tokens} patches of {patch} pixels are no square picture; name the"
      " model's config instead."
    )
  image = _encoder(shapes, "img/Transformer")
  image |= {"patch_size": patch, "pool_type": _pool(shapes, "img", "gap")}
  if "img/pre_norm/scale" in shapes:
    image["pre_norm"] = True
  if "img/cls" in shapes:
    image["pool_type"] = "tok"
  text = _encoder(shapes, "txt/Encoder_0")
  text |= {
    "vocab_size": shapes["txt/Embed_0/embedding"][0],
    "pool_type": _pool(shapes, "txt", "last"),
  }
  config = {
    "model": "two_towers",
    "image": image,
    "text": text,
    "out_dim": tuple(
      shapes[f"{tower}/head/kernel"][1]
      if f"{tower}/head/kernel" in shapes
      else None
      for tower in ("img", "txt")
    ),
  }
  if "b" in shapes:
    config["bias_init"] = -10.0
  return config, side * patch[0], shapes["txt/pos_embedding"][1]


def _pool(shapes, tower, otherwise):
  return "map" if f"{tower}/MAPHead_0/probe" in shapes else otherwise


def _encoder(shapes, place):
  """Width, depth, MLP and heads of an encoder."""
  stacked = f"{place}/encoderblock/"
  block = (
    stacked
    if any(k.startswith(stacked) for k in shapes)
    else (f"{place}/encoderblock_0/")
  )
  query = shapes.get(f"{block}MultiHeadDotProductAttention_0/query/kernel")
  hidden = shapes.get(f"{block}MlpBlock_0/Dense_0/bias")
  if not query or not hidden:
    raise ParamsError(f"no attention and MLP found under {place}.")
  scan = block == stacked
  numbers = {
    name.removeprefix(f"{place}/encoderblock_").split("/")[0]
    for name in shapes
    if name.startswith(f"{place}/encoderblock_")
  }
  return {
    "width": query[-3],
    "depth": query[0] if scan else len(numbers),
    "mlp_dim": hidden[-1],
    "num_heads": query[-2],
    **({"scan": True} if scan else {}),
  }
