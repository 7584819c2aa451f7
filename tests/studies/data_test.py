"""Splits of real sets."""

import json

import pytest
from PIL import Image

from aced.config import ConfigError
from studies import data


@pytest.fixture
def source(tmp_path):
  folder = tmp_path / "set"
  for name, count in (("train", 40), ("test", 5)):
    lines = []
    for k in range(count):
      path = folder / name / f"{k}.jpg"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (20, 10), (k, 0, 0)).save(path)
      lines.append({"image": f"{name}/{k}.jpg", "text": f"number {k}"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text)
  return folder


def records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_picture_is_on_two_sides(source, tmp_path):
  counts = data.split(source, tmp_path / "split")
  found = {
    name: {r["image"] for r in records(tmp_path / "split" / f"{name}.jsonl")}
    for name in ("reference", "pool", "test")
  }
  assert {k: len(v) for k, v in found.items()} == counts
  assert sum(counts.values()) == 45 and counts["test"] == 5
  assert not found["reference"] & found["pool"]
  assert min(counts["reference"], counts["pool"]) > 10
  for images in found.values():
    assert all((tmp_path / "split" / image).is_file() for image in images)


def test_crops_are_of_the_pool_alone_and_the_same_again(source, tmp_path):
  plain = data.split(source, tmp_path / "plain")
  counts = data.split(source, tmp_path / "a", crops=2)
  data.split(source, tmp_path / "b", crops=2)
  assert counts["pool"] == 3 * plain["pool"]
  assert counts["reference"] == plain["reference"]
  pool = records(tmp_path / "a" / "pool.jsonl")
  assert pool == records(tmp_path / "b" / "pool.jsonl")
  for record in pool:
    one, other = ((tmp_path / k / record["image"]) for k in "ab")
    assert one.read_bytes() == other.read_bytes()
    with Image.open(one) as picture:
      width, height = picture.size
    # At least half of the area, rounded to whole pixels.
    assert 14 <= width <= 20 and 7 <= height <= 10


def test_equal_pictures_are_on_one_side():
  a = data.side({"image": "a.jpg", "pixel_hash": "x"})
  assert a == data.side({"image": "b.jpg", "pixel_hash": "x"})


def test_a_set_that_is_not_there_is_told_of(tmp_path):
  with pytest.raises(ConfigError, match=r"train\.jsonl is not there"):
    data.split(tmp_path / "none", tmp_path / "split")


def test_a_split_that_is_there_is_kept(source, tmp_path):
  counts = data.split(source, tmp_path / "split")
  (source / "train.jsonl").unlink()
  assert data.split(source, tmp_path / "split") == counts
