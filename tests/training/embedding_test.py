"""Cheap scoring, and batches that are embedded in two ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import resolve
from aced.models import flexi
from aced.train import train
from aced.training import sharding
from aced.training.embedding import Embedder, _divide, embed
from aced.training.recipe import Recipe, Scoring
from aced.training.tracker import METRICS_FILE, read_jsonl
from tests.models.flexi_test import LENGTH, SIZE, model, params  # noqa: F401
from tests.train_test import smoke

CHEAP = Scoring(patch_size=16, cotrain=0.25)


def batch(n=16):
  rng = np.random.default_rng(0)
  return {
    "image": jnp.asarray(rng.integers(0, 256, (n, SIZE, SIZE, 3)), jnp.uint8),
    "labels": jnp.asarray(rng.integers(0, 20, (n, LENGTH)), jnp.int32),
    "_mask": jnp.ones(n, bool),
  }


def cheaply(model, params, rows):  # noqa: F811
  flexed = flexi.flex(model, SIZE, patch_size=16)
  return embed(flexed.model, flexed.params(params), rows)


@pytest.mark.parametrize("microbatch", [0, 4])
def test_scoring_is_cheap_and_plain_is_not(model, params, microbatch):  # noqa: F811
  scoring = Scoring(patch_size=16, microbatch=microbatch)
  embedder, rows = Embedder(model, scoring), batch()
  for got, want in (
    (embedder.score(params, rows), cheaply(model, params, rows)),
    (embedder.plain(params, rows), embed(model, params, rows)),
  ):
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_share_of_a_batch_trains_as_scoring_looks(model, params, devices):  # noqa: F811
  rows = batch()
  mesh = sharding.make_mesh({"data": -1}, jax.devices()[:devices])
  embedder = Embedder(model, CHEAP, mesh)
  got = jax.jit(embedder.train)(params, rows, jax.random.key(0))
  low, full = cheaply(model, params, rows), embed(model, params, rows)
  is_low = np.isclose(got.zimg, low.zimg, rtol=1e-5, atol=1e-6).all(axis=1)
  is_full = np.isclose(got.zimg, full.zimg, rtol=1e-5, atol=1e-6).all(axis=1)
  assert (is_low ^ is_full).all()
  # A quarter of the rows of each device, spread over them.
  by_device = is_low.reshape(devices, -1)
  assert (by_device.sum(axis=1) == 16 // devices // 4).all()
  np.testing.assert_allclose(got.ztxt, full.ztxt, rtol=1e-5, atol=1e-6)


def test_divided_rows_come_together_again():
  rows = {"x": jnp.arange(24).reshape(12, 2)}
  parts, restore = _divide(rows, 2, 0.5)
  assert [p["x"].shape for p in parts] == [(6, 2), (6, 2)]
  np.testing.assert_array_equal(restore(parts)["x"], rows["x"])


@pytest.mark.slow
def test_training_with_cheap_scoring(repository, tmp_path):
  """Through the loop: cheaper scoring, and a model trained at both sizes."""
  changes = {"scoring__patch_size": 32, "scoring__reference": True}
  train(smoke(repository, "aced", total_steps=3, **changes), tmp_path)
  lines = read_jsonl(tmp_path / METRICS_FILE)
  assert [line["step"] for line in lines] == [1, 2, 3]
  assert lines[-1]["loss/distillation/reference"] > 0


def test_co_training_needs_rows_for_both(repository):
  config = smoke(repository, "acid", scoring__patch_size=32, batch_size=8)
  recipe = Recipe.from_config(resolve(config))
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  with pytest.raises(ValueError, match=r"scoring.cotrain=0.5 of the 1 rows"):
    recipe.check(mesh)
