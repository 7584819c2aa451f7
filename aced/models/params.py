"""Parameters: loaded from wherever they are, and fitted to a model."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from aced.models import flexi, saved
from aced.models.build import build, towers
from aced.models.formats import reading
from aced.models.formats.npz import load_npz, save_npz
from aced.models.formats.weights import Weights
from aced.models.trees import (
  ParamsError,
  compare,
  count_params,
  fingerprint,
  flatten,
  has_stacked,
  merge,
  stack_layers,
  unflatten,
  unstack_layers,
)
from aced.models.two_towers import TwoTowers

__all__ = [
  "ParamsError",
  "compare",
  "count_params",
  "fingerprint",
  "flatten",
  "has_stacked",
  "load",
  "load_npz",
  "merge",
  "save_npz",
  "stack_layers",
  "unflatten",
  "unstack_layers",
]

# Fields that change what a tower computes and show in no parameter's shape.
FIXED = ("activation", "norm_eps", "causal", "pre_norm")
UNSEEN = ("pool_type", "activation", "norm_eps", "causal", "posemb")


def load(
  where: str | os.PathLike,
  like: Mapping[str, Any] | None = None,
  model: Any = None,
) -> dict[str, Any]:
  """Loads parameters from wherever they are.

  Args:
    where: "file.npz", big_vision's format, with ":subtree" behind it for a part
      of the tree; a Hugging Face folder of SigLIP, SigLIP 2 or CLIP; a folder
      or .safetensors file of open_clip; or the workdir of a run of ours, with
      "@STEP" or "@best" behind it for a checkpoint other than the last.
    like: if given, what is loaded is fitted to it: layers are stacked or taken
      apart, patches and positions of pictures resampled (which is logged), and
      all has to be there.
    model: if given, what the weights say of their model must not contradict it.

  Returns:
    Nested dicts of numpy arrays, in our layout.

  Raises:
    FileNotFoundError: there is nothing there.
    ParamsError: it is none of these, is damaged, does not fit, or is of a model
      that computes something else.
  """
  where = os.path.expanduser(os.fspath(where))
  file, _, subtree = where.partition(".npz:")
  if subtree or where.endswith(".npz"):
    params = load_npz(f"{file}.npz" if subtree else where, subtree)
  elif reading.is_foreign(pathlib.Path(where)):
    weights = reading.read(where)
    check_model(weights, model)
    params = weights.params
  elif model is not None:
    weights = reading.of_run(where)
    check_model(weights, model)
    params = weights.params
  else:
    params = saved.load_checkpoint(where)
  if like is None:
    return params
  params, changes = flexi.resample(params, like)
  for change in changes:
    logging.warning("weights of %s: %s", where, change)
  return merge(params, like)


def check_model(weights: Weights, model: Any) -> None:
  """Refuses weights of a model that computes something else than this one.

  Args:
    weights: that say of which model they are.
    model: to be given them, or None. Any but `TwoTowers` is taken to compute
      what big_vision's does.

  Raises:
    ParamsError: listing the fields in which they differ.
  """
  theirs = build(weights.config)
  if model is None or not isinstance(theirs, TwoTowers):
    return
  lines = []
  for tower, first in towers(theirs).items():
    if isinstance(model, TwoTowers):
      second = towers(model)[tower]
      names = [n for n in (*UNSEEN, "pre_norm") if hasattr(first, n)]
    else:
      second = type(first)()  # Our defaults are big_vision's.
      names = [n for n in FIXED if hasattr(first, n)]
    lines += [
      f"  {tower}.{name}: {getattr(first, name)!r} of the weights,"
      f" {getattr(second, name)!r} of the model"
      for name in names
      if getattr(first, name) != getattr(second, name)
    ]
  if lines:
    raise ParamsError(
      f"{weights.where} is {weights.kind}, of a model that computes something"
      " else; set these fields, or model='auto':\n" + "\n".join(lines)
    )
