"""What a model costs, counted on paper: multiply-accumulates and parameters.

    python -m aced.models      # the README's table

One multiply-accumulate is two FLOPs. As in the papers, only matrix products
count: no softmax, norm, activation or table look-up.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from aced.models import variants
from aced.models.build import build, towers
from aced.models.decoder import Decoder, expand
from aced.models.text import TextTransformer
from aced.models.two_towers import TwoTowers
from aced.models.vit import ViT, kept_tokens


class TowerCost(NamedTuple):
  """Of one tower, for one picture or one text.

  Attributes:
    macs: multiply-accumulates of a forward pass.
    params: number of parameters.
    width: of its embedding.
    tokens: of its sequence.
  """

  macs: int
  params: int
  width: int
  tokens: int


class PairCost(NamedTuple):
  """Of a two-tower model, for one pair.

  Attributes:
    image: of the image tower.
    text: of the text tower.
    scales: parameters outside the towers, the temperature and the bias.
  """

  image: TowerCost
  text: TowerCost
  scales: int

  @property
  def macs(self) -> int:
    """Multiply-accumulates of a forward pass of one pair."""
    return self.image.macs + self.text.macs

  @property
  def flops_per_example(self) -> int:
    """FLOPs of a forward pass of one pair; a backward pass is twice that."""
    return 2 * self.macs

  @property
  def params(self) -> int:
    """Number of parameters."""
    return self.image.params + self.text.params + self.scales

  @property
  def width(self) -> int:
    """Of the space in which the towers meet."""
    return self.image.width


def count(
  config: Mapping[str, Any], image_size: int, text_length: int
) -> PairCost:
  """Counts a two-tower model.

  Args:
    config: as `build` takes it.
    image_size: side of the picture in pixels.
    text_length: tokens of a text.

  Raises:
    ValueError: as `build`, or the picture does not divide into patches.
  """
  model = build(config)
  if not isinstance(model, TwoTowers):
    return model.count(image_size, text_length)
  found = towers(model)
  return PairCost(
    count_image(found["image"], image_size),
    count_text(found["text"], text_length),
    1 + (model.bias_init is not None),
  )


def count_image(tower: ViT, image_size: int) -> TowerCost:
  """Counts an image tower."""
  shape = variants.expand_image(tower)
  ph, pw = shape.patch_size
  if image_size % ph or image_size % pw:
    raise ValueError(
      f"image_size={image_size} does not divide into patches of {ph}x{pw}."
    )
  tokens = (image_size // ph) * (image_size // pw)
  d, pixels = shape.width, ph * pw * 3
  macs, params = tokens * pixels * d, pixels * d + d
  params += tokens * d if tower.posemb == "learn" else 0
  tokens = len(kept_tokens(tokens, tower.token_drop))
  if tower.pool_type == "tok":
    tokens, params = tokens + 1, params + d
  params += 2 * d if tower.pre_norm else 0
  return _finish(tower, shape, tokens, macs, params)


def count_text(tower: TextTransformer, length: int) -> TowerCost:
  """Counts a text tower."""
  shape = variants.expand_text(tower)
  params = (tower.vocab_size + length) * shape.width
  return _finish(tower, shape, length, 0, params)


def count_decoder(
  decoder: Decoder, memory_tokens: int, memory_width: int, length: int
) -> TowerCost:
  """Counts a text decoder, without the encoder of the pictures.

  A pass scores all tokens of a text at once. To write a text with a cache takes
  the same products, those of the last token aside, since each step looks at all
  positions of the cache; beams multiply all but the picture's keys and values.

  Args:
    decoder: the decoder.
    memory_tokens: tokens of a picture.
    memory_width: width of such a token.
    length: tokens of the text, prompt and end among them.

  Returns:
    The cost; its `width` is that of the residual stream.

  Raises:
    ValueError: `length` is above the decoder's `max_length`.
  """
  if not 1 <= length <= decoder.max_length:
    raise ValueError(
      f"length={length} must be at least 1 and at most the decoder's"
      f" max_length={decoder.max_length}."
    )
  shape = expand(decoder)
  d = shape.width
  block = (
    _attention(d, length, length),
    _attention(d, length, memory_tokens, memory_width),
    _mlp(d, shape.mlp_dim, length),
  )
  # The output's matrix is the table of the input.
  macs = (
    shape.depth * sum(m for m, _ in block) + length * d * decoder.vocab_size
  )
  params = shape.depth * (sum(p for _, p in block) + 6 * d) + 2 * d
  params += (decoder.vocab_size + decoder.max_length) * d + 2 * memory_width
  return TowerCost(macs, params, d, length)


def _finish(tower, shape, tokens, macs, params):
  """Adds blocks, pooling and head to what a tower has of its own."""
  d = shape.width
  block = _attention(d, tokens, tokens), _mlp(d, shape.mlp_dim, tokens)
  macs += shape.depth * sum(m for m, _ in block)
  params += shape.depth * (sum(p for _, p in block) + 4 * d) + 2 * d
  if tower.pool_type == "map":
    head = _attention(d, 1, tokens), _mlp(d, shape.mlp_dim, 1)
    macs += sum(m for m, _ in head)
    params += sum(p for _, p in head) + 3 * d  # The probe and a layer norm.
  width = tower.num_classes or d
  if tower.num_classes:
    macs += d * width
    params += (d + 1) * width
  return TowerCost(macs, params, width, tokens)


def _attention(d, queries, keys, memory=None):
  """`(macs, params)` of multi-head attention to tokens of a width, `d` if None.

  The queries are of width `d`.
  """
  memory = memory or d
  projections = 2 * queries * d * d + 2 * keys * memory * d
  params = 2 * d * d + 2 * memory * d + 4 * d
  return projections + 2 * queries * keys * d, params


def _mlp(d, hidden, tokens):
  """`(macs, params)` of a two-layer MLP."""
  return 2 * tokens * d * hidden, 2 * d * hidden + d + hidden


def markdown_table() -> str:
  """The README's table of named pairs."""
  lines = [
    "| model | image tower | text tower | parameters (M) | image GMACs |"
    " text GMACs | GMACs | the papers' |",
    "|---|---|---|---:|---:|---:|---:|---:|",
  ]
  notes = []
  for name, pair in variants.PAIRS.items():
    cost = count({"variant": name}, pair.image_size, pair.text_length)
    mark = ""
    if pair.note:
      notes.append(f"{name}: {pair.note}.")
      mark = " *"
    lines.append(
      f"| {name}{mark} | ViT-{pair.image} at {pair.image_size} px |"
      f" {pair.text}, {pair.text_length} tokens | {cost.params / 1e6:.1f} |"
      f" {cost.image.macs / 1e9:.2f} | {cost.text.macs / 1e9:.2f} |"
      f" {cost.macs / 1e9:.2f} | {pair.gmacs:.2f} |"
    )
  return "\n".join([*lines, "", "\n\n".join(f"\\* {n}" for n in notes)])
