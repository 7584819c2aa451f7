"""What stands in shards, as others read it."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from webdataset import tariterators

from aced.data.convert import command, shard_files
from aced.data.convert.command import convert
from aced.data.convert.workers import Job, write_shard
from aced.data.records import BadRecord, Source
from aced.data.sources import open_source
from tests.data.convert.tools import (
  DROPPED,
  FORMATS,
  check_equal,
  contents,
  examples,
  kept,
  picture,
  shards,
)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("jpeg", "jpg"),
    ("png", "png"),
    ("webp", "webp"),
    ("gif", "gif"),
    ("bmp", "bmp"),
    ("tiff", "tif"),
    ("ppm", "ppm"),
  ],
)
def test_kinds_of_pictures(kind, name):
  assert shard_files.picture_kind(picture(kind)) == name
  assert shard_files.picture_kind(b"of nothing known") == "img"


@pytest.mark.parametrize(
  ("image", "cause"),
  [
    (None, "missing_image"),
    (b"", "empty_image"),
    (bytearray(), "empty_image"),
    (7, "not_an_image"),
    ("a path", "not_an_image"),
    (np.zeros((8, 8, 3)), "not_an_image"),
    (np.zeros((8, 8, 2), np.uint8), "not_an_image"),
    (np.zeros((8, 2, 3), np.uint8), "too_small"),
    (BadRecord("cut_short", "here"), "cut_short"),
  ],
)
def test_pictures_that_are_none(image, cause):
  with pytest.raises(BadRecord) as caught:
    shard_files.usable({"image": image, "text": "a"})
  assert caught.value.cause == cause


def test_grey_and_transparent_arrays_keep_their_look():
  rng = np.random.default_rng(0)
  for shape in ((8, 9), (8, 9, 1), (8, 9, 4)):
    image = rng.integers(0, 256, shape, np.uint8)
    record = shard_files.usable({"image": image, "text": "a"})
    np.testing.assert_array_equal(
      shard_files.decode(record["image"]), shard_files.decode(image)
    )


class Odd(Source):
  """Records with fields that JSON has no word for."""

  def __len__(self):
    return 3

  def __getitem__(self, index):
    record = {"image": picture("png"), "text": "a", "n": index}
    return record | ({} if index else {"raw": b"\xff", "more": {"x": {1}}})


@pytest.mark.parametrize("format", FORMATS)
def test_fields_that_json_cannot_express(tmp_path, format):
  job = Job("", tmp_path, format, 3, 10, verify=False)
  shard = write_shard(job, 0, Odd(), lambda: None)
  assert (shard.written, shard.left_out) == (3, {"raw": 1, "more": 1})
  spec = shard_files.SPECS[format].format(folder=tmp_path)
  assert open_source(spec)[0]["n"] == 0
  text = str(command.Summary("x:y", 3, {}, shard.left_out))
  assert text.endswith("cannot express them: 1 more, 1 raw.")


def test_array_records_hold_the_same_bytes(pairs, tmp_path):
  folder = tmp_path / "out"
  found = convert(pairs, folder, shard_records=5, workers=2)
  assert (found.written, found.dropped) == (9, DROPPED)
  assert str(found) == (
    f"array_record:{folder}/*.array_record holds 9 records; 3 dropped:"
    " 1 empty_caption, 1 empty_image, 1 missing_image."
  )
  names = [f"pairs-0000{k}-of-00003.array_record" for k in range(3)]
  assert sorted(contents(folder)) == [command.FILE, command.LOG, *names]
  expected = list(kept(pairs))
  stored = [e for name in names for e in examples(folder / name)]
  for (_, record), features in zip(expected, stored, strict=True):
    assert list(features["image"].bytes_list.value) == [record["image"]]
    if "n" in record:
      assert list(features["n"].int64_list.value) == [record["n"]]
  several = [v.decode() for v in stored[1]["text"].bytes_list.value]
  assert several == ["one", "zwei, 二", ""]
  check_equal(found.spec, expected)


def test_tar_shards_are_read_by_others(pairs, tmp_path, in_process):
  folder = tmp_path / "out"
  found = convert(pairs, folder, format="webdataset", shard_records=5)
  assert (found.written, found.dropped) == (9, DROPPED)
  assert [p.name for p in shards(folder)] == [
    f"pairs-0000{k}.tar" for k in range(3)
  ]
  expected, samples = list(kept(pairs)), []
  for path in shards(folder):
    assert path.read_bytes()[257:263] == b"ustar\0"
    with tarfile.open(path, "r:") as tar:
      for member in tar:
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
    with open(path, "rb") as file:
      stream = {"url": str(path), "stream": file}
      members = tariterators.tar_file_expander([stream])
      samples += list(tariterators.group_by_keys(members))
  for (index, record), sample in zip(expected, samples, strict=True):
    assert sample["__key__"] == f"{index:09}"
    (kind,) = {"jpg", "png", "webp", "img"} & set(sample)
    assert sample[kind] == record["image"]
    assert kind == shard_files.picture_kind(record["image"])
    text = record["text"]
    first = text if isinstance(text, str) else text[0]
    assert sample["txt"] == first.encode("utf-8", "replace")
    del record["image"]
    assert json.loads(sample["json"]) == record
  check_equal(found.spec, list(kept(pairs)))


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_become_png(tmp_path, in_process, format):
  spec = "synthetic:train?size=20"
  found = convert(spec, tmp_path / "out", format=format)
  again, source = open_source(found.spec), open_source(spec)
  for k in range(20):
    read, record = again[k], source[k]
    assert read["image"].startswith(b"\x89PNG")
    pixels = np.asarray(Image.open(io.BytesIO(read.pop("image"))))
    np.testing.assert_array_equal(pixels, record.pop("image"), strict=True)
    assert read == record


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["emoji", "grocery"])
def test_real_pictures(shared_data, tmp_path, in_process, name, format):
  spec = f"jsonl:{shared_data / name / 'train.jsonl'}?limit=40"
  found = convert(spec, tmp_path / "out", format=format, verify=True)
  assert (found.written, found.dropped) == (40, {})
  check_equal(found.spec, list(kept(spec)))
