"""The optimiser: Adam, decoupled weight decay, a schedule, rules by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from aced.training import sharding


def make_schedule(
  decay: str, warmup_steps: int, total_steps: int
) -> Callable[[jax.Array], jax.Array]:
  """Returns `step -> factor`: linear warm-up to 1, then decay to 0.

  Args:
    decay: "cosine", "linear" or "constant".
    warmup_steps: steps of linear warm-up; the first step has factor
      `1 / warmup_steps`, not 0.
    total_steps: the step at which the decay reaches 0.

  Raises:
    ValueError: an unknown decay, or a warm-up that takes the whole run.
  """
  if warmup_steps >= total_steps > 0 and warmup_steps:
    raise ValueError(
      f"optimizer.warmup_* is {warmup_steps} steps of {total_steps} in all;"
      " shorten it."
    )
  after = max(total_steps - warmup_steps, 1)
  shapes = {
    "cosine": lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)),
    "linear": lambda x: 1 - x,
    "constant": jnp.ones_like,
  }
  if decay not in shapes:
    raise ValueError(
      f"optimizer.decay={decay!r} is not known; it is one of"
      f" {', '.join(shapes)}."
    )

  def schedule(step):
    done = jnp.clip((step - warmup_steps) / after, 0.0, 1.0)
    warm = (step + 1) / max(warmup_steps, 1)
    return jnp.where(step < warmup_steps, warm, shapes[decay](done))

  return schedule


def make_optimizer(
  config: ConfigDict, *, warmup_steps: int, total_steps: int
) -> optax.GradientTransformation:
  """Returns the optimiser of `config.optimizer`.

  One update is `p -= s * m * (learning_rate * adam(clip(g)) + w * p)` with `s`
  the schedule's factor, `m` the parameter's learning-rate multiplier and `w`
  the weight decay times the parameter's own multiplier. Weight decay is thus
  decoupled from the learning rate (arXiv 1711.05101, algorithm 2), which is
  what the papers' 1e-4 beside a learning rate of 1e-3 means.

  Args:
    config: `learning_rate`, `weight_decay`, `b1`, `b2`, `eps`, `clip`,
      `decay`, `learning_rate_rules`, `weight_decay_rules`, `mu_dtype`.
    warmup_steps: of the schedule.
    total_steps: of the schedule.
  """

  def multipliers(rules):
    return lambda params: sharding.map_named(
      lambda name, _: float(sharding.match(name, rules, 1.0)), params
    )

  schedule = make_schedule(config.decay, warmup_steps, total_steps)
  train = optax.chain(
    optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
    optax.scale_by_adam(
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      mu_dtype=jnp.dtype(config.mu_dtype),
    ),
    optax.scale(config.learning_rate),
    _add_decay(config.weight_decay, multipliers(config.weight_decay_rules)),
    _scale_by(multipliers(config.learning_rate_rules)),
    optax.scale_by_schedule(schedule),
    optax.scale(-1.0),
  )

  def labels(params):
    scale = multipliers(config.learning_rate_rules)(params)
    return jax.tree.map(lambda m: "train" if m else "frozen", scale)

  # A frozen parameter has no moments, and no part in the gradient's norm.
  return optax.partition(
    {"train": train, "frozen": optax.set_to_zero()}, labels
  )


def _add_decay(weight, multipliers):
  """Adds `weight * multiplier * p` to the update of every parameter `p`."""

  def update(updates, params):
    return jax.tree.map(
      # Left out where it is zero, or the update would depend on the parameter
      # and XLA could not write it in its place.
      lambda u, p, m: u + weight * m * p if weight * m else u,
      updates,
      params,
      multipliers(params),
    )

  return optax.stateless(update)


def _scale_by(multipliers):
  """Multiplies every update by the multiplier of its parameter."""

  def update(updates, params):
    return jax.tree.map(lambda u, m: m * u, updates, multipliers(params))

  return optax.stateless(update)
