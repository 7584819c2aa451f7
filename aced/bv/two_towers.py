"""Our two towers as a model of big_vision, of the name "aced.two_towers".

It has the interface of the modules in `big_vision.models`.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from absl import logging

from aced.bv import compat
from aced.models import flexi, trees
from aced.models import params as params_lib
from aced.models.build import build


def Model(**fields: Any) -> nn.Module:
  """Builds the model; `fields` are those of a model's table in our configs."""
  return build({"model": "two_towers", **fields})


def load(
  init_params: Mapping[str, Any] | None,
  init_file: str,
  model_cfg: Mapping[str, Any] | None = None,
  dont_load: Sequence[str] = (),
) -> Mapping[str, Any]:
  """Loads parameters from where either project keeps them.

  Layers are stacked or taken apart, and patches and positions resampled, as the
  model has them.

  Args:
    init_params: of the model, which are kept where names match `dont_load`;
      None returns what is found as it is.
    init_file: what `aced.models.params.load` takes, such as the workdir of a
      run of ours or a file .npz; or a checkpoint of a trainer of big_vision's,
      `W/checkpoint.bv` being the last in the workdir W.
    model_cfg: fields of the model, which the weights must not contradict.
    dont_load: regular expressions of whole names.

  Raises:
    FileNotFoundError: there is nothing there.
    ParamsError: it does not fit the model.
  """
  # The trainer forbids transfers that are not spelled out.
  with jax.transfer_guard("allow"):
    if _is_theirs(init_file):
      found = compat.load().utils.load_params(init_file)
    else:
      model = Model(**model_cfg) if model_cfg else None
      found = params_lib.load(init_file, model=model)
    if init_params is None:
      return found
    names = [f"^(?:{pattern})$" for pattern in dont_load]
    flat = trees.flatten(found)
    kept = {
      k: v for k, v in flat.items() if not any(re.match(n, k) for n in names)
    }
    found, changes = flexi.resample(trees.unflatten(kept), init_params)
    for change in changes:
      logging.warning("weights of %s: %s", init_file, change)
    return trees.merge(found, init_params, allow_missing=names)


def _is_theirs(where: str) -> bool:
  """Whether big_vision reads it and we do not: its checkpoints, or remote."""
  folder = where.partition(":")[0]
  return (
    "://" in where
    or os.path.exists(f"{folder}-LAST")
    or bool(glob.glob(f"{glob.escape(folder)}/params~*"))
  )
