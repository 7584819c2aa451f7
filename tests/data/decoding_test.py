import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from aced.data import decoding
from aced.data.decoding import decode
from aced.data.records import BadRecord


def encode(image, form="PNG", **options):
  file = io.BytesIO()
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(file, form, **options)
  return file.getvalue()


def photo(height=20, width=30, seed=0):
  """A smooth picture, which lossy formats keep nearly as it is."""
  phase = np.random.default_rng(seed).uniform(0, 6, 3)[None, None, :]
  y, x = np.mgrid[:height, :width] / max(height, width)
  wave = np.sin(3 * x[..., None] + 2 * y[..., None] + phase)
  return (127 + 120 * wave).astype(np.uint8)


def bomb():
  """A PNG of a few bytes that says it is 60,000 pixels a side."""
  header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n"
  for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 999))):
    check = struct.pack(">I", zlib.crc32(name + body))
    data += struct.pack(">I", len(body)) + name + body + check
  return data


def cause(image):
  with pytest.raises(BadRecord) as error:
    decode(image)
  assert str(error.value).startswith(f"{error.value.cause}: ")
  return error.value.cause


@pytest.mark.parametrize(
  ("form", "slack"), [("PNG", 0), ("BMP", 0), ("JPEG", 8), ("WEBP", 8)]
)
def test_formats(form, slack):
  # Lossy coders at high quality keep a smooth picture this close.
  image = photo(80, 120)
  got = decode(encode(image, form, quality=95)).astype(int)
  assert np.abs(got - image).max() <= slack


def test_bytes_that_are_no_picture():
  whole = encode(photo(100, 100))
  assert cause(None) == "missing_image"
  assert cause(b"") == "empty_image"
  assert cause(b"<html>not found</html>") == "not_an_image"
  assert cause("picture.jpg") == "not_an_image"
  assert cause(whole[: len(whole) // 2]) == "damaged_image"
  assert cause(encode(photo(), "JPEG")[:-100]) == "damaged_image"
  assert cause(encode(photo(), "WEBP")[:-50]) in (
    "damaged_image",
    "not_an_image",
  )
  assert cause(encode(photo(3, 50))) == "too_small"
  why = BadRecord("outside_folder", "x")
  assert cause(why) == "outside_folder"


def test_bytes_damaged_anywhere_never_raise_anything_else():
  rng = np.random.default_rng(0)
  for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
    whole = np.frombuffer(encode(photo(), form), np.uint8)
    for _ in range(60):
      data = whole.copy()
      at = rng.integers(0, len(data), 8)
      data[at] = rng.integers(0, 256, 8)
      try:
        image = decode(data.tobytes())
      except BadRecord:
        continue
      assert image.dtype == np.uint8 and image.ndim == 3


def test_bombs(monkeypatch):
  assert cause(bomb()) == "too_large"
  monkeypatch.setattr(decoding, "MAX_PIXELS", 599)
  assert cause(encode(photo())) == "too_large"
  assert cause(photo()) == "too_large"
  # Between Pillow's warning and its error; ours comes before both.
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
  assert cause(encode(photo())) == "too_large"


def test_cmyk():
  # Ink is the complement of light where there is no black.
  ink = np.concatenate([255 - photo(), np.zeros((20, 30, 1), np.uint8)], axis=2)
  data = encode(_cmyk(ink), "TIFF")
  np.testing.assert_array_equal(decode(data), photo())
  got = decode(encode(_cmyk(ink), "JPEG", quality=98)).astype(int)
  assert np.abs(got - photo()).max() <= 8


def _cmyk(ink):
  bands = [Image.fromarray(np.ascontiguousarray(ink[..., k])) for k in range(4)]
  return Image.merge("CMYK", bands)


def test_grey_and_16_bits():
  grey = photo()[..., 0]
  rgb = np.repeat(grey[..., None], 3, axis=2)
  np.testing.assert_array_equal(decode(encode(grey)), rgb)
  deep = grey.astype(np.uint16) * 257
  for form in ("PNG", "TIFF"):
    np.testing.assert_array_equal(decode(encode(deep, form)), rgb)
  np.testing.assert_array_equal(
    decode(encode(deep.astype(np.int32), "TIFF")), rgb
  )
  for scale in (1.0, 255.0):
    values = (grey / 255 * scale).astype(np.float32)
    got = decode(encode(values, "TIFF")).astype(int)
    assert np.abs(got - rgb).max() <= 1  # Rounding.
  bits = encode(Image.fromarray(grey).convert("1"))
  assert set(np.unique(decode(bits))) <= {0, 255}


def test_alpha_is_laid_on_white():
  alpha = np.linspace(0, 255, 30).astype(np.uint8)[None, :, None]
  alpha = np.broadcast_to(alpha, (20, 30, 1))
  want = photo() * (alpha / 255) + 255 * (1 - alpha / 255)
  rgba = np.concatenate([photo(), alpha], axis=2)
  for image in (encode(rgba), rgba):
    assert np.abs(decode(image) - want).max() <= 1  # Rounding.
  la = np.concatenate([photo()[..., :1], alpha], axis=2)
  assert np.abs(decode(encode(la)) - want[..., :1]).max() <= 1


@pytest.mark.parametrize("transparency", [0, b"\x00\xff\xff"])
def test_palettes(transparency):
  image = Image.new("P", (6, 5), 1)
  image.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3])
  image.putpixel((2, 3), 0)
  plain = decode(encode(image))
  assert plain[3, 2].tolist() == [10, 20, 30]
  clear = decode(encode(image, transparency=transparency))
  assert clear[3, 2].tolist() == [255, 255, 255]
  assert clear[0, 0].tolist() == [200, 100, 50]
  gif = decode(encode(image, "GIF", transparency=0))
  assert gif[3, 2].tolist() == [255, 255, 255]


def test_one_colour_can_be_clear():
  image = np.full((6, 6, 3), 9, np.uint8)
  image[2, 2] = (1, 2, 3)
  got = decode(encode(image, transparency=(1, 2, 3)))
  assert got[2, 2].tolist() == [255, 255, 255] and (got[0] == 9).all()


def test_first_frame():
  frames = [Image.fromarray(photo(seed=k)) for k in range(3)]
  data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(decode(data), photo())


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn):
  # How to turn what a camera stored to what it saw, by the EXIF standard.
  upright = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
  }
  exif = Image.Exif()
  exif[0x0112] = turn
  data = encode(photo(), exif=exif.tobytes())
  np.testing.assert_array_equal(decode(data), upright[turn](photo()))


def test_damaged_exif_is_no_fault():
  data = encode(photo(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
  np.testing.assert_array_equal(decode(data), photo())


def test_arrays():
  assert decode(photo()) is not None
  np.testing.assert_array_equal(decode(photo()), photo())
  grey = np.repeat(photo()[..., :1], 3, axis=2)
  np.testing.assert_array_equal(decode(photo()[..., 0]), grey)
  np.testing.assert_array_equal(decode(photo()[..., :1]), grey)
  bad = (photo().astype(float), photo()[..., :2], photo()[None], np.uint8(3))
  for image in bad[:3]:
    assert cause(image) == "not_an_image"
  assert cause(photo(2, 9)) == "too_small"
