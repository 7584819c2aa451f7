"""Positions, initial values and pixels of the towers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.models import ViT, build, params, transformer
from tests.models.two_towers_test import both, draw, inputs, shapes, tiny


def test_sincos_positions_are_those_of_the_paper():
  height, width, dim = 2, 3, 16
  got = transformer.sincos2d_positions(height, width, dim)
  assert got.shape == (1, 6, 16) and got.dtype == np.float32
  for row in range(height):
    for column in range(width):
      want = [
        wave(place / 10_000 ** (k / (dim // 4 - 1)))
        for place in (column, row)
        for wave in (math.sin, math.cos)
        for k in range(dim // 4)
      ]
      # Only the rounding to float32.
      np.testing.assert_allclose(got[0, row * width + column], want, atol=1e-7)


def test_sincos_positions_of_the_smallest_and_of_a_wrong_width():
  assert np.isfinite(transformer.sincos2d_positions(2, 2, 4)).all()
  with pytest.raises(ValueError, match="a multiple of 4, not 6"):
    transformer.sincos2d_positions(2, 2, 6)


def test_initial_values_have_the_scale_of_big_vision():
  tower = ViT(width=64, depth=1, num_heads=4, patch_size=(4, 4), num_classes=32)
  image = jnp.zeros((1, 32, 32, 3))
  flat = params.flatten(tower.init(jax.random.key(0), image)["params"])
  block = "Transformer/encoderblock_0"
  for name, (fan_in, fan_out) in {
    f"{block}/MlpBlock_0/Dense_0/kernel": (64, 256),
    f"{block}/MlpBlock_0/Dense_1/kernel": (256, 64),
    f"{block}/MultiHeadDotProductAttention_0/query/kernel": (64, 64),
    "head/kernel": (64, 32),
  }.items():
    bound = math.sqrt(6 / (fan_in + fan_out))
    value = np.abs(flat[name])
    # A uniform law: mean of the size is half its bound, within 5% at n > 2000.
    assert value.max() <= bound
    assert value.mean() == pytest.approx(bound / 2, rel=0.05), name
  # Standard deviations of normal laws; 10% is over 3 sigma at n = 64.
  for name, std, rel in (
    ("pos_embedding", 1 / 8, 0.05),
    (f"{block}/MlpBlock_0/Dense_0/bias", 1e-6, 0.2),
  ):
    assert flat[name].std() == pytest.approx(std, rel=rel), name
  assert not np.asarray(flat["embedding/bias"]).any()


def test_pool_type_none_keeps_the_tokens():
  fields = {"width": 8, "depth": 1, "num_heads": 2, "patch_size": (4, 4)}
  tower, image = ViT(**fields, pool_type="none"), inputs()[0]
  tree = draw(jax.eval_shape(tower.init, jax.random.key(0), image)["params"])
  tokens, out = tower.apply({"params": tree}, image)
  assert tokens.shape == (3, 4, 8)
  np.testing.assert_array_equal(tokens, out["encoded"])


@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropout_differs_between_scanned_layers_and_keys(remat):
  model = build(both(scan=True, dropout=0.5, remat=remat))
  image, _ = inputs()
  tree = draw(shapes(both(scan=True), 8, 5))

  @jax.jit
  def embed(key):
    rngs = {"dropout": key}
    return model.apply({"params": tree}, image, None, train=True, rngs=rngs)[0]

  first, second = embed(jax.random.key(1)), embed(jax.random.key(2))
  np.testing.assert_array_equal(first, embed(jax.random.key(1)))
  assert np.abs(np.asarray(first) - second).max() > 1e-3


def test_pixels_of_another_dtype_are_refused():
  model = build(tiny())
  with pytest.raises(ValueError, match="pictures are of dtype int32; expected"):
    model.init(jax.random.key(0), np.ones((1, 8, 8, 3), np.int32), None)


def test_unknown_choices_are_refused_without_build_too():
  fields = {"width": 8, "depth": 1, "num_heads": 2, "patch_size": (4, 4)}
  for wrong in ("pool_type", "posemb", "remat"):
    tower = ViT(**fields, **{wrong: "odd"})
    with pytest.raises(ValueError, match=f"{wrong}='odd' is not known"):
      jax.eval_shape(tower.init, jax.random.key(0), inputs()[0])
