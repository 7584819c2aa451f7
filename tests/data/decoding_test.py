import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from aced.data import decoding
from aced.data.decoding import decode, from_pillow, remarks
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


def png(size, depth, kind, rows, *chunks):
  """A PNG of rows of bytes, with chunks before and after its pixels."""
  header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
  pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
  data = b"\x89PNG\r\n\x1a\n"
  parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), *chunks]
  for name, body in (*parts, (b"IEND", b"")):
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


def test_a_picture_larger_than_the_file_says(monkeypatch):
  """An icon is a list of pictures, each with a size of its own."""
  data = encode(Image.new("RGB", (64, 64)), "ICO", sizes=[(64, 64)])
  inner = encode(Image.new("RGB", (200, 100)))
  start = data.index(b"\x89PNG")
  data = data[:14] + struct.pack("<I", len(inner)) + data[18:start] + inner
  monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 64)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # That it is larger.
    assert cause(data) == "too_large"


def test_passes_without_end():
  image = Image.fromarray(photo(64, 64))
  data = encode(image, "JPEG", progressive=True)
  last = data.rindex(b"\xff\xda")
  longer = data[:-2] + data[last:-2] * 200 + data[-2:]
  with pytest.raises(BadRecord, match="JPEG of 2.. passes; at most 100"):
    decode(longer)
  assert np.abs(decode(data).astype(int) - photo(64, 64)).max() <= 25
  # Those of an ordinary JPEG behind its end are none of its own.
  decode(encode(image, "JPEG") + data[last:-2] * 200)


def test_a_jpeg_may_be_made_as_small_as_it_is_wanted():
  data = encode(photo(64, 64), "JPEG")
  assert decode(data, lambda h, w: (1, 1)).shape == (8, 8, 3)
  flat = encode(photo(16, 64), "JPEG")
  assert decode(flat, lambda h, w: (1, 1)).shape == (2, 8, 3)


def test_passes_are_counted_by_picture():
  """As many pictures in one file have more of them."""
  frames = [Image.fromarray(photo(64, 64, seed=k)) for k in range(15)]
  more = {"save_all": True, "append_images": frames[1:], "progressive": True}
  data = encode(frames[0], "MPO", **more)
  assert len(decoding._SCAN.findall(data)) > decoding.MAX_SCANS
  assert np.abs(decode(data).astype(int) - photo(64, 64)).max() <= 25


def test_a_process_of_ours_leaves_out_what_says_nothing_of_pixels():
  def warn(kind, module):
    warnings.warn_explicit("x", kind, "x.py", 1, module, registry={})

  with warnings.catch_warnings():
    decoding.quieten_pillow()
    warn(UserWarning, "PIL.TiffImagePlugin")
    warn(Image.DecompressionBombWarning, "PIL.Image")
    # Those of others, and those for who calls Pillow, are as they were.
    for kind, module in (
      (UserWarning, "PILLAR"),
      (UserWarning, "a"),
      (DeprecationWarning, "PIL.Image"),
    ):
      with pytest.raises(kind):
        warn(kind, module)


def test_warnings_of_pillow_are_neither_needed_nor_raised():
  """Nor does it matter what a process makes of them."""
  image = Image.new("L", (9500, 9500))  # Pillow warns from 89 million pixels.
  data = encode(image)
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert cause(data) == "too_large"
  assert not said


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


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF"])
def test_first_frame(form):
  frames = [Image.fromarray(photo(seed=k)) for k in range(3)]
  if form == "GIF":
    frames = [frame.convert("L") for frame in frames]
  first = np.asarray(frames[0].convert("RGB"))
  options = {"lossless": True} if form == "WEBP" else {}
  more = {"save_all": True, "append_images": frames[1:]}
  data = encode(frames[0], form, **more, **options)
  np.testing.assert_array_equal(decode(data), first)
  assert remarks(data) == ["first_of_several"]
  assert remarks(encode(frames[0], form, **options)) == []


def test_of_a_photograph_of_two_the_first_is_meant():
  frames = [Image.fromarray(photo(seed=k)) for k in range(2)]
  more = {"save_all": True, "append_images": frames[1:]}
  data = encode(frames[0], "MPO", quality=98, subsampling=0, **more)
  assert np.abs(decode(data).astype(int) - photo()).max() <= 8
  assert remarks(data) == []


def test_remarks_on_what_cannot_be_read_further():
  frames = [Image.fromarray(photo(seed=k)[..., 0]) for k in range(2)]
  data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
  one = len(encode(frames[0], "GIF"))
  decode(data[: one + 5])
  assert remarks(data[: one + 5]) in ([], ["first_of_several"])


def test_thumbnails_in_the_place_of_pages():
  small = encode(photo(), "TIFF", tiffinfo={0x00FE: 1})
  np.testing.assert_array_equal(decode(small), photo())
  assert remarks(small) == ["thumbnail"]
  assert remarks(encode(photo(), "TIFF", tiffinfo={0x00FE: 2})) == []
  assert remarks(photo()) == [] and remarks(encode(photo())) == []


