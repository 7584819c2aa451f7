"""From a config of big_vision's to the objects of a training run."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from ml_collections import ConfigDict

from aced.bv import compat, frozen, keys, ops, tables
from aced.bv.step import Update
from aced.bv.towers import Towers, init_params, widths
from aced.config import ConfigError
from aced.models import trees
from aced.training import sharding, views
from aced.training.blueprint import check_vocabulary
from aced.training.recipe import Recipe
from aced.training.step import TrainStep

PP_MODULES = ("ops_general", "ops_image", "ops_text")
# Of big_vision: where parameters and activations live if a config is silent.
EMBEDDING = "txt/Embed_0/embedding"  # By id, of both projects' text towers.
EVERYWHERE = [(".*", "replicate")]
RULES = [("act_batch", "data")]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """Everything that the loop needs, made from one config.

  Attributes:
    config: big_vision's, with our three keys.
    method: what these say.
    mesh: `config.mesh`, by whose axes parameters are split.
    rows_mesh: the same devices in the same order, over which rows are split.
    dataset: the super-batches of this process, a `tf.data.Dataset`.
    data_size: records of the data set.
    total_steps: of the run.
    model: the student.
    module: of big_vision, that the student's model is of.
    optimizer: of `big_vision.optax.make`.
    schedules: of learning rates, on the CPU.
    shardings: of the train state.
    frozen_models: name -> model.
    vocabularies: `(model, column of ids, ids that it knows)` of each.
    rngs: of the initial parameters, and of the loop.
  """

  config: ConfigDict
  method: tables.Method
  mesh: jax.sharding.Mesh
  rows_mesh: jax.sharding.Mesh
  dataset: Any
  data_size: int
  total_steps: int
  model: Towers
  module: ModuleType
  optimizer: optax.GradientTransformation
  schedules: list[Callable[[Any], Any]]
  shardings: Any
  frozen_models: Mapping[str, Towers]
  vocabularies: Sequence[tuple[str, str, int]]
  rngs: tuple[jax.Array, jax.Array]

  @property
  def devices(self) -> np.ndarray:
    """All devices, in the order in which they hold rows."""
    return self.mesh.devices.flatten()

  @property
  def replicated(self) -> jax.NamedSharding:
    """The whole array on every device."""
    return jax.NamedSharding(self.mesh, jax.P())

  def steps(self, name: str, default: Any = ValueError, config=None) -> Any:
    """A duration of the config in steps; a pair that is trained on counts."""
    return compat.load().utils.steps(
      name,
      self.config if config is None else config,
      self.data_size,
      self.config.input.batch_size,
      self.total_steps,
      default,
    )

  @contextlib.contextmanager
  def placed(self) -> Iterator[None]:
    """The context in which models run: the mesh, and rules for activations."""
    rules = self.config.get("sharding_rules", RULES)
    with warnings.catch_warnings():
      # JAX has a newer way to say it, which flax's rules do not know.
      warnings.simplefilter("ignore", DeprecationWarning)
      with self.mesh, nn.logical_axis_rules(rules):
        yield

  def checked_batches(self) -> Iterator[Mapping[str, Any]]:
    """Super-batches of this process, as tensors.

    Raises:
      ConfigError: an id of a text is more than a model knows.
    """
    columns = {column for _, column, _ in self.vocabularies}
    for batch in self.dataset:
      # The tokenizers of big_vision do not say how many ids they have.
      most = {c: int(batch[c].numpy().max(initial=0)) for c in columns}
      sizes = {c: largest + 1 for c, largest in most.items()}
      check_vocabularies(self.vocabularies, sizes, "a batch of config.input")
      yield batch

  def infer_sharding(self, shapes: Any) -> Any:
    """Shardings of a tree of shapes by `config.sharding_strategy`."""
    return infer_sharding(self.config, shapes, self.mesh)

  def init_state(self) -> dict[str, Any]:
    """Random parameters and the optimiser's first state, on the devices."""
    utils = compat.load().utils
    rng = utils.reshard(self.rngs[0], self.replicated)
    init = functools.partial(init_params, self.model, self.dataset.element_spec)
    params = jax.jit(init, out_shardings=self.shardings["params"])(rng)
    opt = jax.jit(self.optimizer.init, out_shardings=self.shardings["opt"])
    return {"params": params, "opt": opt(params)}

  def update(self) -> Callable[..., Any]:
    """The step, jitted; it takes over the buffers of the state."""
    inner = TrainStep(
      self.model,
      self.frozen_models,
      self.optimizer,
      self.method.recipe,
      self.rows_mesh,
      views.Views({k: v.view for k, v in self.method.frozen.items()}),
    )
    return jax.jit(
      Update(inner, self.config.get("schedule", {})),
      donate_argnums=0,
      out_shardings=(self.shardings, self.replicated),
    )


