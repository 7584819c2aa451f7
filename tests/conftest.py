"""Strict settings for every test: eight devices, no implicit broadcasting."""

import asyncio
import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

from tests import xla

# Set before jax is imported, and handed to the programs that tests start.
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.EIGHT_DEVICES}

import jax
import numpy as np
import pytest
from absl import flags

from aced.embeddings import Embeddings

jax.config.update("jax_numpy_rank_promotion", "raise")
# Worker processes of grain read absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()


def pytest_addoption(parser):
  parser.addoption(
    "--faults", action="store_true", help="the long form of tests/faults"
  )


def pytest_collection_modifyitems(config, items):
  if config.getoption("--faults"):
    return
  skip = pytest.mark.skip(reason="one of the long form; run with --faults")
  for item in items:
    if item.get_closest_marker("faults"):
      item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  """The root of the checkout."""
  return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real image-text sets beside the checkout, if it is there."""
  path = REPOSITORY.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip("the real image-text sets (../shared/data) are not here")
  return path


@pytest.fixture
def quiet_kernel(monkeypatch, repository):
  """One device and no network, as where nothing can be fetched."""
  path = os.environ.get("PYTHONPATH", "")
  monkeypatch.setenv("PYTHONPATH", f"{repository}{os.pathsep}{path}")
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
  monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
  monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
  yield
  asyncio.set_event_loop(None)


@pytest.fixture
def make_embeddings():
  """Returns a maker of seeded, normalised `Embeddings` of matching pairs."""

  def make(seed=0, n=12, d=8, t=10.0, b=-10.0, noise=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    concept = rng.standard_normal((n, d))

    def embed():
      z = concept + noise * rng.standard_normal((n, d))
      z /= np.linalg.norm(z, axis=1, keepdims=True)
      return jax.numpy.asarray(z, dtype)

    return Embeddings(embed(), embed(), t, b)

  return make
