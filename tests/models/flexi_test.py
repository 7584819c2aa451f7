"""Other patch sizes and resolutions of one set of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import models
from aced.models import flexi
from aced.models.vit import kept_tokens
from aced.training.state import init_params
from tests.training.toy import Toy

SIZE, LENGTH = 32, 4
CONFIG = {
  "image": {
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "patch_size": (8, 8),
    "pool_type": "map",
  },
  "text": {"width": 16, "depth": 1, "num_heads": 2, "vocab_size": 20},
  "out_dim": (None, 16),
  "bias_init": -4.0,
}


@pytest.fixture(scope="module")
def model():
  return models.build(CONFIG)


@pytest.fixture(scope="module")
def params(model):
  return init_params(model, jax.random.key(0), SIZE, LENGTH)


def images(size=SIZE, n=3):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(-1, 1, (n, size, size, 3)), jnp.float32)


def apply(flexed, params, image):
  return flexed.model.apply(
    {"params": flexed.params(params)}, flexed.images(image), None
  )[0]


def test_its_own_sizes_change_nothing(model, params):
  flexed = flexi.flex(model, SIZE, patch_size=8, resolution=SIZE)
  np.testing.assert_array_equal(
    apply(flexed, params, images()),
    model.apply({"params": params}, images(), None)[0],
  )


@pytest.mark.parametrize("new", [12, 16, 24])
def test_enlarged_patches_keep_their_tokens(new):
  """`<B x, v> = <x, w>` exactly, where `B` only enlarges."""
  rng = np.random.default_rng(new)
  kernel = jnp.asarray(rng.standard_normal((8, 8, 3, 5)), jnp.float32)
  patch = jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32)
  large = jax.image.resize(patch, (4, new, new, 3), "bilinear")
  resized = flexi.resize_patches(kernel, (new, new))
  want = jnp.einsum("nhwc,hwcd->nd", patch, kernel, precision="highest")
  got = jnp.einsum("nhwc,hwcd->nd", large, resized, precision="highest")
  # Sums of 600 products of size one.
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_shrunk_patches_are_the_least_squares_solution():
  """By numpy's solver on the resize of whole patches, in float64."""
  rng = np.random.default_rng(1)
  kernel = rng.standard_normal((8, 8, 1, 2))
  basis = jnp.eye(64).reshape(64, 8, 8, 1)
  small = jax.image.resize(basis, (64, 4, 4, 1), "bilinear")
  resize = np.asarray(small, np.float64).reshape(64, 16).T
  want, *_ = np.linalg.lstsq(resize.T, kernel.reshape(64, 2), rcond=None)
  got = flexi.resize_patches(jnp.asarray(kernel, jnp.float32), (4, 4))
  np.testing.assert_allclose(got.reshape(16, 2), want, rtol=1e-4, atol=1e-5)


def test_positions_of_a_ramp_stay_a_ramp():
  ramp = jnp.arange(8.0)[:, None] + 10 * jnp.arange(8.0)[None, :]
  got = flexi.resize_positions(ramp.reshape(1, 64, 1), (16, 16))
  got = got.reshape(16, 16)
  # Away from the edges, a bilinear resize of a plane is the plane.
  np.testing.assert_allclose(jnp.diff(got[2:-2], axis=0), 0.5, rtol=1e-5)
  np.testing.assert_allclose(jnp.diff(got[:, 2:-2], axis=1), 5.0, rtol=1e-5)
  with pytest.raises(ValueError, match="not those of a square grid"):
    flexi.resize_positions(jnp.zeros((1, 60, 2)), (4, 4))


@pytest.mark.parametrize(
  "change, tokens",
  [
    ({"patch_size": 16}, 4),
    ({"resolution": 16}, 4),
    ({"token_drop": 0.5}, 8),
    ({"patch_size": 4, "resolution": 16, "token_drop": 0.25}, 12),
  ],
)
def test_tokens_and_gradients_of_the_one_set_of_parameters(
  model, params, change, tokens
):
  flexed = flexi.flex(model, SIZE, **change)

  def embed(params):
    z, _, out = flexed.model.apply(
      {"params": flexed.params(params)}, flexed.images(images()), None
    )
    return z.sum(), out["img/encoded"].shape[1]

  (_, seen), gradient = jax.value_and_grad(embed, has_aux=True)(params)
  assert seen == tokens
  assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
  assert jnp.abs(gradient["img"]["embedding"]["kernel"]).max() > 0


def test_costs_count_the_tokens_that_are_left():
  whole = models.count(CONFIG, SIZE, LENGTH).image
  table = {**CONFIG["image"], "token_drop": 0.5}
  half = models.count({**CONFIG, "image": table}, SIZE, LENGTH).image
  assert (whole.tokens, half.tokens) == (16, 8)
  assert half.params == whole.params
  assert half.macs < whole.macs


def test_kept_tokens_are_evenly_spaced():
  np.testing.assert_array_equal(kept_tokens(8, 0.5), [1, 3, 5, 7])
  np.testing.assert_array_equal(kept_tokens(4, 0.99), [2])
  np.testing.assert_array_equal(kept_tokens(5, 0.0), range(5))


def test_uint8_pictures_are_resampled_as_floats(model):
  flexed = flexi.flex(model, SIZE, resolution=16)
  grey = jnp.full((1, SIZE, SIZE, 3), 255, jnp.uint8)
  np.testing.assert_allclose(flexed.images(grey), 1.0, rtol=1e-6)


def test_its_own_token_drop_stays():
  table = {**CONFIG["image"], "token_drop": 0.5}
  own = models.build({**CONFIG, "image": table})
  assert flexi.flex(own, SIZE, resolution=16).model.image["token_drop"] == 0.5
  flexed = flexi.flex(own, SIZE, token_drop=0.75)
  assert flexed.model.image["token_drop"] == 0.75


def test_what_cannot_be_flexed_is_refused(model):
  oblong = {**CONFIG["image"], "patch_size": (8, 4)}
  with pytest.raises(ValueError, match="of no square grid"):
    flexi.flex(models.build({**CONFIG, "image": oblong}), SIZE, resolution=16)
  with pytest.raises(ValueError, match=r"resolution=20 with patches of"):
    flexi.flex(model, SIZE, resolution=20)
  with pytest.raises(ValueError, match="at most input.image_size=32"):
    flexi.flex(model, SIZE, resolution=64)
  with pytest.raises(ValueError, match="cannot do so for a Toy"):
    flexi.flex(Toy(), SIZE, patch_size=16)
  sincos = models.build(
    {**CONFIG, "image": {**CONFIG["image"], "posemb": "sincos2d"}}
  )
  with pytest.raises(ValueError, match="no positions to resample"):
    flexi.flex(sincos, SIZE, patch_size=16)
