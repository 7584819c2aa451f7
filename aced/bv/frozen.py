"""Frozen models of our trainer: built, loaded, and placed on the devices."""

import functools
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import logging

from aced.bv import compat, tables
from aced.bv.towers import Towers, init_params
from aced.config import ConfigError, did_you_mean
from aced.models import trees
from aced.training.build import check_finite


def model(table: tables.Frozen) -> Towers:
  """The model of a table; raises as `make` and `compat.module` do."""
  module = compat.module("models", table.model_name)
  return make(module, table.model, f"{table.where}.model")


def make(module: ModuleType, fields: Any, where: str) -> Towers:
  """A model of big_vision.

  Raises:
    ConfigError: a field that its module does not know, at `where`.
  """
  try:
    return Towers(module.Model(**fields))
  except TypeError as error:
    raise ConfigError(f"{where}: {module.__name__}: {error}") from error


def load(run: Any) -> dict[str, Any]:
  """Name -> parameters of every frozen model, on the devices.

  Args:
    run: of `aced.bv.building`.

  Raises:
    ConfigError: as `load_params`.
  """
  utils, found = compat.load().utils, {}
  for name, table in run.method.frozen.items():
    init = functools.partial(
      init_params,
      run.frozen_models[name],
      run.dataset.element_spec,
      view=table.view,
    )
    rng = jax.random.PRNGKey(utils.put_cpu(0))
    shapes = {"params": jax.eval_shape(init, rng)}
    where = run.infer_sharding(shapes)["params"]
    rng = utils.reshard(rng, run.replicated)
    params = jax.jit(init, out_shardings=where)(rng)
    if table.init == tables.RANDOM:
      logging.warning(
        "%s has random weights: its scores and its teaching mean nothing.",
        table.where,
      )
    else:
      module = compat.module("models", table.model_name)
      params = load_params(
        module, params, table.init, table.model, table.load, table.where
      )
    found[name] = utils.reshard(params, where)
  return found


def load_params(
  module: ModuleType,
  params: Any,
  init: Any,
  fields: Any,
  extra: Any,
  where: str,
) -> Any:
  """Parameters from elsewhere, as a module's own `load` reads them.

  Args:
    module: of the model.
    params: the model's own.
    init: what is loaded: `model_init`.
    fields: of the model, which `load` looks at.
    extra: further arguments of `load`: `model_load`.
    where: the table that says so, for messages.

  Raises:
    ConfigError: there is nothing to load, it does not fit the model or is not
      finite; or the module has no `load`.
  """
  import tensorflow as tf

  key = f"{where}.model_init={init!r}"
  near = did_you_mean(init, getattr(module, "VANITY_NAMES", ()))
  if not hasattr(module, "load"):
    raise ConfigError(f"{key}: {module.__name__} has no function `load`.")
  try:
    # Their `load` computes with what it reads, under a guard of ours.
    with jax.transfer_guard("allow"):
      found = module.load(params, init, fields, **extra)
      check_shapes(params, found)
      check_finite(found)
  except (OSError, tf.errors.OpError) as error:
    raise ConfigError(
      f"{key} cannot be read: {error}. Give the path of an .npz file, with a"
      " '/' in it; W/checkpoint.bv, the last checkpoint in the workdir W of a"
      f" run of big_vision's; or a name that the model's module knows.{near}"
    ) from error
  except (ValueError, KeyError, AssertionError, TypeError) as error:
    raise ConfigError(f"{key}: {error}{near}") from error
  return found


def check_shapes(own: Any, found: Any) -> None:
  """Refuses parameters of other shapes than a model's own.

  Raises:
    ParamsError: naming one.
  """
  flat = trees.flatten(found)
  for name, value in trees.flatten(own).items():
    shape = np.shape(flat[name]) if name in flat else "missing"
    if shape != value.shape:
      raise trees.ParamsError(
        f"{name} is {shape} there and {value.shape} in this model; give the"
        " model the sizes that the weights were trained with, or leave out what"
        " differs by model_load, where its module can."
      )
