"""Where the members of tar shards are, found once and kept.

An index is a folder: `index.json` (the shards, their sizes and stamps, what was
wrong with them, the kinds of members), `members.npy` (`MEMBER` rows) and
`starts.npy` (the first member of each record, and one more). A shard that has
changed is read again, the others are not. Nothing is ever extracted: links and
devices are passed over, and pickles are refused by name.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from aced.data.records import SourceError
from aced.data.sources.storage import Storage, is_remote

# What stands after the first dot of the last part of a name, as WebDataset has
# it: "a/0001.seg.png" is the member "seg.png" of the record "a/0001".
_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)")
# Loading these can run any code that their author put in.
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "dill", "joblib")
MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("kind", "u1")])
FORMAT = 1
_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
# Bytes read at a time while headers are looked for. Here a header and the small
# members after it; from a bucket whole stretches, for each request takes long.
_WINDOW, _REMOTE_WINDOW = 8192, 2**24
_SCANS = 8  # Shards read at a time.


class Shard(NamedTuple):
  """What was found in one shard.

  Attributes:
    size: its bytes.
    stamp: what changes when it is written anew.
    records: in it, those that are cut short included.
    members: of all records.
    damage: what was wrong with it, or "".
  """

  size: int
  stamp: str
  records: int
  members: int
  damage: str


class Index(NamedTuple):
  """The members of all shards.

  Attributes:
    shards: in order.
    kinds: names of the kinds of members, such as "jpg"; rows hold numbers.
    members: `(m,)` of `MEMBER`: offset and size of the data in its shard.
    starts: `(n + 1,)` int64: record `i` has the members from `starts[i]` on.
  """

  shards: tuple[Shard, ...]
  kinds: tuple[str, ...]
  members: np.ndarray
  starts: np.ndarray


def load(storage: Storage, folder: str = "") -> Index:
  """Returns the index of some shards, which is built where it is not there.

  Args:
    storage: the shards.
    folder: where indices are kept; by default beside the shards, or in the
      cache folder of the user where that cannot be written.

  Raises:
    SourceError: a shard that cannot be read or holds a pickle, or a folder
      that cannot be written.
  """
  stamps = _stamps(storage)
  old = None
  for place in _places(storage, folder):
    found = _read(place)
    if found is not None and _fresh(found, stamps):
      return found
    old = old or found
  index = _build(storage, stamps, old)
  _warn(storage, index)
  _write(index, _places(storage, folder))
  return index


def scan(
  read: Callable[[int, int], bytes], size: int, window: int = _WINDOW
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
  long_name, lost = None, None
  while at + _BLOCK <= size:
    if not start <= at <= start + len(data) - _BLOCK:
      start, data = at, read(at, window)
      if len(data) < _BLOCK:
        yield f"it could not be read at byte {at}"
        return
    block = data[at - start : at - start + _BLOCK]
    if block == _ZEROS:
      at += _BLOCK
      continue
    try:
      info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
      lost = at if lost is None else lost
      at += _BLOCK
      continue
    if lost is not None:
      yield f"bytes {lost} to {at} are no headers"
      lost = None
    at += _BLOCK
    if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
      long_name = _extended(info, read(at, info.size)) or long_name
    elif info.isreg():
      yield long_name or info.name, at, info.size
      long_name = None
    else:
      long_name = None
      if info.type in tarfile.SUPPORTED_TYPES and info.type not in _WITH_DATA:
        continue  # Links, devices and folders have no data.
    at += -(-info.size // _BLOCK) * _BLOCK
  if lost is not None:
    yield f"bytes {lost} to {size} are no headers"
  if at > size:
    yield f"it ends {at - size:,} bytes too early"


_WITH_DATA = (
  tarfile.XGLTYPE,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.SOLARIS_XHDTYPE,
)


def member_name(name: str) -> tuple[str, str] | None:
  """Splits the name of a member into its record and its kind.

  Returns:
    `("a/0001", "jpg")` for "a/0001.JPG"; None for what belongs to no record.
  """
  match = _NAME.fullmatch(name)
  if match is None or match[1].rsplit("/", 1)[-1].startswith("__"):
    return None
  return match[1], match[2].lower()


def _extended(info, data) -> str | None:
  """The name in a header that only precedes the one of a long name."""
  if info.type == tarfile.GNUTYPE_LONGNAME:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
  match = re.search(rb"\d+ path=([^\n]*)\n", data)
  return match and match[1].decode("utf-8", "surrogateescape")


def _stamps(storage):
  """The size and stamp of every shard."""

  def stamp(number):
    try:
      return storage.stamp(number)
    except OSError as error:
      raise SourceError(
        f"{storage.paths[number]} cannot be read: {error.strerror or error}."
      ) from error

  with concurrent.futures.ThreadPoolExecutor(_SCANS) as pool:
    return list(pool.map(stamp, range(len(storage.paths))))


def _fresh(index, stamps):
  return [(s.size, s.stamp) for s in index.shards] == stamps


def _places(storage, folder) -> list[pathlib.Path]:
  """Where the index of these shards may be, the preferred place first."""
  digest = hashlib.sha256("\n".join(storage.paths).encode()).hexdigest()[:16]
  if folder:
    return [pathlib.Path(folder).expanduser() / digest]
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  places = [pathlib.Path(cache) / "aced" / "indices" / digest]
  first = storage.paths[0]
  if not is_remote(first):
    places.insert(0, pathlib.Path(first).parent / ".aced_index" / digest)
  return places


def _read(place: pathlib.Path) -> Index | None:
  """The index in a folder, its arrays mapped from disk; None if there is none.

  One that cannot be read is built anew: it holds nothing that shards do not.
  """
  try:
    content = json.loads((place / "index.json").read_text())
    arrays = [
      np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(
        np.ndarray  # A slice of a memmap costs ten times as much.
      )
      for name in ("members", "starts")
    ]
    if content["format"] != FORMAT or arrays[0].dtype != MEMBER:
      return None
    shards = tuple(Shard(*row) for row in content["shards"])
    if len(arrays[0]) != sum(s.members for s in shards):
      return None
    return Index(shards, tuple(content["kinds"]), *arrays)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    logging.warning("the index %s is damaged, and made anew: %s", place, error)
    return None


def _write(index: Index, places: list[pathlib.Path]) -> None:
  """Writes an index to the first place that can be written, whole."""
  problem: OSError | None = None
  for place in places:
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      part = pathlib.Path(tempfile.mkdtemp(".part", ".", place.parent))
    except OSError as error:
      problem = problem or error
      continue
    try:
      _dump(index, part)
      if place.exists():
        shutil.rmtree(place)
      part.rename(place)
      return
    except OSError as error:
      # Another process may have been faster; what it wrote is the same.
      if _read(place) is not None:
        return
      problem = problem or error
    finally:
      shutil.rmtree(part, ignore_errors=True)
  raise SourceError(
    f"the index of the shards cannot be kept: {problem}. Name a folder that can"
    " be written, with ?index=FOLDER."
  ) from problem


def _dump(index, folder):
  np.save(folder / "members.npy", index.members, allow_pickle=False)
  np.save(folder / "starts.npy", index.starts, allow_pickle=False)
  content = {"format": FORMAT, "kinds": index.kinds, "shards": index.shards}
  (folder / "index.json").write_text(json.dumps(content))


def _build(storage: Storage, stamps: list, old: Index | None) -> Index:
  """Reads the headers of all shards, or of those that have changed."""
  kinds: dict[str, int] = {}
  known = _known(old, stamps)
  with (
    concurrent.futures.ThreadPoolExecutor(_SCANS) as pool,
    tqdm(
      total=len(stamps),
      desc="indexing",
      unit=" shards",
      disable=len(stamps) < 4,
    ) as bar,
  ):

    def shard(number):
      if number in known:
        return known[number]
      return _scan_shard(storage, number, *stamps[number])

    found = []
    for part in pool.map(shard, range(len(stamps))):
      found.append(_renumbered(part, kinds))
      bar.update()
  shards, members, counts = zip(*found, strict=True)
  starts = np.zeros(sum(map(len, counts)) + 1, np.int64)
  np.cumsum(np.concatenate(counts), out=starts[1:])
  return Index(shards, tuple(kinds), np.concatenate(members), starts)


def _known(old, stamps):
  """Number -> what an older index holds of a shard that is still the same."""
  known, member, record = {}, 0, 0
  for number, shard in enumerate(old.shards if old else ()):
    stop, last = member + shard.members, record + shard.records
    if number < len(stamps) and (shard.size, shard.stamp) == stamps[number]:
      counts = np.diff(old.starts[record : last + 1])
      known[number] = shard, old.kinds, old.members[member:stop], counts
    member, record = stop, last
  return known


def _scan_shard(storage, number, size, stamp):
  """`(Shard, kinds, members, members of each record)` of one shard."""
  window = _REMOTE_WINDOW if is_remote(storage.paths[number]) else _WINDOW
  kinds, rows, counts, damage, last = {}, [], [], [], None
  try:
    for item in scan(lambda *at: storage.read(number, *at), size, window):
      if isinstance(item, str):
        damage.append(item)
        continue
      name, offset, length = item
      split = member_name(name)
      if split is None:
        continue
      key, kind = split
      _refuse_pickles(storage.paths[number], name, kind)
      if key != last:
        counts.append(0)
        last = key
      counts[-1] += 1
      rows.append((offset, length, kinds.setdefault(kind, len(kinds))))
  except OSError as error:
    raise SourceError(
      f"{storage.paths[number]} cannot be read: {error.strerror or error}."
    ) from error
  if len(kinds) > 255:
    raise SourceError(
      f"{storage.paths[number]} has more than 255 kinds of members, such as"
      f" {', '.join(list(kinds)[:3])}: names must be KEY.jpg, KEY.txt, where"
      " what follows the first dot is the same for all records."
    )
  shard = Shard(size, stamp, len(counts), len(rows), "; ".join(damage[:3]))
  return shard, tuple(kinds), np.array(rows, MEMBER), np.array(counts, np.int64)


def _refuse_pickles(path, name, kind):
  if kind.rsplit(".", 1)[-1] in PICKLES:
    raise SourceError(
      f"{path} holds {name!r}, a pickle: loading one can run any code. Write"
      " the shards anew without it, or with the data as JSON."
    )


def _renumbered(part, kinds):
  """Gives kinds of members their numbers among those of all shards."""
  shard, names, members, counts = part
  numbers = [kinds.setdefault(name, len(kinds)) for name in names]
  members = members.copy()
  if len(members):
    members["kind"] = np.array(numbers, np.uint8)[members["kind"]]
  return shard, members, counts


def _warn(storage, index):
  for path, shard in zip(storage.paths, index.shards, strict=True):
    if shard.damage:
      logging.warning(
        "%s is damaged: %s; %d records were found in it",
        path,
        shard.damage,
        shard.records,
      )
