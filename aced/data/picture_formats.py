"""Formats of pictures: those that are decoded, and what else bytes can be.

Nobody vouches for the bytes of a data set, and Pillow has readers that start a
program (EPS: Ghostscript), that hand over to code from elsewhere (WMF, GRIB,
HDF5, BUFR), or that few people have ever tried on hostile bytes. So only what
is listed here is opened, and by the reader of what it begins with.
"""

import io
import re
from typing import NamedTuple

from PIL import Image, ImageFile

from aced import contents
from aced.data.records import BadRecord


class Format(NamedTuple):
  """A format of pictures that is decoded.

  Attributes:
    name: as reports have it.
    reader: Pillow's name of what reads it.
    endings: of its files, and kinds of its members in tar shards, the most
      frequent first.
    head: a pattern of the first bytes.
    tail: last bytes, where the first ones tell nothing.
  """

  name: str
  reader: str
  endings: tuple[str, ...]
  head: bytes
  tail: bytes = b""


# The sizes that the header of a bitmap can have.
_DIB = rb"[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
# The last two are written wrongly and often enough. Not Canon's raw files.
_TIFF = rb"II\*\0(?!.{4}CR\x02)|II\+\0|MM\0[*+]|II\0\*|MM\*\0"
FORMATS = (
  # An MPO is a JPEG with more pictures behind the first.
  Format(
    "JPEG", "JPEG", ("jpg", "jpeg", "jpe", "jfif", "mpo"), rb"\xff\xd8\xff"
  ),
  Format("PNG", "PNG", ("png", "apng"), rb"\x89PNG\r\n\x1a\n"),
  Format("WebP", "WEBP", ("webp",), rb"RIFF.{4}WEBP"),
  Format("GIF", "GIF", ("gif",), rb"GIF8[79]a"),
  Format("BMP", "BMP", ("bmp",), rb"BM.{12}" + _DIB),
  Format("TIFF", "TIFF", ("tif", "tiff"), _TIFF),
  # Its brand may be a general one, with its own among those that follow.
  Format("AVIF", "AVIF", ("avif",), rb".{4}ftyp(.{8}(.{4}){0,16}?)?avi[fs]"),
  Format(
    "JPEG 2000",
    "JPEG2000",
    ("jp2", "j2k", "jpf", "jpx", "j2c", "jpc"),
    rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
  ),
  Format(
    "PNM",
    "PPM",
    ("ppm", "pgm", "pbm", "pnm", "pfm"),
    rb"P[1-6f]\s(?:\s|#[^\n]*\n)*\d",
  ),
  Format("ICO", "ICO", ("ico",), rb"\0\0\x01\0[^\0]\0"),
  Format("DIB", "DIB", ("dib",), _DIB),
  # Older files, without this end, cannot be told from anything else.
  Format("TGA", "TGA", ("tga",), rb"", b"TRUEVISION-XFILE.\0"),
)

# Endings of files that hold pictures, the most frequent formats first.
PICTURE_ENDINGS = tuple(e for form in FORMATS for e in form.endings)

_HEADS = tuple((re.compile(form.head, re.DOTALL), form) for form in FORMATS)

# What is to be done about a file that is told by name.
_CONVERT = "which is not decoded here; convert it to JPEG or PNG"
_PROGRAM = "a program rather than a picture: not opened"
EPS = f"EPS, {_PROGRAM}"
_PAGE = "a document rather than a picture: not opened; render it to PNG"
_TEXT = "such as the answer of a server, not a picture"
_UNPACK = "not a picture: unpack it first"
_UNDO = "rather than its bytes: decode it first"
_OTHER = "not a picture"

