"""Where the members of tar shards are, found once and kept.

An index is a folder: `index.json` (the shards, their sizes and stamps, what was
wrong with them, the kinds of members), `members.npy` (`MEMBER` rows) and
`starts.npy` (the first member of each record, and one more). A shard that has
changed is read again, the others are not. Pickles are refused by
name.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import mmap  # noqa: F401  numpy imports it late, perhaps without the rights.
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from aced import contents
from aced.data.records import SourceError
from aced.data.sources import tar
from aced.data.sources.storage import Storage, is_remote

# Loading these can run any code that their author put in.
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "dill", "joblib")
MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("kind", "u1")])
FORMAT = 2
_SCANS = 8  # Shards read at a time.
_TOLD = 3  # Damages of a shard that are named.
_TRIES = 5  # To put an index where another process does so too.


class Shard(NamedTuple):
  """What was found in one shard.

  Attributes:
    size: its bytes.
    stamp: what changes when it is written anew.
    records: in it, those that are cut short included.
    members: of all records.
    damage: what was wrong with it, or "".
    cut: whether it may end before its last record does.
  """

  size: int
  stamp: str
  records: int
  members: int
  damage: str
  cut: bool


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
    return [pathlib.Path(os.path.expanduser(folder)) / digest]
  places, first = [], storage.paths[0]
  if not is_remote(first):
    places.append(pathlib.Path(first).parent / ".aced_index" / digest)
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  if os.path.isabs(cache):  # It is not where a user has no home.
    places.append(pathlib.Path(cache) / "aced" / "indices" / digest)
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
    members, starts = arrays
    if (
      len(members) != sum(s.members for s in shards)
      or len(starts) != sum(s.records for s in shards) + 1
      or (starts[0], starts[-1]) != (0, len(members))
    ):
      raise ValueError("its parts do not fit")
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
      part.chmod(0o777 & ~_umask())  # Made for its owner alone.
      for _ in range(_TRIES):
        # Another process may put its own there meanwhile, which is the same.
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
          part.rename(place)
          return
      problem = problem or OSError(f"{place} cannot be replaced")
    except OSError as error:
      problem = problem or error
    finally:
      shutil.rmtree(part, ignore_errors=True)
  raise SourceError(
    f"the index of the shards cannot be kept: {problem}. Name a folder that can"
    " be written, with ?index=FOLDER."
  ) from problem


def _umask() -> int:
  """That of the process, which can only be told by setting it."""
  mask = os.umask(0o022)
  os.umask(mask)
  return mask


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
      disable=None,
      delay=1,
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
  kinds, rows, records, damage = {}, [], _Records(), []
  try:
    for item in _members(storage, number, size):
      if isinstance(item, str):
        damage.append(item)
        continue
      (key, kind), offset, length = item
      kind = kinds.setdefault(kind, len(kinds))
      rows.append((records.number(key, kind), offset, length, kind))
  except OSError as error:
    raise SourceError(
      f"{storage.paths[number]} cannot be read: {error.strerror or error}."
    ) from error
  if not rows:
    _explain_nothing(storage, number)
  damage += records.damage
  shard = Shard(
    size,
    stamp,
    len(records),
    len(rows),
    "; ".join(damage[:_TOLD]),
    any(text.startswith(tar.CUT) for text in damage),
  )
  rows.sort(key=lambda row: row[0])  # Stable: members keep their order.
  counts = np.bincount([row[0] for row in rows], minlength=len(records))
  members = np.array([row[1:] for row in rows], MEMBER)
  return shard, tuple(kinds), members, counts.astype(np.int64)


def _members(storage, number, size):
  """Yields `((key, kind), offset, size)` of members, and texts of damages."""
  window = tar.FAR_WINDOW if is_remote(storage.paths[number]) else tar.WINDOW
  for item in tar.scan(lambda *at: storage.read(number, *at), size, window):
    if isinstance(item, str):
      yield item
    elif (split := tar.member_name(item[0])) is not None:
      _refuse_pickles(storage.paths[number], item[0], split[1])
      yield split, *item[1:]


class _Records:
  """Numbers the records of a shard, in the order of their first members.

  Members of a record may stand apart, as in an archive of all pictures and then
  all texts. A member that a record has already begins another record: names
  have been given twice.
  """

  def __init__(self):
    self.damage: list[str] = []
    # Key -> the number of its record, and a bit for each kind it has.
    self._seen: dict[str, tuple[int, int]] = {}
    self._count = 0

  def __len__(self):
    return self._count

  def number(self, key: str, kind: int) -> int:
    """The number of the record of a member, from 0."""
    number, kinds = self._seen.get(key, (-1, 0))
    if number < 0 or kinds >> kind & 1:
      if number >= 0 and len(self.damage) < _TOLD:
        self.damage.append(f"members of {key!r} stand twice")
      number, kinds = self._count, 0
      self._count += 1
    self._seen[key] = number, kinds | 1 << kind
    return number


def _explain_nothing(storage, number) -> None:
  """Refuses a file without a member that is no tar archive at all."""
  head = storage.read(number, 0, contents.HEAD)
  # Zeros alone are an archive of nothing.
  if head.strip(b"\0") and (found := contents.sentence(head)):
    raise SourceError(
      f"{storage.paths[number]} is no tar archive that can be read in any"
      f" order.{found}"
    )


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
  if len(kinds) > 255:
    raise SourceError(
      "the shards have more than 255 kinds of members, such as"
      f" {', '.join(list(kinds)[-3:])}: names must be KEY.jpg, KEY.txt, where"
      " what follows the first dot is the same for all records."
    )
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
