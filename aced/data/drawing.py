"""Flat shapes with soft edges, drawn fast: cached masks blended by numpy."""

import functools

import numpy as np

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
  "red": (222, 42, 42),
  "orange": (247, 140, 28),
  "yellow": (250, 218, 40),
  "green": (46, 160, 67),
  "cyan": (60, 205, 215),
  "blue": (40, 84, 214),
  "purple": (136, 56, 190),
  "pink": (250, 140, 190),
}
BACKGROUNDS: dict[str, Colour] = {
  "white": (248, 248, 246),
  "gray": (128, 131, 136),
  "black": (22, 22, 26),
  "brown": (92, 62, 42),
}
TEXTURES = ("solid", "striped", "dotted")
# Samples along a side of a pixel, averaged for soft edges.
_FINE = 8


def _star(x, y):
  """Five points up: inside the fan of ten edges between two radii."""
  turn = 2 * np.pi / 5
  angle = (np.arctan2(x, -y) + turn / 2) % turn - turn / 2
  radius, inner = np.hypot(x, y), 0.42
  across, along = radius * np.abs(np.sin(angle)), radius * np.cos(angle)
  # The edge from the tip (0, 1) to the notch between it and the next tip.
  tip_x, tip_y = inner * np.sin(turn / 2), inner * np.cos(turn / 2)
  return across * (1 - tip_y) <= (1 - along) * tip_x


def _heart(x, y):
  lobes = np.hypot(np.abs(x) - 0.47, y + 0.38) <= 0.51
  tip = (np.abs(x) * 0.98 + y <= 0.93) & (y >= -0.25) & (np.abs(x) <= 0.93)
  return lobes | tip


# Shape -> whether points of [-1, 1]^2, y downward, lie inside.
SHAPES = {
  "circle": lambda x, y: np.hypot(x, y) <= 0.95,
  "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.84,
  "triangle": lambda x, y: (2 * abs(x) * 0.95 <= y + 0.9) & (y <= 0.82),
  "star": lambda x, y: _star(x, y - 0.05),
  "diamond": lambda x, y: abs(x) / 0.72 + abs(y) <= 1,
  "cross": lambda x, y: (
    (np.minimum(abs(x), abs(y)) <= 0.31) & (np.maximum(abs(x), abs(y)) <= 0.95)
  ),
  "heart": lambda x, y: _heart(x, y),
  "ring": lambda x, y: abs(np.hypot(x, y) - 0.73) <= 0.25,
}


@functools.lru_cache(maxsize=512)
def masks(
  shape: str, texture: str, side: int
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns how much of each pixel a shape covers, and its texture.

  Args:
    shape: a key of `SHAPES`.
    texture: one of `TEXTURES`.
    side: the width and height of the shape in pixels.

  Returns:
    `(side, side, 1)` float32 in [0, 1]; and the share of the second tone in
    each pixel, of the same shape, or None where the shape is solid.
  """
  fine = (np.arange(side * _FINE) + 0.5) * 2 / (side * _FINE) - 1
  x, y = np.meshgrid(fine, fine)
  cover = _shrink(SHAPES[shape](x, y), side)
  if texture == "solid":
    return cover, None
  # Periods of several pixels: finer ones blur to one tone.
  period = max(4.0 if texture == "striped" else 3.0, side / 3.5)
  across, down = (x + 1) * side / 2, (y + 1) * side / 2
  if texture == "striped":
    tone = np.mod(down - side / 2 + period / 4, period) < period / 2
  else:
    cells = [np.mod((a - side / 2) / period + 0.5, 1) for a in (across, down)]
    tone = np.hypot(*(c - 0.5 for c in cells)) < 0.33
  return cover, _shrink(tone, side)


@functools.lru_cache(maxsize=64)
def background(name: str, size: int) -> np.ndarray:
  """Returns `(size, size, 3)` float32, a little lighter at the top."""
  light = np.linspace(1.03, 0.95, size, dtype=np.float32)[:, None, None]
  colour = np.asarray(BACKGROUNDS[name], np.float32)[None, None, :]
  return np.broadcast_to(light * colour, (size, size, 3)).clip(0, 255)


def blend(
  canvas: np.ndarray,
  shape: str,
  texture: str,
  tones: tuple[np.ndarray, np.ndarray],
  side: int,
  centre: tuple[float, float],
) -> None:
  """Draws a shape onto a float32 canvas, in place.

  Args:
    canvas: `(h, w, 3)` float32, 0 to 255.
    shape: a key of `SHAPES`.
    texture: one of `TEXTURES`.
    tones: of the shape and of its texture, `(3,)` float32 each.
    side: pixels across; the shape must lie within the canvas.
    centre: of the shape in pixels, `(x, y)`; rounded to whole pixels.
  """
  cover, tone = masks(shape, texture, side)
  left, top = (round(c - side / 2) for c in centre)
  patch = canvas[top : top + side, left : left + side]
  colour, second = tones
  if tone is not None:
    colour = colour + tone * (second - colour)
  patch += cover * (colour - patch)


def second_tone(colour: np.ndarray) -> np.ndarray:
  """A tone that stands out from a colour: dark on light ones, else light."""
  luminance = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]
  if luminance > 145:
    return colour * np.float32(0.35)
  return colour + (255 - colour) * np.float32(0.7)


def _shrink(inside, side):
  """Averages samples to pixels, `(side, side, 1)` float32."""
  blocks = inside.reshape(side, _FINE, side, _FINE)
  return blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]
