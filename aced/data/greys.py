"""Greys of more than 8 bits, made 8 by the range that is theirs.

A format of 16 bits says that they are 0 to 65535. One of 32 bits or of floats
does not say what is white; tags of TIFF, if at all. A rule is then applied that
looks at the values, and a remark tells that it was.
"""

import numbers
from typing import Any

import numpy as np
from PIL import Image

from aced.data.records import BadRecord

# Rules by which the range of greys was told, and what they take it for.
GUESSES = {
  "ints_to_255": "greys of no stored range, taken for 0..255",
  "ints_to_65535": "greys of no stored range, taken for 0..65535",
  "floats_to_1": "floats of no stored range, taken for 0..1",
  "floats_to_255": "floats of no stored range, taken for 0..255",
  "range_by_tags": "greys of the range that tags of the TIFF give",
}
REMARKS = {
  **GUESSES,
  "high_bits_unused": "greys of 16 bits, the high 2 unused: 12 stored as 16?",
}
# Formats in which Pillow's numbers of 32 bits are 16 bits, scaled to the whole
# range by what the file says of itself.
_OF_16_BITS = ("PNG", "PPM", "JPEG2000")

_BITS, _INK, _FORMAT, _LEAST, _MOST = 258, 262, 339, 340, 341  # Tags of TIFF.
_SIGNED = 2
# White of whole numbers -> what is shifted out of them.
_SHIFTS = {255: 0, 4095: 4, 65535: 8}
_WHITE_IS_ZERO = 0


def has_more_bits(image: Image.Image) -> bool:
  """Whether a picture has greys that are no 8 bits, 0 to 255."""
  signed = _one(_tags(image).get(_FORMAT)) == _SIGNED
  return image.mode.startswith(("I", "F")) or (image.mode == "L" and signed)


def to_8_bits(image: Image.Image) -> tuple[np.ndarray, str]:
  """Scales greys to 8 bits; `convert("L")` clips them, mostly to white.

  Args:
    image: for which `has_more_bits`.

  Returns:
    `(h, w)` uint8, and what is to be told of them: a key of `REMARKS`, or "".

  Raises:
    BadRecord: nothing says what is black and what is white.
  """
  values, tags = np.asarray(image), _tags(image)
  if image.mode == "L":
    values = values.view(np.int8)
  if not np.isfinite(values).all():
    raise _unknown("not all numbers (NaN or infinite)")
  span, remark = _range(image, values, tags)
  greys = _scale(values, *span)
  inverted = tags.get(_INK) == _WHITE_IS_ZERO
  return 255 - greys if inverted else greys, remark


def _range(image, values, tags) -> tuple[tuple[float, float], str]:
  """What is black and what is white, and what is to be told of it."""
  if _one(tags.get(_BITS)) == 12:
    return (0, 4095), ""
  of_16 = image.mode == "I" and image.format in _OF_16_BITS
  if of_16 or image.mode.startswith("I;16"):
    unused = 0 < values.max() < 2**14
    return (0, 65535), "high_bits_unused" if unused else ""
  least, most = _one(tags.get(_LEAST)), _one(tags.get(_MOST))
  if most is not None and (least or 0) < most:
    return (float(least or 0), float(most)), "range_by_tags"
  names = {1: "floats_to_1", 255: "floats_to_255"}
  if np.issubdtype(values.dtype, np.integer):
    names = {255: "ints_to_255", 65535: "ints_to_65535"}
  for white, name in names.items():
    if values.min() >= 0 and values.max() <= white:
      return (0, white), name
  raise _unknown(f"from {values.min():g} to {values.max():g}")


def _scale(values, least, most) -> np.ndarray:
  """Greys of a range as 8 bits; values beyond it are refused."""
  low, high = values.min(), values.max()
  if low < least or high > most:
    raise _unknown(
      f"from {low:g} to {high:g}, and by its tags from {least:g} to {most:g}"
    )
  if least == 0 and most in _SHIFTS and np.issubdtype(values.dtype, np.integer):
    return (values >> _SHIFTS[most]).astype(np.uint8)
  scaled = (values.astype(np.float32) - least) * (255 / (most - least))
  return np.rint(scaled).astype(np.uint8)


def _tags(image) -> Any:
  """The tags of a TIFF; none of any other picture."""
  return getattr(image, "tag_v2", {})


def _one(value):
  """The number of a tag that may have one for each channel; greys have one."""
  value = value[0] if isinstance(value, tuple) and value else value
  return value if isinstance(value, numbers.Real) else None


def _unknown(what) -> BadRecord:
  return BadRecord(
    "unknown_range",
    f"greys {what}: nothing says which is black and which is white; store 8"
    " bits, or 16 that fill 0..65535",
  )
