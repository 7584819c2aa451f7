"""Ours under big_vision's names, by the ways in which it looks things up.

model_name "aced.two_towers"          `big_vision.models.*`
evals type "aced.zero_shot", ...      `big_vision.evaluators.*`
input.data name "bv:aced"             `big_vision.datasets.*`
pp "aced_decode(..)|aced_tokenize()"  its registry
sharding_strategy "aced_fsdp(..)"     its registry
optax_name "aced.scale_by_adam"       attributes of optax
"""

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from aced import config as config_lib
from aced.bv import compat, datasets, evaluators, ops, two_towers
from aced.training import sharding

PACKAGE = "aced"  # In the folders of big_vision, where it has none.


def register() -> None:
  """Registers everything, and mends big_vision; again changes nothing.

  Raises:
    ModuleNotFoundError: as `compat.find`.
  """
  compat.load()
  from big_vision.pp.registry import Registry

  _alias("big_vision.models", {"two_towers": two_towers})
  if f"big_vision.evaluators.{PACKAGE}" not in sys.modules:
    _alias("big_vision.evaluators", evaluators.modules())
  sys.modules[f"big_vision.datasets.{PACKAGE}"] = datasets
  for name, op in ops.OPS.items():
    Registry.register(f"preprocess_ops.{name}", replace=True)(op)
  Registry.register("shardings.aced_fsdp", replace=True)(aced_fsdp)
  optax.aced = types.SimpleNamespace(scale_by_adam=scale_by_adam)


def _alias(parent: str, modules) -> None:
  """Makes `import parent.aced.NAME` find a module that is loaded already."""
  package = types.ModuleType(f"{parent}.{PACKAGE}")
  package.__path__ = []  # Or it could have no modules in it.
  sys.modules[package.__name__] = package
  for name, module in modules.items():
    sys.modules[f"{package.__name__}.{name}"] = module
    setattr(package, name, module)


def aced_fsdp(axis: str | Sequence[str] = "data") -> Callable[..., Any]:
  """Our rule of sharding: the longest axis that divides is split.

  Unlike big_vision's `fsdp` it goes by a parameter's number of elements, not
  by its megabytes, so that small models are split as well.

  Args:
    axis: of the mesh, or several.

  Returns:
    `(spec, mesh, name, x) -> spec`, as big_vision's registry wants it.
  """
  axes = (axis,) if isinstance(axis, str) else tuple(axis)

  def split(spec, mesh, name, x):
    del name
    ways = int(np.prod([mesh.shape[a] for a in axes]))
    free = [
      k
      for k, size in enumerate(x.shape)
      if size % ways == 0 and spec[k] is None
    ]
    small = np.prod(x.shape) < sharding.MIN_SHARDED_SIZE
    if small or ways == 1 or not free:
      return spec
    longest = max(free, key=lambda k: x.shape[k])
    taken = axis if isinstance(axis, str) else axes
    return (*spec[:longest], taken, *spec[longest + 1 :])

  return split


def scale_by_adam(**given: Any) -> optax.GradientTransformation:
  """Adam as our configs have it; weight decay is `config.wd`, decoupled.

  Args:
    **given: `b1`, `b2`, `eps`, `mu_dtype`; by default those of our optimiser,
      the papers' `b2` of 0.95 among them.
  """
  ours = config_lib.default().optimizer
  known = ("b1", "b2", "eps", "mu_dtype")
  for key in given:
    if key not in known:
      raise config_lib.ConfigError(
        f"config.optax.{key} is not known to 'aced.scale_by_adam'; it takes"
        f" {', '.join(known)}.{config_lib.did_you_mean(key, known)}"
      )
  fields = {key: given.get(key, ours[key]) for key in known}
  return optax.scale_by_adam(
    **fields | {"mu_dtype": jnp.dtype(fields["mu_dtype"])}
  )
