"""`bv:aced` and our operations: the pixels, ids and order of our pipeline."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from aced.data import load_tokenizer, open_source, superbatches
from aced.data.transforms import Transform

pytestmark = pytest.mark.big_vision

PP = 'aced_decode(16)|aced_tokenize("bytes", 24)|{}keep("image", "labels"{})'


def batches(bv, source, count, *, keep=', "_mask", "index"', pp="", **data):
  """The first batches of 8 that big_vision's pipeline makes for training."""
  from ml_collections import ConfigDict

  config = ConfigDict(
    {
      "data": {"name": "bv:aced", "source": source, **data},
      "batch_size": 8,
      "pp": PP.format(pp, keep),
    }
  )
  dataset, size = bv.input_pipeline.training(config)
  return list(dataset.take(count).as_numpy_iterator()), size


def ours(source, steps, **given):
  with superbatches(
    open_source(source),
    load_tokenizer("bytes", 24),
    Transform(16),
    batch_size=8,
    num_steps=steps,
    **given,
  ) as found:
    return list(found)


@pytest.fixture
def captioned(tmp_path):
  """A set of 20 pictures with two captions each, and two that are no use."""
  rng = np.random.default_rng(0)
  lines = []
  for k in range(20):
    pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{k}.jpg")
    lines.append({"image": f"{k}.jpg", "text": [f"picture {k}", f"no. {k}"]})
  (tmp_path / "3.jpg").write_bytes(b"no picture")
  lines[5]["text"] = ""
  path = tmp_path / "train.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  return f"jsonl:{path}"


def test_two_epochs_are_those_of_our_pipeline(bv, captioned):
  found, size = batches(bv, captioned, 5, seed=7)
  assert size == 20
  for theirs, own in zip(found, ours(captioned, 5, seed=7), strict=True):
    assert {k: v.dtype for k, v in theirs.items()} == {
      "image": np.uint8,
      "labels": np.int32,
      "_mask": np.bool_,
      "index": np.int32,
    }
    np.testing.assert_array_equal(theirs["index"], own["index"])
    np.testing.assert_array_equal(theirs["_mask"], own["_mask"])
    np.testing.assert_array_equal(theirs["image"], own["image"])
    # A masked row has a caption here and none there; neither is learnt from.
    kept = own["_mask"]
    np.testing.assert_array_equal(theirs["labels"][kept], own["labels"][kept])
  assert not np.concatenate([b["_mask"] for b in found]).all()


def test_training_goes_on_at_a_position(bv, captioned):
  whole, _ = batches(bv, captioned, 6)
  rest, _ = batches(bv, captioned, 3, start=24)
  for a, b in zip(whole[3:], rest, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_faults_travel_and_pictures_of_arrays_are_exact(bv):
  source = "synthetic:train?size=24&image_size=16&noise=0.5"
  found, _ = batches(bv, source, 2, keep=', "fault", "_mask"')
  for theirs, own in zip(found, ours(source, 2, seed=0), strict=True):
    np.testing.assert_array_equal(theirs["image"], own["image"])
    np.testing.assert_array_equal(theirs["fault"], own["fault"])
  assert {0} < set(np.concatenate([b["fault"] for b in found]))


def test_an_ordered_pass_is_the_source(bv, captioned):
  from aced.bv.datasets import DataSource

  source = DataSource(captioned)
  assert source.num_examples_per_process() == [20]
  found = list(source.get_tfdata(ordered=True).as_numpy_iterator())
  assert [record["index"] for record in found] == list(range(20))
  assert found[4]["text"] == b"picture 4"
  assert (found[5]["_mask"], found[5]["text"]) == (False, b"")


def test_processes_share_a_source(bv, captioned, monkeypatch):
  from aced.bv.datasets import DataSource

  monkeypatch.setattr(jax, "process_count", lambda: 3)
  seen = []
  for process in range(3):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    source = DataSource(captioned)
    records = list(source.get_tfdata().as_numpy_iterator())
    assert len(records) == source.num_examples_per_process()[process]
    seen += [int(record["index"]) for record in records]
  assert sorted(seen) == list(range(20))


def test_augmentation_hangs_on_the_seed_of_tensorflow(bv):
  import tensorflow as tf
  from big_vision.pp.builder import get_preprocess_fn

  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  op = get_preprocess_fn("aced_decode(16, crop_scale=(0.2, 0.9), flip=True)")
  encoded = tf.io.encode_png(image)

  def draw():
    tf.random.set_seed(3)
    data = tf.data.Dataset.from_tensors({"image": encoded}).repeat(3).map(op)
    return [record["image"] for record in data.as_numpy_iterator()]

  first, second = draw(), draw()
  np.testing.assert_array_equal(first, second)
  assert (first[0] != first[1]).any()


def test_columns_of_ops_can_be_named(bv):
  import tensorflow as tf
  from big_vision.pp.builder import get_preprocess_fn

  op = get_preprocess_fn(
    'aced_tokenize("bytes", 8, inkey="texts", outkey="labels@b")'
  )
  found = op({"texts": tf.constant("ab")})["labels@b"].numpy()
  np.testing.assert_array_equal(found, load_tokenizer("bytes", 8)(["ab"])[0])
