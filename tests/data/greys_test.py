import io

import numpy as np
import pytest
from PIL import Image

from aced.data import greys
from aced.data.decoding import decode, from_pillow, remarks
from aced.data.records import BadRecord

# What each picture shows: all greys from black to white.
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
# Tags of TIFF.
BITS, INK, FORMAT, LEAST, MOST = 258, 262, 339, 340, 341


def tiff(values, **tags):
  file = io.BytesIO()
  info = {globals()[name]: value for name, value in tags.items()}
  Image.fromarray(values).save(file, "TIFF", tiffinfo=info)
  return file.getvalue()


def png(values):
  file = io.BytesIO()
  Image.fromarray(values).save(file, "PNG")
  return file.getvalue()


def patched(data, tag, value, new):
  """A TIFF with another value of a tag of one short number."""
  old, new = (
    np.array([tag, 3, 1, 0, v, 0], "<u2").tobytes() for v in (value, new)
  )
  assert data.count(old) == 1
  return data.replace(old, new)


def shows(data, want, slack=0):
  got = decode(data)
  assert got.dtype == np.uint8 and got.shape == (*want.shape, 3)
  assert np.abs(got.astype(int) - want[..., None]).max() <= slack


def refusal(data):
  with pytest.raises(BadRecord) as error:
    decode(data)
  assert error.value.cause == "unknown_range"
  return error.value.detail


def test_16_bits_are_read_as_their_format_says():
  """By the high byte, whatever the values; dark ones are told of."""
  wide = RAMP.astype(np.uint16)
  for values, told in (
    (wide * 257, []),
    (wide * 100, []),
    (wide * 64 + 63, ["high_bits_unused"]),  # 14 bits.
    (wide * 16 + 15, ["high_bits_unused"]),  # 12 bits.
    (wide, ["high_bits_unused"]),
    (wide * 0, []),  # It shows nothing either way.
  ):
    pgm = b"P5\n16 16\n65535\n" + values.astype(">u2").tobytes()
    for data in (png(values), tiff(values), pgm):
      shows(data, values >> 8)
      assert remarks(data) == told
  deep = RAMP.astype(np.uint16) * 257
  big_endian = Image.frombytes("I;16B", (16, 16), deep.astype(">u2").tobytes())
  np.testing.assert_array_equal(from_pillow(big_endian)[..., 0], RAMP)


def test_a_range_in_the_header_is_taken():
  """That of a PGM, of which no value need be white."""
  pgm = b"P5\n16 16\n4095\n" + (RAMP * np.uint16(16)).astype(">u2").tobytes()
  shows(pgm, RAMP, slack=1)  # White is 4080 of 4095.
  assert remarks(pgm) == []  # All of its own range, scaled to 16 bits.
  dark = b"P5\n16 16\n4095\n" + RAMP.astype(">u2").tobytes()
  shows(dark, RAMP // 16, slack=1)  # And not 0..255 as they are.
  text = b"P2\n16 16\n1000\n" + b" ".join(b"%d" % v for v in range(256))
  shows(text, (RAMP * (255 / 1000)), slack=1)


def test_12_bits_of_a_tiff():
  ramp = np.arange(256, dtype=np.uint16) * 16 + 15
  pairs = ramp.reshape(-1, 2).astype(np.uint32)
  packed = np.stack(
    [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]],
    axis=1,
  )
  data = tiff(np.zeros((16, 16), np.uint16))
  start = Image.open(io.BytesIO(data)).tag_v2[273][0]
  body = (packed & 255).astype(np.uint8).tobytes()
  data = patched(data, BITS, 16, 12)[:start] + body + bytes(512)
  shows(data, RAMP)
  assert remarks(data) == []


def test_white_is_zero():
  deep = RAMP.astype(np.uint16) * 257
  shows(tiff(deep, INK=0), 255 - RAMP)
  shows(tiff(deep, INK=1), RAMP)
  shows(tiff((RAMP / 255).astype(np.float32), INK=0), 255 - RAMP)


@pytest.mark.parametrize(
  ("values", "guess"),
  [
    (RAMP.astype(np.int32), "ints_to_255"),
    (RAMP.astype(np.int32) * 257, "ints_to_65535"),
    ((RAMP / 255).astype(np.float32), "floats_to_1"),
    (RAMP.astype(np.float32), "floats_to_255"),
  ],
)
def test_ranges_that_are_not_stored(values, guess):
  """Taken by a rule, and told of."""
  data = tiff(values)
  shows(data, RAMP)
  assert remarks(data) == [guess] and guess in greys.GUESSES
  np.testing.assert_array_equal(
    from_pillow(Image.fromarray(values))[..., 0], RAMP
  )


def test_a_pfm_is_floats():
  values = (RAMP / 255).astype("<f4")
  data = b"Pf\n16 16\n-1.0\n" + values[::-1].tobytes()  # From the bottom up.
  shows(data, RAMP)
  assert remarks(data) == ["floats_to_1"]


def test_tags_of_a_range():
  signed = (RAMP / 127.5 - 1).astype(np.float32)
  data = tiff(signed, LEAST=-1.0, MOST=1.0)
  shows(data, RAMP)
  assert remarks(data) == ["range_by_tags"]
  deep = tiff(RAMP.astype(np.float32) * 257, LEAST=0.0, MOST=65535.0)
  shows(deep, RAMP)
  shows(tiff(RAMP.astype(np.int32), MOST=1020), RAMP // 4, slack=1)
  said = refusal(tiff(signed, LEAST=0.0, MOST=1.0))
  assert "from -1 to 1, and by its tags from 0 to 1" in said
  # NaN is none, and one that ends where it begins is none.
  shows(tiff(RAMP.astype(np.int32), MOST=float("nan")), RAMP)
  shows(tiff(RAMP.astype(np.int32), LEAST=0, MOST=0), RAMP)


@pytest.mark.parametrize(
  ("values", "said"),
  [
    ((RAMP / 127.5 - 1).astype(np.float32), "greys from -1 to 1"),
    (RAMP.astype(np.float32) * 257, "greys from 0 to 65535"),
    (RAMP.astype(np.int32) - 1, "greys from -1 to 254"),
    (RAMP.astype(np.int32) * 65536, "greys from 0 to 1.67117e+07"),
    (np.full((9, 9), np.nan, np.float32), "not all numbers"),
    (np.full((9, 9), np.inf, np.float32), "not all numbers"),
  ],
)
def test_ranges_that_nothing_tells(values, said):
  found = refusal(tiff(values))
  assert said in found and "store 8 bits, or 16 that fill" in found
  with pytest.raises(BadRecord, match="unknown_range"):
    from_pillow(Image.fromarray(values))


def test_signed_numbers():
  small = tiff(RAMP.astype(np.int8).view(np.uint8), FORMAT=2)
  assert "greys from -128 to 127" in refusal(small)
  half = tiff(RAMP // 2, FORMAT=2)
  shows(half, RAMP // 2)
  assert remarks(half) == ["ints_to_255"]
  short = RAMP.astype(np.int16).view(np.uint16)
  shows(tiff(short, FORMAT=2), RAMP)
  below = (RAMP.astype(np.int16) - 9).view(np.uint16)
  assert "greys from -9 to 246" in refusal(tiff(below, FORMAT=2))
