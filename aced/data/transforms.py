"""Pictures of records at the sizes that models take: crops, flips, resizing."""

import collections
import dataclasses
import functools
import math
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from aced.config import ConfigError, did_you_mean
from aced.data import decoding
from aced.data.decoding import decode

# Name -> Pillow's filter, and that of libvips. Both are as wide as what is left
# out (antialiased), as is TensorFlow's resize with antialias=True.
METHODS = {
  "bilinear": (Image.Resampling.BILINEAR, "linear"),
  "bicubic": (Image.Resampling.BICUBIC, "cubic"),
}
# From so many pixels on libvips takes less time than Pillow to shrink a
# picture; before, starting it takes more than the work. Its weights have six
# bits, which is as good as Pillow's up to a quarter of the size.
VIPS_PIXELS = 120_000
VIPS_FACTOR = 4

# Left, top, right and bottom of a crop, as shares of the picture.
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Transform:
  """Makes a picture of a fixed size of a record: `transform(record, rng)`.

  Attributes:
    image_size: pixels along a side; pictures are squashed to a square.
    resize: a key of `METHODS`.
    shrink: whether a JPEG may be decoded at a fraction of its size, the
      smallest that is no smaller than what is wanted.
    crop_scale: least and most area of a random crop, as shares of the picture;
      None is no crop.
    flip: mirror half of the pictures, left to right. Captions that say left or
      right are then wrong.
  """

  image_size: int
  resize: str = "bilinear"
  crop_scale: tuple[float, float] | None = None
  flip: bool = False
  shrink: bool = True

  def __post_init__(self):
    if self.image_size < 1:
      raise ConfigError(f"image_size={self.image_size} must be 1 or above.")
    _method(self.resize)
    if self.crop_scale is None:
      return
    if len(self.crop_scale) != 2 or not (
      0 < self.crop_scale[0] <= self.crop_scale[1] <= 1
    ):
      raise ConfigError(
        f"crop_scale={self.crop_scale} must be the least and the most area of a"
        " crop, such as (0.5, 1.0): 0 < least <= most <= 1."
      )

  def __call__(
    self, record: Mapping[str, Any], rng: np.random.Generator | None = None
  ) -> np.ndarray:
    """Returns the picture of a record, `(image_size, image_size, 3)` uint8.

    Args:
      record: with an `image`, as `decode` takes it.
      rng: of the augmentation; None where there is none.

    Raises:
      BadRecord: the picture cannot be used.
      ValueError: there is augmentation, and no `rng`.
    """
    return self.views(record, (self.image_size,), rng)[0]

  def views(
    self,
    record: Mapping[str, Any],
    sizes: Sequence[int],
    rng: np.random.Generator | None = None,
  ) -> list[np.ndarray]:
    """The picture of a record at several sizes: the same crop, flipped alike.

    Args:
      record: as above.
      sizes: pixels along a side.
      rng: as above.

    Returns:
      For each size `s`, `(s, s, 3)` uint8.

    Raises:
      BadRecord, ValueError: as above.
    """
    if rng is None and (self.crop_scale or self.flip):
      raise ValueError(
        f"{self} augments and was given no random generator; to evaluate, set"
        " crop_scale=None and flip=False."
      )
    box = random_box(self.crop_scale, rng) if self.crop_scale else WHOLE
    flipped = self.flip and rng.random() < 0.5
    least = functools.partial(_least, box, max(sizes)) if self.shrink else None
    image = decode(record.get("image"), least)
    found = [resize(image, size, self.resize, box) for size in sizes]
    return [image[:, ::-1] for image in found] if flipped else found


def resize(
  image: np.ndarray, size: int, method: str = "bilinear", box: Box = WHOLE
) -> np.ndarray:
  """Squashes a picture, or a box in it, to a square, antialiased.

  Of a large picture that is made smaller, a box is rounded to whole pixels.

  Args:
    image: `(h, w, 3)` uint8.
    size: pixels along a side.
    method: a key of `METHODS`.
    box: the part that is taken.

  Returns:
    `(size, size, 3)` uint8.

  Raises:
    ConfigError: the method is not known.
  """
  pillow, vips = _method(method)
  height, width = image.shape[:2]
  if box == WHOLE and (height, width) == (size, size):
    return image
  left, top, right, bottom = _scaled(box, height, width)
  down, across = bottom - top, right - left
  shrinks = size < min(down, across) - 1 and max(down, across) <= (
    VIPS_FACTOR * size
  )
  if shrinks and down * across >= VIPS_PIXELS:
    rows = slice(round(top), round(bottom))
    return _shrink(image[rows, round(left) : round(right)], size, vips)
  picture = Image.fromarray(image)
  crop = None if box == WHOLE else (left, top, right, bottom)
  return np.asarray(picture.resize((size, size), pillow, box=crop))


