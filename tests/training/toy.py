"""The smallest model that keeps the contract, and batches for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aced import config as config_lib
from aced.training import optimizer, sharding, state
from aced.training.recipe import Recipe
from aced.training.step import TrainStep

SIZE, LENGTH, VOCABULARY = 4, 3, 8


class Toy(nn.Module):
  """A linear map of pixels and one of one-hot tokens."""

  width: int = 6
  dropout: float = 0.0

  @nn.compact
  def __call__(self, image, text, train=False):
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = drop(image.reshape(image.shape[0], -1))
    y = jax.nn.one_hot(text, VOCABULARY).reshape(text.shape[0], -1)
    zimg, ztxt = (
      z / jnp.linalg.norm(z, axis=1, keepdims=True)
      for z in (
        nn.Dense(self.width, name="img")(x),
        nn.Dense(self.width, name="txt")(y),
      )
    )
    t = self.param("t", lambda rng: jnp.log(jnp.array([10.0])))
    b = self.param("b", lambda rng: jnp.array([-10.0]))
    return zimg, ztxt, {"t": jnp.exp(t), "b": b}


def init_params(model, seed):
  return state.init_params(model, jax.random.key(seed), SIZE, LENGTH)


def make_batch(size, seed=0, masked=()):
  rng = np.random.default_rng(seed)
  mask = np.ones(size, bool)
  mask[list(masked)] = False
  return {
    "image": rng.random((size, SIZE, SIZE, 3), np.float32),
    "labels": rng.integers(0, VOCABULARY, (size, LENGTH)).astype(np.int32),
    "_mask": mask,
    "fault": rng.integers(0, 2, size).astype(np.int8),
  }


class Setup:
  """A toy student, its frozen models and a step, from a config."""

  def __init__(self, config, devices=8, frozen_width=6, dropout=0.0):
    self.config = config_lib.resolve(config)
    self.recipe = Recipe.from_config(self.config)
    self.mesh = sharding.make_mesh(
      {"data": -1, "fsdp": 1}, jax.devices()[:devices]
    )
    self.recipe.check(self.mesh)
    self.model = Toy(dropout=dropout)
    self.frozen_models = {
      name: Toy(width=frozen_width) for name in self.recipe.frozen
    }
    self.frozen = {
      name: init_params(model, 100 + k)
      for k, (name, model) in enumerate(self.frozen_models.items())
    }
    self.optimizer = optimizer.make_optimizer(
      self.config.optimizer, warmup_steps=0, total_steps=10
    )
    self.step = TrainStep(
      self.model,
      self.frozen_models,
      self.optimizer,
      self.recipe,
      self.mesh,
    )

  def init(self, seed=0, maps=None):
    def params(rng):
      own = state.init_params(self.model, rng, SIZE, LENGTH)
      return own | ({state.PROJECTIONS: maps} if maps else {})

    return state.create(
      params,
      self.optimizer,
      seed=seed,
      mesh=self.mesh,
      rules=((".*", "fsdp"),),
    )

  def put(self, batch):
    return jax.tree.map(
      lambda x: (
        jax.device_put(x, sharding.rows(self.mesh, x.ndim)) if np.ndim(x) else x
      ),
      batch,
    )

  def run(self, steps=3, seed=0, masked=()):
    """Takes steps on fresh batches; returns the state and all metrics."""
    step = jax.jit(self.step, donate_argnums=0)
    current, seen = self.init(seed), []
    for k in range(steps):
      batch = make_batch(self.recipe.super_batch, k, masked)
      current, metrics = step(current, self.frozen, self.put(batch))
      seen.append({k: float(v) for k, v in metrics.items()})
    return current, seen
