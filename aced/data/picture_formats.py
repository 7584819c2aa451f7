"""Formats of pictures: those that are decoded, and what else bytes can be.

Bytes of a data set are vouched for by nobody, and Pillow has readers that
start programs (EPS: Ghostscript), wait for one (WMF, GRIB, HDF5, BUFR, MPEG),
or are of formats that no data set has and few people test. So only what is
listed here is opened, and each file by the reader of what it begins with.
"""

from typing import NamedTuple


class Format(NamedTuple):
  """A format of pictures that is decoded.

  Attributes:
    name: as reports have it.
    reader: Pillow's name of what reads it.
    endings: of its files, and kinds of its members in WebDataset shards, the
      most frequent first.
    heads: first bytes, each with where they stand; one of them is there.
  """

  name: str
  reader: str
  endings: tuple[str, ...]
  heads: tuple[tuple[int, bytes], ...]


FORMATS = (
  # An MPO is a JPEG with further pictures behind the first.
  Format(
    "JPEG",
    "JPEG",
    ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    ((0, b"\xff\xd8\xff"),),
  ),
  Format("PNG", "PNG", ("png", "apng"), ((0, b"\x89PNG\r\n\x1a\n"),)),
  Format("WebP", "WEBP", ("webp",), ((8, b"WEBP"),)),
  Format("GIF", "GIF", ("gif",), ((0, b"GIF87a"), (0, b"GIF89a"))),
  Format("BMP", "BMP", ("bmp",), ((0, b"BM"),)),
  # The fourth head is BigTIFF's.
  Format(
    "TIFF",
    "TIFF",
    ("tif", "tiff"),
    tuple(
      (0, head)
      for head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
    ),
  ),
  Format(
    "AVIF",
    "AVIF",
    ("avif",),
    ((4, b"ftypavif"), (4, b"ftypavis")),
  ),
  Format(
    "JPEG 2000",
    "JPEG2000",
    ("jp2", "j2k", "jpf", "jpx", "j2c", "jpc"),
    ((0, b"\0\0\0\x0cjP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")),
  ),
  Format(
    "PNM",
    "PPM",
    ("ppm", "pgm", "pbm", "pnm", "pfm"),
    tuple(
      (0, b"P" + kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")
    ),
  ),
  Format("ICO", "ICO", ("ico",), ((0, b"\0\0\1\0"),)),
  Format("DIB", "DIB", ("dib",), ((0, b"\x28\0\0\0"),)),
)

# Endings of files that hold pictures, the most frequent formats first.
PICTURE_ENDINGS = tuple(e for form in FORMATS for e in form.endings)
