"""What tests of big_vision share: the clone, with our names in it."""

import warnings

import pytest

from aced.bv import compat


@pytest.fixture(scope="session")
def bv():
  """big_vision's building blocks; the test is skipped where it is not."""
  try:
    compat.find()
  except ModuleNotFoundError as error:
    pytest.skip(str(error))
  with warnings.catch_warnings():
    # Those of TensorFlow and of big_vision, as they are loaded, are not ours.
    warnings.simplefilter("ignore")
    from aced.bv import names

    names.register()
    compat.module("pp", "ops_general")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return compat.load()


@pytest.fixture
def fields():
  """Fields of two tiny towers that both projects have."""
  shape = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
  return {
    "image": {"patch_size": (8, 8), "pool_type": "map", **shape},
    "text": {"vocab_size": 258, **shape},
    "out_dim": (None, 32),
    "temperature_init": 10.0,
    "bias_init": -2.71,
  }
