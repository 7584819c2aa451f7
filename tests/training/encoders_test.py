"""The encoder of a decoder, and what the two of them cost."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import config as config_lib
from aced import models
from aced.models import params as params_lib
from aced.training import decoding, encoders
from tests.training.decoders import (
  DECODER,
  build,
  decoded,
  tokens_of,
)
from tests.training.decoding_test import IMAGE, LENGTH, SIZE, TOWER


def test_the_encoder_has_its_own_towers_whatever_the_config_says(encoder):
  for changes in (
    {
      "student__image": {"width": 8, "depth": 3, "patch_size": (4, 4)},
      "student__bias_init": -10.0,
      "student__out_dim": (None, 3),
    },
    {
      "student__variant": "ACED-F1",
      "student__image": {},
      "student__text": {},
      "student__model": "auto",
    },
  ):
    run = build(decoded(encoder, **changes))
    assert run.config.student.image.width == run.encoder.image["width"] == 16
    assert tuple(run.config.student.image.patch_size) == (8, 8)
    assert run.config.student.variant == "" and run.config.student.init
  image = np.random.default_rng(0).integers(
    0, 256, (3, SIZE, SIZE, 3), np.uint8
  )
  tokens = tokens_of(run, image)
  own = models.build({"image": IMAGE, "text": {**TOWER, "vocab_size": 258}})
  params = params_lib.load(encoder)
  want = jax.jit(own.apply)({"params": params}, image)[2]["img/encoded"]
  # One program is whole and one is taken in pieces.
  np.testing.assert_allclose(tokens, want, atol=1e-5)
  # What it resolves to is what resuming compares: it comes to itself.
  again = decoding.build(run.config)
  assert config_lib.differences(run.config, again.config) == []
  assert again.identities == run.identities


def test_pictures_of_another_size_are_resampled_with_a_warning(encoder, caplog):
  with caplog.at_level("WARNING", logger="absl"):
    run = build(decoded(encoder))
  assert "resampled" not in caplog.text
  with caplog.at_level("WARNING", logger="absl"):
    large = build(decoded(encoder, input__image_size=32))
  assert "saw pictures of 16 px, and sees 32 px" in caplog.text
  old, new = (
    np.asarray(x.frozen["encoder"]["img"]["pos_embedding"])
    for x in (run, large)
  )
  assert old.shape == (1, 4, 16) and new.shape == (1, 16, 16)
  # A corner of a bilinear 2 x 2 -> 4 x 4 is that of the smaller grid.
  grid = new.reshape(4, 4, 16)
  np.testing.assert_allclose(grid[::3, ::3].reshape(4, 16), old[0], atol=1e-6)
  mean = 0.75 * old[0, 0] + 0.25 * old[0, 1]
  np.testing.assert_allclose(grid[0, 1], mean, atol=1e-6)
  tokens = tokens_of(large, np.zeros((2, 32, 32, 3), np.uint8))
  assert tokens.shape == (2, 16, 16) and tokens.dtype == jnp.float32
  assert large.identities["frozen.encoder"] != run.identities["frozen.encoder"]


def test_a_random_encoder_is_warned_of(caplog):
  with caplog.at_level("WARNING", logger="absl"):
    run = build(decoded("random", student__image={**IMAGE, "pool_type": "tok"}))
  assert "the encoder has random weights" in caplog.text
  assert "txt" not in run.frozen["encoder"]
  # A class token sees the picture, and is none of its tokens.
  tokens = tokens_of(run, np.zeros((2, SIZE, SIZE, 3), np.uint8))
  assert tokens.shape == (2, 4, 16)
  assert not run.recipe.dropout  # Of which a run that moves is warned.
  dropped = decoded(decoder__model={**DECODER, "dropout": 0.1})
  assert build(dropped).recipe.dropout
  assert run.costs.parts["training"] == decoder_flops(4)
  assert run.costs.parts["encoder"] == 8 * 2 * tower_macs(5, patches=4)


def test_an_encoder_that_is_not_finite_is_refused(encoder, monkeypatch):
  def spoilt(where, read=encoders.read):
    found = read(where)
    params = copy.deepcopy(found.params)
    params["img"]["pos_embedding"][0, 0, 0] = np.nan
    params["txt"]["pos_embedding"][0, 0, 0] = np.nan
    return dataclasses.replace(found, params=params)

  monkeypatch.setattr(encoders, "read", spoilt)
  with pytest.raises(
    params_lib.ParamsError, match="1 parameters .* pos_embedding; name an earl"
  ):
    build(decoded(encoder))


def test_a_decoder_is_no_encoder(whole):
  _, workdir, _ = whole
  with pytest.raises(params_lib.ParamsError, match="decoder"):
    build(decoded(workdir))


# Costs, by hand.


def tower_macs(tokens, patches, width=16, hidden=16):
  """Of blocks and patches; no pooling, which tokens come before."""
  attention = 4 * tokens * width**2 + 2 * tokens**2 * width
  mlp = 2 * tokens * width * hidden
  return patches * (8 * 8 * 3) * width + attention + mlp


def decoder_flops(memory, batch=8):
  """Of a step: 2 FLOPs a product, thrice for forward and backward."""
  d, hidden, length, vocabulary = 32, 64, LENGTH - 1, 256 + 2 + 3
  own = 4 * length * d * d + 2 * length * length * d
  cross = 2 * length * d * d + 2 * memory * 16 * d + 2 * length * memory * d
  mlp = 2 * length * d * hidden
  return 2 * 3 * batch * (own + cross + mlp + length * d * vocabulary)


@pytest.mark.parametrize("size", [16, 32])
def test_costs(encoder, size):
  costs = build(decoded(encoder, input__image_size=size)).costs
  patches = (size // 8) ** 2
  assert costs.parts == {
    "training": decoder_flops(patches),
    "encoder": 8 * 2 * tower_macs(patches, patches),
  }
  assert costs.total == costs.iid == sum(costs.parts.values())
  assert costs.trained == 8 and costs.scored == 0
