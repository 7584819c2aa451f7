"""From a resolved config to the objects of a run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

import aced
from aced import config as config_lib
from aced import evaluation, models
from aced.data import devices, pipeline, sources, tokenizers
from aced.data.transforms import Transform
from aced.models import params as params_lib
from aced.training import ledger, optimizer, sharding, state
from aced.training.embedding import embed
from aced.training.recipe import Recipe
from aced.training.step import TrainStep

# `init` of a frozen model that was never trained, for trying things out.
RANDOM = "random"
# Steps between two events where the config does not say; None is the whole run.
EVERY = {"log": 10, "eval": None, "checkpoint": 1000}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """Everything that a training loop needs, made from one config.

  Attributes:
    config: resolved.
    mesh: of all devices.
    source: the pairs to learn from.
    tokenizer: captions to token ids.
    transform: records to pictures.
    student: the model that is trained.
    frozen_models: name -> model.
    frozen: name -> parameters, on the devices.
    fingerprints: name -> fingerprint of those parameters.
    optimizer: the optimiser.
    recipe: the method, as static values.
    total_steps: of the run.
    every: steps between two events: "log", "eval" and "checkpoint".
    costs: FLOPs of a step.
  """

  config: ConfigDict
  mesh: jax.sharding.Mesh
  source: Any
  tokenizer: Any
  transform: Any
  student: nn.Module
  frozen_models: Mapping[str, nn.Module]
  frozen: Mapping[str, Any]
  fingerprints: Mapping[str, str]
  optimizer: optax.GradientTransformation
  recipe: Recipe
  total_steps: int
  every: Mapping[str, int]
  costs: ledger.Ledger

  def batches(self, start: int) -> devices.DeviceBatches:
    """Super-batches on the devices, from step `start` on."""
    config = self.config.input
    host = pipeline.superbatches(
      self.source,
      self.tokenizer,
      self.transform,
      batch_size=self.recipe.super_batch,
      seed=self.config.seed,
      start_step=start,
      num_steps=self.total_steps - start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_threads=config.num_threads,
      num_workers=config.num_workers,
      prefetch=config.prefetch,
    )
    return devices.to_devices(
      host,
      lambda _, x: sharding.rows(self.mesh, x.ndim),
      depth=config.prefetch,
    )

  def evaluators(self) -> list[evaluation.Evaluator]:
    """The evaluators of `config.evals`; an empty source turns one off."""
    transform = make_transform(self.config.input, train=False)
    return [
      evaluation.build(name, table.to_dict(), self.tokenizer, transform)
      for name, table in self.config.evals.items()
      if table.get("source") != ""
    ]

  def metadata(self, step: int) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
      "config": config_lib.flatten(self.config),
      "step": step,
      "position": step * self.recipe.super_batch,
      "identities": self.identities(),
      "version": aced.__version__,
    }

  def identities(self) -> dict[str, str]:
    """What a run must find again to go on, beyond what its config names."""
    frozen = {f"frozen.{k}": v for k, v in self.fingerprints.items()}
    return frozen | {
      "input.source": f"{len(self.source)} records",
      "input.tokenizer": f"{self.tokenizer.vocab_size} token ids",
    }

  def init_state(self) -> state.TrainState:
    """The state before the first step, on the devices."""
    where = self.config.student.init
    given = None
    if where:
      like = jax.eval_shape(self._init_student, jax.random.key(0))
      given = params_lib.merge(params_lib.load(where), like)
    return state.create(
      self.init_params,
      self.optimizer,
      seed=self.config.seed,
      mesh=self.mesh,
      rules=self.config.sharding,
      given=given,
    )

  def init_params(self, rng: jax.Array) -> Any:
    """Random parameters of the student, and of the losses that have any."""
    student_rng, maps_rng = jax.random.split(rng)
    params = self._init_student(student_rng)
    maps = self._projections(maps_rng)
    return {**params, state.PROJECTIONS: maps} if maps else params

  def _init_student(self, rng):
    size, length = self.config.input.image_size, self.config.input.text_length
    return state.init_params(self.student, rng, size, length)

  def train_step(self, state_like: state.TrainState) -> Any:
    """The step, jitted; it takes over the buffers of the state.

    The state comes out sharded as it went in. Left to itself, XLA may split a
    bias along with its kernel, and the next step would not take it.
    """
    step = TrainStep(
      self.student,
      self.frozen_models,
      self.optimizer,
      self.recipe,
      self.mesh,
    )
    shardings = jax.tree.map(lambda x: x.sharding, state_like)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

  def widths(self, model: nn.Module) -> tuple[int, int]:
    """Widths of a model's image and text embeddings."""
    size, length = self.config.input.image_size, self.config.input.text_length

    def shapes(rng):
      params = state.init_params(model, rng, size, length)
      batch = {
        "image": jnp.zeros((1, size, size, 3)),
        "labels": jnp.zeros((1, length), jnp.int32),
      }
      return embed(model, params, batch)

    found = jax.eval_shape(shapes, jax.random.key(0))
    return found.zimg.shape[1], found.ztxt.shape[1]

  def _projections(self, rng):
    """Linear maps of feature distillation, for teachers of another width."""
    if self.recipe.distill_loss != "feature":
      return {}
    ours, maps = self.widths(self.student), {}
    for name, _ in self.recipe.teachers:
      theirs = self.widths(self.frozen_models[name])
      if theirs != ours:
        rngs = jax.random.split(rng, 2)
        kernel = nn.initializers.lecun_normal()
        maps[name] = {
          "image": kernel(rngs[0], (ours[0], theirs[0])),
          "text": kernel(rngs[1], (ours[1], theirs[1])),
        }
    return maps


