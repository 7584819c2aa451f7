"""Scenes of coloured shapes with captions: a data set that needs no download.

A scene shows one object, two in a relation, or a group of equal ones. Its
caption names what is there in one of several ways. The captions use some
eighty words, at most fifteen at a time.
"""

from typing import NamedTuple

import numpy as np

from aced.config import did_you_mean
from aced.data import drawing, questions
from aced.data.records import Record, Source, SourceError

SPLITS = ("train", "val", "test", "classes")
SIZES = {"small": 0.30, "large": 0.46}  # Across, as shares of the picture.

_SHAPES, _COLOURS = tuple(drawing.SHAPES), tuple(drawing.COLOURS)
_BACKGROUNDS = tuple(drawing.BACKGROUNDS)
# Colour -> its tone, and that of its stripes and dots.
_TONES = {
  name: (tone, drawing.second_tone(tone))
  for name, tone in (
    (name, np.asarray(value, np.float32))
    for name, value in drawing.COLOURS.items()
  )
}
_SIZE_WORDS = {
  "small": ("small", "small", "tiny"),
  "large": ("large", "large", "big"),
}
_TEXTURE_NOUNS = {"striped": "stripes", "dotted": "dots"}
_OPENINGS = ("a photo of ", "a picture of ")
_COUNTS = {2: "two", 3: "three"}

# Where one object stands: centre as shares of the picture, and the words.
_PLACES = {
  "top left": (0.26, 0.26, "in the top left corner"),
  "top": (0.5, 0.26, "at the top"),
  "top right": (0.74, 0.26, "in the top right corner"),
  "left": (0.26, 0.5, "on the left"),
  "center": (0.5, 0.5, "in the center"),
  "right": (0.74, 0.5, "on the right"),
  "bottom left": (0.26, 0.74, "in the bottom left corner"),
  "bottom": (0.5, 0.74, "at the bottom"),
  "bottom right": (0.74, 0.74, "in the bottom right corner"),
}
# A relation of the first object to the second: both centres, and other words.
_RELATIONS = {
  "left of": ((0.26, 0.5), (0.74, 0.5), "to the left of"),
  "right of": ((0.74, 0.5), (0.26, 0.5), "to the right of"),
  "above": ((0.5, 0.26), (0.5, 0.74), "over"),
  "below": ((0.5, 0.74), (0.5, 0.26), "under"),
}
# How equal objects stand: (count, sizes that fit, centres).
_GROUPS = {
  "row": {
    2: ((0.26, 0.5), (0.74, 0.5)),
    3: ((0.17, 0.5), (0.5, 0.5), (0.83, 0.5)),
  },
  "column": {
    2: ((0.5, 0.26), (0.5, 0.74)),
    3: ((0.5, 0.17), (0.5, 0.5), (0.5, 0.83)),
  },
  "diagonal": {
    2: ((0.26, 0.26), (0.74, 0.74)),
    3: ((0.17, 0.17), (0.5, 0.5), (0.83, 0.83)),
  },
}
_ARRANGED = {
  "row": "in a row",
  "column": "in a column",
  "diagonal": "in a diagonal",
}
# Shares of scenes with one object and with two kinds; the rest are groups.
_ONE, _TWO = 0.35, 0.45
# Colours vary by this much, positions by this share of the picture.
_COLOUR_JITTER, _PLACE_JITTER = 14.0, 0.025
_STREAM = 0x5CE7E


class Kind(NamedTuple):
  """What an object looks like."""

  size: str
  texture: str
  colour: str
  shape: str


class Scenes(Source):
  """Drawn scenes; record `index` depends on `(seed, split, index)` only.

  Records hold `image` `(image_size, image_size, 3)` uint8, `text`, `objects`
  (a list of dicts of size, texture, colour, shape, x, y), `count`,
  `background`, `relation` or `arrangement` where there is one, and `label`
  ("red circle") where all objects are of one kind; and `questions`, where they
  are asked for, see `aced.data.questions`.

  Args:
    size: the number of scenes.
    seed: 0 or above.
    image_size: pixels along a side, 16 or above.
    split: "train", "val", "test": different scenes of the same sort; or
      "classes": objects of one kind only, each of `class_names()` in turn,
      for zero-shot classification.
    asked: the most questions about a scene, at most five.

  Raises:
    SourceError: an argument that is out of range.
  """

  def __init__(
    self,
    size: int,
    seed: int = 0,
    image_size: int = 32,
    split: str = "train",
    asked: int = 0,
  ):
    if split not in SPLITS:
      raise SourceError(
        f"synthetic:{split} is not a split; it is one of {', '.join(SPLITS)}."
        f"{did_you_mean(split, SPLITS)}"
      )
    for name, value, least in (
      ("size", size, 1),
      ("seed", seed, 0),
      ("image_size", image_size, 16),
      ("asked", asked, 0),
    ):
      if value < least:
        raise SourceError(f"{name}={value} must be {least} or above.")
    self.size, self.seed = size, seed
    self.image_size, self.split = image_size, split
    self.asked = asked

  def __len__(self):
    return self.size

  def __repr__(self):
    return (
      f"synthetic:{self.split}?size={self.size}&seed={self.seed}"
      f"&image_size={self.image_size}"
      f"{f'&asked={self.asked}' if self.asked else ''}"
    )

  def __getitem__(self, index):
    record, draw = self._record(index)
    picture = self._draw(record, draw)
    return self._ask(record, index) | {"image": picture}

  def fields(self, index):
    """The record at `index`, without drawing its picture."""
    return self._ask(self._record(index)[0], index)

  def _ask(self, record, index):
    if self.asked:
      seed = f"{self.seed} {self.split} {int(index)}"
      record["questions"] = questions.about(record, self.asked, seed)
    return record

  def _record(self, index) -> "tuple[Record, _Draw]":
    index = self._check(index)
    stream = (_STREAM, self.seed, SPLITS.index(self.split), index)
    draw = _Draw(stream)
    if self.split != "classes":
      which = draw.uniform()
      if which < _ONE:
        return _one(draw), draw
      return (_two(draw) if which < _ONE + _TWO else _group(draw)), draw
    classes = len(_COLOURS) * len(_SHAPES)
    colour, shape = divmod(index % classes, len(_SHAPES))
    kind = _kind(draw)._replace(colour=_COLOURS[colour], shape=_SHAPES[shape])
    return (_one if draw.uniform() < 0.7 else _group)(draw, kind), draw

  def _draw(self, record, draw):
    size = self.image_size
    canvas = drawing.background(record["background"], size).copy()
    for thing in record["objects"]:
      # Objects of a group differ a little, as things do.
      first, second = _TONES[thing["colour"]]
      tones = first + draw.jitter(_COLOUR_JITTER), second
      side = round(SIZES[thing["size"]] * size)
      centre = [
        min(max(size * thing[axis], side / 2), size - side / 2) for axis in "xy"
      ]
      look = thing["shape"], thing["texture"]
      drawing.blend(canvas, *look, tones, side, centre)
    return canvas.clip(0, 255).astype(np.uint8)


