"""Shapes drawn up without data or weights, against those of a run."""

import jax
import pytest

from aced.training.build import build
from tests.cache_test import folder, with_cache  # noqa: F401
from tests.train_test import smoke


def described(tree):
  """Shape, dtype and sharding of every leaf."""
  return jax.tree.map(
    lambda x: (x.shape, x.dtype, getattr(x, "sharding", None)), tree
  )


@pytest.mark.parametrize(
  ("kind", "fsdp"), [("plain", 1), ("plain", 4), ("cached", 1), ("views", 4)]
)
def test_shapes_are_those_of_the_run(repository, folder, kind, fsdp):  # noqa: F811
  config = smoke(repository, "kd", "feature", mesh__fsdp=fsdp)
  if kind == "views":
    config["frozen"]["reference"] |= {"image_size": 48, "text_length": 20}
  if kind == "cached":
    config = smoke(repository, "acid", mesh__fsdp=fsdp)
    config = with_cache(config, folder, init="")
  run = build(config)
  state, frozen, batch = run.shapes()
  assert described(state) == described(run.init_state())
  assert described(frozen) == described(run.frozen)
  with run.batches(0) as batches:
    real, _ = next(batches)
  real.pop("fault")  # Known of built-in data alone; a plan opens none.
  scales = [real.pop("cached", {}), batch.pop("cached", {})]
  assert described(batch) == described(real)
  for a, b in zip(*map(jax.tree.leaves, scales), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