def build(config: Mapping[str, Any]) -> Run:
  """Checks a config and builds the objects of its run.

  Raises:
    ConfigError: the config is wrong, or at odds with the data or the devices.
    ValueError: a source, a tokenizer or weights are wrong; says how.
  """
  config = config_lib.resolve(config)
  recipe = Recipe.from_config(config)
  mesh = sharding.make_mesh(config.mesh)
  recipe.check(mesh)
  source = sources.open_source(config.input.source)
  if recipe.super_batch > len(source):
    raise config_lib.ConfigError(
      f"the super-batch of {recipe.super_batch} pairs is larger than the data"
      f" set {config.input.source!r} of {len(source)}; lower batch_size or"
      " curation.filter_ratio."
    )
  tokenizer = tokenizers.load(config.input.tokenizer, config.input.text_length)
  total_steps = config_lib.steps(
    "total", config, batch_size=recipe.batch_size, data_size=len(source)
  )
  student = build_model(config.student, tokenizer)
  frozen_models = {
    name: build_model(config.frozen[name], tokenizer) for name in recipe.frozen
  }
  frozen, fingerprints = load_frozen(config, frozen_models, mesh)
  return Run(
    config=config,
    mesh=mesh,
    source=source,
    tokenizer=tokenizer,
    transform=make_transform(config.input),
    student=student,
    frozen_models=frozen_models,
    frozen=frozen,
    fingerprints=fingerprints,
    optimizer=make_optimizer(config, len(source), total_steps),
    recipe=recipe,
    total_steps=total_steps,
    every={
      section: config_lib.steps(
        "every",
        config[section],
        batch_size=recipe.batch_size,
        data_size=len(source),
        total_steps=total_steps,
        default=default or total_steps,
        where=f"{section}.",
      )
      for section, default in EVERY.items()
    },
    costs=step_costs(config),
  )


def model_config(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
  """A model's table as `models.build` takes it, the vocabulary filled in."""
  table = {
    k: v.to_dict() if isinstance(v, ConfigDict) else v
    for k, v in config.items()
    if k != "init" and (k == "bias_init" or v not in ((), ""))
  }
  table["text"].setdefault("vocab_size", vocab_size)
  return table


def build_model(config: ConfigDict, tokenizer: Any) -> nn.Module:
  """The model of one table of the config."""
  return models.build(model_config(config, tokenizer.vocab_size))


def make_transform(config: ConfigDict, *, train: bool = True) -> Any:
  """The picture transform of `config.input`; no augmentation unless `train`."""
  return Transform(
    image_size=config.image_size,
    resize=config.resize,
    crop_scale=tuple(config.crop_scale) or None if train else None,
    flip=config.flip and train,
  )


def make_optimizer(
  config: ConfigDict, data_size: int, total_steps: int
) -> optax.GradientTransformation:
  """The optimiser of a resolved config."""
  warmup_steps = config_lib.steps(
    "warmup",
    config.optimizer,
    batch_size=config.batch_size,
    data_size=data_size,
    total_steps=total_steps,
    default=0,
  )
  return optimizer.make_optimizer(
    config.optimizer, warmup_steps=warmup_steps, total_steps=total_steps
  )


def load_frozen(
  config: ConfigDict,
  frozen_models: Mapping[str, nn.Module],
  mesh: jax.sharding.Mesh,
) -> tuple[dict[str, Any], dict[str, str]]:
  """Loads every frozen model onto the devices; returns fingerprints too.

  Raises:
    ConfigError: a model whose `init` is empty: a frozen model that was never
      trained has nothing to teach.
  """
  size, length = config.input.image_size, config.input.text_length
  frozen, fingerprints = {}, {}
  for name, model in frozen_models.items():
    init = functools.partial(
      state.init_params, model, image_size=size, text_length=length
    )
    params = _weights(f"frozen.{name}", config.frozen[name].init, init)
    fingerprints[name] = params_lib.fingerprint(params)
    frozen[name] = jax.device_put(
      params, sharding.by_rules(params, config.frozen_sharding, mesh)
    )
  return frozen, fingerprints


def _weights(name, where, init):
  """Weights of a frozen model from where its config says."""
  if not where:
    raise config_lib.ConfigError(
      f"config.{name}.init is empty; give the workdir or .npz file that holds"
      " its weights, or 'random' to try things out."
    )
  rng = jax.random.key(0)
  if where == RANDOM:
    logging.warning(
      "%s has random weights: its scores and its teaching mean nothing.", name
    )
    return jax.device_get(jax.jit(init)(rng))
  return params_lib.merge(params_lib.load(where), jax.eval_shape(init, rng))


def step_costs(config: ConfigDict) -> ledger.Ledger:
  """FLOPs of a step of a resolved config."""
  size, length = config.input.image_size, config.input.text_length
  recipe = Recipe.from_config(config)

  def count(table):
    # The vocabulary has no part in the cost: looking up is no product.
    table = model_config(table, vocab_size=1)
    return models.count(table, size, length)

  student = count(config.student)
  frozen = {name: count(config.frozen[name]) for name in recipe.frozen}
  return ledger.count(
    recipe,
    student.macs,
    {name: cost.macs for name, cost in frozen.items()},
    width=student.width,
    frozen_widths={name: cost.width for name, cost in frozen.items()},
  )
