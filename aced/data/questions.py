"""Questions about drawn scenes, and their answers.

The answers are not to be guessed from the question alone: no answer to a sort
of question is given more than half of the time.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aced.data import drawing

NUMBERS = ("zero", "one", "two", "three")
# A relation of the first object to the second, and the other way round.
OPPOSITE = {
  "left of": "right of",
  "right of": "left of",
  "above": "below",
  "below": "above",
}
_SHAPES, _COLOURS = tuple(drawing.SHAPES), tuple(drawing.COLOURS)


def plural(shape: str) -> str:
  """The plural of a shape."""
  return "crosses" if shape == "cross" else f"{shape}s"


def about(
  record: Mapping[str, Any], count: int, seed: str
) -> list[dict[str, Any]]:
  """Draws questions about a scene.

  Args:
    record: of `Scenes`: `objects`, `background`, and perhaps `relation`.
    count: of questions; fewer where the scene has fewer.
    seed: of the draw.

  Returns:
    `{"question": str, "answers": [str]}` each, of different sorts.
  """
  draw = random.Random(seed)
  found = [make(record, draw) for make in (_count, *_SORTS)]
  found = [pair for pair in found if pair is not None]
  draw.shuffle(found)
  return [
    {"question": question, "answers": [answer]}
    for question, answer in found[:count]
  ]


def _count(record, draw):
  """How many there are of a shape: one that is there, or one that is not."""
  counts = Counter(thing["shape"] for thing in record["objects"])
  there = draw.random() < 0.6
  shape = draw.choice([s for s in _SHAPES if (s in counts) == there])
  return f"how many {plural(shape)}?", NUMBERS[counts[shape]]


def _colour(record, draw):
  """The colour of a shape of which all are of one."""
  kinds = _single(record["objects"], "shape", "colour")
  if not kinds:
    return None
  shape = draw.choice(sorted(kinds))
  return f"what color is the {shape}?", kinds[shape]


def _shape(record, draw):
  """The shape that has a colour."""
  kinds = _single(record["objects"], "colour", "shape")
  if not kinds:
    return None
  colour = draw.choice(sorted(kinds))
  return f"what shape is {colour}?", kinds[colour]


def _beside(record, draw):
  """What stands on one side of another object."""
  if "relation" not in record:
    return None
  first, second = record["objects"]
  if draw.random() < 0.5:
    subject, other, relation = first, second, record["relation"]
  else:
    subject, other = second, first
    relation = OPPOSITE[record["relation"]]
  words = f"to the {relation}" if "of" in relation else relation
  if _name(subject) == _name(other):
    return None
  return f"what is {words} the {_name(other)}?", _name(subject)


def _background(record, draw):
  del draw
  return "what color is the background?", record["background"]


_SORTS = (_colour, _shape, _beside, _background)


def _single(objects: Sequence[Mapping], key: str, value: str) -> dict[str, str]:
  """Key -> value, where all objects of that key have the same."""
  found = {}
  for thing in objects:
    found.setdefault(thing[key], set()).add(thing[value])
  return {k: v.pop() for k, v in found.items() if len(v) == 1}


def _name(thing):
  return f"{thing['colour']} {thing['shape']}"
