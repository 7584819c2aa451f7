"""Parameters: loaded, saved, renamed, compared, and fitted to a model.

A tree of parameters is nested dicts of arrays; its names join keys by a slash,
such as "img/Transformer/encoderblock_0/LayerNorm_0/scale".
"""

import hashlib
import json
import math
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from aced import files

PREFIXES = ("params/", "opt/target/")
CHECKPOINTS = "checkpoints"
SCORES = "scores.json"  # Beside the checkpoints: what they are kept by.
SHOWN = 20  # Names listed of each kind of difference.


class ParamsError(ValueError):
  """Weights that cannot be read, or that do not fit the model."""


def load(
  where: str | os.PathLike, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Loads parameters from wherever they are.

  Args:
    where: "file.npz", big_vision's format, with ":subtree" behind it for a part
      of the tree; or the workdir of a run of ours, with "@STEP" or "@best"
      behind it for a checkpoint other than the last.
    like: if given, what is loaded is fitted to it, as by `merge`.

  Returns:
    Nested dicts of numpy arrays.

  Raises:
    FileNotFoundError: there is nothing there.
    ParamsError: it is not one of the two, is damaged, or does not fit.
  """
  where = os.fspath(where)
  file, _, subtree = where.partition(".npz:")
  if subtree or where.endswith(".npz"):
    params = load_npz(f"{file}.npz" if subtree else where, subtree)
  else:
    params = load_checkpoint(where)
  return params if like is None else merge(params, like)


def load_npz(path: str | os.PathLike, subtree: str = "") -> dict[str, Any]:
  """Loads big_vision's format: arrays named by their place in the tree.

  Args:
    path: the file. Names may stand under "params/" or "opt/target/".
    subtree: names below this one are taken, such as "img".

  Raises:
    FileNotFoundError: there is no such file.
    ParamsError: the file is damaged, holds pickled objects, or no such subtree.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"no weights at {path}; check the path.")
  if not zipfile.is_zipfile(path):
    # numpy would take any other file for a pickle, a Git LFS pointer too.
    raise ParamsError(
      f"{path} is not a whole .npz file: no zip archive; fetch it again."
    )
  try:
    # Opened here, since numpy leaves a damaged archive's file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      flat = {name: _recover(archive[name]) for name in archive.files}
  except ValueError as error:
    raise ParamsError(
      f"{path} holds pickled objects, which are never loaded as they can run"
      f" code; save plain arrays instead. ({error})"
    ) from error
  except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
    raise ParamsError(
      f"{path} is not a whole .npz file: {error}; fetch it again."
    ) from error
  for prefix in PREFIXES:
    inside = {
      k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)
    }
    if inside:
      flat = inside
      break
  if subtree:
    prefix = subtree.rstrip("/") + "/"
    tops = sorted({name.split("/")[0] for name in flat})
    flat = {
      k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)
    }
    if not flat:
      raise ParamsError(
        f"{path} has no subtree {subtree!r}; at its top are {', '.join(tops)}."
      )
  return unflatten(flat)


def save_npz(path: str | os.PathLike, params: Mapping[str, Any]) -> None:
  """Saves in big_vision's format; the file appears whole or not at all."""
  path = pathlib.Path(path)
  part = path.with_name(f".{path.name}.part-{os.getpid()}")
  flat = {k: np.asarray(jax.device_get(v)) for k, v in flatten(params).items()}
  try:
    with part.open("wb") as file:
      np.savez(file, **flat)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def load_checkpoint(where: str) -> dict[str, Any]:
  """Loads the student of a run of ours, without the optimiser's state.

  Args:
    where: the workdir, perhaps with "@STEP" or "@best" behind it.

  Raises:
    FileNotFoundError: no run, or no such checkpoint, is there.
    ParamsError: the checkpoint is damaged.
  """
  import orbax.checkpoint as ocp

  folder, step = find_checkpoint(where)
  found = files.damage(folder / str(step))
  if found:
    others = [k for k in saved_steps(folder) if k != step]
    raise ParamsError(
      f"the checkpoint of step {step} in {folder} is damaged: {found}. Name"
      f" another one, as WORKDIR@STEP; there are"
      f" {', '.join(map(str, others)) or 'no others'}."
    )
  path = folder / str(step)
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.PyTreeCheckpointHandler(), metadata=ocp.JsonCheckpointHandler()
  )
  with ocp.Checkpointer(handler) as checkpointer:
    saved = checkpointer.metadata(path).item_metadata["state"]
    wanted = {"params": saved["params"]}
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
    )
    state = ocp.args.PyTreeRestore(
      item=wanted, restore_args=as_numpy, partial_restore=True
    )
    restored = checkpointer.restore(path, ocp.args.Composite(state=state))
  params = restored["state"]["params"]
  # Linear maps of feature distillation belong to the loss, not to the model.
  return {k: v for k, v in params.items() if k != "projections"}


