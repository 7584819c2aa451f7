"""Pairs in tar shards, as img2dataset and WebDataset write them."""

import io

import numpy as np

from aced.config import did_you_mean
from aced.data.picture_formats import PICTURE_ENDINGS
from aced.data.records import BadRecord, Record, Source, SourceError
from aced.data.sources import tar_index
from aced.data.sources.fields import (
  json_object,
  label_of,
  plain,
  texts,
  unreadable,
)
from aced.data.sources.picture_files import MAX_BYTES
from aced.data.sources.storage import Storage, expand, what_it_is

# "img" is what shards name a picture of which they know no more.
PICTURES = (*PICTURE_ENDINGS, "img", "image")
_LOOKED_AT = 16  # Records in which a field must be found.


class WebDataset(Source):
  """A record of each group of members `KEY.jpg`, `KEY.txt`, `KEY.json`.

  Records are read from where they stand, in any order; of the shards an index
  is kept, see `tar_index`. The fields of the member `json` are those of the
  record. A record that its shard cuts short is masked, and those before it are
  whole.

  Args:
    pattern: of the shards, as `storage.expand` takes it.
    image: the kind of the member with the picture; "" is whichever of
      `PICTURES` a record has.
    text: the kind of the member with the caption, or `json.FIELD`: a field of
      the member `json`.
    label: of the class name, in the same way; None is "label" in the json.
    lines: whether each line of a caption is a caption of its own, as in the
      retrieval sets of CLIP_benchmark.
    metadata: the kind of a member with numbers in a row, such as npy, which the
      field `metadata` of a record lists; "" is none.
    index: the folder that keeps the index; by default beside the shards.

  Raises:
    SourceError: no such shards or members, no records, a shard that cannot be
      read, or one with a pickle in it.
  """

  def __init__(
    self,
    pattern: str,
    *,
    image: str = "",
    text: str = "txt",
    label: str | None = None,
    lines: bool = False,
    metadata: str = "",
    index: str = "",
  ):
    self.pattern = pattern
    self._image = (image,) if image else PICTURES
    self._text, self._label, self._lines = text, label, lines
    self._metadata = metadata
    self._storage = Storage(expand(pattern))
    self._folder = index
    self._load()
    if not len(self):
      wrong = "".join(f" {text}." for text in self.damage()[:1])
      raise SourceError(
        f"{pattern} holds no records: no KEY.jpg, no KEY.txt.{wrong}"
        f"{what_it_is(self.paths[0])}"
      )
    self._check_names(image, metadata)

  @property
  def paths(self) -> tuple[str, ...]:
    """The shards, in order."""
    return self._storage.paths

  def __len__(self):
    return len(self._index.starts) - 1

  def __repr__(self):
    return f"webdataset:{self.pattern}"

  def __getitem__(self, index):
    shard, members = self._members(index)
    try:
      fields = self._fields(shard, members)
      picture = self._picture(shard, members)
    except BadRecord as bad:
      return unreadable(bad)
    no_numbers = self._metadata and fields["metadata"] is None
    missing = fields["text"] is None or isinstance(picture, BadRecord)
    if (missing or no_numbers) and self._index.shards[shard].cut:
      path = self._storage.paths[shard]
      why = f"{path} is cut short, and may have had the rest of its members"
      return unreadable(BadRecord("cut_short", why))
    if no_numbers:
      picture = BadRecord("bad_line", f"it has no member .{self._metadata}")
    return fields | {"image": picture}

  def fields(self, index):
    """The record at `index`; its picture is not read."""
    try:
      return self._fields(*self._members(index))
    except BadRecord as bad:
      return unreadable(bad, picture=False)

  def damage(self):
    """What is wrong with whole shards."""
    pairs = zip(self._storage.paths, self._index.shards, strict=True)
    return [f"{path}: {s.damage}" for path, s in pairs if s.damage]

  def where(self, index):
    """The shard of a record and its key there."""
    shard, members = self._members(index)
    # A header stands right before its data; of a long name it has the start.
    offset = int(members["offset"][0])
    header = self._storage.read(shard, offset - 512, 100)
    name = header.split(b"\0", 1)[0].decode("utf-8", "replace")
    return f"{name} in {self._storage.paths[shard]}"

  def _load(self):
    self._index = tar_index.load(self._storage, self._folder)
    self._ends = np.cumsum([shard.records for shard in self._index.shards])
    self._kinds = {name: k for k, name in enumerate(self._index.kinds)}

  def __getstate__(self):
    kept = ("pattern", "_image", "_text", "_label", "_lines", "_metadata")
    kept += ("_storage", "_folder")
    state = {k: v for k, v in self.__dict__.items() if k in kept}
    # Arrays that are mapped from disk would be sent whole.
    return state | {"_counted": [shard[2:4] for shard in self._index.shards]}

  def __setstate__(self, state):
    counted = state.pop("_counted")
    self.__dict__.update(state)
    self._load()
    if counted != [shard[2:4] for shard in self._index.shards]:
      raise SourceError(
        f"the shards of {self.pattern} have changed while they were read, and"
        " records would have other numbers; start again."
      )

  def _check_names(self, image, metadata):
    """Refuses kinds of members that no shard has."""
    for option, name in (
      ("image", image or None),
      ("text", self._text),
      ("label", self._label),
      ("metadata", metadata or None),
    ):
      of_json = option != "metadata" and (name or "").startswith("json.")
      kind = "json" if of_json else name
      if kind is not None and kind not in self._kinds:
        more = ", or json.FIELD for a field of the json,"
        raise SourceError(
          f"{option}={name}: no record of {self.pattern} has a member .{kind};"
          f" they have {', '.join(sorted(self._kinds))}."
          f"{did_you_mean(kind, self._kinds)} Name another one"
          f"{more if option != 'metadata' else ''} with ?{option}=NAME."
        )
      if of_json:
        self._check_field(option, name.removeprefix("json."))

  def _check_field(self, option, name):
    """Refuses a field that none of the first records has in its json."""
    known: set[str] = set()
    for index in range(min(len(self), _LOOKED_AT)):
      known.update(self.fields(index))
    if name not in known:
      raise SourceError(
        f"{option}=json.{name}: none of the first records of {self.pattern} has"
        f" that in its json; they have {', '.join(sorted(known))}."
        f"{did_you_mean(name, known)}"
      )

  def _members(self, index) -> tuple[int, np.ndarray]:
    """The shard of a record, and its members."""
    index = self._check(index)
    start, stop = self._index.starts[index : index + 2]
    shard = int(np.searchsorted(self._ends, index, "right"))
    return shard, self._index.members[start:stop]

  def _fields(self, shard, members) -> Record:
    """Everything of a record but its picture."""
    record = {}
    data = self._read(shard, members, ("json",))
    if data is not None:
      record = _json(data)
      record.pop("image", None)
    text = self._value(shard, members, record, self._text)
    label = self._value(shard, members, record, self._label or "json.label")
    record["text"] = texts(text, self._lines)
    if label is not None:
      record["label"] = label_of(label)
    if self._metadata:
      data = self._read(shard, members, (self._metadata,))
      record["metadata"] = None if data is None else _numbers(data)
    return record

  def _value(self, shard, members, record, name):
    """A text member of a record, or a field of its json."""
    if name.startswith("json."):
      return record.get(name.removeprefix("json."))
    data = self._read(shard, members, (name,))
    return None if data is None else plain(data)

  def _picture(self, shard, members) -> bytes | BadRecord:
    data = self._read(shard, members, self._image)
    if data is None:
      kinds = [self._index.kinds[k] for k in members["kind"]]
      return BadRecord(
        "missing_image", f"there are only members {', '.join(kinds)}"
      )
    return data

  def _read(self, shard, members, kinds) -> bytes | None:
    """The first member of one of some kinds; None if there is none.

    Raises:
      BadRecord: its shard ends before it does, or it is too large.
    """
    numbers = [self._kinds[k] for k in kinds if k in self._kinds]
    for offset, size, kind in members.tolist():
      if kind not in numbers:
        continue
      if size > MAX_BYTES:
        raise BadRecord("too_large", f"a member is {size:,} bytes long")
      data = self._storage.read(shard, offset, size)
      if len(data) < size:
        raise BadRecord(
          "cut_short",
          f"{self._storage.paths[shard]} ends after {len(data)} of the"
          f" {size} bytes of a member",
        )
      return data
    return None


def _json(data) -> Record:
  """The fields of a json member."""
  try:
    return json_object(data)
  except BadRecord as bad:
    raise BadRecord(bad.cause, f"its json: {bad.detail}") from bad


def _numbers(data) -> list[int | float]:
  """The numbers of an array as `numpy.save` writes it."""
  try:
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
  except (ValueError, MemoryError, OverflowError) as error:
    raise BadRecord("bad_line", f"its metadata cannot be read: {error}") from (
      error
    )
  if array.ndim > 1 or array.dtype.kind not in "biuf":
    raise BadRecord(
      "bad_line",
      f"its metadata is {array.dtype} of shape {array.shape}, not numbers in a"
      " row",
    )
  return np.atleast_1d(array).tolist()
