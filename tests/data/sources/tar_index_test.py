import io
import os
import pathlib
import tarfile

import fsspec
import numpy as np
import pytest

from aced.data.records import SourceError
from aced.data.sources import tar_index
from aced.data.sources.storage import Storage


def archive(members, form=tarfile.USTAR_FORMAT):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=form) as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return file.getvalue()


def pairs(count, start=0, size=700):
  rng = np.random.default_rng(start)
  for k in range(start, start + count):
    yield f"{k:06d}.jpg", rng.bytes(int(rng.integers(1, size)))
    yield f"{k:06d}.json", b'{"n": %d}' % k
    yield f"{k:06d}.txt", f"text {k}".encode()


def scan(data, window=8192):
  def read(offset, size):
    return data[offset : offset + size]

  return list(tar_index.scan(read, len(data), window))


@pytest.mark.parametrize(
  "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("window", [512, 8192, 2**20])
def test_members_are_where_tarfile_finds_them(form, window):
  long = "d" * 90 + "/" + "n" * 95
  members = [*pairs(20), (f"{long}.jpg", b"x" * 5000), ("ü/é.txt", b"y")]
  data = archive(members, form)
  with tarfile.open(fileobj=io.BytesIO(data)) as tar:
    want = [(m.name, m.offset_data, m.size) for m in tar]
  assert len(want) == 62
  assert scan(data, window) == want


def test_links_devices_and_folders_are_passed_over():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
      info = tarfile.TarInfo("0001.jpg")
      info.type, info.linkname = kind, "/etc/passwd"
      tar.addfile(info)
    folder = tarfile.TarInfo("0002.jpg")
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    info = tarfile.TarInfo("0003.jpg")
    info.size = 4
    tar.addfile(info, io.BytesIO(b"data"))
  assert [name for name, *_ in scan(file.getvalue())] == ["0003.jpg"]


def test_archives_one_after_the_other():
  data = archive(pairs(3)) + archive(pairs(2, 3))
  assert len(scan(data)) == 15


def test_after_a_damaged_header_the_next_whole_one_is_found():
  data = bytearray(archive(pairs(10)))
  want = scan(bytes(data))
  data[want[9][1] - 512 : want[9][1] - 400] = b"\xff" * 112
  found = scan(bytes(data))
  damage = [item for item in found if isinstance(item, str)]
  assert len(damage) == 1 and "are no headers" in damage[0]
  assert [i for i in found if not isinstance(i, str)] == [*want[:9], *want[10:]]


@pytest.mark.parametrize("cut", [100, 5000, 9999])
def test_an_archive_that_ends_early(cut):
  data = archive(pairs(10))
  whole = scan(data)
  found = scan(data[:cut])
  members = [item for item in found if not isinstance(item, str)]
  assert members == [m for m in whole if m[1] <= cut]
  complete = all(m[1] + m[2] <= cut for m in members)
  damage = [item for item in found if isinstance(item, str)]
  assert complete or "too early" in damage[-1]


@pytest.mark.parametrize(
  ("name", "want"),
  [
    ("0001.jpg", ("0001", "jpg")),
    ("a.b/0001.JPG", ("a.b/0001", "jpg")),
    ("./x/7.seg.png", ("./x/7", "seg.png")),
    ("README", None),
    (".hidden.txt", None),
    ("x/._0001.jpg", None),
    ("__meta__.json", None),
  ],
)
def test_names(name, want):
  assert tar_index.member_name(name) == want


@pytest.fixture
def shards(tmp_path):
  paths = []
  for k in range(4):
    path = tmp_path / f"{k}.tar"
    path.write_bytes(archive(pairs(5, 5 * k)))
    paths.append(str(path))
  return Storage(paths)


def count_scans(monkeypatch):
  seen = []
  plain = tar_index._scan_shard

  def scan_shard(storage, number, *rest):
    seen.append(number)
    return plain(storage, number, *rest)

  monkeypatch.setattr(tar_index, "_scan_shard", scan_shard)
  return seen


def contents(storage, index):
  """Record -> kind -> bytes, read through the index."""
  found, shard, left = [], 0, index.shards[0].records
  for start, stop in zip(index.starts, index.starts[1:], strict=False):
    while not left:
      shard, left = shard + 1, index.shards[shard + 1].records
    left -= 1
    found.append(
      {
        index.kinds[m["kind"]]: storage.read(shard, m["offset"], m["size"])
        for m in index.members[start:stop]
      }
    )
  return found


def test_an_index_is_made_once_and_kept(shards, monkeypatch):
  seen = count_scans(monkeypatch)
  first = tar_index.load(shards)
  found = contents(shards, first)
  assert len(found) == 20 and found[7]["txt"] == b"text 7"
  assert sorted(seen) == [0, 1, 2, 3]
  folder = pathlib.Path(shards.paths[0]).parent / ".aced_index"
  assert folder.is_dir()
  again = tar_index.load(Storage(shards.paths))
  assert len(seen) == 4  # Nothing was read anew.
  assert contents(shards, again) == found
  assert again.shards == first.shards and again.kinds == first.kinds
  # From disk, and not held in memory.
  base = again.members
  while base.base is not None and not isinstance(base, np.memmap):
    base = base.base
  assert isinstance(base, np.memmap)


def test_a_shard_that_has_changed_is_read_again(shards, monkeypatch):
  tar_index.load(shards)
  seen = count_scans(monkeypatch)
  members = [*pairs(3, 100), ("000103.png", b"p")]
  pathlib.Path(shards.paths[2]).write_bytes(archive(members))
  found = contents(shards, tar_index.load(shards))
  assert seen == [2]
  assert len(found) == 19
  assert [r.get("txt") for r in found[9:14]] == [
    b"text 9",
    b"text 100",
    b"text 101",
    b"text 102",
    None,
  ]
  assert found[13] == {"png": b"p"} and found[14]["txt"] == b"text 15"


def test_a_damaged_index_is_made_anew(shards, caplog):
  want = contents(shards, tar_index.load(shards))
  folder = pathlib.Path(shards.paths[0]).parent / ".aced_index"
  members = next(folder.rglob("members.npy"))
  members.write_bytes(members.read_bytes()[:60])
  assert contents(shards, tar_index.load(shards)) == want
  assert "is damaged, and made anew" in caplog.text


def test_where_it_is_kept(shards, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  tar_index.load(shards, str(tmp_path / "mine"))
  assert list((tmp_path / "mine").glob("*/index.json"))
  assert not (tmp_path / "cache").exists()
  # Where the folder of the shards cannot be written, in that of the user.
  (tmp_path / ".aced_index").write_text("in the way")
  tar_index.load(shards)
  assert list((tmp_path / "cache").rglob("index.json"))


def test_no_place_to_keep_it(shards, tmp_path):
  blocked = tmp_path / "blocked"
  blocked.write_text("in the way")
  with pytest.raises(SourceError, match=r"cannot be kept.*\?index=FOLDER"):
    tar_index.load(shards, str(blocked))


@pytest.mark.parametrize("kind", ["pyd", "pkl", "x.pickle", "PTH"])
def test_pickles_are_refused_by_name(tmp_path, kind):
  path = tmp_path / "x.tar"
  path.write_bytes(archive([*pairs(2), (f"000002.{kind}", b"\x80\x04N.")]))
  with pytest.raises(SourceError, match=rf"x.tar holds '000002.{kind}'.*code"):
    tar_index.load(Storage([str(path)]))
  assert not list(tmp_path.rglob("index.json"))


def test_damage_is_told_with_the_shard(shards, caplog):
  os.truncate(shards.paths[1], 5000)
  index = tar_index.load(shards)
  assert f"{shards.paths[1]} is damaged: it ends" in caplog.text
  assert index.shards[1].damage and not index.shards[0].damage


def test_shards_in_a_bucket(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  files = fsspec.filesystem("memory")
  files.pipe("/tars/0.tar", archive(pairs(5)))
  files.pipe("/tars/1.tar", archive(pairs(5, 5)))
  remote = Storage(["memory://tars/0.tar", "memory://tars/1.tar"])
  found = contents(remote, tar_index.load(remote))
  assert [r["txt"] for r in found] == [b"text %d" % k for k in range(10)]
  assert list(tmp_path.rglob("index.json"))
  files.rm("/tars", recursive=True)
