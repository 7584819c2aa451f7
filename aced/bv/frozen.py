"""Frozen models of our trainer: built, loaded, and placed on the devices."""

import functools
from types import ModuleType
from typing import Any

import jax
from absl import logging

from aced.bv import compat, tables
from aced.bv.towers import Towers, init_params
from aced.config import ConfigError


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
    ConfigError: what is to be loaded does not fit; or its module loads nothing.
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
    ConfigError: it does not fit the model; or the module has no `load`.
  """
  if not hasattr(module, "load"):
    raise ConfigError(
      f"{where}.model_init={init!r}: {module.__name__} has no function `load`."
    )
  try:
    return module.load(params, init, fields, **extra)
  except (ValueError, KeyError, AssertionError) as error:
    raise ConfigError(f"{where}.model_init={init!r}: {error}") from error