def class_names() -> list[str]:
  """The classes of `synthetic:classes`, such as "red circle"."""
  return [f"{colour} {shape}" for colour in _COLOURS for shape in _SHAPES]


class _Draw:
  """Uniform numbers of one stream, taken in turn.

  One call to numpy for all of them is several times faster than one for each.
  """

  def __init__(self, stream):
    self._numbers = iter(np.random.default_rng(stream).random(48).tolist())

  def uniform(self):
    return next(self._numbers)

  def choice(self, values):
    return values[int(next(self._numbers) * len(values))]

  def jitter(self, most):
    """One number in `[-most, most)`."""
    return np.float32(most * (2 * next(self._numbers) - 1))


def _kind(draw, size=None):
  return Kind(
    size or draw.choice(("small", "large")),
    # Half of all things are of one tone.
    draw.choice(("solid", "solid", "striped", "dotted")),
    draw.choice(_COLOURS),
    draw.choice(_SHAPES),
  )


def _one(draw, kind=None):
  """One object somewhere."""
  kind = kind or _kind(draw)
  place = draw.choice(tuple(_PLACES))
  x, y, where = _PLACES[place]
  ground, opening, on = _setting(draw)
  text = f"{opening}a {_phrase(draw, kind)} {where}{on}"
  record = _record(draw, text, [kind], [(x, y)], ground)
  return record | {"label": f"{kind.colour} {kind.shape}", "place": place}


def _two(draw):
  """Two different objects, one left of, right of, above or below the other."""
  first, second = _kind(draw), _kind(draw)
  if first[2:] == second[2:]:
    # Two things of one name would leave the relation to their size alone.
    other = (_SHAPES.index(second.shape) + 1) % len(_SHAPES)
    second = second._replace(shape=_SHAPES[other])
  relation = draw.choice(tuple(_RELATIONS))
  *centres, other_words = _RELATIONS[relation]
  ground, opening, on = _setting(draw)
  words = relation if opening or on else draw.choice((relation, other_words))
  text = (
    f"{opening}a {_phrase(draw, first, short=True)} {words}"
    f" a {_phrase(draw, second, short=True)}{on}"
  )
  record = _record(draw, text, [first, second], centres, ground)
  return record | {"relation": relation}


def _group(draw, kind=None):
  """Two or three equal objects."""
  count = draw.choice((2, 3))
  kind = kind or _kind(draw)
  if count == 3:
    # Three large ones do not fit.
    kind = kind._replace(size="small")
  arrangement = draw.choice(tuple(_GROUPS))
  ground, opening, _ = _setting(draw)
  text = (
    f"{opening}{_COUNTS[count]}"
    f" {_phrase(draw, kind, plural=True)} {_ARRANGED[arrangement]} on {ground}"
  )
  centres = _GROUPS[arrangement][count]
  record = _record(draw, text, [kind] * count, centres, ground)
  return record | {
    "label": f"{kind.colour} {kind.shape}",
    "arrangement": arrangement,
  }


def _phrase(draw, kind, *, plural=False, short=False):
  """Names a kind of object: its size, texture, colour and shape."""
  size = draw.choice(_SIZE_WORDS[kind.size])
  noun = questions.plural(kind.shape) if plural else kind.shape
  way = draw.uniform()
  if kind.texture == "solid":
    return f"{size} {kind.colour} {noun}"
  if way < 0.4:
    return f"{size} {kind.texture} {kind.colour} {noun}"
  if short or way < 0.8:
    return f"{size} {kind.colour} {kind.texture} {noun}"
  return f"{size} {kind.colour} {noun} with {_TEXTURE_NOUNS[kind.texture]}"


def _setting(draw):
  """A background; and an opening, or words for the background, or neither."""
  ground, opening = draw.choice(_BACKGROUNDS), draw.choice(_OPENINGS)
  way = draw.uniform()
  if way < 0.4:
    return ground, opening, ""
  return ground, "", f" on {ground}" if way < 0.8 else ""


def _record(draw, text, kinds, centres, ground):
  """A record without its picture; all objects are shifted together."""
  dx, dy = float(draw.jitter(_PLACE_JITTER)), float(draw.jitter(_PLACE_JITTER))
  objects = [
    kind._asdict() | {"x": x + dx, "y": y + dy}
    for kind, (x, y) in zip(kinds, centres, strict=True)
  ]
  return {
    "text": text,
    "objects": objects,
    "count": len(objects),
    "background": ground,
  }
