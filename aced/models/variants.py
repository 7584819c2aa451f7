"""Names of sizes: widths of one tower, and pairs of towers."""

import difflib
import re
from typing import Any, NamedTuple


class Shape(NamedTuple):
  """What a variant stands for; `patch_size` is empty for a text tower."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: tuple[int, int] = ()


# Of the ViT papers (arXiv 2010.11929, 2106.04560, 2305.13035) and big_vision.
WIDTHS = {
  "mu": Shape(32, 1, 128, 2),
  "Ti": Shape(192, 12, 768, 3),
  "S": Shape(384, 12, 1536, 6),
  "M": Shape(512, 12, 2048, 8),
  "B": Shape(768, 12, 3072, 12),
  "L": Shape(1024, 24, 4096, 16),
  "So400m": Shape(1152, 27, 4304, 16),
  "H": Shape(1280, 32, 5120, 16),
  "g": Shape(1408, 40, 6144, 16),
  "g-opt": Shape(1536, 40, 6144, 16),
}


class Pair(NamedTuple):
  """A named pair of towers.

  Attributes:
    image: variant of the image tower.
    text: variant of the text tower.
    image_size: side of the picture in pixels.
    text_length: tokens of a caption.
    gmacs: the papers' figure for a forward pass of one pair, in 1e9
      multiply-accumulates (their "GFLOPs").
    note: what is uncertain about it, or "".
  """

  image: str
  text: str
  image_size: int
  text_length: int
  gmacs: float
  note: str = ""


PAIRS = {
  "ACED-F0": Pair(
    "S/32",
    "S",
    288,
    64,
    3.30,
    "the paper's appendix could not be read; these towers give its cost",
  ),
  "ACED-F1": Pair("B/32", "S", 256, 64, 7.14),
  "ACED-F2": Pair(
    "B/24",
    "S",
    240,
    64,
    10.29,
    "the paper's appendix could not be read; these towers cost 0.04 more than"
    " it says, and B/20 at 200 px would cost 10.291",
  ),
}


def pair(name: str) -> Pair:
  """Returns a named pair of towers; raises ValueError if it is not known."""
  return PAIRS[_known("pair of towers", name, PAIRS)]


def pair_config(name: str) -> dict[str, Any]:
  """Returns `image`, `text` and `out_dim` of `TwoTowers` for a named pair.

  The pair meets in the width of the image tower, which has no head of its own
  beside attention pooling, as in SigLIP.
  """
  found = pair(name)
  width = decode_image(found.image).width
  return {
    "image": {"variant": found.image, "pool_type": "map"},
    "text": {"variant": found.text},
    "out_dim": (None, width),
  }


def decode_text(variant: str) -> Shape:
  """Returns the shape of a width, such as "B"; raises ValueError."""
  return WIDTHS[_known("width", variant, WIDTHS)]


def decode_image(variant: str) -> Shape:
  """Returns the shape of a width with a patch size, such as "B/16".

  Raises:
    ValueError: an unknown width, or no patch size.
  """
  found = re.fullmatch(r"([^/]+)/(\d+)", variant)
  if not found or not int(found[2]):
    raise ValueError(
      f"image variant {variant!r} must be a width and a patch size in pixels,"
      f" such as 'B/16'; widths: {', '.join(WIDTHS)}."
    )
  patch = int(found[2])
  return decode_text(found[1])._replace(patch_size=(patch, patch))


def expand_image(fields: Any) -> Shape:
  """The shape of a `ViT` (or anything with its fields).

  Fields that are given win over the variant's. A variant without a patch size,
  such as "B", needs `patch_size`.

  Raises:
    ValueError: an unknown variant, sizes that are missing or do not fit.
  """
  base, given = Shape(0, 0, 0, 0), tuple(fields.patch_size)
  if fields.variant:
    bare = given and fields.variant in WIDTHS
    base = (decode_text if bare else decode_image)(fields.variant)
  shape = _override("image", fields, base)
  patch_size = given or shape.patch_size
  if len(patch_size) != 2 or min(patch_size) < 1:
    raise ValueError(
      f"image patch_size={fields.patch_size!r} must be (height, width) in"
      " pixels where the variant has none."
    )
  return shape._replace(patch_size=patch_size)


def expand_text(fields: Any) -> Shape:
  """The shape of a `TextTransformer`; as `expand_image`."""
  base = decode_text(fields.variant) if fields.variant else Shape(0, 0, 0, 0)
  return _override("text", fields, base)


def _override(tower, fields, base):
  """The base, with the sizes that are given in place of its own."""
  names = "width", "depth", "mlp_dim", "num_heads"
  given = {k: getattr(fields, k) for k in names if getattr(fields, k)}
  shape = base._replace(**given)
  if not shape.mlp_dim:
    shape = shape._replace(mlp_dim=4 * shape.width)
  if min(shape[:4]) < 1:
    raise ValueError(
      f"the {tower} tower needs a variant, or width, depth and num_heads; got"
      f" variant={fields.variant!r}, width={shape.width}, depth={shape.depth},"
      f" mlp_dim={shape.mlp_dim}, num_heads={shape.num_heads}."
    )
  if shape.width % shape.num_heads:
    raise ValueError(
      f"{tower} width={shape.width} is not divisible by"
      f" num_heads={shape.num_heads}."
    )
  return shape


def _known(what, name, table):
  if name in table:
    return name
  # Case is compared apart: "b" and "B" have no letter in common for difflib.
  lower = {known.lower(): known for known in table}
  near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.3)
  hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
  raise ValueError(
    f"{what} {name!r} is not known; it is one of {', '.join(table)}.{hint}"
  )
