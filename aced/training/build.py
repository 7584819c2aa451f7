"""From a resolved config to the objects of a run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from aced import config as config_lib
from aced import evaluation
from aced.data import cache, devices, identity, pipeline, sources
from aced.models import params as params_lib
from aced.training import (
  auto,
  blueprint,
  sanity,
  sharding,
  state,
  versions,
)
from aced.training import views as views_lib
from aced.training.input import Input, make_transform, open_input
from aced.training.views import View

# `init` of a frozen model that was never trained, for trying things out.
RANDOM = "random"
# Steps between two events where the config does not say; None is the whole run.
EVERY = {"log": 10, "eval": None, "checkpoint": 1000}


@dataclasses.dataclass(frozen=True, eq=False)
class Run(blueprint.Blueprint):
  """Everything that a training loop needs, made from one config.

  Attributes:
    input: what is read.
    frozen: name -> parameters, on the devices.
    caches: name -> the cached embeddings of a frozen model.
    identities: what a run must find again to go on, beyond what its config
      names.
    every: steps between two events: "log", "eval", "checkpoint", and "keep",
      checkpoints that stay; 0 is never.
  """

  input: Input
  frozen: Mapping[str, Any]
  caches: Mapping[str, cache.EmbeddingCache]
  identities: Mapping[str, str]
  every: Mapping[str, int]

  def batches(self, start: int) -> devices.DeviceBatches:
    """Super-batches on the devices, from step `start` on."""
    extra = self.views.extra(self.frozen_models)
    host = pipeline.superbatches(
      self.input.source,
      self.input.tokenizer,
      self.input.transform,
      batch_size=self.recipe.super_batch,
      seed=self.config.seed,
      start_step=start,
      num_steps=self.total_steps - start,
      rows=sharding.local_rows(self.mesh, self.recipe.super_batch),
      **self.input.reading,
      caches=self.caches,
      image_views={
        name: view.image_size
        for name, view in extra.items()
        if name == view.image
      },
      label_views={
        name: self.input.tokenizers[name]
        for name, view in extra.items()
        if name == view.labels
      },
    )
    return devices.to_devices(
      host,
      lambda _, x: sharding.rows(self.mesh, x.ndim),
      depth=self.config.input.prefetch,
      scales={name: found.scales for name, found in self.caches.items()},
    )

  # What the trained model is called, where a run's parameters are told.
  TRAINED: ClassVar[str] = "student"

  @property
  def evaluates(self) -> bool:
    """Whether any evaluator has a source."""
    return any(x.get("source") != "" for x in self.config.evals.values())

  def evaluators(self) -> list[evaluation.Evaluator]:
    """The evaluators of `config.evals`; an empty source turns one off."""
    transform = make_transform(self.config.input, train=False)
    return [
      evaluation.build(name, table.to_dict(), self.input.tokenizer, transform)
      for name, table in self.config.evals.items()
      if table.get("source") != ""
    ]

  def evaluated(self) -> tuple[Any, ...]:
    """Functions of `(params, rows)`: what evaluators know the model by."""
    return evaluation.embedders(self.student, self.mesh)

  def metadata(self, step: int) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
      "config": config_lib.flatten(self.config),
      "step": step,
      "position": step * self.recipe.super_batch,
      "identities": dict(self.identities),
      "versions": versions.code(),
      "devices": self.mesh.size,
    }

  def init_state(self) -> state.TrainState:
    """The state before the first step, on the devices."""
    where = self.config.student.init
    given = None
    if where:
      like = jax.eval_shape(self.init_student, jax.random.key(0))
      given = params_lib.load(where, like, self.student)
    return state.create(
      self.init_params,
      self.optimizer,
      seed=self.config.seed,
      mesh=self.mesh,
      rules=self.config.sharding,
      given=given,
    )


def build(config: Mapping[str, Any]) -> Run:
  """Checks a config and builds the objects of its run.

  Raises:
    ConfigError: the config is wrong, or at odds with the data or the devices.
    ValueError: a source, a tokenizer, weights or a cache are wrong; says how.
  """
  config = auto.fill(config_lib.resolve(config))
  mesh = sharding.make_mesh(config.mesh)
  recipe = blueprint.Recipe.from_config(config)
  recipe.check(mesh)
  source = sources.open_source(config.input.source)
  check_size(config, recipe, source)
  inputs = open_input(config, source)
  views = views_lib.from_config(config)
  caches = open_caches(config, recipe, inputs, views)
  plan = blueprint.draw_up(
    config,
    mesh,
    vocab_sizes=inputs.vocab_sizes,
    data_size=len(source),
    cached={name: found.width for name, found in caches.items()},
  )
  for name in (views_lib.STUDENT, *recipe.frozen):
    sanity.check_captions(
      f"frozen.{name}" if name else "input",
      source,
      inputs.tokenizers[views[name].labels],
      views[name].tokenizer,
    )
  frozen, fingerprints = load_frozen(config, plan.frozen_models, views, mesh)
  fingerprints |= {name: c.fingerprint for name, c in caches.items()}
  check_caches(config, caches, inputs, views)
  # A quota of each device is another draw on another number of them.
  per_device = recipe.curated and recipe.scope == "per_device"
  quotas = {"curation.scope": f"{mesh.size} devices"} if per_device else {}
  fields = {
    field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)
  }
  return Run(
    **fields,
    input=inputs,
    frozen=frozen,
    caches=caches,
    identities={
      **{f"frozen.{name}": v for name, v in fingerprints.items()},
      **inputs.identities(),
      **{
        f"frozen.{name}.tokenizer": identity.of_tokenizer(
          inputs.tokenizers[views[name].labels]
        )
        for name in plan.frozen_models
        if views_lib.is_extra(views[name].labels)
      },
      **quotas,
    },
    every=intervals(config, recipe, len(source), plan.total_steps),
  )


def check_size(
  config: ConfigDict, recipe: blueprint.Recipe, source: Any
) -> None:
  """Raises ConfigError unless the data set has a super-batch."""
  if recipe.super_batch > len(source):
    raise config_lib.ConfigError(
      f"the super-batch of {recipe.super_batch} pairs is larger than the data"
      f" set {config.input.source!r} of {len(source)}; lower batch_size or"
      " curation.filter_ratio."
    )


def intervals(
  config: ConfigDict,
  recipe: blueprint.Recipe,
  data_size: int,
  total_steps: int,
) -> dict[str, int]:
  """Steps between two events, as `Run.every` has them."""

  def steps(prefix, section, default):
    return config_lib.steps(
      prefix,
      config[section],
      batch_size=recipe.batch_size,
      data_size=data_size,
      total_steps=total_steps,
      default=default,
      where=f"{section}.",
    )

  found = {
    section: steps(
      "every", section, total_steps if default is None else default
    )
    for section, default in EVERY.items()
  }
  return found | {"keep": steps("keep_every", "checkpoint", 0)}


def open_caches(
  config: ConfigDict,
  recipe: blueprint.Recipe,
  inputs: Input,
  views: views_lib.Views,
) -> dict[str, cache.EmbeddingCache]:
  """Opens the caches of frozen models, made of the same input.

  Raises:
    CacheError: a cache is not there, is not whole, or is of another input.
  """
  found = {}
  for name in recipe.frozen:
    if config.frozen[name].cache:
      found[name] = cache.EmbeddingCache(config.frozen[name].cache)
      found[name].check(inputs.identities(views[name]))
  return found


def check_caches(
  config: ConfigDict,
  caches: Mapping[str, cache.EmbeddingCache],
  inputs: Input,
  views: views_lib.Views,
) -> None:
  """Refuses a cache of another model than the one that is named with it.

  Without `init` there is no model to compare it with, and none is needed.

  Raises:
    CacheError: the weights in `init` are not those of the cache.
  """
  for name, found in caches.items():
    table = config.frozen[name]
    if table.init not in ("", RANDOM):
      view = views[name]
      model = blueprint.build_model(table, inputs.vocab_sizes[view.labels])
      params = load_weights(config, name, model, view)
      found.check({"model": params_lib.fingerprint(params)})


def load_frozen(
  config: ConfigDict,
  frozen_models: Mapping[str, nn.Module],
  views: views_lib.Views,
  mesh: jax.sharding.Mesh,
) -> tuple[dict[str, Any], dict[str, str]]:
  """Loads every frozen model onto the devices; returns fingerprints too.

  Raises:
    ConfigError: a model whose `init` is empty: a frozen model that was never
      trained has nothing to teach.
  """
  frozen, fingerprints = {}, {}
  for name, model in frozen_models.items():
    params = load_weights(config, name, model, views[name])
    fingerprints[name] = params_lib.fingerprint(params)
    frozen[name] = jax.device_put(
      params, sharding.by_rules(params, config.frozen_sharding, mesh)
    )
  return frozen, fingerprints


def _is_finite(value: Any) -> bool:
  if isinstance(value, jax.Array):
    return bool(jnp.isfinite(value).all())
  return bool(np.isfinite(np.asarray(value, np.float32)).all())


def check_finite(params: Any) -> None:
  """Refuses weights of a frozen model with which all scores would be NaN.

  Raises:
    ParamsError: naming a parameter that is not finite.
  """
  # On the devices where they are there: no process may have all of them.
  wrong = [
    name
    for name, value in params_lib.flatten(params).items()
    if not _is_finite(value)
  ]
  if wrong:
    raise params_lib.ParamsError(
      f"{len(wrong)} parameters are not finite, such as {wrong[0]}; all"
      " scores would be NaN. Name an earlier checkpoint."
    )


def load_weights(
  config: ConfigDict, name: str, model: nn.Module, view: View
) -> Any:
  """Weights of a frozen model, on the host, from where its config says."""
  init = functools.partial(blueprint.init_params, model, view)
  where = config.frozen[name].init
  if not where:
    raise config_lib.ConfigError(
      f"config.frozen.{name}.init is empty; give what holds its weights, the"
      " workdir of a run, an .npz file, a folder of Hugging Face or open_clip,"
      " or 'random' to try things out."
    )
  rng = jax.random.key(0)
  if where == RANDOM:
    logging.warning(
      "frozen.%s has random weights: its scores and its teaching mean nothing.",
      name,
    )
    return jax.device_get(jax.jit(init)(rng))
  try:
    params = params_lib.load(where, jax.eval_shape(init, rng), model)
    check_finite(params)
    return params
  except params_lib.ParamsError as error:
    raise params_lib.ParamsError(
      f"config.frozen.{name}.init={where}: {error}"
    ) from error