def random_box(scale: tuple[float, float], rng: np.random.Generator) -> Box:
  """Draws a crop: area uniform in `scale`, sides stretched by up to 4:3.

  The stretch is relative to the picture, and bounded so that the crop always
  fits: no draw is thrown away, and the area is what was drawn.
  """
  area = rng.uniform(*scale)
  bound = math.log(min(4 / 3, 1 / area))
  stretch = math.exp(rng.uniform(-bound, bound))
  across = min(math.sqrt(area * stretch), 1.0)
  down = min(math.sqrt(area / stretch), 1.0)
  left = rng.uniform(0, 1 - across)
  top = rng.uniform(0, 1 - down)
  return left, top, min(left + across, 1.0), min(top + down, 1.0)


def _least(box: Box, size: int, height: int, width: int) -> tuple[int, int]:
  """Height and width of a picture in which a box has `size` pixels a side."""
  left, top, right, bottom = box
  return math.ceil(size / (bottom - top)), math.ceil(size / (right - left))


def _scaled(box, height, width):
  left, top, right, bottom = box
  return left * width, top * height, right * width, bottom * height


class _Shrinker(threading.local):
  """Makes pictures smaller, in both directions, with libvips.

  Setting up an operation takes libvips as long as the work on a picture. What
  is set up for a size is kept, over one memory into which pictures are copied.
  Threads have their own.
  """

  def __init__(self):
    self._memory: dict[int, np.ndarray] = {}
    self._graphs: collections.OrderedDict = collections.OrderedDict()

  def __call__(self, image: np.ndarray, size: int, kernel: str) -> np.ndarray:
    height, width = image.shape[:2]
    pixels, source, small = self._graph(height, width, size, kernel)
    np.copyto(pixels, image)
    source.invalidate()
    # Unlike writing it out, fetching a region computes in the calling thread.
    fetched = _vips().Region.new(small).fetch(0, 0, size, size)
    return np.frombuffer(fetched, np.uint8).reshape(size, size, 3)

  def _graph(self, height, width, size, kernel):
    key = height, width, size, kernel
    found = self._graphs.pop(key, None)
    if found is None:
      if size not in self._memory:
        side = VIPS_FACTOR * size + 1  # No larger picture comes here.
        self._memory[size] = np.empty(3 * side * side, np.uint8)
      pixels = self._memory[size][: 3 * height * width]
      source = _vips().Image.new_from_memory(pixels, width, height, 3, "uchar")
      small = source.reduce(width / size, height / size, kernel=kernel)
      found = pixels.reshape(height, width, 3), source, small
    self._graphs[key] = found
    if len(self._graphs) > _GRAPHS:
      self._graphs.popitem(last=False)
    return found


_GRAPHS = 64  # Sizes of pictures for which libvips is kept set up.
_shrink = _Shrinker()


_own = threading.Event()  # Set where the process is ours.


def own_process() -> None:
  """Sets Pillow and libvips for a process that is a command or reader of ours.

  Pillow's warnings are left out, see `decoding.quieten_pillow`; libvips takes
  one thread and remembers nothing. Call it before the first picture is made.
  """
  decoding.quieten_pillow()
  os.environ.setdefault("VIPS_CONCURRENCY", "1")  # Read when it is loaded.
  _own.set()


@functools.cache
def _vips():
  """The package pyvips, which takes a while to load and may not be needed.

  It is given pixels alone, and opens no files.
  """
  import pyvips

  if _own.is_set():
    pyvips.cache_set_max(0)
  return pyvips


def _method(name):
  if name not in METHODS:
    raise ConfigError(
      f"resize={name!r} is not known; it is one of {', '.join(METHODS)}."
      f"{did_you_mean(name, METHODS)}"
    )
  return METHODS[name]
