import json
import os
import pickle
from concurrent import futures

import fsspec
import pytest

from aced.data.records import BadRecord, SourceError, captions
from aced.data.sources import open_source
from aced.data.sources.webdataset import WebDataset
from tests.data.sources.tar_test import archive, pairs


@pytest.fixture
def folder(tmp_path):
  for k in range(3):
    (tmp_path / f"{k:04d}.tar").write_bytes(archive(pairs(10, 10 * k)))
  return tmp_path


def picture(k, size=700):
  """The bytes that `pairs` makes of record `k`, of its shard of ten."""
  return dict(pairs(10, k // 10 * 10, size))[f"{k:06d}.jpg"]


def test_records(folder):
  source = open_source(f"webdataset:{folder}/{{0000..0002}}.tar")
  assert len(source) == 30
  for k in (0, 9, 10, 29):
    assert source[k] == {"image": picture(k), "text": f"text {k}", "n": k}
    assert source.fields(k) == {"text": f"text {k}", "n": k}
  assert source.where(13) == f"000013.jpg in {folder}/0001.tar"
  assert repr(source) == f"webdataset:{folder}/{{0000..0002}}.tar"
  with pytest.raises(IndexError):
    source[30]


def test_options_name_members_and_fields_of_the_json(tmp_path):
  members = [
    ("1.png", b"P"),
    ("1.seg.png", b"S"),
    ("1.cls", b"7\n"),
    ("1.txt", b"one\n"),
    ("1.json", json.dumps({"caption": ["a", "b"], "kind": 3}).encode()),
  ]
  (tmp_path / "x.tar").write_bytes(archive(members))
  spec = f"webdataset:{tmp_path}/x.tar"
  record = open_source(f"{spec}?label=cls")[0]
  assert (record["image"], record["text"]) == (b"P", "one")
  assert record["label"] == "7"
  options = "image=seg.png&text=json.caption&label=json.kind"
  record = open_source(f"{spec}?{options}")[0]
  assert record["image"] == b"S" and record["text"] == ["a", "b"]
  assert record["label"] == "3"


def test_every_picture_that_can_be_decoded_is_found(tmp_path):
  """Whatever the kinds are called, and if they differ within a shard."""
  kinds = ["jpg", "JPEG", "jfif", "avif", "jp2", "ppm", "webp", "tif", "img"]
  members = []
  for k, kind in enumerate(kinds):
    members += [(f"{k}.{kind}", b"p%d" % k), (f"{k}.txt", b"t")]
  (tmp_path / "x.tar").write_bytes(archive(members))
  source = open_source(f"webdataset:{tmp_path}/x.tar")
  got = [source[k]["image"] for k in range(len(kinds))]
  assert got == [b"p%d" % k for k in range(len(kinds))]


def test_encodings_of_texts(tmp_path):
  texts = [
    b"\xef\xbb\xbfa cat",
    b"a cat\r\n",
    "caf\u00e9".encode("latin-1"),
    "a cat".encode("utf-16"),
    b"a cat",
  ]
  members = []
  for k, text in enumerate(texts):
    members += [
      (f"{k}.cls", b"cat\r\n"),
      (f"{k}.jpg", b"p"),
      (f"{k}.txt", text),
    ]
  (tmp_path / "x.tar").write_bytes(archive(members))
  source = open_source(f"webdataset:{tmp_path}/x.tar?label=cls")
  for k in (0, 1, 4):
    assert source[k]["text"] == source.fields(k)["text"] == "a cat"
    assert source[k]["label"] == "cat"
  for k in (2, 3):
    with pytest.raises(BadRecord, match="caption_not_text.*UTF-"):
      captions(source[k])


def test_captions_in_lines(tmp_path):
  members = [("0.jpg", b"p"), ("0.txt", b"a cat\r\n\ntwo cats\n")]
  (tmp_path / "x.tar").write_bytes(archive(members))
  spec = f"webdataset:{tmp_path}/x.tar"
  assert open_source(spec)[0]["text"] == "a cat\n\ntwo cats"
  assert open_source(f"{spec}?lines=0")[0]["text"] == "a cat\n\ntwo cats"
  source = pickle.loads(pickle.dumps(open_source(f"{spec}?lines=1")))
  assert source[0]["text"] == ["a cat", "two cats"]
  with pytest.raises(SourceError, match="lines=yes must be 1 or 0"):
    open_source(f"{spec}?lines=yes")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ("text=txd", r"no record .* has a member .txd; they have jpg, json, txt"),
    ("image=png", r"image=png: .* KEY|image=png: no record"),
    ("label=cls", "label=cls: no record"),
    ("captions=txt", "'captions' is not an option of webdataset"),
  ],
)
def test_what_is_not_there_is_refused(folder, options, message):
  with pytest.raises(SourceError, match=message):
    open_source(f"webdataset:{folder}/*.tar?{options}")


def test_no_records(tmp_path):
  (tmp_path / "x.tar").write_bytes(archive([("README", b"x")]))
  with pytest.raises(SourceError, match="holds no records"):
    open_source(f"webdataset:{tmp_path}/x.tar")


