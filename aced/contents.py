"""Names what a file is by its first bytes, for messages.

Whether a file can be read is for its reader to find out.
"""

import os
import pathlib
import re
import string
import zipfile
from typing import Any

HEAD = 512  # Bytes of a file that tell what it is.
_TEXT = frozenset(string.printable.encode())
_FETCH = "fetch it again"
PICKLE = "a pickle, which can run code and is never read"
BLANK = rb"(?:\xef\xbb\xbf)?\s*"  # What may stand before a text.
_ZIP = rb"PK(?:[\x03\x05\x07]|\Z)"
# Patterns of first bytes, and what a file is that begins so; the first counts.
_HEADS = tuple(
  (re.compile(head, re.DOTALL), what)
  for head, what in (
    (rb"\Z", f"an empty file: {_FETCH}"),
    (rb"\0+\Z", f"zeros from its start, as of a broken download: {_FETCH}"),
    (
      BLANK + rb"version https://git-lfs",
      "a Git LFS pointer, not the file itself: run `git lfs pull` where it was"
      f" cloned, or {_FETCH}",
    ),
    (
      BLANK + rb"(?i:<(?:!doctype html|html|head|body|script)\b)",
      f"a web page, perhaps of an error: {_FETCH}",
    ),
    (BLANK + rb"(?i:<\?xml)", f"an XML page, perhaps of an error: {_FETCH}"),
    (rb"\x1f\x8b", "compressed by gzip: unpack it"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (rb"BZh\d", "compressed by bzip2: unpack it"),
    (rb"\xfd7zXZ\0", "compressed by xz: unpack it"),
    (_ZIP, "a zip archive: unpack it"),
    # Protocols 2 to 5, all that anything writes by now.
    (rb"\x80[\x02-\x05]", PICKLE),
    (rb"\x89HDF", "HDF5, which is not read here"),
    (rb"GGUF", "GGUF, which is not read here"),
    (rb"PAR1", "Parquet"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16: write it anew as UTF-8"),
    (BLANK + rb"\[", "a JSON array: write one object a line"),
    (
      BLANK + rb"[\w ]+(?:[,\t;][\w ]+)+\r?\n",
      "a table of text (CSV): write one JSON object a line",
    ),
  )
)


def describe_head(head: bytes) -> str:
  """Says what a file is; "" where its first bytes do not tell.

  Args:
    head: its first `HEAD` bytes, or all of it.
  """
  return next((what for start, what in _HEADS if start.match(head)), "")


def sentence(head: bytes) -> str:
  """Returns " The file is ...", to end a message with, or ""."""
  found = describe_head(head)
  return f" The file is {found}." if found else ""


def describe(path: str | os.PathLike) -> str:
  """Says what a file is; "" where that cannot be told.

  Args:
    path: of a file.

  Raises:
    OSError: it cannot be read.
  """
  with open(path, "rb") as file:
    head = file.read(HEAD)
  if re.match(_ZIP, head):
    return _zip(path)
  found = describe_head(head)
  if not found and len(head) < HEAD and _TEXT.issuperset(head):
    return f"a text, {head.decode()[:60]!r}: {_FETCH}"
  return found


def not_json(path: str | os.PathLike, problem: Any) -> str:
  """Says what a file is that should be JSON: "is an empty file: ...".

  Args:
    path: of the file.
    problem: what was found wrong in it.
  """
  try:
    found = describe(path)
  except OSError:
    found = ""
  # JSON is a text itself, perhaps an array.
  itself = not found or found.startswith(("a text", "a JSON", "a table"))
  return f"is not JSON: {problem}" if itself else f"is {found}"


def _zip(path):
  """What a zip archive holds."""
  try:
    with zipfile.ZipFile(path) as archive:
      names = [pathlib.PurePosixPath(name) for name in archive.namelist()]
  except (zipfile.BadZipFile, OSError):
    if pathlib.Path(path).suffix == ".npz":
      return ""
    return f"a zip archive that was cut short, as torch's pickles are: {_FETCH}"
  if any(name.name == "data.pkl" for name in names):
    return PICKLE
  if pathlib.Path(path).suffix == ".npz":
    return ""
  if names and all(name.suffix == ".npy" for name in names):
    return "an archive of numpy: name it .npz"
  return "a zip archive: unpack it"
