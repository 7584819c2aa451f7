import collections
import json
import pickle

import numpy as np
import pytest

from aced.data import drawing
from aced.data.synthetic import SPLITS, Scenes, class_names


def records(split="train", count=300, **options):
  scenes = Scenes(count, split=split, **options)
  return [scenes[i] for i in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_depends_on_seed_split_and_index_alone(split):
  scenes = Scenes(50, 3, 24, split)
  again = pickle.loads(pickle.dumps(Scenes(80, 3, 24, split)))
  for i in reversed(range(50)):
    np.testing.assert_equal(scenes[i], again[i])
    fields = {k: v for k, v in scenes[i].items() if k != "image"}
    assert scenes.fields(i) == fields == json.loads(json.dumps(fields))


def test_streams_differ():
  sets = [records(split, 20) for split in SPLITS[:3]]
  sets += [records(count=20, seed=1)]
  texts = [tuple(r["text"] for r in s) for s in sets]
  assert len(set(texts)) == len(texts)


def test_captions_say_what_is_there():
  for record in records(count=400):
    words = record["text"].split()
    assert len(words) <= 15
    kinds = {
      tuple(o[k] for k in ("colour", "shape")) for o in record["objects"]
    }
    for colour, shape in kinds:
      assert colour in words
      assert any(w.startswith(shape) for w in words)
    for texture, stem in (("striped", "strip"), ("dotted", "dot")):
      there = any(o["texture"] == texture for o in record["objects"])
      assert there == any(w.startswith(stem) for w in words)
    assert record["count"] == len(record["objects"])
    assert ("label" in record) == (len(kinds) == 1)
    if "arrangement" in record:
      assert {2: "two", 3: "three"}[record["count"]] in words


def test_relations_hold():
  ahead = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1)}
  ahead["below"] = ("y", -1)
  found = collections.Counter()
  for record in records(count=400):
    if "relation" in record:
      axis, sign = ahead[record["relation"]]
      first, second = record["objects"]
      assert sign * (second[axis] - first[axis]) > 0.4
      text = record["text"]
      assert text.index(first["shape"]) < text.rindex(second["shape"])
      found[record["relation"]] += 1
  assert len(found) == 4


def test_variety():
  found = collections.defaultdict(set)
  for record in records(count=600):
    found["background"].add(record["background"])
    found["count"].add(record["count"])
    for thing in record["objects"]:
      for key in ("shape", "colour", "texture", "size"):
        found[key].add(thing[key])
  sizes = {key: len(values) for key, values in found.items()}
  want = {"shape": 8, "colour": 8, "texture": 3, "size": 2, "count": 3}
  assert sizes == want | {"background": 4}


def test_captions_of_a_test_set_are_nearly_unique():
  scenes = Scenes(512, split="test")
  texts = {scenes.fields(i)["text"] for i in range(512)}
  assert len(texts) >= 0.98 * 512


def test_classes():
  names = class_names()
  assert len(names) == len(set(names)) == 64
  scenes = Scenes(128, split="classes")
  labels = [scenes.fields(i)["label"] for i in range(128)]
  assert labels == names * 2
  for i in range(128):
    kinds = {(o["colour"], o["shape"]) for o in scenes.fields(i)["objects"]}
    assert len(kinds) == 1


@pytest.mark.parametrize("size", [16, 32, 64, 65])
def test_objects_are_drawn_where_they_are(size):
  for record in records(count=60, image_size=size):
    image = record["image"]
    assert image.dtype == np.uint8 and image.shape == (size, size, 3)
    ground = drawing.background(record["background"], size)
    drawn = np.abs(image - ground).max(axis=2) > 30
    share = drawn.mean()
    assert 0.01 < share < 0.5
    # A half of the picture in which there is no object is background.
    xs = [o["x"] for o in record["objects"]]
    if max(xs) < 0.35:
      assert not drawn[:, size * 2 // 3 :].any()
    if min(xs) > 0.65:
      assert not drawn[:, : size // 3].any()


def test_colours_are_what_they_are_called():
  scenes = Scenes(200, split="classes")
  values = np.array(list(drawing.COLOURS.values()), np.float32)
  for i in range(200):
    record = scenes[i]
    solid = record["objects"][0]["texture"] == "solid"
    if not solid or record["objects"][0]["shape"] == "ring":
      continue
    x, y = (int(record["objects"][0][axis] * 32) for axis in "xy")
    pixel = record["image"][y, x].astype(np.float32)
    nearest = np.abs(values - pixel[None, :]).sum(axis=1).argmin()
    assert list(drawing.COLOURS)[nearest] == record["objects"][0]["colour"]


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_masks_cover_what_the_shape_does(shape):
  side = 40
  cover, tone = drawing.masks(shape, "dotted", side)
  assert cover.shape == tone.shape == (side, side, 1)
  assert cover.min() == 0 or shape == "square"
  assert cover.max() == 1
  rng = np.random.default_rng(0)
  x, y = rng.uniform(-1, 1, (2, 200_000))
  area = drawing.SHAPES[shape](x, y).mean()
  # Four standard errors of the random share, and what the 8 x 8 samples miss.
  assert cover.mean() == pytest.approx(area, abs=4 * 0.5 / 447 + 0.004)
  # Shapes reach most of the width given to them, and are centred.
  columns = np.flatnonzero(cover[..., 0].max(axis=0) > 0.5)
  assert len(columns) >= 0.65 * side
  assert abs(columns.mean() - (side - 1) / 2) <= 0.5
