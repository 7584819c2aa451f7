"""Files, here or in a bucket: what a pattern names, and reading anywhere.

Paths with a scheme (`gs://`, `s3://`) go through fsspec, which needs the
package of that store (the extras `gcs` and `s3`).
"""

import collections
import glob
import os
import threading
import weakref
from collections.abc import Sequence

import braceexpand
import fsspec

from aced import contents
from aced.config import did_you_mean
from aced.data.records import SourceError

# Local files kept open by one reader; those used longest ago are closed.
OPEN_FILES = 128


def is_remote(path: str) -> bool:
  """Whether a path names a place that is reached by fsspec."""
  return "://" in path and not path.startswith("file://")


def filesystem(path: str):
  """The fsspec file system of a path.

  Raises:
    SourceError: the package that reads it is not installed.
  """
  try:
    return fsspec.core.url_to_fs(path)[0]
  except (ImportError, ValueError) as error:
    raise SourceError(
      f"{path} cannot be reached: {error}. Install what reads it, such as"
      " `pip install gcsfs` for gs:// or `pip install s3fs` for s3://."
    ) from error


def expand(pattern: str) -> list[str]:
  """Returns the files that a pattern names, in order, each once.

  A name that exists is taken as it stands, whatever letters are in it.

  Args:
    pattern: paths joined by commas, with braces (`{00..99}`, `{a,b}`) and
      `*`; local or with a scheme. A name with braces must exist.

  Raises:
    SourceError: nothing matches, or a file is not there.
  """
  paths: list[str] = []
  for part in _parts(pattern):
    paths += _files(part)
  if not paths:
    raise SourceError(
      f"{pattern!r} names no file; expected paths joined by commas, with"
      " {00..99}, {a,b} and *."
    )
  return list(dict.fromkeys(paths))


def _parts(pattern: str) -> list[str]:
  """Splits a pattern at commas, and braces into what they stand for."""
  if _is_literal(pattern):
    return [pattern]
  whole = [] if is_remote(pattern) else _braces(pattern, pattern)
  if "," in pattern and whole and all(map(_glob, whole)):
    return whole  # The commas are in the names of folders.
  parts = []
  for part in _split(pattern):
    parts += [part] if _is_literal(part) else _braces(part, pattern)
  return parts


def _is_literal(pattern: str) -> bool:
  """Whether a name with commas or braces in it exists as it stands."""
  if is_remote(pattern) or not any(letter in pattern for letter in ",{}"):
    return False
  return bool(_glob(pattern))


def _glob(path: str) -> list[str]:
  """The local files and folders that a path names, in order.

  Brackets are a class of letters only where no name has them.
  """
  path = _local(path)
  escaped = "*".join(map(glob.escape, path.split("*")))
  for name in (escaped, path):
    if found := glob.glob(name, recursive=True, include_hidden=True):
      return sorted(found)
  return []


def _local(path: str) -> str:
  return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def _split(pattern):
  """Splits at commas that are not within braces."""
  depth, start = 0, 0
  for at, letter in enumerate(pattern):
    depth += (letter == "{") - (letter == "}")
    if letter == "," and not depth:
      yield pattern[start:at]
      start = at + 1
  if pattern[start:]:
    yield pattern[start:]


def _braces(part, pattern):
  try:
    return list(braceexpand.braceexpand(part))
  except braceexpand.UnbalancedBracesError as error:
    raise SourceError(
      f"the braces of {pattern!r} do not match: {error}"
    ) from error


def _files(path: str) -> list[str]:
  """The files that a path with `*` names; or the path itself."""
  if is_remote(path):
    if "*" not in path:
      filesystem(path)
      return [path]  # A missing one is told when it is read.
    files = filesystem(path)
    found = [name for name in files.glob(path) if not files.isdir(name)]
    return [files.unstrip_protocol(name) for name in found]
  path = _local(path)
  if os.path.isdir(path):
    raise SourceError(
      f"{path} is a folder; name the files in it, such as {path}/*"
    )
  if os.path.exists(path):
    return [path]
  found = _glob(path)
  if not found and not any(letter in path for letter in "*["):
    folder, name = os.path.split(path)
    near = os.listdir(folder) if os.path.isdir(folder) else []
    raise SourceError(f"there is no file {path}.{did_you_mean(name, near)}")
  return [name for name in found if os.path.isfile(name)]


class Storage:
  """Some files, by number, read at any offset. Can be pickled; thread-safe.

  Args:
    paths: of the files, as `expand` returns them.
  """

  def __init__(self, paths: Sequence[str]):
    self.paths = tuple(paths)
    self._start()

  def _start(self):
    self._lock = threading.Lock()
    self._open: collections.OrderedDict[int, _File] = collections.OrderedDict()

  def __getstate__(self):
    return {"paths": self.paths}

  def __setstate__(self, state):
    self.paths = state["paths"]
    self._start()

  def stamp(self, number: int) -> tuple[int, str]:
    """The size of a file, and what changes when it is written anew.

    Raises:
      OSError: it cannot be read.
    """
    path = self.paths[number]
    if not is_remote(path):
      found = os.stat(path)
      return found.st_size, f"{found.st_mtime_ns} {found.st_ctime_ns}"
    info = filesystem(path).info(path)
    keys = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified")
    return info["size"], str(next((info[k] for k in keys if k in info), ""))

  def read(self, number: int, offset: int, size: int) -> bytes:
    """Reads `size` bytes at `offset`; fewer where the file ends before.

    Raises:
      OSError: it cannot be read.
    """
    path = self.paths[number]
    if not 0 < size < 2**40 or not 0 <= offset < 2**62:
      return b""
    if is_remote(path):
      return filesystem(path).cat_file(path, start=offset, end=offset + size)
    # It must be held until it is read, or another thread may close it. Unlike
    # seek and read, pread is safe from several threads.
    file = self._file(number)
    return os.pread(file.descriptor, size, offset)

  def _file(self, number) -> "_File":
    with self._lock:
      file = self._open.pop(number, None) or _File(self.paths[number])
      self._open[number] = file
      if len(self._open) > OPEN_FILES:
        # Closed once no other thread is reading it.
        self._open.popitem(last=False)
      return file


def what_it_is(path: str) -> str:
  """Says what a file is that was taken for another, to end a message with."""
  try:
    head = Storage([path]).read(0, 0, contents.HEAD)
  except OSError:
    return ""  # The message that this would end says as much.
  return contents.sentence(head)


class _File:
  """An open local file, closed when nothing refers to it any more."""

  def __init__(self, path):
    self.descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self.descriptor)