def build(config: ConfigDict, start: int = 0) -> Run:
  """Checks a config and builds the objects of its run.

  Args:
    config: of big_vision's SigLIP trainer, perhaps with our three keys.
    start: steps taken already, whose pairs `bv:aced` does not read again.

  Raises:
    ConfigError: one of the three keys is wrong, or at odds with the data.
    ValueError: sizes that do not fit the devices, or a name that is not known.
  """
  bv = compat.load()
  method = tables.read(config)
  for name in config.get("pp_modules", PP_MODULES):
    compat.module("pp", name)
  mesh = make_mesh(config)
  rows_mesh = jax.sharding.Mesh(mesh.devices.reshape(-1, 1), sharding.AXES)
  method.recipe.check(rows_mesh)
  dataset, data_size = read_data(config, method, start)
  batch_size = config.input.batch_size
  total_steps = bv.utils.steps("total", config, data_size, batch_size)

  module = compat.module("models", config.model_name)
  model = frozen.make(module, config.get("model", {}), "config.model")
  rng = jax.random.PRNGKey(bv.utils.put_cpu(config.get("seed", 0)))
  rng, init_rng = jax.random.split(rng)
  _, loop_rng = jax.random.split(rng, 2)
  spec = dataset.element_spec
  shapes = jax.eval_shape(functools.partial(init_params, model, spec), init_rng)
  frozen_models = {k: frozen.model(t) for k, t in method.frozen.items()}
  check_widths(method, model, frozen_models, spec)
  models = {"config.model": (model, views.View())}
  models |= {
    table.where: (frozen_models[name], table.view)
    for name, table in method.frozen.items()
  }
  vocabularies = find_vocabularies(models, spec, init_rng)
  for where, table in keys.datasets(config).items():
    check_vocabularies(vocabularies, ops.vocab_sizes(table.get("pp")), where)
  optimizer, schedules = bv.optax.make(
    config,
    shapes,
    sched_kw={
      "total_steps": total_steps,
      "batch_size": batch_size,
      "data_size": data_size,
    },
  )
  shapes = {"params": shapes, "opt": jax.eval_shape(optimizer.init, shapes)}
  return Run(
    config=config,
    method=method,
    mesh=mesh,
    rows_mesh=rows_mesh,
    dataset=dataset,
    data_size=data_size,
    total_steps=total_steps,
    model=model,
    module=module,
    optimizer=optimizer,
    schedules=[bv.utils.jit_cpu()(schedule) for schedule in schedules],
    shardings=infer_sharding(config, shapes, mesh),
    frozen_models=frozen_models,
    vocabularies=vocabularies,
    rngs=(init_rng, loop_rng),
  )


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """The mesh of `config.mesh`, of all devices; one size may be -1."""
  axes, sizes = zip(*config.get("mesh", [("data", jax.device_count())]))
  sizes = np.arange(jax.device_count()).reshape(sizes).shape
  return jax.sharding.Mesh(mesh_utils.create_device_mesh(sizes), axes)


def infer_sharding(config: ConfigDict, shapes: Any, mesh: Any) -> Any:
  """Shardings of a tree of shapes by `config.sharding_strategy`."""
  strategy = config.get("sharding_strategy", EVERYWHERE)
  return compat.load().sharding.infer_sharding(
    shapes, strategy=strategy, mesh=mesh
  )


