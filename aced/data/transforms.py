"""Pictures: decoding of whatever the web holds, resizing, augmentation."""

import dataclasses
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from aced.config import ConfigError, did_you_mean
from aced.data.records import BadRecord

METHODS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}
# More pixels than any camera has: such a file is made to fill the memory. It
# is less than what Pillow itself warns of.
MAX_PIXELS = 64_000_000
# A shorter side shows nothing: tracking pixels, spacers, rules.
MIN_SIDE = 4

_ORIENTATION = 0x0112
_TRANSPOSE = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Pillow's warnings of what is handled here: the size is refused below, and
# metadata that it cannot parse is left alone.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclasses.dataclass(frozen=True)
class Transform:
  """Makes a picture of a fixed size of a record: `transform(record, rng)`.

  Attributes:
    image_size: pixels along a side; pictures are squashed to a square.
    resize: a key of `METHODS`.
    crop_scale: least and most area of a random crop, as shares of the picture;
      None is no crop.
    flip: mirror half of the pictures, left to right. Captions that say left or
      right are then wrong.
  """

  image_size: int
  resize: str = "bilinear"
  crop_scale: tuple[float, float] | None = None
  flip: bool = False

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
    if rng is None and (self.crop_scale or self.flip):
      raise ValueError(
        f"{self} augments and was given no random generator; to evaluate, set"
        " crop_scale=None and flip=False."
      )
    image = decode(record.get("image"))
    box = None
    if self.crop_scale:
      box = random_box(*image.shape[:2], self.crop_scale, rng)
    image = resize(image, self.image_size, self.resize, box)
    if self.flip and rng.random() < 0.5:
      image = image[:, ::-1]
    return image


def decode(image: Any) -> np.ndarray:
  """Decodes a picture to RGB.

  The first frame is taken of several; transparency is laid on white; EXIF
  orientation is applied; 16 bits become 8 by their high byte.

  Args:
    image: encoded bytes; or a uint8 array `(h, w)`, `(h, w, 1)`, `(h, w, 3)`
      or `(h, w, 4)`; or a `BadRecord` that says why there is none.

  Returns:
    `(h, w, 3)` uint8.

  Raises:
    BadRecord: it is none of these, or cannot be decoded, or is of a size that
      is not used.
  """
  if isinstance(image, BadRecord):
    raise image
  if image is None:
    raise BadRecord("missing_image", "the record has no image")
  if isinstance(image, bytes | bytearray | memoryview):
    return _decode_bytes(bytes(image))
  if isinstance(image, np.ndarray):
    return _decode_array(image)
  raise BadRecord(
    "not_an_image",
    f"the image is of type {type(image).__name__}; expected encoded bytes or a"
    " uint8 array",
  )


def resize(
  image: np.ndarray,
  size: int,
  method: str = "bilinear",
  box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  """Squashes a picture, or a box in it, to a square, antialiased.

  Args:
    image: `(h, w, 3)` uint8.
    size: pixels along a side.
    method: a key of `METHODS`.
    box: left, top, right, bottom in pixels; the whole picture if None.

  Returns:
    `(size, size, 3)` uint8.

  Raises:
    ConfigError: the method is not known.
  """
  resampling = _method(method)
  if box is None and image.shape[:2] == (size, size):
    return image
  picture = Image.fromarray(image)
  return np.asarray(picture.resize((size, size), resampling, box=box))


def random_box(
  height: int,
  width: int,
  scale: tuple[float, float],
  rng: np.random.Generator,
) -> tuple[float, float, float, float]:
  """Draws a crop: area uniform in `scale`, sides stretched by up to 4:3.

  The stretch is relative to the picture, and bounded so that the crop always
  fits: no draw is thrown away, and the area is what was drawn.

  Returns:
    Left, top, right, bottom in pixels, not whole ones.
  """
  area = rng.uniform(*scale)
  bound = math.log(min(4 / 3, 1 / area))
  stretch = math.exp(rng.uniform(-bound, bound))
  across = min(math.sqrt(area * stretch), 1.0)
  down = min(math.sqrt(area / stretch), 1.0)
  left = rng.uniform(0, 1 - across) * width
  top = rng.uniform(0, 1 - down) * height
  right = min(left + across * width, width)
  return left, top, right, min(top + down * height, height)


def _method(name):
  if name not in METHODS:
    raise ConfigError(
      f"resize={name!r} is not known; it is one of {', '.join(METHODS)}."
      f"{did_you_mean(name, METHODS)}"
    )
  return METHODS[name]


def _decode_bytes(data: bytes) -> np.ndarray:
  if not data:
    raise BadRecord("empty_image", "the image is zero bytes long")
  try:
    image = Image.open(io.BytesIO(data))
  except (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    raise BadRecord("too_large", str(error)) from error
  except Image.UnidentifiedImageError as error:
    raise BadRecord(
      "not_an_image", f"{len(data)} bytes that begin {data[:12]!r}"
    ) from error
  except Exception as error:
    raise _damaged(error) from error
  with image:
    _check_size(image.width, image.height)
    try:
      return np.asarray(_to_rgb(_upright(image)))
    except Exception as error:
      raise _damaged(error) from error


def _damaged(error):
  """What Pillow's readers raise on damaged bytes can be of almost any type."""
  if isinstance(error, MemoryError):
    raise error
  return BadRecord("damaged_image", f"{type(error).__name__}: {error}")


def _decode_array(image: np.ndarray) -> np.ndarray:
  channels = 1 if image.ndim == 2 else image.shape[-1] if image.ndim == 3 else 0
  if image.dtype != np.uint8 or channels not in (1, 3, 4):
    raise BadRecord(
      "not_an_image",
      f"the array is {image.dtype} of shape {image.shape}; expected uint8 of"
      " shape (h, w, 3)",
    )
  _check_size(image.shape[1], image.shape[0])
  if channels == 3:
    return image
  if channels == 1:
    return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
  return np.asarray(_to_rgb(Image.fromarray(image)))


def _check_size(width, height):
  if width * height > MAX_PIXELS:
    raise BadRecord(
      "too_large",
      f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded",
    )
  if min(width, height) < MIN_SIDE:
    raise BadRecord(
      "too_small",
      f"{width} x {height} pixels; the shorter side must be {MIN_SIDE} or more",
    )


def _upright(image: Image.Image) -> Image.Image:
  """Turns a picture as its EXIF orientation says, if it can be read."""
  try:
    turn = image.getexif().get(_ORIENTATION)
  except Exception:
    # Damaged metadata says nothing of the pixels, which are read later.
    turn = None
  method = _TRANSPOSE.get(turn if isinstance(turn, int) else None)
  return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
  """Converts any mode of Pillow to 8-bit RGB, transparency on white."""
  if image.mode == "RGB" and "transparency" not in image.info:
    image.load()
    return image
  if image.mode.startswith(("I", "F")):
    return _to_8_bits(image).convert("RGB")
  if "transparency" in image.info or image.mode in _ALPHA:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def _to_8_bits(image: Image.Image) -> Image.Image:
  """Scales 16-bit greys, or floats of 0 to 1 or to 255, to 8 bits.

  `convert("L")` clips them instead, which turns almost all of them white.
  """
  values = np.nan_to_num(np.asarray(image).astype(np.float64))
  if image.mode.startswith("I"):
    values = values // 256
  elif values.max() <= 1:
    values = values * 255
  return Image.fromarray(values.clip(0, 255).astype(np.uint8))
