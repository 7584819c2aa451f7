"""Meshes and rules."""

import jax
import jax.numpy as jnp
import pytest

from aced.training import sharding


def shapes():
  return {
    "img": {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)},
    "odd": jnp.zeros((67, 101)),
  }


def test_mesh_takes_what_is_left():
  assert sharding.make_mesh({"data": -1, "fsdp": 2}).devices.shape == (4, 2)
  assert sharding.make_mesh({"data": 8, "fsdp": 1}).devices.shape == (8, 1)
  one = sharding.make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1])
  assert one.size == 1


@pytest.mark.parametrize("data", [3, 16, 0])
def test_a_mesh_that_does_not_fit_is_refused(data):
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    sharding.make_mesh({"data": data, "fsdp": 1})
  with pytest.raises(ValueError, match="at most one may be -1"):
    sharding.make_mesh({"data": -1, "fsdp": -1})


def test_first_match_wins_and_the_longest_axis_is_split():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  specs = jax.tree.map(
    lambda s: s.spec,
    sharding.by_rules(
      shapes(), ((".*bias", "replicate"), (".*", "fsdp")), mesh
    ),
  )
  assert specs["img"]["kernel"] == jax.P(None, "fsdp")
  assert specs["img"]["bias"] == jax.P()
  assert specs["odd"] == jax.P()  # No axis divides by four.


def test_small_parameters_are_whole():
  mesh = sharding.make_mesh({"data": 1, "fsdp": 8})
  found = sharding.by_rules(shapes(), ((".*", "fsdp"),), mesh)
  assert found["img"]["bias"].spec == jax.P()


def test_rules_that_say_nothing_are_refused():
  mesh = sharding.make_mesh({"data": 8, "fsdp": 1})
  with pytest.raises(ValueError, match="no rule matches img/bias"):
    sharding.by_rules(shapes(), (("odd", "fsdp"),), mesh)
  with pytest.raises(ValueError, match="'fsdpp' for img/bias is not known"):
    sharding.by_rules(shapes(), ((".*", "fsdpp"),), mesh)


def test_rows_that_do_not_divide_are_refused_by_name():
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  sharding.check_divides("batch_size", 16, mesh)
  with pytest.raises(ValueError, match="batch_size=12 does not divide over"):
    sharding.check_divides("batch_size", 12, mesh)
