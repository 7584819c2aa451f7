"""Ours under big_vision's names, found as its code finds them."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import aced.bv
from aced.config import ConfigError
from aced.models.params import save_npz
from aced.models.trees import flatten
from aced.training import sharding
from aced.training.optimizer import make_optimizer

pytestmark = pytest.mark.big_vision


def test_registering_again_changes_nothing(bv):
  names = [
    "big_vision.models.aced.two_towers",
    "big_vision.evaluators.aced.retrieval",
    "big_vision.datasets.aced",
  ]
  before = [sys.modules[name] for name in names]
  aced.bv.register()
  assert [sys.modules[name] for name in names] == before
  assert [importlib.import_module(name) for name in names] == before


def model_of(fields):
  module = importlib.import_module("big_vision.models.aced.two_towers")
  model = module.Model(**ConfigDict(fields))
  image, text = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
  return module, model, jax.jit(model.init)(jax.random.key(0), image, text)


def test_our_model_is_one_of_theirs(bv, fields):
  module, model, variables = model_of(fields)
  out = model.apply(variables, None, jnp.zeros((2, 8), jnp.int32), train=True)
  assert out[0] is None
  assert out[1].shape == (2, 32)
  with pytest.raises(ValueError, match="image.widht"):
    module.Model(**fields | {"image": {"widht": 3}})


def test_our_model_loads_what_theirs_saved_whole_or_in_part(
  bv, fields, tmp_path
):
  module, _, variables = model_of(fields)
  params = jax.device_get(variables["params"])
  path = str(tmp_path / "theirs.npz")
  save_npz(path, jax.tree.map(lambda x: x + 1, params))
  found = flatten(module.load(params, path, ConfigDict(fields)))
  kept = flatten(module.load(params, path, fields, dont_load=["txt/.*", "t"]))
  for name, value in flatten(params).items():
    np.testing.assert_array_equal(found[name], value + 1, err_msg=name)
    inside = name.startswith("txt/") or name == "t"
    want = value if inside else value + 1
    np.testing.assert_array_equal(kept[name], want, err_msg=name)


def test_adam_is_that_of_our_trainer_and_decay_stays_theirs(bv):
  params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
  gradients = jax.tree.map(lambda x: 0.1 * x - 0.2, params)
  theirs, _ = bv.optax.make(
    ConfigDict(
      {
        "optax_name": "aced.scale_by_adam",
        "lr": 1e-2,
        "wd": 1e-3,
        "wd_mults": [("kernel", 1.0), (".*", 0.0)],
        "grad_clip_norm": 1.0,
        "schedule": {"decay_type": "cosine"},
      }
    ),
    params,
    sched_kw={"total_steps": 10, "batch_size": 1, "data_size": 1},
  )
  config = aced_config().optimizer
  config.update(learning_rate=1e-2, weight_decay=1e-3, clip=1.0)
  config.weight_decay_rules = (("kernel", 1.0), (".*", 0.0))
  ours = make_optimizer(config, warmup_steps=0, total_steps=10)
  trees = []
  for optimizer in (theirs, ours):
    tree, state = params, optimizer.init(params)
    for _ in range(3):
      updates, state = optimizer.update(gradients, state, tree)
      tree = optax.apply_updates(tree, updates)
    trees.append(tree)
  # Equal but for the order in which factors are multiplied.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *trees)


def aced_config():
  from aced import config as config_lib

  return config_lib.default()


def test_a_field_that_adam_has_not_is_told(bv):
  with pytest.raises(ConfigError, match="config.optax.beta2"):
    optax.aced.scale_by_adam(beta2=0.9)


def test_parameters_are_split_by_our_rule(bv):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  params = {
    "large": jnp.zeros((64, 128)),
    "odd": jnp.zeros((4099, 2)),
    "small": jnp.zeros((8, 8)),
    "square": jnp.zeros((64, 64)),
  }
  found = bv.sharding.infer_sharding(
    params, strategy=[(".*", 'aced_fsdp(axis="fsdp")')], mesh=mesh
  )
  want = sharding.by_rules(params, [(".*", "fsdp")], mesh)
  for name, x in params.items():
    assert found[name].is_equivalent_to(want[name], x.ndim), name
  assert "fsdp" in found["square"].spec
