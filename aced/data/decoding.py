"""Encoded pictures to pixels: whatever the web holds, told apart and checked.

JPEG goes through libjpeg-turbo, which can leave out what would be scaled away:
a picture of twice the wanted size or more is decoded at 1/2, 3/8, 1/4 or 1/8.
Its fast DCT is what TensorFlow decodes with, and so big_vision. All else, and
what it refuses, is Pillow's.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from aced.data import greys, picture_formats
from aced.data.records import BadRecord

# More pixels than any camera has: such a file is made to fill the memory.
MAX_PIXELS = 64_000_000
# A shorter side shows nothing: tracking pixels, spacers, rules.
MIN_SIDE = 4
# Passes over a picture that a JPEG may ask for: encoders make about ten, and a
# megabyte has room for a thousand, each as long as decoding it all.
MAX_SCANS = 100

# Given the height and width of a picture as it is looked at, the least height
# and width in which it is wanted.
Least = Callable[[int, int], tuple[int, int]]

_ORIENTATION, _SUBFILE = 0x0112, 0x00FE  # Tags of EXIF and TIFF.
_REDUCED = 1
_SIDEWAYS = (5, 6, 7, 8)  # Orientations that swap height and width.
# Start of a pass: its length and components leave no doubt what it is.
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

# What check tells of pictures that are read, and may not show what was meant.
REMARKS = {
  "first_of_several": "the first of several frames or pages",
  "thumbnail": "the first page is a thumbnail, as in raw files of cameras",
  **greys.REMARKS,
}


def decode(image: Any, least: Least | None = None) -> np.ndarray:
  """Decodes a picture to RGB.

  The first frame is taken of several; transparency is laid on white; EXIF
  orientation is applied; 16 bits become 8 by their high byte, see `greys`.

  Args:
    image: encoded bytes; or a uint8 array `(h, w)`, `(h, w, 1)`, `(h, w, 3)`
      or `(h, w, 4)`; or a `BadRecord` that says why there is none.
    least: says how small the picture may be made on the way; None is not at
      all. Only what costs less so is made smaller, at most to half.

  Returns:
    `(h, w, 3)` uint8.

  Raises:
    BadRecord: it is none of these, or cannot be decoded, or is of a size that
      is not used, or has greys of a range that cannot be told.
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
  """The pixels of an open picture, `(h, w, 3)` uint8, as `decode` has them.

  Of a PNG of 2 or 4 bits a pixel, the clear colour is known only before its
  pixels are loaded.

  Raises:
    BadRecord: it has greys of a range that cannot be told, or is an EPS that is
      not loaded: loading it starts Ghostscript.
  """
  if image.format == "EPS" and image.tile:
    raise BadRecord("not_an_image", picture_formats.EPS)
  # Loaded first: Pillow then turns a TIFF itself, and drops its orientation.
  pixels = np.asarray(_to_rgb(image))
  return _turned(pixels, _orientation(image))


def remarks(image: Any) -> list[str]:
  """What is to be said of a picture that `decode` reads: keys of `REMARKS`."""
  if isinstance(image, np.ndarray):
    return []
  data = picture_formats.without_texts(bytes(image))
  with picture_formats.open_picture(data) as picture:
    found = []
    if picture.format != "MPO" and _is_several(picture):
      found.append("first_of_several")
    subfile = getattr(picture, "tag_v2", {}).get(_SUBFILE)
    if isinstance(subfile, int) and subfile & _REDUCED:
      found.append("thumbnail")
    if greys.has_more_bits(picture):
      found.append(greys.to_8_bits(picture)[1])
    return [remark for remark in found if remark]


def _is_several(picture) -> bool:
  try:
    return getattr(picture, "is_animated", False)
  except Exception:
    # Damage behind the first one, which was read: there is something behind it.
    return True


def quieten_pillow() -> None:
  """Leaves out Pillow's warnings of metadata that it cannot parse, and of size.

  The first say nothing of the pixels, and web data is full of them; of sizes,
  `decode` has limits of its own. It is a setting of the whole process, so only
  for those that are ours: commands and readers.
  """
  for kind in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=kind, module=r"PIL\.")


def _decode_bytes(data: bytes, least: Least | None) -> np.ndarray:
  if not data:
    raise BadRecord("empty_image", "the image is zero bytes long")
  try:
    with picture_formats.open_picture(data) as image:
      _check_size(image.width, image.height)
      pixels = None
      if image.format in ("JPEG", "MPO"):
        pixels = _decode_jpeg(data, image, least)
      if pixels is None:
        pixels = from_pillow(image)
        # Of several in one file, it may be another than the file says first.
        _check_size(pixels.shape[1], pixels.shape[0])
      return pixels
  except BadRecord:
    raise
  except (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    # Of a part of it, such as a tile, that is larger than it says.
    raise BadRecord(
      "too_large", f"more than the {MAX_PIXELS:,} pixels that are decoded"
    ) from error
  except Exception as error:
    bare = picture_formats.without_texts(data)
    if len(bare) < len(data):
      return _decode_bytes(bare, least)
    raise _damaged(data, error) from error


def _decode_jpeg(data, image, least) -> np.ndarray | None:
  """The pixels of a JPEG, at a scale that is wanted.

  None of a picture with which libjpeg is not content: Pillow, which forgives
  more, is to decide.
  """
  if "progressive" in image.info:
    scans, pictures = len(_SCAN.findall(data)), getattr(image, "n_frames", 1)
    if scans > MAX_SCANS * pictures:
      raise BadRecord(
        "damaged_image", f"JPEG of {scans:,} passes; at most {MAX_SCANS}"
      )
  if image.mode not in ("L", "RGB"):
    return None
  height, width, turn = image.height, image.width, _orientation(image)
  wanted = (0, 0)
  if least is not None:
    sideways = turn in _SIDEWAYS
    wanted = least(*((width, height) if sideways else (height, width)))
    wanted = wanted[::-1] if sideways else wanted
  try:
    pixels = simplejpeg.decode_jpeg(
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
  return _turned(pixels, turn)


def _damaged(data, error):
  """What Pillow's readers raise on damaged bytes can be of almost any type."""
  if isinstance(error, MemoryError):
    raise error
  name = picture_formats.find(data).name
  return BadRecord("damaged_image", f"{name}, {type(error).__name__}: {error}")


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
  # Pillow gives it as another type of number for TIFF.
  return int(turn) if turn in range(1, 9) else 1


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
  clear, deep = _clear(image), greys.has_more_bits(image)
  if deep or clear is not None:
    values = greys.to_8_bits(image)[0] if deep else np.array(image)
    if clear is not None:
      same = np.asarray(image) == clear
      values[same if same.ndim == 2 else same.all(axis=2)] = 255
    return Image.fromarray(values).convert("RGB")
  if "transparency" in image.info or image.mode in _ALPHA:
    # Pillow knows no way from La to RGBA but this.
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def _clear(image) -> int | tuple[int, ...] | None:
  """The grey or colour that can be seen through, as the pixels have it.

  None is none, or of a palette. Pillow gives it as it is stored, and makes 8
  bits of 2, 4 or 16 in the pixels alone.
  """
  clear = image.info.get("transparency")
  if image.mode not in ("L", "I", "I;16", "RGB") or clear is None:
    return None
  stored = image.tile[0][3] if image.format == "PNG" and image.tile else ""
  if stored == "RGB;16B":
    return tuple(value >> 8 for value in clear)
  return clear * {"L;2": 85, "L;4": 17}.get(stored, 1)


_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
