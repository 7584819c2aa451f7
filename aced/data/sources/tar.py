"""The members of tar archives, told by their headers alone.

Nothing is ever extracted; links, devices and folders are passed over, and so
are sparse files.
"""

import re
import tarfile
from collections.abc import Callable, Iterator

# What stands after the first dot of the last part of a name, as WebDataset has
# it: "a/0001.seg.png" is the member "seg.png" of the record "a/0001".
_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)")
_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
# Bytes read at a time while headers are looked for. Here a header and the small
# members after it; from a bucket whole stretches, for each request takes long.
WINDOW, FAR_WINDOW = 8192, 2**24
# How the text of a damage begins that the end of the archive has.
CUT = ("it ends", "it has no end")


def scan(
  read: Callable[[int, int], bytes], size: int, window: int = WINDOW
) -> Iterator[tuple[str, int, int] | str]:
  """Finds the members of a tar archive by their headers.

  Args:
    read: `read(offset, size)` of the archive.
    size: of the archive, in bytes.
    window: bytes read at a time.

  Yields:
    `(name, offset, size)` of each regular file, in order, one that is cut
    short by the end of the archive too; and a text for each damage. After a
    damaged header the next one that is whole is looked for.
  """
  at, start, data = 0, 0, b""
  given: dict[str, str] = {}  # What an extended header says of the next one.
  lost, ended = None, False
  while at + _BLOCK <= size:
    if not start <= at <= start + len(data) - _BLOCK:
      start, data = at, read(at, window)
      if len(data) < _BLOCK:
        yield f"it could not be read at byte {at}"
        return
    block = data[at - start : at - start + _BLOCK]
    ended = block == _ZEROS
    info = None if ended else _header(block, size - at)
    if info is None:
      lost = at if lost is None and not ended else lost
      at += _BLOCK
      continue
    if lost is not None:
      yield f"bytes {lost} to {at} are no headers"
      lost = None
    at += _BLOCK
    if info.type in _EXTENDED:
      given |= _extended(info, read(at, info.size))
    else:
      if info.isreg() and not info.issparse():
        length = int(given.get("size", info.size))
        yield given.get("path", info.name), at, length
        info.size = length
      given = {}
    if info.type in _WITHOUT_DATA:
      continue
    at += -(-info.size // _BLOCK) * _BLOCK
  if lost is not None:
    yield f"bytes {lost} to {size} are no headers"
  elif at > size:
    yield f"{CUT[0]} {at - size:,} bytes too early"
  elif not ended:
    yield f"{CUT[1]}, and may be cut short"


# Kinds of headers that only say something of the next one; those that are read
# whole are no larger than this.
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
_MOST_EXTENDED = 2**20
# Links, devices and folders have no data, whatever size stands there.
_WITHOUT_DATA = (
  tarfile.LNKTYPE,
  tarfile.SYMTYPE,
  tarfile.CHRTYPE,
  tarfile.BLKTYPE,
  tarfile.DIRTYPE,
  tarfile.FIFOTYPE,
)


def _header(block: bytes, left: int) -> tarfile.TarInfo | None:
  """A header, or None for what is none; `left` bytes are in the archive."""
  try:
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
  except (tarfile.HeaderError, ValueError, OverflowError):
    return None
  most = min(_MOST_EXTENDED, left) if info.type in _EXTENDED else 2**62
  return info if 0 <= info.size <= most else None


def member_name(name: str) -> tuple[str, str] | None:
  """Splits the name of a member into its record and its kind.

  Returns:
    `("a/0001", "jpg")` for "a/0001.JPG"; None for what belongs to no record.
  """
  match = _NAME.fullmatch(name)
  if match is None or match[1].rsplit("/", 1)[-1].startswith("__"):
    return None
  return match[1], match[2].lower()


def _extended(info, data) -> dict[str, str]:
  """What a header says of the next one: its path, and its size."""
  if info.type == tarfile.GNUTYPE_LONGNAME:
    return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
  found, at = {}, 0
  while match := re.compile(rb"(\d{1,7}) ([^=]+)=").match(data, at):
    stop = at + int(match[1])
    value = data[match.end() : stop - 1].decode("utf-8", "surrogateescape")
    key = match[2].decode("utf-8", "replace")
    if key == "path" or (key == "size" and value.isdecimal()):
      found[key] = value
    if stop <= at:
      break
    at = stop
  return found
