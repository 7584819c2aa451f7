"""Encoded pictures to pixels: whatever the web holds, told apart and checked.

JPEG goes through libjpeg-turbo, which can leave out what would be scaled away:
a picture of twice the wanted size or more is decoded at 1/2, 3/8, 1/4 or 1/8.
Its fast DCT is what TensorFlow decodes with, and so big_vision. All else, and
what it refuses, is Pillow's.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from aced.data import picture_formats
from aced.data.records import BadRecord

# Endings of files that hold pictures, and kinds of members in tar shards.
PICTURE_ENDINGS = picture_formats.PICTURE_ENDINGS
# More pixels than any camera has: such a file is made to fill the memory. It
# is less than what Pillow itself warns of.
MAX_PIXELS = 64_000_000
# A shorter side shows nothing: tracking pixels, spacers, rules.
MIN_SIDE = 4

# Given the height and width of a picture as it is looked at, the least height
# and width in which it is wanted.
Least = Callable[[int, int], tuple[int, int]]

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # Orientations that swap height and width.
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


def decode(image: Any, least: Least | None = None) -> np.ndarray:
  """Decodes a picture to RGB.

  The first frame is taken of several; transparency is laid on white; EXIF
  orientation is applied; 16 bits become 8 by their high byte.

  Args:
    image: encoded bytes; or a uint8 array `(h, w)`, `(h, w, 1)`, `(h, w, 3)`
      or `(h, w, 4)`; or a `BadRecord` that says why there is none.
    least: says how small the picture may be made on the way; None is not at
      all. Only what costs less so is made smaller, at most to half.

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
    return _decode_bytes(bytes(image), least)
  if isinstance(image, np.ndarray):
    return _decode_array(image)
  raise BadRecord(
    "not_an_image",
    f"the image is of type {type(image).__name__}; expected encoded bytes or a"
    " uint8 array",
  )


def from_pillow(image: Image.Image) -> np.ndarray:
  """The pixels of an open picture, `(h, w, 3)` uint8, as `decode` has them."""
  return _turned(np.asarray(_to_rgb(image)), _orientation(image))


def _decode_bytes(data: bytes, least: Least | None) -> np.ndarray:
  if not data:
    raise BadRecord("empty_image", "the image is zero bytes long")
  try:
    image = Image.open(io.BytesIO(data))
  except (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    raise BadRecord(
      "too_large", f"more than the {MAX_PIXELS:,} pixels that are decoded"
    ) from error
  except Image.UnidentifiedImageError as error:
    raise BadRecord(
      "not_an_image", f"{len(data)} bytes that begin {data[:12]!r}"
    ) from error
  except Exception as error:
    raise _damaged(error) from error
  with image:
    _check_size(image.width, image.height)
    try:
      turn = _orientation(image)
      if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        pixels = _decode_jpeg(data, image, turn, least)
        if pixels is not None:
          return _turned(pixels, turn)
      method = _TRANSPOSE.get(turn)
      upright = image if method is None else image.transpose(method)
      return np.asarray(_to_rgb(upright))
    except Exception as error:
      raise _damaged(error) from error


def _decode_jpeg(data, image, turn, least) -> np.ndarray | None:
  """The pixels as they are stored, at a scale that is wanted.

  None of a picture with which libjpeg is not content: Pillow, which forgives
  more, is to decide.
  """
  height, width = image.height, image.width
  wanted = (0, 0)
  if least is not None:
    sideways = turn in _SIDEWAYS
    wanted = least(*((width, height) if sideways else (height, width)))
    wanted = wanted[::-1] if sideways else wanted
  try:
    return simplejpeg.decode_jpeg(
      data,
      fastdct=True,
      fastupsample=False,
      # Where it is 0, nothing is made smaller.
      min_height=min(wanted[0], height),
      min_width=min(wanted[1], width),
      min_factor=2,
    )
  except ValueError:
    return None


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


def _orientation(image: Image.Image) -> int:
  """The EXIF orientation of a picture; 1, upright, if it cannot be read."""
  try:
    turn = image.getexif().get(_ORIENTATION)
  except Exception:
    # Damaged metadata says nothing of the pixels, which are read later.
    return 1
  return turn if isinstance(turn, int) else 1


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
  """Turns pixels `(h, w, 3)` as an orientation says."""
  if turn in _SIDEWAYS:
    pixels = pixels.swapaxes(0, 1)
  down, right = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
  return pixels[:: -1 if down else 1, :: -1 if right else 1]


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