def find_checkpoint(where: str) -> tuple[pathlib.Path, int]:
  """Returns the folder of a run's checkpoints and the step that is meant."""
  # A folder's own name may have an "@" in it.
  is_folder = "@" not in where or pathlib.Path(where).is_dir()
  workdir, wanted = (where, "") if is_folder else where.rsplit("@", 1)
  folder = pathlib.Path(workdir).resolve() / CHECKPOINTS
  steps = saved_steps(folder)
  if not steps:
    begun = begun_steps(folder)
    cut = f"; {', '.join(map(str, begun))} were never finished" if begun else ""
    raise FileNotFoundError(
      f"no weights at {where!r}: expected an .npz file, or the workdir of a"
      f" run with checkpoints in {folder}{cut}."
    )
  if wanted == "best":
    return folder, best_step(folder, steps)
  step = int(wanted) if wanted.isdigit() else None
  if wanted and step not in steps:
    raise FileNotFoundError(
      f"{workdir} has no checkpoint {wanted!r}; there are"
      f" {', '.join(map(str, steps))} and best."
    )
  return folder, step if wanted else steps[-1]


def saved_steps(folder: pathlib.Path) -> list[int]:
  """The steps in a folder of checkpoints that were saved to the end."""
  if not folder.is_dir():
    return []
  return [k for k in begun_steps(folder) if files.is_sealed(folder / str(k))]


def begun_steps(folder: pathlib.Path) -> list[int]:
  """The steps in a folder of checkpoints, those never finished as well."""
  names = (path.name for path in folder.glob("*"))
  return sorted(int(n) for n in names if re.fullmatch("0|[1-9][0-9]*", n))


def read_scores(folder: pathlib.Path, metric: str = "") -> dict[int, float]:
  """Step -> the metric that checkpoints are kept by; larger is better.

  Args:
    folder: of the checkpoints.
    metric: which it has to be; "" is any.
  """
  path = folder / SCORES
  if not path.exists():
    return {}
  found = json.loads(path.read_text("utf-8"))
  if metric not in ("", found["metric"]):
    return {}
  scores = {int(step): float(v) for step, v in found["scores"].items()}
  return {step: v for step, v in scores.items() if math.isfinite(v)}


def best_step(folder: pathlib.Path, steps: Sequence[int]) -> int:
  """The step, of those given, with the highest metric.

  Raises:
    FileNotFoundError: none of them has one.
  """
  scores = {k: v for k, v in read_scores(folder).items() if k in steps}
  if not scores:
    raise FileNotFoundError(
      f"no checkpoint in {folder} has a metric to be best by; set"
      " config.checkpoint.best in the run, or ask for a step."
    )
  return max(scores, key=scores.get)


