"""What a file holds in place of what was looked for, told by its first bytes.

For messages: what reads a file finds out for itself whether it can.
"""

import os
import pathlib
import string
import zipfile
from typing import Any

_HEAD = 512
_TEXT = frozenset(string.printable.encode())
_FETCH = "fetch it again"
PICKLE = "a pickle, which can run code and is never read"
# First bytes, in lower case -> what a file is that begins so.
_STARTS = {
  b"version https://git-lfs": (
    "a Git LFS pointer, not the file itself: run `git lfs pull` where it was"
    f" cloned, or {_FETCH}"
  ),
  b"<!doctype html": f"a web page, perhaps of an error: {_FETCH}",
  b"<html": f"a web page, perhaps of an error: {_FETCH}",
  b"<?xml": f"an XML page, perhaps of an error: {_FETCH}",
  b"\x1f\x8b": "compressed by gzip: unpack it",
  b"\x89hdf": "HDF5, which is not read here",
  b"gguf": "GGUF, which is not read here",
}


def describe(path: str | os.PathLike) -> str:
  """Says what a file is; "" where its first bytes do not tell.

  Args:
    path: of a file.

  Raises:
    OSError: it cannot be read.
  """
  with open(path, "rb") as file:
    head = file.read(_HEAD)
  if not head:
    return f"an empty file: {_FETCH}"
  for start, what in _STARTS.items():
    if head.lstrip().lower().startswith(start):
      return what
  if head.startswith(b"PK"):
    return _zip(path)
  # Protocols 2 to 5, all that anything writes by now.
  if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
    return PICKLE
  if len(head) < _HEAD and _TEXT.issuperset(head):
    return f"a text, {head.decode()[:60]!r}: {_FETCH}"
  return ""


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
  # JSON is a text itself.
  return (
    f"is not JSON: {problem}"
    if found[:6] in ("", "a text")
    else (f"is {found}")
  )


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
