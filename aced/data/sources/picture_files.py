"""Pictures that a data set names by path: read from its folder alone."""

import errno
import functools
import os
import re

from aced.data.records import BadRecord

# No photograph is longer; a file that is would only fill the memory.
MAX_BYTES = 2**28
# A path that the system cannot follow is a fault of the record; any other
# failure to read (a disk, a network) is not, and propagates.
_BAD_PATH = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EACCES,
  errno.ELOOP,
  errno.ENAMETOOLONG,
}
# How JPEG, PNG, GIF and WebP begin in base64, perhaps as a data URL.
_BASE64 = re.compile(r"data:image/|(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR).{60}")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def read_picture(folder: str, name: str) -> bytes | BadRecord:
  """Returns the bytes of a picture in a folder, or why there are none.

  Args:
    folder: of the data set; nothing outside it is read.
    name: a path, relative to the folder or absolute. Links inside the folder
      are followed: who owns the folder made them.
  """
  address = _ADDRESS.match(name)
  if address and address[1] != "file":
    return BadRecord(
      "missing_image",
      f"{name!r:.80} is an address ({address[1]}:), and nothing is fetched;"
      " expected the path of a file: download the pictures first, such as with"
      " img2dataset",
    )
  name = name.removeprefix("file://")
  if _BASE64.match(name):
    return BadRecord(
      "missing_image",
      f"{name!r:.40}... is a picture in base64; expected the path of a file:"
      " write its bytes to one",
    )
  path = os.path.normpath(os.path.join(folder, name))
  if not _is_below(path, folder):
    return BadRecord("outside_folder", f"{name!r:.200} is not below {folder}")
  try:
    with open(path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      if size > MAX_BYTES:
        return BadRecord("too_large", f"{path} is {size:,} bytes long")
      return file.read()
  except OSError as error:
    if error.errno not in _BAD_PATH:
      raise
    hint = "; its parts are parted by \\, expected /" if "\\" in name else ""
    return BadRecord("missing_image", f"{path}: {error.strerror}{hint}")
  except ValueError as error:  # A null character in the path.
    return BadRecord("missing_image", f"{name!r}: {error}")


def _is_below(path: str, folder: str) -> bool:
  """Whether a path lies in a folder, by the name of either or its target."""
  if _starts(path, os.path.abspath(folder)):
    return True
  # These take a call of the system for each part of a name.
  target = _target(folder)
  beside = os.path.realpath(os.path.dirname(path))
  return _starts(path, target) or _starts(beside, target)


def _starts(path: str, folder: str) -> bool:
  return path == folder or path.startswith(folder.rstrip("/") + "/")


_target = functools.lru_cache(os.path.realpath)
