"""big_vision as it is found, and what its HEAD lacks on a current JAX.

Its files are not touched: what JAX has taken out since is put back into JAX, in
this process, and only where it is absent. Of commit 0127fb6 on JAX 0.10:

    tree_map, tree_leaves, ...  of `jax`, gone since 0.6 and now in `jax.tree`;
                                all its trainers use them
    PositionalSharding          of `jax.sharding`, gone since 0.6;
                                `utils.sync`, which ends every training, uses it
    distributed.initialize      of `jax`, called by trainers also where one
                                process is all there is, and no coordinator
"""

import functools
import importlib
import importlib.util
import os
import re
from types import ModuleType
from typing import NamedTuple

import jax

HELP = (
  "big_vision is no package: git clone"
  " https://github.com/google-research/big_vision, set PYTHONPATH to the folder"
  " that was cloned, and install what it needs with"
  ' pip install -e ".[big-vision]" in the checkout of aced.'
)
NEEDS = ("tensorflow", "clu", "einops")
# Functions that were once at the top of jax: name -> the name in `jax.tree`.
TREE = ("map", "leaves", "flatten", "unflatten", "structure", "reduce", "all")
_MENDED = "_aced_mended"


class Toolkit(NamedTuple):
  """The modules of big_vision that a trainer is made of."""

  utils: ModuleType
  optax: ModuleType
  sharding: ModuleType
  input_pipeline: ModuleType
  evaluators: ModuleType


def find() -> None:
  """Raises unless big_vision and what it needs are there; loads neither.

  Raises:
    ModuleNotFoundError: naming what is missing, and how to get it.
  """
  missing = [n for n in ("big_vision", *NEEDS) if not importable(n)]
  if missing:
    raise ModuleNotFoundError(
      f"{', '.join(missing)} cannot be imported. {HELP}", name=missing[0]
    )


def importable(name: str) -> bool:
  """Whether a top-level module can be found."""
  try:
    return importlib.util.find_spec(name) is not None
  except ValueError:  # It is loaded, without saying from where.
    return True


def apply() -> None:
  """Puts back into JAX what big_vision uses; again does nothing."""
  for name in TREE:
    if not hasattr(jax, f"tree_{name}"):
      setattr(jax, f"tree_{name}", getattr(jax.tree, name))
  if not hasattr(jax.sharding, "PositionalSharding"):
    jax.sharding.PositionalSharding = positional_sharding
  if not hasattr(jax.distributed.initialize, _MENDED):
    jax.distributed.initialize = _mended(jax.distributed.initialize)


def positional_sharding(devices) -> jax.NamedSharding:
  """One axis split over devices, as `PositionalSharding(devices)` did."""
  mesh = jax.sharding.Mesh(devices, ("devices",))
  return jax.NamedSharding(mesh, jax.P("devices"))


def _mended(initialize):
  """`jax.distributed.initialize` that does nothing for one process alone."""

  @functools.wraps(initialize)
  def mended(*args, **kwargs):
    if not args and not kwargs:
      from aced.training import distributed

      cluster = distributed.detect(os.environ)
      if not cluster.kind:
        return
      kwargs = cluster.arguments
    initialize(*args, **kwargs)

  setattr(mended, _MENDED, True)
  return mended


@functools.cache
def load() -> Toolkit:
  """big_vision's building blocks, mended.

  Raises:
    ModuleNotFoundError: as `find`.
  """
  find()
  apply()
  import big_vision.evaluators.common as evaluators
  import big_vision.input_pipeline as input_pipeline
  import big_vision.optax as optax
  import big_vision.sharding as sharding
  import big_vision.utils as utils

  return Toolkit(utils, optax, sharding, input_pipeline, evaluators)


def module(kind: str, name: str) -> ModuleType:
  """Imports a module of big_vision as its trainers do, by the name in a config.

  Args:
    kind: its folder: "models" or "pp".
    name: in that folder, such as "proj.image_text.two_towers".

  Raises:
    ValueError: there is no such module.
    ModuleNotFoundError: as `find`; or the module needs a package that is not
      here.
  """
  find()
  apply()
  full = f"big_vision.{kind}.{name}"
  wrong = ValueError(
    f"there is no module {full}: {kind} are named by their file in the folder"
    f" big_vision/{kind}, such as 'proj.image_text.two_towers' among models."
  )
  if not re.fullmatch(r"\w+(\.\w+)*", name):
    raise wrong
  try:
    return importlib.import_module(full)
  except ModuleNotFoundError as error:
    if full == error.name or full.startswith(f"{error.name}."):
      raise wrong from error
    raise
