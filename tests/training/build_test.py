"""From config to objects: weights that a student starts from, projections."""

import jax
import numpy as np
import pytest

from aced.models import params as params_lib
from aced.training import state
from aced.training.build import build
from tests.config_test import load
from tests.train_test import smoke


def test_a_student_starts_from_given_weights(repository, tmp_path):
  first = build(smoke(repository, "iid", seed=1)).init_state()
  params_lib.save_npz(tmp_path / "w.npz", first.params)
  config = smoke(repository, "iid", student__init=str(tmp_path / "w.npz"))
  second = build(config).init_state()
  for a, b in zip(
    jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)
    assert b.sharding.mesh.size == 8
  # The run's draws are its own.
  assert not np.array_equal(first.rng, second.rng)


def test_feature_distillation_across_widths_has_projections(repository):
  run = build(smoke(repository, "kd", "feature"))
  params = run.init_state().params
  shapes = jax.tree.map(np.shape, params[state.PROJECTIONS])
  assert shapes == {"reference": {"image": (32, 48), "text": (32, 48)}}
  assert state.PROJECTIONS not in state.student_params(params)


def test_frozen_models_are_in_neither_state_nor_optimiser(
  repository,
):
  run = build(smoke(repository, "aced"))
  assert list(run.frozen) == ["reference"]
  # Step, rng, and parameters with two moments each and the optimiser's counts.
  student = len(jax.tree.leaves(run.init_state().params))
  total = len(jax.tree.leaves(run.init_state()))
  assert 3 * student + 2 <= total <= 3 * student + 5


def test_quotas_of_devices_are_part_of_a_run(repository):
  """With `per_device` another number of devices would draw other pairs."""
  changes = {"curation__scope": "per_device", "curation__num_chunks": 2}
  run = build(smoke(repository, **changes))
  assert run.identities["curation.scope"] == "8 devices"
  assert "curation.scope" not in build(smoke(repository)).identities


@pytest.mark.parametrize("fsdp", [1, 4])
def test_fsdp_splits_parameters_and_moments(repository, fsdp):
  config = load(repository, "iid").get_config("smoke")
  config.mesh.update(data=-1, fsdp=fsdp)
  made = build(config).init_state()
  name = ("txt", "Embed_0", "embedding")
  leaf = made.params
  for key in name:
    leaf = leaf[key]
  spec = leaf.sharding.spec
  assert ("fsdp" in spec) == (fsdp > 1)
  split = [
    x
    for x in jax.tree.leaves(made.opt_state)
    if x.shape == leaf.shape and x.sharding.spec == spec
  ]
  assert len(split) == 2  # The two moments follow.