def test_records_at_fault_are_told_and_the_others_are_whole(tmp_path):
  members = [
    *pairs(2),
    ("000002.txt", b"no picture"),
    ("000003.jpg", b"x"),
    ("000004.jpg", b"x"),
    ("000004.txt", b"\xff\xfe caption"),
    ("000004.json", b"{no json"),
    *pairs(2, 5),
  ]
  (tmp_path / "x.tar").write_bytes(archive(members))
  source = open_source(f"webdataset:{tmp_path}/x.tar")
  assert len(source) == 7
  assert source[2]["image"].cause == "missing_image"
  assert "only members txt" in source[2]["image"].detail
  assert source[3]["text"] is None and source[3]["image"] == b"x"
  assert source[4]["image"].cause == "bad_line"
  assert [source[k]["text"] for k in (5, 6)] == ["text 5", "text 6"]


def test_every_whole_record_of_a_cut_shard_is_read(folder, caplog):
  path = folder / "0001.tar"
  source = WebDataset(f"{folder}/*.tar")
  offset = int(source._index.members["offset"][source._index.starts[14]])
  os.truncate(path, offset + 3)  # Within the picture of record 14.
  source = WebDataset(f"{folder}/*.tar")
  assert len(source) == 10 + 5 + 10
  assert [source[k]["text"] for k in range(10, 14)] == [
    f"text {k}" for k in range(10, 14)
  ]
  bad = source[14]["image"]
  assert isinstance(bad, BadRecord) and bad.cause == "cut_short"
  assert "0001.tar ends after 3 of the" in bad.detail
  assert source[15]["image"] == picture(20)
  assert "0001.tar is damaged" in caplog.text


def test_a_cut_of_members_that_stand_apart_is_told(tmp_path):
  """Of a tar of all pictures and then all texts."""
  members = [(f"{k}.jpg", b"p") for k in range(4)]
  members += [(f"{k}.txt", b"t") for k in range(4)]
  data = archive(members)
  (tmp_path / "x.tar").write_bytes(data[: 512 * 2 * 6 + 100])
  source = open_source(f"webdataset:{tmp_path}/x.tar")
  assert [source[k]["text"] for k in range(2)] == ["t", "t"]
  assert [source[k]["image"].cause for k in (2, 3)] == ["cut_short"] * 2


def test_what_is_no_archive_is_told(tmp_path):
  for content, message in ((b"", "an empty file"), (b"\1\2" * 900, "no head")):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(SourceError, match=f"holds no records.*{message}"):
      open_source(f"webdataset:{tmp_path}/x.tar")


def test_a_cut_between_members_is_told_too(folder):
  source = WebDataset(f"{folder}/*.tar")
  members = source._index.members
  first = source._index.starts[14]
  stop = int(members["offset"][first + 1]) + 512  # After its json.
  os.truncate(folder / "0001.tar", stop)
  source = WebDataset(f"{folder}/*.tar")
  assert len(source) == 25
  assert source[14]["image"].cause == "cut_short"
  assert source[13]["text"] == "text 13"


def test_shards_that_change_under_way_are_refused(folder):
  content = pickle.dumps(WebDataset(f"{folder}/*.tar"))
  (folder / "0001.tar").write_bytes(archive(pairs(3)))
  with pytest.raises(SourceError, match="have changed while they were read"):
    pickle.loads(content)


def test_pickled_and_from_threads(folder):
  source = open_source(f"webdataset:{folder}/*.tar")
  content = pickle.dumps(source)
  assert len(content) < 2000  # The index is not sent along.
  other = pickle.loads(content)
  order = [k % 30 for k in range(300)]
  with futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(other.__getitem__, order))
  assert got == [source[k] for k in order]


def test_a_bucket(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  files = fsspec.filesystem("memory")
  for k in range(3):
    files.pipe(f"/web/{k:04d}.tar", archive(pairs(10, 10 * k)))
  source = open_source("webdataset:memory://web/{0000..0002}.tar")
  assert len(source) == 30
  assert source[17] == {"image": picture(17), "text": "text 17", "n": 17}
  files.rm("/web", recursive=True)


# The package leaves it to the garbage collector to close shards.
@pytest.mark.filterwarnings(
  "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_what_the_package_webdataset_writes(tmp_path):
  webdataset = pytest.importorskip("webdataset")
  path = tmp_path / "x.tar"
  with webdataset.TarWriter(str(path)) as tar:
    for k in range(5):
      tar.write({"__key__": f"{k:05d}", "jpg": b"J%d" % k, "txt": f"t {k}"})
  source = open_source(f"webdataset:{path}")
  assert [source[k]["image"] for k in range(5)] == [
    b"J%d" % k for k in range(5)
  ]
  read = [
    (sample["jpg"], sample["txt"].decode())
    for sample in webdataset.WebDataset(str(path), shardshuffle=False)
  ]
  assert read == [(source[k]["image"], source[k]["text"]) for k in range(5)]
