import gzip
import os
import pathlib
import subprocess
import sys

import fsspec
import numpy as np
import pytest

from aced.data.records import SourceError
from aced.data.sources import tar_index
from aced.data.sources.storage import Storage
from tests.data.sources.tar_test import archive, pairs


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


def test_a_compressed_shard_is_told(tmp_path):
  path = tmp_path / "x.tar.gz"
  path.write_bytes(gzip.compress(archive(pairs(3))))
  with pytest.raises(
    SourceError, match=r"x.tar.gz is no .* compressed by gzip"
  ):
    tar_index.load(Storage([str(path)]))


def test_members_that_stand_apart_are_joined(tmp_path, caplog):
  members = [("0.jpg", b"a"), ("1.jpg", b"b"), ("1.txt", b"B"), ("0.txt", b"A")]
  (tmp_path / "x.tar").write_bytes(archive(members))
  storage = Storage([str(tmp_path / "x.tar")])
  index = tar_index.load(storage)
  want = [{"jpg": b"a", "txt": b"A"}, {"jpg": b"b", "txt": b"B"}]
  assert contents(storage, index) == want
  assert not caplog.text and not index.shards[0].damage


def test_names_that_are_given_twice_are_two_records_and_told(tmp_path, caplog):
  members = [("0.jpg", b"a"), ("0.txt", b"A"), ("0.jpg", b"b"), ("0.txt", b"B")]
  (tmp_path / "x.tar").write_bytes(archive(members))
  storage = Storage([str(tmp_path / "x.tar")])
  want = [{"jpg": b"a", "txt": b"A"}, {"jpg": b"b", "txt": b"B"}]
  assert contents(storage, tar_index.load(storage)) == want
  assert "members of '0' stand twice" in caplog.text


def test_records_keep_the_order_of_their_first_members(tmp_path):
  order = np.random.default_rng(0).permutation(40)
  members = [
    (f"{k // 2}.{('jpg', 'txt')[k % 2]}", b"%d" % k) for k in order.tolist()
  ]
  (tmp_path / "x.tar").write_bytes(archive(members))
  storage = Storage([str(tmp_path / "x.tar")])
  found = contents(storage, tar_index.load(storage))
  first = list(dict.fromkeys(k // 2 for k in order.tolist()))
  assert found == [
    {"jpg": b"%d" % (2 * k), "txt": b"%d" % (2 * k + 1)} for k in first
  ]


def test_a_user_without_a_home_keeps_the_index_beside_the_shards(
  shards, monkeypatch
):
  for name in ("HOME", "XDG_CACHE_HOME"):
    monkeypatch.delenv(name, raising=False)
  # As for a user who is in no passwd file, too.
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  assert len(tar_index.load(shards).starts) == 21
  folder = pathlib.Path(shards.paths[0]).parent
  assert list((folder / ".aced_index").glob("*/index.json"))
  (folder / ".aced_index").rename(folder / "moved")
  (folder / ".aced_index").write_text("in the way")
  with pytest.raises(SourceError, match=r"cannot be kept.*index=FOLDER"):
    tar_index.load(shards)


def test_too_many_kinds(tmp_path):
  paths = []
  for k in range(2):
    path = tmp_path / f"{k}.tar"
    names = (f"0.{200 * k + j}" for j in range(200))
    path.write_bytes(archive((name, b"x") for name in names))
    paths.append(str(path))
  with pytest.raises(SourceError, match="more than 255 kinds of members"):
    tar_index.load(Storage(paths))


def test_an_index_whose_parts_do_not_fit_is_made_anew(shards, caplog):
  want = contents(shards, tar_index.load(shards))
  folder = pathlib.Path(shards.paths[0]).parent / ".aced_index"
  place = next(folder.rglob("starts.npy"))
  np.save(place, np.load(place)[:-1])
  assert contents(shards, tar_index.load(shards)) == want
  assert "its parts do not fit" in caplog.text


def test_several_processes_make_an_index_at_once(shards, tmp_path):
  program = (
    "import sys, os; from aced.data.sources import open_source\n"
    "for k in range(30):\n"
    "  os.utime(sys.argv[1], ns=(k, int(sys.argv[2]) * 100 + k))\n"
    "  open_source(f'webdataset:{sys.argv[1]},{sys.argv[3]}')\n"
  )
  given = [shards.paths[0], shards.paths[1]]
  running = [
    subprocess.Popen(
      [sys.executable, "-c", program, given[0], str(k), given[1]],
      stderr=subprocess.PIPE,
      text=True,
    )
    for k in range(2)
  ]
  for process in running:
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors


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
