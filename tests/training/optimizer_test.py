"""The optimiser against its formula, step by step in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import config as config_lib
from aced.training import optimizer


def make(**changes):
  config = config_lib.default().optimizer
  config.update(changes)
  return optimizer.make_optimizer(config, warmup_steps=2, total_steps=6)


def params():
  return {"a": {"kernel": jnp.array([1.0, -2.0])}, "bias": jnp.array([3.0])}


def gradients(step):
  return {
    "a": {"kernel": jnp.array([0.3, -0.1]) * (step + 1)},
    "bias": jnp.array([-0.2]),
  }


def run(tx, count):
  values, state = params(), tx.init(params())
  for step in range(count):
    updates, state = tx.update(gradients(step), state, values)
    values = jax.tree.map(lambda p, u: p + u, values, updates)
  return values


def test_update_is_the_formula():
  """p -= s m (lr adam(clip(g)) + w p), with weight decay on kernels alone."""
  settings = {"learning_rate": 0.1, "weight_decay": 0.01, "clip": 0.25}
  got = run(
    make(**settings, learning_rate_rules=(("bias", 0.5), (".*", 1.0))), 4
  )
  p = np.array([1.0, -2.0, 3.0])
  m = v = np.zeros(3)
  for step in range(4):
    g = np.concatenate(jax.tree.leaves(gradients(step)))
    g = g * min(1.0, 0.25 / np.linalg.norm(g))
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    adam = (m / (1 - 0.9 ** (step + 1))) / (
      np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8
    )
    schedule = (
      (step + 1) / 2 if step < 2 else 0.5 * (1 + np.cos(np.pi * (step - 2) / 4))
    )
    decay = np.array([0.01, 0.01, 0.0]) * p
    p = p - schedule * np.array([1, 1, 0.5]) * (0.1 * adam + decay)
  # float32 arithmetic over four steps.
  np.testing.assert_allclose(got["a"]["kernel"], p[:2], rtol=1e-5)
  np.testing.assert_allclose(got["bias"], p[2:], rtol=1e-5)


def test_a_multiplier_of_zero_freezes_and_keeps_no_moments():
  tx = make(learning_rate_rules=(("a/.*", 0.0), (".*", 1.0)))
  got = run(tx, 3)
  np.testing.assert_array_equal(got["a"]["kernel"], params()["a"]["kernel"])
  assert not np.array_equal(got["bias"], params()["bias"])
  arrays = [x for x in jax.tree.leaves(tx.init(params())) if x.ndim]
  assert [x.shape for x in arrays] == [(1,), (1,)]  # Moments of the bias.


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule(decay):
  schedule = optimizer.make_schedule(decay, 10, 110)
  assert float(schedule(0)) == pytest.approx(0.1)
  assert float(schedule(10)) == pytest.approx(1.0)
  middle = 1.0 if decay == "constant" else 0.5
  assert float(schedule(60)) == pytest.approx(middle)
  end = 1.0 if decay == "constant" else 0.0
  assert float(schedule(110)) == pytest.approx(end, abs=1e-6)
  assert float(schedule(500)) == pytest.approx(end, abs=1e-6)


def test_what_makes_no_schedule_is_refused():
  with pytest.raises(ValueError, match="shorten it"):
    optimizer.make_schedule("cosine", 10, 10)
  with pytest.raises(ValueError, match="decay='cosin' is not known"):
    optimizer.make_schedule("cosin", 1, 10)