@pytest.mark.parametrize(
  "chunk",
  [
    (b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
    (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 3_000_000)),
    (b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
  ],
)
def test_long_texts_are_no_fault_of_a_picture(chunk):
  """Pillow refuses such files, before or behind the pixels."""
  rows = [row.tobytes() for row in photo()]
  data = png((30, 20), 8, 2, rows, chunk)
  with pytest.raises(ValueError, match="too large"):
    Image.open(io.BytesIO(data)).load()
  np.testing.assert_array_equal(decode(data), photo())
  assert remarks(data) == []
  assert cause(data[: len(data) // 2]) == "damaged_image"


def test_a_wrong_checksum_of_a_text_is_no_fault():
  rows = [row.tobytes() for row in photo()]
  data = png((30, 20), 8, 2, rows, (b"tEXt", b"Title\0a text"))
  np.testing.assert_array_equal(
    decode(data.replace(b"a text", b"b text")), photo()
  )


@pytest.mark.parametrize(("depth", "white"), [(2, 3), (4, 15), (8, 255)])
def test_one_grey_of_few_bits_can_be_clear(depth, white):
  each = 8 // depth
  values = np.arange(8 * 6).reshape(6, 8) % (white + 1)
  packed = np.zeros((6, 8 // each), int)
  for k in range(each):
    packed = packed << depth | values[:, k::each]
  rows = [row.tobytes() for row in packed.astype(np.uint8)]
  got = decode(png((8, 6), depth, 0, rows, (b"tRNS", b"\0\1")))[..., 0]
  want = np.where(values == 1, 255, values * (255 // white))
  np.testing.assert_array_equal(got, want)


def test_one_grey_of_16_bits_can_be_clear():
  values = np.full((6, 6), 0x1234, ">u2")
  values[2, 3] = 0x1235
  rows = [row.tobytes() for row in values]
  got = decode(png((6, 6), 16, 0, rows, (b"tRNS", b"\x12\x35")))
  assert got[2, 3].tolist() == [255] * 3 and (got[0] == 0x12).all()


def test_one_colour_of_16_bits_can_be_clear():
  values = np.full((6, 6, 3), (0x8034, 0x9078, 0xA0BC), ">u2")
  values[2, 3] = clear = 0x1234, 0x5678, 0x9ABC
  rows = [row.tobytes() for row in values]
  got = decode(png((6, 6), 16, 2, rows, (b"tRNS", struct.pack(">3H", *clear))))
  assert got[2, 3].tolist() == [255] * 3
  assert (got[0] == (0x80, 0x90, 0xA0)).all()


def test_alpha_that_colours_were_multiplied_by():
  """Extra samples of a TIFF: 2 is alpha beside the colours, 1 is within."""
  for shape in ((8, 8, 2), (8, 8, 4)):
    pixels = np.full(shape, 100, np.uint8)
    beside = encode(pixels, "TIFF")
    old, within = (struct.pack("<HHIHH", 338, 3, 1, k, 0) for k in (2, 1))
    assert beside.count(old) == 1
    got = decode(beside.replace(old, within)).astype(int)
    assert np.abs(got - (100 + 255 - 100)).max() <= 1  # Rounding.
    want = 100 * 100 / 255 + 255 - 100
    assert np.abs(decode(beside) - want).max() <= 1


# How to turn what a camera stored to what it saw, by the EXIF standard.
UPRIGHT = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.transpose(1, 0, 2),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
  8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_exif_orientation(turn, form):
  """Applied once: Pillow turns a TIFF itself, and the others not."""
  exif = Image.Exif()
  exif[0x0112] = turn
  options = {
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "JPEG": {"quality": 98, "subsampling": 0},
    "AVIF": {"quality": 98},
  }
  data = encode(photo(), form, exif=exif.tobytes(), **options.get(form, {}))
  # Halves differ by far more than what lossy formats change.
  slack = {"JPEG": 8, "AVIF": 12}.get(form, 0)
  want = UPRIGHT[turn](photo())
  for got in (decode(data), from_pillow(Image.open(io.BytesIO(data)))):
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= slack


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize(
  ("kind", "value"),  # Of EXIF: 3 is a short number, 2 a text, 11 a float.
  [(3, 0), (3, 9), (3, 65535), (2, ord("6")), (11, 0x40C80000)],
)
def test_an_orientation_that_is_none_turns_nothing(form, kind, value):
  entry = struct.pack("<HHII", 0x0112, kind, 1, value)
  options = {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0" + entry + bytes(4)}
  slack = 0
  if form == "JPEG":
    slack, options = 8, options | {"quality": 98, "subsampling": 0}
  if form == "TIFF":
    options = {"tiffinfo": {0x0112: 1}}
  data = encode(photo(), form, **options)
  if form == "TIFF":
    upright = struct.pack("<HHII", 0x0112, 3, 1, 1)
    assert data.count(upright) == 1
    data = data.replace(upright, entry)
  assert np.abs(decode(data).astype(int) - photo()).max() <= slack


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
