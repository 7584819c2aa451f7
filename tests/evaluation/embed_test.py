"""Embeddings do not depend on how rows are batched, padded or split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.evaluation import embed

WEIGHTS = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def mesh_of(count):
  return jax.make_mesh(
    (1, count),
    ("data", "fsdp"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:count],
  )


def batches(images, size, bad=()):
  """Batches of one size; padding and bad rows hold garbage."""
  for start in range(0, len(images), size):
    index = np.arange(start, start + size)
    image = np.full((size, *images.shape[1:]), 255, images.dtype)
    image[: len(images) - start] = images[start : start + size]
    mask = (index < len(images)) & ~np.isin(index, bad)
    yield {"image": image, "_mask": mask, "index": index}


def model(params, image):
  z = jnp.tanh(image.reshape(len(image), -1).astype(jnp.float32) / 255 @ params)
  return z / jnp.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("size", [7, 16, 64])
def test_batch_size_padding_and_devices_do_not_matter(devices, size):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (37, 2, 2, 3), dtype=np.uint8)
  function = embed.split_rows(model, mesh_of(devices))
  bad = (3, 36)
  got = embed.embed_images(
    functools.partial(function, WEIGHTS), batches(images, size, bad)
  )
  want = np.tanh(images.reshape(37, -1) / 255.0 @ WEIGHTS.astype(np.float64))
  want /= np.linalg.norm(want, axis=1, keepdims=True)
  kept = np.delete(np.arange(37), bad)
  assert got.z.dtype == np.float32
  np.testing.assert_array_equal(got.index, kept)
  # Sums of twelve float32 products, and a division.
  np.testing.assert_allclose(got.z, want[kept], atol=2e-6)


def test_compiles_once():
  traced = []

  def function(params, rows):
    traced.append(rows.shape)
    return model(params, rows)

  images = np.zeros((23, 2, 2, 3), np.uint8)
  function = embed.split_rows(function, mesh_of(8))
  for step in range(2):
    # Other parameters must not compile again either.
    bound = functools.partial(function, WEIGHTS + step)
    embed.embed_images(bound, batches(images, 7))
  assert traced == [(8, 2, 2, 3)]


def test_rows_are_spread_over_the_devices():
  function = embed.split_rows(model, mesh_of(8))
  z = function(WEIGHTS, np.zeros((16, 2, 2, 3), np.uint8))
  assert len(z.sharding.device_set) == 8
  assert {shard.data.shape for shard in z.addressable_shards} == {(2, 5)}


def test_nothing_to_embed():
  got = embed.embed_images(lambda x: x, [])
  assert got.z.shape == (0, 0) and got.index.shape == (0,)


def test_embedders_follow_the_model_contract():
  class Model:
    def apply(self, variables, image, text, train):
      assert not train
      p = variables["params"]
      zimg = None if image is None else image.mean((1, 2)) * p
      ztxt = None if text is None else text * (p + 1.0)
      return zimg, ztxt, {"t": 1.0}

  embed_image, embed_text = embed.embedders(Model(), mesh_of(8))
  image = np.ones((5, 2, 2, 3), np.float32)
  np.testing.assert_array_equal(embed_image(2.0, image), np.full((5, 3), 2.0))
  labels = np.ones((5, 4), np.int32)
  np.testing.assert_array_equal(embed_text(2.0, labels), np.full((5, 4), 3.0))


def lengths(texts):
  return np.array([[len(text), 7] for text in texts], np.int32)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_texts_keep_their_order(size):
  texts = ["a" * k for k in range(1, 10)]
  made = list(embed.text_batches(texts, lengths, size))
  assert {b["labels"].shape for b in made} == {(min(size, 9), 2)}
  got = embed.embed_texts(lambda labels: labels, made)
  np.testing.assert_array_equal(got.z[:, 0], np.arange(1, 10))
  np.testing.assert_array_equal(got.index, np.arange(9))


@pytest.mark.parametrize("processes", [2, 4])
def test_slices_of_processes_join_in_order(monkeypatch, processes):
  # Each process is played in turn; what it would send is then put together.
  texts = [f"{'a' * k}" for k in range(1, 12)]
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  sent = []
  for process in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    parts = list(embed.text_batches(texts, lengths, 4))
    sent.append({k: np.stack([part[k] for part in parts]) for k in parts[0]})
  gathered = {k: [one[k] for one in sent] for k in sent[0]}

  def allgather(local):
    (key,) = (k for k in gathered if np.array_equal(gathered[k][0], local))
    return np.stack(gathered[key])

  monkeypatch.setattr(embed.multihost_utils, "process_allgather", allgather)
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  got = embed.embed_texts(
    lambda labels: labels, embed.text_batches(texts, lengths, 4)
  )
  np.testing.assert_array_equal(got.z[:, 0], np.arange(1, 12))
  np.testing.assert_array_equal(got.index, np.arange(11))


def test_batch_must_divide_over_processes(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  assert embed.batch_rows(256, 10) == 12
  with pytest.raises(ValueError, match="batch_size=6 does not divide over 4"):
    embed.batch_rows(6, 10)


def test_no_texts_are_no_batches():
  assert not list(embed.text_batches([], lengths, 4))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 8, 13])
def test_rows_may_be_a_tree_and_integers_stay(devices, count):
  rng = np.random.default_rng(2)
  large = 2**24 + 1  # float32 has no such number.
  rows = {
    "a": rng.integers(0, 9, (count, 3)).astype(np.int32),
    "b": {"c": rng.random((count, 2, 2), np.float32)},
  }

  def function(params, rows):
    lowest = (rows["b"]["c"].sum((1, 2)) * params).astype(np.int32)
    return rows["a"] * large + lowest[:, None]

  got = embed.split_rows(function, mesh_of(devices))(5.0, rows)
  want = rows["b"]["c"].astype(np.float64).sum((1, 2)) * 5
  assert got.dtype == np.int32 and got.shape == (count, 3)
  np.testing.assert_array_equal(
    got, rows["a"] * large + want.astype(np.int32)[:, None]
  )


def test_floats_become_float32_and_booleans_stay():
  for dtype, want in (
    (jnp.bfloat16, np.float32),
    (jnp.float32, np.float32),
    (jnp.bool_, np.bool_),
    (jnp.int8, np.int8),
  ):
    function = embed.split_rows(lambda p, x, to=dtype: x.astype(to), mesh_of(8))
    assert function(0, np.ones((3, 2), np.float32)).dtype == want


def test_arrays_of_different_numbers_of_rows_are_refused():
  function = embed.split_rows(lambda p, x: x["a"], mesh_of(8))
  rows = {"a": np.zeros((9, 2)), "b": np.zeros((8, 2)), "c": np.zeros((9, 2))}
  with pytest.raises(ValueError, match="the arrays have 9, 8, 9 rows"):
    function(0, rows)


@pytest.mark.parametrize("size", [3, 5, 32])
def test_collect_gives_a_function_whole_batches_and_keeps_integers(size):
  images = np.arange(2**24, 2**24 + 11, dtype=np.int32)[:, None, None, None]
  seen = []

  def function(batch):
    seen.append(set(batch))
    return batch["image"][:, 0, 0] * np.array([[1, -1]], np.int32)

  got = embed.collect(function, batches(images, size, bad=(0, 4)))
  kept = np.delete(np.arange(11), (0, 4))
  assert got.z.dtype == np.int32 and got.index.dtype == np.int64
  np.testing.assert_array_equal(got.index, kept)
  np.testing.assert_array_equal(got.z[:, 0], 2**24 + kept)
  np.testing.assert_array_equal(got.z[:, 1], -(2**24) - kept)
  assert seen == [{"image", "_mask", "index"}] * -(-11 // size)


def test_collect_without_batches_or_with_none_that_count():
  assert embed.collect(lambda batch: batch["image"], []).index.shape == (0,)
  images = np.zeros((3, 1, 1, 1), np.int32)
  got = embed.collect(
    lambda batch: batch["image"][:, 0, 0], batches(images, 2, bad=(0, 1, 2))
  )
  assert got.z.shape == (0, 1) and got.index.shape == (0,)


def test_the_next_batch_is_under_way_before_the_last_is_waited_for():
  order = []

  class Pending:
    def __init__(self, number):
      self.number = number
      order.append(("begun", number))

    def __array__(self, dtype=None, copy=None):
      order.append(("fetched", self.number))
      return np.zeros((2, 1), np.int32)

  images = np.zeros((6, 1, 1, 1), np.int32)
  numbers = iter(range(3))
  embed.collect(lambda batch: Pending(next(numbers)), batches(images, 2))
  assert order == [
    *(("begun", 0), ("begun", 1), ("fetched", 0)),
    *(("begun", 2), ("fetched", 1), ("fetched", 2)),
  ]
