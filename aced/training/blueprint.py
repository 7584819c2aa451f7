"""What a config says of its programs, without data and without weights.

Enough to compile the step, for the devices at hand or for a pod that is not
here; `build.Run` adds what a run needs beside it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from aced import config as config_lib
from aced import models
from aced.embeddings import Embeddings
from aced.training import ledger, optimizer, sharding, state
from aced.training import views as views_lib
from aced.training.embedding import embed
from aced.training.recipe import Recipe
from aced.training.step import TrainStep
from aced.training.views import STUDENT, View, Views


@dataclasses.dataclass(frozen=True, eq=False)
class Blueprint:
  """The models, the method and the devices of a config.

  Attributes:
    config: resolved.
    mesh: of all devices.
    recipe: the method, as static values.
    student: the model that is trained.
    frozen_models: name -> model, of those that are run.
    views: name -> what the model sees.
    cached: name -> width of the embeddings, of those that are cached.
    optimizer: the optimiser.
    total_steps: of the run.
  """

  config: ConfigDict
  mesh: jax.sharding.Mesh
  recipe: Recipe
  student: nn.Module
  frozen_models: Mapping[str, nn.Module]
  views: Views
  cached: Mapping[str, int]
  optimizer: optax.GradientTransformation
  total_steps: int

  @property
  def costs(self) -> ledger.Ledger:
    """FLOPs of a step."""
    return step_costs(self.config, self.cached)

  def init_params(self, rng: jax.Array) -> Any:
    """Random parameters of the student, and of the losses that have any."""
    student_rng, maps_rng = jax.random.split(rng)
    params = self.init_student(student_rng)
    maps = self._projections(maps_rng)
    return {**params, state.PROJECTIONS: maps} if maps else params

  def init_student(self, rng: jax.Array) -> Any:
    """Random parameters of the student."""
    return init_params(self.student, self.views[STUDENT], rng)

  def train_step(self, shardings: state.TrainState) -> Any:
    """The step, jitted; it takes over the buffers of the state.

    The state comes out sharded as it went in. Left to itself, XLA may split a
    bias along with its kernel, and the next step would not take it.

    Args:
      shardings: of the state.
    """
    step = TrainStep(
      self.student,
      self.frozen_models,
      self.optimizer,
      self.recipe,
      self.mesh,
      self.views,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

  def shapes(self) -> tuple[state.TrainState, Any, Any]:
    """`(state, frozen, batch)` of the step, as shapes with their shardings."""
    config, mesh = self.config, self.mesh

    def first():
      return state.initial(self.init_params, self.optimizer, config.seed)

    found = jax.eval_shape(first)
    where = state.shardings(first, mesh, config.sharding)
    frozen = {
      name: jax.eval_shape(
        lambda rng, m=model, v=self.views[name]: init_params(m, v, rng),
        jax.random.key(0),
      )
      for name, model in self.frozen_models.items()
    }
    frozen_where = sharding.by_rules(frozen, config.frozen_sharding, mesh)
    return (
      _placed(found, where),
      _placed(frozen, frozen_where),
      self._batch_shapes(),
    )

  def _batch_shapes(self):
    n = self.recipe.super_batch

    def shape(dtype, *dims):
      where = sharding.rows(self.mesh, len(dims))
      return jax.ShapeDtypeStruct(dims, dtype, sharding=where)

    scale = jax.ShapeDtypeStruct(
      (), jnp.float32, sharding=sharding.replicated(self.mesh)
    )
    batch = {
      "_mask": shape(jnp.bool_, n),
      "index": shape(jnp.int32, n),
      "error": shape(jnp.int8, n),
    }
    for name in (STUDENT, *self.frozen_models):
      view = self.views[name]
      side = view.image_size
      batch[view.image] = shape(jnp.uint8, n, side, side, 3)
      batch[view.labels] = shape(jnp.int32, n, view.text_length)
    cached = {
      name: Embeddings(*(shape(jnp.bfloat16, n, width),) * 2, scale, scale)
      for name, width in self.cached.items()
    }
    return batch | ({"cached": cached} if cached else {})

  def _projections(self, rng):
    """Linear maps of feature distillation, for teachers of another width."""
    if self.recipe.distill_loss != "feature":
      return {}
    ours, maps = self._widths(STUDENT), {}
    for name, _ in self.recipe.teachers:
      if name in self.cached:
        theirs = (self.cached[name],) * 2
      else:
        theirs = self._widths(name)
      if theirs != ours:
        rngs = jax.random.split(rng, 2)
        kernel = nn.initializers.lecun_normal()
        maps[name] = {
          "image": kernel(rngs[0], (ours[0], theirs[0])),
          "text": kernel(rngs[1], (ours[1], theirs[1])),
        }
    return maps

  def _widths(self, name):
    """Widths of a model's image and text embeddings."""
    model = self.student if name == STUDENT else self.frozen_models[name]
    view = self.views[name]

    def shapes(rng):
      return embed(model, init_params(model, view, rng), example(view))

    found = jax.eval_shape(shapes, jax.random.key(0))
    return found.zimg.shape[1], found.ztxt.shape[1]