# Patterns of the first bytes of what is met in the place of pictures, its name,
# and what to do. The first that fits counts.
_OTHERS = tuple(
  (re.compile(head, re.DOTALL), f"{name}, {advice}")
  for head, name, advice in (
    (rb".{4}ftyphe[ivx][cmsx]", "HEIC", _CONVERT),
    (rb".{4}ftyp(?:mif1|msf1|miaf)", "HEIF", _CONVERT),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
    (contents.BLANK + rb"%PDF", "PDF", _PAGE),
    (
      contents.BLANK + rb"%!PS-Adobe[^\r\n]*EPSF|\xc5\xd0\xd3\xc6",
      "EPS",
      _PROGRAM,
    ),
    (contents.BLANK + rb"\x04?%!", "PostScript", _PROGRAM),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "WMF or EMF", _PROGRAM),
    (
      contents.BLANK
      + rb"(?i:<(?:(?:\?xml|!doctype svg)(?:(?!<html).){0,4000}?<)?svg\b)",
      "SVG",
      _PAGE,
    ),
    (contents.BLANK + rb"[{\[]\s*(?:[\"{}\[\]]|-?\d)", "JSON", _TEXT),
    (
      rb"(?i:https?)://\S+\s*\Z",
      "an address",
      "not the picture that lies there",
    ),
    (rb"data:image/", "a data URL of a picture", _UNDO),
    (rb"/9j/|iVBORw0KGgo|R0lGOD[dl]h|UklGR", "a picture in base64", _UNDO),
    (rb"b['\"](?:\\x|GIF8|RIFF|BM)", "a picture as Python prints it", _UNDO),
    (
      rb"II\*\0.{4}CR\x02|II(?:U\0|RO|RS)|FUJIFILMCCD-RAW|.{4}ftypcrx",
      "a raw file of a camera",
      _CONVERT,
    ),
    (rb".{4}(?:ftyp|moov)|\0\0\x01[\xb3\xba]", "a video", _OTHER),
    (rb"\x1aE\xdf\xa3|RIFF.{4}AVI |FLV\x01|OggS", "a video", _OTHER),
    (rb"RIFF.{4}WAVE|ID3|fLaC", "a sound", _OTHER),
    (rb"7z\xbc\xaf|Rar!", "packed", _UNPACK),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"8BPS", "Photoshop (PSD)", _CONVERT),
    (rb"gimp xcf", "GIMP (XCF)", _CONVERT),
    (rb"v/1\x01", "OpenEXR", _CONVERT),
    (rb"#\?(?:RADIANCE|RGBE)", "Radiance HDR", _CONVERT),
    (rb".{128}DICM", "DICOM", _CONVERT),
    (rb"SIMPLE  =", "FITS", _CONVERT),
    (rb"qoif", "QOI", _CONVERT),
    (rb"DDS ", "DDS", _CONVERT),
    (rb"icns", "ICNS", _CONVERT),
    (rb"\0\0\x02\0[^\0]\0", "CUR", _CONVERT),
    (rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]", "PCX", _CONVERT),
    (rb"\x01\xda[\0\x01][\x01\x02]", "SGI", _CONVERT),
    (rb"\x59\xa6\x6a\x95", "Sun raster", _CONVERT),
    (rb"/\* XPM|#define \S+_width", "XBM or XPM", _CONVERT),
    (rb"P[7F]\s", "PAM, or PFM in colour", _CONVERT),
    (rb"\x93NUMPY", "a numpy file", "give its array instead"),
    (rb"SQLite", "a file of tables", _OTHER),
  )
)


_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def find(data: bytes) -> Format | None:
  """The format that bytes are of; None if it is none that is decoded."""
  for head, form in _HEADS:
    if head.match(data) and data.endswith(form.tail):
      return form
  return None


def what(data: bytes) -> str:
  """Says what bytes are that no format of pictures is found in."""
  start = f"{len(data):,} bytes that begin {data[:12]!r}"
  for head, found in _OTHERS:
    if head.match(data):
      return f"{found} ({start})"
  found = contents.describe_head(data[: contents.HEAD])
  return f"{found} ({start})" if found else start


def without_texts(data: bytes) -> bytes:
  """A PNG without its texts and profile; other bytes as they are.

  Pillow refuses a picture for a text of more than a megabyte, or a checksum
  wrong in it, and the pixels are none the worse for either.
  """
  start = 8  # After the head.
  if find(data).name != "PNG":
    return data
  parts = [data[:start]]
  while start < len(data):
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    if data[start + 4 : start + 8] not in _TEXTS:
      parts.append(data[start:end])
    start = end
  return b"".join(parts)


def open_picture(data: bytes) -> ImageFile.ImageFile:
  """Opens encoded bytes with Pillow: the header is read, the pixels are not.

  `Image.open` would warn of many pixels, or raise for more, by settings of the
  whole process; who opens a picture here looks at its size.

  Raises:
    BadRecord: they are of no format that is decoded.
  """
  form = find(data)
  if form is None:
    raise BadRecord("not_an_image", what(data))
  for load in (Image.preinit, Image.init):
    if form.reader not in Image.OPEN:
      load()
  if form.reader not in Image.OPEN:
    raise BadRecord(
      "not_an_image",
      f"{form.name}, which the Pillow that is installed cannot read; install"
      " a newer one, or convert it to JPEG or PNG",
    )
  return Image.OPEN[form.reader][0](io.BytesIO(data), "")
