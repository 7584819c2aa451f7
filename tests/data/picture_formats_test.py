import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from aced import pretrained
from aced.data import picture_formats
from aced.data.convert import shard_files
from aced.data.decoding import decode, from_pillow
from aced.data.picture_formats import PICTURE_ENDINGS
from aced.data.records import BadRecord
from aced.data.transforms import Transform
from tests import ghostscript


def encode(form, size=(40, 30), **options):
  file = io.BytesIO()
  Image.new("RGB", size, (10, 120, 230)).save(file, form, **options)
  return file.getvalue()


def detail(data):
  """What is said of bytes that are none of the formats."""
  with pytest.raises(BadRecord) as error:
    decode(data)
  assert error.value.cause == "not_an_image"
  return error.value.detail


@pytest.mark.parametrize("form", picture_formats.FORMATS, ids=lambda f: f.name)
def test_every_format_is_found_and_decoded(form):
  # TGA ends in what it is told by, and Pillow's does so.
  data = encode(form.reader)
  assert picture_formats.find(data) is form
  # Lossy ones keep one colour to two levels.
  difference = decode(data).astype(int) - (10, 120, 230)
  assert np.abs(difference).max() <= 2
  for ending in form.endings:
    assert ending in PICTURE_ENDINGS and ending == ending.lower().strip(".")


def test_endings_are_of_one_format_each():
  assert len(set(PICTURE_ENDINGS)) == len(PICTURE_ENDINGS)
  assert PICTURE_ENDINGS[0] == "jpg"


def test_readers_that_are_not_listed_are_never_asked(monkeypatch):
  """Whatever a file begins with, and whatever else Pillow can read."""
  Image.init()
  listed = {form.reader for form in picture_formats.FORMATS}
  others = {}
  for name, (_, accepts) in Image.OPEN.items():
    if name not in listed:
      others[name] = lambda *_, name=name: pytest.fail(f"{name} was opened")
      monkeypatch.setitem(Image.OPEN, name, (others[name], accepts))
  assert {"EPS", "WMF", "GRIB", "HDF5", "MPEG"} <= set(others)
  for start in (
    *(ghostscript.EPS, b"\xc5\xd0\xd3\xc6", b"\xd7\xcd\xc6\x9a\0\0", b"GRIB"),
    *(b"\x89HDF\r\n\x1a\n", b"\0\0\1\xb3", b"8BPS\0\1", b"\x0a\5\1\x08"),
    *(
      b"qoif",
      b"DDS ",
      b"icns",
      b"SIMPLE  =",
      b"/* XPM */",
      b"\x59\xa6\x6a\x95",
    ),
  ):
    detail(start + bytes(3000))


@pytest.mark.parametrize(
  "use",
  [
    decode,
    lambda data: Transform(32)({"image": data}),
    lambda data: shard_files.usable({"image": data, "text": "a"}, verify=True),
    lambda data: pretrained.pictures([data], Transform(32)),
    lambda data: pretrained.pictures([write(data)], Transform(32)),
    lambda data: pretrained.pictures([opened(data)], Transform(32)),
  ],
  ids=[
    "decode",
    "training",
    "convert",
    "model",
    "model, path",
    "model, opened",
  ],
)
def test_no_program_is_started(use, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  started = ghostscript.watch(monkeypatch, tmp_path)
  said = "EPS, a program rather than a picture: not opened"
  with pytest.raises(BadRecord, match=said) as error:
    use(ghostscript.EPS)
  assert error.value.cause == "not_an_image"
  assert not started.exists()


def write(data):
  path = pathlib.Path("picture.jpg")
  path.write_bytes(data)
  return path


def opened(data):
  return Image.open(io.BytesIO(data))


def test_pictures_are_opened_in_one_place(repository):
  """By neither library anywhere else."""
  opens = re.compile(
    r"Image\.open\(|Image\.OPEN|new_from_(file|buffer)|Image\.thumbnail\("
  )
  found = {
    str(path.relative_to(repository))
    for path in (repository / "aced").rglob("*.py")
    if opens.search(path.read_text("utf-8"))
  }
  assert found == {"aced/data/picture_formats.py"}


def test_a_picture_that_was_drawn_is_one():
  drawn = Image.new("RGB", (9, 9), (1, 2, 3))
  drawn.format, drawn.tile = "EPS", []
  assert from_pillow(drawn)[0, 0].tolist() == [1, 2, 3]


def box(brand, *others):
  """The first bytes of a file of boxes, as HEIC, AVIF and MP4 are."""
  body = b"ftyp" + brand + bytes(4) + b"".join(others)
  return (len(body) + 4).to_bytes(4, "big") + body + bytes(100)


NAMES = {
  "HEIC": box(b"heic", b"mif1", b"heic"),
  "HEIF": box(b"mif1", b"heic"),
  "JPEG XL": b"\xff\x0a" + bytes(100),
  "JPEG XL,": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
  "a video": box(b"isom", b"avc1"),
  "a video,": b"\x1aE\xdf\xa3" + bytes(100),
  "a raw file of a camera": b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
  "PDF": b"%PDF-1.7\n",
  "SVG": b'<svg xmlns="http://www.w3.org/2000/svg">',
  "SVG,": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a --><svg width="9">',
  "EPS": b"\xc5\xd0\xd3\xc6" + bytes(100),
  "PostScript": b"%!PS-Adobe-3.0\n%%Pages: 1\n",
  "a web page": b"\n <!DOCTYPE html><html><body>404</body>",
  "a web page,": b"<html><svg></svg>",
  "an XML page": b"<?xml version='1.0'?><Error>AccessDenied</Error>",
  "JSON": b'{"error": "not found"}',
  "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha",
  "an address": b"https://example.com/a.jpg\n",
  "a data URL": b"data:image/png;base64,iVBORw0KGgo",
  "a picture in base64": b"/9j/4AAQSkZJRgABAQ",
  "a picture as Python prints it": rb"b'\xff\xd8\xff\xe0'",
  "compressed by gzip": b"\x1f\x8b\x08\0",
  "a zip archive": b"PK\3\4",
  "zeros from its start": bytes(5000),
  "Photoshop": b"8BPS\0\1",
  "a pickle": b"\x80\4\x95",
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_is_named(name):
  data = NAMES[name]
  said = detail(data)
  assert said.startswith(name.strip(","))
  assert said.endswith(f"({len(data):,} bytes that begin {data[:12]!r})")


def test_pictures_to_convert_say_so():
  for name in ("HEIC", "JPEG XL"):
    said = detail(NAMES[name])
    assert "is not decoded here; convert it to JPEG or PNG" in said


def test_what_has_no_name_is_shown_by_its_start():
  assert detail(b"just words") == "10 bytes that begin b'just words'"
  # Words that begin as a format does are no picture of it.
  for text in (b"BM is a firm of repute.", b"P5 and P6", b"GIF8 what?"):
    detail(text)


def test_avif_by_its_further_brands():
  assert picture_formats.find(box(b"mif1", b"miaf", b"avif")).name == "AVIF"
  assert picture_formats.find(box(b"mif1", b"miaf", b"heic")) is None


def test_a_reader_that_is_missing(monkeypatch):
  data = encode("PNG")
  monkeypatch.delitem(Image.OPEN, "PNG")
  assert "PNG, which the Pillow that is installed cannot read" in detail(data)