def draw_up(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  vocab_sizes: Mapping[str, int],
  data_size: int,
  cached: Mapping[str, int],
) -> Blueprint:
  """Draws up the blueprint of a resolved config.

  Args:
    config: from `config.resolve`.
    mesh: of all devices.
    vocab_sizes: column of labels -> token ids, for text towers that do not say.
    data_size: records of the data set, for durations in epochs.
    cached: see `Blueprint`.

  Raises:
    ConfigError: the config is wrong.
    ValueError: sizes that the mesh cannot carry, or a model that is wrong.
  """
  if config.decoder.model:
    raise config_lib.ConfigError(
      "config.decoder trains a decoder, and this is about training a student;"
      " take a config without it."
    )
  recipe = Recipe.from_config(config)
  recipe.check(mesh)
  total_steps = config_lib.steps(
    "total", config, batch_size=recipe.batch_size, data_size=data_size
  )
  views = views_lib.from_config(config)

  def build(where, table, name):
    try:
      return build_model(table, vocab_sizes[views[name].labels])
    except ValueError as error:
      raise config_lib.ConfigError(_of_model(where, table, error)) from error

  student = build("student", config.student, STUDENT)
  frozen_models = {
    name: build(f"frozen.{name}", config.frozen[name], name)
    for name in recipe.frozen
    if name not in cached
  }
  _check_scoring(recipe, student, frozen_models, views)
  return Blueprint(
    config=config,
    mesh=mesh,
    recipe=recipe,
    student=student,
    frozen_models=frozen_models,
    views=views,
    cached=cached,
    optimizer=make_optimizer(config, data_size, total_steps),
    total_steps=total_steps,
  )


def _of_model(where, table, error) -> str:
  """What is wrong with the model of a table of the config."""
  if not (table.variant or table.image or table.text):
    return (
      f"config.{where} says nothing of its towers; set config.{where}.model="
      f"'auto' to have them as the weights in its init (it is {table.init!r})"
      " say, or its variant, or image and text."
    )
  return f"config.{where}: {error}"


def _check_scoring(recipe, student, frozen_models, views) -> None:
  """Refuses settings of cheap scoring that the models cannot carry."""
  scored = {STUDENT: student} if recipe.scores_student else {}
  if recipe.scoring.reference and recipe.reference in frozen_models:
    scored[recipe.reference] = frozen_models[recipe.reference]
  if recipe.scoring.cheap:
    for name, model in scored.items():
      recipe.scoring.flex(model, views[name].image_size)


_NOT_OF_MODELS = ("init", "cache", "image_size", "tokenizer", "text_length")


def model_config(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
  """A model's table as `models.build` takes it, the vocabulary filled in."""
  table = {
    k: v.to_dict() if isinstance(v, ConfigDict) else v
    for k, v in config.items()
    if k not in _NOT_OF_MODELS and (k == "bias_init" or v not in ((), ""))
  }
  known = table["text"].setdefault("vocab_size", vocab_size)
  if isinstance(known, int):
    check_vocabulary(known, vocab_size, f"a model with init={config.init!r}")
  return table


def check_vocabulary(known: int, ids: int, whose: str) -> None:
  """Refuses a model that has no embedding for some of the ids it would see.

  Args:
    known: ids that it has an embedding for.
    ids: of the tokenizer.
    whose: the model, for the message.

  Raises:
    ConfigError: `known` is less.
  """
  if known < ids:
    raise config_lib.ConfigError(
      f"text.vocab_size={known} of {whose} is less than the {ids} ids of the"
      " tokenizer whose tokens it sees; give it the one that it was trained"
      " with."
    )


def build_model(config: ConfigDict, vocab_size: int) -> nn.Module:
  """The model of one table of the config."""
  return models.build(model_config(config, vocab_size))


def init_params(model: nn.Module, view: View, rng: jax.Array) -> Any:
  """Random parameters of a model for what it sees."""
  return state.init_params(model, rng, view.image_size, view.text_length)


def example(view: View) -> dict[str, jax.Array]:
  """One pair of zeros, as a model sees it."""
  return {
    "image": jnp.zeros((1, view.image_size, view.image_size, 3)),
    "labels": jnp.zeros((1, view.text_length), jnp.int32),
  }


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
    where="optimizer.",
  )
  return optimizer.make_optimizer(
    config.optimizer, warmup_steps=warmup_steps, total_steps=total_steps
  )


def step_costs(
  config: ConfigDict, cached: Mapping[str, int] | None = None
) -> ledger.Ledger:
  """FLOPs of a step of a resolved config.

  Args:
    config: from `config.resolve`.
    cached: name -> width of the embeddings, of the frozen models whose
      embeddings are read and not computed.
  """
  cached = cached or {}
  recipe, views = Recipe.from_config(config), views_lib.from_config(config)

  def count(name, **image):
    table = config.frozen[name] if name else config.student
    # The vocabulary has no part in the cost: looking up is no product.
    table = model_config(table, vocab_size=1)
    resolution = image.pop("resolution", 0) or views[name].image_size
    table["image"] = {**table.get("image", {}), **image}
    return models.count(table, resolution, views[name].text_length)

  def cheap(name):
    scoring, patch = recipe.scoring, {}
    if scoring.patch_size:
      patch = {"patch_size": (scoring.patch_size,) * 2}
    return count(
      name,
      resolution=scoring.resolution,
      token_drop=scoring.token_drop,
      **patch,
    )

  student = count(STUDENT)
  run = [name for name in recipe.frozen if name not in cached]
  frozen = {name: count(name) for name in run}
  scoring = {}
  if recipe.scoring.cheap:
    scoring = {STUDENT: cheap(STUDENT).macs}
    if recipe.scoring.reference and recipe.reference in run:
      found = cheap(recipe.reference)
      scoring[recipe.reference] = found.macs
  return ledger.count(
    recipe,
    student.macs,
    {name: cost.macs for name, cost in frozen.items()},
    width=student.width,
    frozen_widths={k: cost.width for k, cost in frozen.items()} | cached,
    cached=tuple(cached),
    scoring_macs=scoring,
  )


def _placed(shapes, shardings):
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    shardings,
  )
