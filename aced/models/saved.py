"""The checkpoints of runs of ours: found, scored, and their students loaded."""

import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from aced import files
from aced.models import refusals
from aced.models.trees import ParamsError

CHECKPOINTS = "checkpoints"
SCORES = "scores.json"  # Beside the checkpoints: what they are kept by.


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
    if not begun and (error := refusals.nothing(where)):
      raise error
    cut = f"; {', '.join(map(str, begun))} were never finished" if begun else ""
    raise FileNotFoundError(
      f"no weights at {where!r}: expected an .npz file, a folder of Hugging"
      " Face or open_clip, or the workdir of a run with checkpoints in"
      f" {folder}{cut}."
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
