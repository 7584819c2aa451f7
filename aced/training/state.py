"""What a step changes, and how it starts."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from aced.training import sharding

# The subtree of `params` that belongs to the losses and not to the student.
PROJECTIONS = "projections"


@flax.struct.dataclass
class TrainState:
  """All that a step reads and writes; what a checkpoint holds.

  Attributes:
    step: scalar int32, updates taken so far.
    params: the student's parameters, and under "projections" the linear maps
      of feature distillation where there are any.
    opt_state: of the optimiser.
    rng: the raw data of the run's PRNG key; each step folds its number in.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  rng: jax.Array


def student_params(params: Any) -> Any:
  """The student's own parameters, without those of the losses."""
  return {k: v for k, v in params.items() if k != PROJECTIONS}


def init_params(
  model: nn.Module, rng: jax.Array, image_size: int, text_length: int
) -> Any:
  """Random parameters of a two-tower model."""
  image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
  labels = jnp.zeros((1, text_length), jnp.int32)
  return model.init(rng, image, labels)["params"]


def initial(
  init, optimizer: optax.GradientTransformation, seed: int, given: Any = None
) -> TrainState:
  """The state before the first step, as `create` makes it on the devices."""
  init_rng, run_rng = jax.random.split(jax.random.key(seed))
  params = {**init(init_rng), **(given or {})}
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    rng=jax.random.key_data(run_rng),
  )


def create(
  init,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  given: Any = None,
) -> TrainState:
  """Builds the first state, each array made where it will live.

  Args:
    init: `rng -> params`.
    optimizer: of `make_optimizer`.
    seed: of the parameters and of every draw of the run.
    mesh: from `sharding.make_mesh`.
    rules: `(regex, strategy)` for the parameters; the optimiser's moments
      follow them, since their names end in the parameters' names.
    given: parameters that take the place of those of the same name at the top
      of the tree, such as loaded ones.
  """
  given = given or {}

  def build(given):
    return initial(init, optimizer, seed, given)

  where = shardings(lambda: build(given), mesh, rules)
  jitted = jax.jit(build, out_shardings=where)
  # It runs once: on a CPU, optimising it takes longer than running it does.
  cpu = mesh.devices.flat[0].platform == "cpu"
  options = {"xla_backend_optimization_level": 0} if cpu else None
  return jitted.lower(given).compile(compiler_options=options)(given)


def shardings(build, mesh: jax.sharding.Mesh, rules: sharding.Rules) -> Any:
  """Shardings of the state that `build()` would return."""
  shapes = jax.eval_shape(build)
  params = sharding.by_rules(shapes.params, rules, mesh)
  everything = [(f".*/{pattern}", value) for pattern, value in rules]
  opt_state = sharding.by_rules(
    shapes.opt_state, [*everything, (".*", "replicate")], mesh
  )
  whole = sharding.replicated(mesh)
  return TrainState(step=whole, params=params, opt_state=opt_state, rng=whole)
