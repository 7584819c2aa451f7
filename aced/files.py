"""Files that are there whole or not at all, and folders that know if they are.

A sealed folder holds `manifest.json`: the size and the SHA-256 of every other
file in it. A folder whose manifest is missing was not finished.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

MANIFEST = "manifest.json"


def write_json(path: str | os.PathLike, content: Any) -> None:
  """Writes JSON atomically: a reader sees all of it or nothing.

  Raises:
    OSError: it cannot be written; what was there before is left as it was.
  """
  with whole(path) as part, part.open("w", encoding="utf-8") as file:
    file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A place to write a file to, which becomes that file once it is all there.

  Its folder is made where it is missing; what was there before stays if
  anything is raised.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{path.name}.part-{os.getpid()}")
  try:
    yield part
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def seal(folder: str | os.PathLike) -> None:
  """Writes the manifest of a folder, whose files are on disk from then on.

  Raises:
    OSError: a file cannot be read, or the manifest not written.
  """
  folder = pathlib.Path(folder)
  files = {
    str(path.relative_to(folder)): _described(path, sync=True)
    for path in _files(folder)
  }
  write_json(folder / MANIFEST, {"files": files})


def damage(folder: str | os.PathLike) -> str | None:
  """What is wrong with a sealed folder, in words, or None if it is whole.

  Every file is read. A manifest that is itself damaged is damage as well.

  Raises:
    OSError: a file is there and cannot be read, which is no damage.
  """
  folder = pathlib.Path(folder)
  try:
    listed = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    expected = {name: tuple(found) for name, found in listed.items()}
  except FileNotFoundError:
    return f"it has no {MANIFEST}: it was never finished"
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{MANIFEST} is damaged ({error})"
  for name, (size, digest) in expected.items():
    path = folder / name
    try:
      if path.stat().st_size != size:
        return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
      if _described(path)[1] != digest:
        return f"{name} has other content than was saved"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
      return f"{name} is missing"
  return None


def is_sealed(folder: str | os.PathLike) -> bool:
  """Whether a folder was finished; its files are not looked at."""
  return (pathlib.Path(folder) / MANIFEST).is_file()


def remove(folder: str | os.PathLike) -> None:
  """Removes a sealed folder; killed on the way, it is one no longer.

  Raises:
    OSError: something in it cannot be removed.
  """
  (pathlib.Path(folder) / MANIFEST).unlink(missing_ok=True)
  shutil.rmtree(folder)


def _files(folder):
  """All files below a folder but its manifest, sorted."""
  return sorted(
    path
    for path in folder.rglob("*")
    if path.is_file() and path != folder / MANIFEST
  )


def _described(path, sync=False) -> tuple[int, str]:
  """Size and SHA-256 of a file, which is first brought to disk if asked."""
  with path.open("rb") as file:
    if sync:
      os.fsync(file.fileno())
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return os.fstat(file.fileno()).st_size, digest