def merge(
  params: Mapping[str, Any],
  like: Mapping[str, Any],
  *,
  allow_missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Fits loaded parameters to a model: all of them, or an error.

  Layers that are stacked in one tree and apart in the other are converted.

  Args:
    params: loaded.
    like: the model's own, or their shapes.
    allow_missing: regular expressions; names that one of them matches somewhere
      may be missing and keep their value in `like`, which must be an array.

  Returns:
    `params` in the layout of `like`, cast to its dtypes.

  Raises:
    ParamsError: listing every name that is missing, extra or of another shape.
  """
  given, wanted = flatten(_relayout(params, like)), flatten(like)
  for name, value in wanted.items():
    allowed = any(re.search(pattern, name) for pattern in allow_missing)
    if allowed and not isinstance(value, jax.ShapeDtypeStruct):
      given.setdefault(name, value)
  problems = compare(
    {k: tuple(v.shape) for k, v in given.items()},
    {k: tuple(v.shape) for k, v in wanted.items()},
  )
  if problems:
    raise ParamsError(f"these weights do not fit the model:\n{problems}")
  return unflatten(
    {k: np.asarray(given[k], v.dtype) for k, v in wanted.items()}
  )


def _relayout(params, like):
  """Stacks or unstacks the layers of each encoder where `like` does."""
  if not (isinstance(params, Mapping) and isinstance(like, Mapping)):
    return params
  if "encoderblock" in like and "encoderblock_0" in params:
    params = stack_layers(params)
  elif "encoderblock_0" in like and "encoderblock" in params:
    params = unstack_layers(params)
  return {k: _relayout(v, like.get(k)) for k, v in params.items()}


def compare(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  """Describes how two `{name: shape}` differ; "" if they do not."""
  kinds = {
    "missing": [f"{k} {wanted[k]}" for k in wanted if k not in given],
    "extra": [f"{k} {given[k]}" for k in given if k not in wanted],
    "of another shape": [
      f"{k} {given[k]}, expected {wanted[k]}"
      for k in wanted
      if k in given and tuple(given[k]) != tuple(wanted[k])
    ],
  }
  lines = []
  for kind, names in kinds.items():
    if names:
      lines.append(f"  {len(names)} {kind}:")
      lines += [f"    {name}" for name in names[:SHOWN]]
      if len(names) > SHOWN:
        lines.append(f"    and {len(names) - SHOWN} more")
  return "\n".join(lines)


def flatten(params: Any, prefix: str = "") -> dict[str, Any]:
  """Returns `{name: array}` of nested dicts."""
  flat = {}
  for key, value in params.items():
    name = f"{prefix}{key}"
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{name}/"))
    else:
      flat[name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree = {}
  for name, value in flat.items():
    *path, last = name.split("/")
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = value
  return tree


STACKED = re.compile(r"(?:^|/)encoderblock/")
APART = re.compile(r"(^|/)encoderblock_(\d+)/")


def has_stacked(params: Mapping[str, Any]) -> bool:
  """Whether layers are stacked under "encoderblock", as `scan` has them."""
  return any(STACKED.search(name) for name in flatten(params))


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """From "encoderblock_{i}" to "encoderblock" with a leading axis of layers."""
  flat, layers = {}, {}
  for name, value in flatten(params).items():
    found = APART.search(name)
    if found:
      stacked = APART.sub(r"\1encoderblock/", name, count=1)
      layers.setdefault(stacked, {})[int(found[2])] = value
    else:
      flat[name] = value
  for name, by_layer in layers.items():
    if sorted(by_layer) != list(range(len(by_layer))):
      raise ParamsError(
        f"{name}: layers {sorted(by_layer)} are not 0 to depth."
      )
    flat[name] = np.stack([by_layer[k] for k in range(len(by_layer))])
  return unflatten(flat)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `stack_layers`."""
  flat = {}
  for name, value in flatten(params).items():
    if STACKED.search(name):
      for k, layer in enumerate(np.asarray(value)):
        apart = STACKED.sub(
          lambda m, k=k: m[0].replace("encoderblock", f"encoderblock_{k}"), name
        )
        flat[apart] = layer
    else:
      flat[name] = value
  return unflatten(flat)


def count_params(params: Any) -> int:
  """Number of parameters in a tree of arrays or shapes."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def fingerprint(params: Any) -> str:
  """Sixteen hexadecimal digits that name these exact parameters."""
  digest = hashlib.sha256()
  for name, value in sorted(flatten(params).items()):
    value = np.ascontiguousarray(jax.device_get(value))
    digest.update(f"{name} {value.dtype} {value.shape}".encode())
    digest.update(
      value.view(np.uint8).tobytes() if value.ndim else value.tobytes()
    )
  return digest.hexdigest()[:16]


def _recover(array):
  """bfloat16 is written by numpy as two void bytes."""
  return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
