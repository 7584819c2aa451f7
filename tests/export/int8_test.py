"""Eight-bit weights: how far off, which, and how small."""

import jax
import ml_dtypes
import numpy as np
import pytest

from aced.export.int8 import dequantise, quantise
from aced.models import build, params
from tests.models.two_towers_test import both, draw, shapes, tiny


def make(scan=False, seed=0):
  changes = {"pool_type": "map", "scan": scan}
  return draw(shapes(both(**changes), 8, 5), seed)


def quantised(tree):
  """`{name: (int8, scale)}` of what is quantised."""
  flat = params.flatten(quantise(tree))
  names = [k.removesuffix("/int8") for k in flat if k.endswith("/int8")]
  return {k: (flat[f"{k}/int8"], flat[f"{k}/scale"]) for k in names}


def channels(name, value):
  """The weights of each output channel as rows, written by name."""
  if name.endswith("embedding"):
    return list(value)
  if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
    return [value[:, h, k] for h, k in np.ndindex(value.shape[1:])]
  return [value[..., k].reshape(-1) for k in range(value.shape[-1])]


def test_every_weight_is_the_nearest_of_255_and_half_a_step_off_at_most():
  tree = make()
  flat, found = params.flatten(tree), quantised(tree)
  for name, (q, scale) in found.items():
    assert q.dtype == np.int8 and q.shape == flat[name].shape
    assert scale.dtype == np.float32
    everywhere = np.broadcast_to(scale, q.shape)
    for w, k, s in zip(
      *(channels(name, x) for x in (flat[name], q, everywhere)), strict=True
    ):
      w = w.astype(np.float64)
      step = np.abs(w).max() / 127
      # Of the scale, which is rounded to float32.
      np.testing.assert_allclose(s, step, rtol=1e-7)
      off = np.abs(w - k * np.float64(s[0]))
      every = np.abs(w[:, None] - np.arange(-127, 128) * np.float64(s[0]))
      # A weight in the middle of two may go either way by a rounding.
      assert (off <= every.min(1) + 1e-6 * np.abs(w).max()).all(), name
      assert (off <= step / 2 + 1e-6 * np.abs(w).max()).all(), name
      assert np.abs(k).max() == 127


def test_matrices_alone_are_rounded():
  tree = make()
  flat, found = params.flatten(tree), quantised(tree)
  kept = {k.split("/")[-1] for k in flat if k not in found}
  assert kept == {"b", "bias", "pos_embedding", "probe", "scale", "t"}
  assert {k.split("/")[-1] for k in found} == {"embedding", "kernel"}
  back = params.flatten(dequantise(quantise(tree)))
  assert back.keys() == flat.keys()
  for name in flat.keys() - found.keys():
    np.testing.assert_array_equal(back[name], flat[name])


def test_stacked_layers_have_scales_of_their_own():
  apart = make()
  stacked = quantise(params.stack_layers(apart))
  want = params.flatten(params.stack_layers(quantise(apart)))
  found = params.flatten(stacked)
  assert found.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(found[name], want[name])
  name = "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel/scale"
  assert found[name].shape == (2, 1, 12)


def test_dequantise_is_jitted_to_the_same_values():
  small = quantise(make(scan=True))
  want = params.flatten(dequantise(small))
  for name, value in params.flatten(jax.jit(dequantise)(small)).items():
    np.testing.assert_array_equal(value, want[name])


@pytest.mark.parametrize("scan", [False, True])
def test_embeddings_keep_their_direction(scan):
  towers = {"width": 64, "depth": 3, "num_heads": 4, "mlp_dim": 256}
  config = both(**towers, scan=scan)
  config["out_dim"] = (None, 64)
  model, tree = build(config), shapes(config, 16, 8)
  # Weights of the size that initialisers give, so that activations stay of
  # order one from layer to layer, as they do in a trained model.
  rng = np.random.default_rng(0)
  tree = params.unflatten(
    {
      name: np.float32(rng.standard_normal(x.shape) / 8 + ("scale" in name))
      for name, x in params.flatten(tree).items()
    }
  )
  image = rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
  text = rng.integers(0, 11, (8, 8)).astype(np.int32)
  apply = jax.jit(lambda p: model.apply({"params": p}, image, text)[:2])
  for z, low in zip(
    apply(tree), apply(dequantise(quantise(tree))), strict=True
  ):
    cosine = np.sum(z * low, axis=1)
    # Measured: 0.9996 at least.
    assert cosine.min() > 0.999
    assert cosine.min() < 1 - 1e-6  # It was rounded.


def test_the_tree_is_nearly_four_times_smaller():
  fields = {"width": 96, "num_heads": 3, "mlp_dim": 384}
  config = both(**fields)
  config["text"]["vocab_size"], config["out_dim"] = 2_000, (None, 96)
  tree = draw(shapes(config, 8, 5))
  before, after = (
    sum(x.nbytes for x in jax.tree.leaves(t)) for t in (tree, quantise(tree))
  )
  # A scale of four bytes for 96 weights of one, and what stays float32.
  assert 3.5 < before / after < 4


def test_zeros_and_bfloat16_and_integers():
  kernel = np.zeros((3, 2), np.float32)
  kernel[:, 1] = 1, -2, 0.5
  tree = {"a": {"kernel": kernel}, "steps": np.int32(3)}
  tree["a"]["bias"] = np.ones(2, ml_dtypes.bfloat16)
  back = dequantise(quantise(tree))
  np.testing.assert_array_equal(back["a"]["kernel"][:, 0], 0)
  np.testing.assert_allclose(back["a"]["kernel"], kernel, atol=1 / 127)
  assert back["a"]["bias"].dtype == np.float32
  assert back["steps"] == 3 and back["steps"].dtype == np.int32


def test_weights_that_are_not_finite_are_refused_by_name():
  tree = draw(shapes(tiny(), 8, 5))
  tree["txt"]["head"]["kernel"][0, 0] = np.nan
  with pytest.raises(ValueError, match="txt/head/kernel has values that are"):
    quantise(tree)