def read_data(
  config: ConfigDict, method: tables.Method, start: int
) -> tuple[Any, int]:
  """The super-batches of this process, and the records of the data set.

  Raises:
    ConfigError: a column that a model sees is missing, or the data set is
      smaller than a super-batch.
  """
  recipe = method.recipe
  given = config.input.copy_and_resolve_references()
  with given.unlocked():
    given.batch_size = recipe.super_batch
    if given.data.get("name") == keys.SOURCE:
      given.data.start = start * recipe.super_batch // jax.process_count()
  try:
    dataset, size = compat.load().input_pipeline.training(given)
  except (AssertionError, KeyError, TypeError) as error:
    raise ConfigError(
      f"config.input: {type(error).__name__}: {error}"
    ) from error
  check_rows(dataset.element_spec, recipe)
  if recipe.curated and size < recipe.super_batch:
    raise ConfigError(
      f"the super-batch of {recipe.super_batch} pairs ({recipe.batch_size}"
      " trained on, the rest discarded) is larger than the data set of"
      f" {size}; lower config.input.batch_size or config.curation.filter_ratio."
    )
  seen = {"the student": views.View()}
  seen |= {table.where: table.view for table in method.frozen.values()}
  for who, view in seen.items():
    for column in view[:2]:
      if column not in dataset.element_spec:
        made = ", ".join(sorted(dataset.element_spec)) or "none"
        raise ConfigError(
          f"{who} sees the column {column!r}, which config.input.pp does not"
          f" make; it makes {made}."
        )
  return dataset, size


def check_rows(spec: Mapping[str, Any], recipe: Recipe) -> None:
  """Refuses batches of another size than the config says.

  Raises:
    ConfigError: naming the size and a column.
  """
  processes = jax.process_count()
  for column, tensor in spec.items():
    rows = tensor.shape[0] if tensor.shape.rank else 1
    if rows != recipe.super_batch / processes:
      raise ConfigError(
        f"a step of config.input.batch_size={recipe.batch_size} pairs reads"
        f" {recipe.super_batch}, and the column {column!r} has {rows} rows from"
        f" each of {processes} processes; choose sizes that divide over them,"
        " and operations that keep the number of pairs."
      )


def find_vocabularies(
  models: Mapping[str, tuple[Towers, views.View]],
  spec: Mapping[str, Any],
  rng: jax.Array,
) -> list[tuple[str, str, int]]:
  """`(model, column of ids, ids that it knows)`, of models that show it.

  Args:
    models: where its config stands -> a model, and the columns that it sees.
    spec: column -> its `tf.TensorSpec`.
    rng: of initial parameters, none of which is computed.
  """
  found = []
  for where, (model, view) in models.items():
    init = functools.partial(init_params, model, spec, view=view)
    flat = trees.flatten(jax.eval_shape(init, rng))
    if EMBEDDING in flat:
      found.append((where, view.labels, flat[EMBEDDING].shape[0]))
  return found


def check_vocabularies(
  vocabularies: Sequence[tuple[str, str, int]],
  sizes: Mapping[str, int],
  where: str,
) -> None:
  """Refuses ids that a model has no embedding for.

  Args:
    vocabularies: of `find_vocabularies`.
    sizes: column -> ids in it.
    where: these are from, for messages.

  Raises:
    ConfigError: naming the model.
  """
  for model, column, known in vocabularies:
    whose = f"{model}, which sees the column {column!r} of {where},"
    check_vocabulary(known, sizes.get(column, 0), whose)


def check_widths(
  method: tables.Method,
  model: Towers,
  frozen_models: Mapping[str, Towers],
  spec: Mapping[str, Any],
) -> None:
  """Refuses teachers of another width where embeddings are compared.

  Our own trainer learns linear maps between the two; here the train state has
  no room for them.
  """
  if method.recipe.distill_loss != "feature":
    return
  ours = widths(model, spec)
  for name, _ in method.recipe.teachers:
    theirs = widths(frozen_models[name], spec, method.frozen[name].view)
    if theirs != ours:
      raise ConfigError(
        f"config.teachers.{name}.loss='feature' needs embeddings as wide as the"
        f" student's, {ours} for picture and text, and it has {theirs}; choose"
        " loss='softmax' or another out_dim."
      )
