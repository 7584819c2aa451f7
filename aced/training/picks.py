"""What curation kept and what it dropped, written down at a few steps of a run.

`picks/STEP.npz` in the workdir holds the super-batch of one step as arrays of
`B` rows: `index` (int64, records of the source); `usable` and `kept` (bool,
whether the pair could be read, and whether the step trained on it); `student`
and `reference` (float32, the loss of the pair alone by each model that scored,
in nats); and, where the data set knows it, `fault` (int8, see
`aced.data.faults`). `aced.report` makes pictures of them.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from aced import curation, files
from aced.embeddings import Embeddings
from aced.models.formats.npz import DAMAGED
from aced.training.embedding import Batch
from aced.training.recipe import Recipe
from aced.training.views import STUDENT

FOLDER = "picks"
# The entry of a step's metrics that holds them.
PICKS = "picks"


class Picks(NamedTuple):
  """The super-batch of one step, see the top of this module.

  Attributes:
    step: its number.
    columns: name -> `(B,)`.
  """

  step: int
  columns: Mapping[str, np.ndarray]

  @property
  def kept(self) -> np.ndarray:
    """`(B,)` bool, the pairs that were trained on."""
    return self.columns["kept"]

  def score(self) -> np.ndarray:
    """`(B,)` float32: what each pair was worth alone, by the models there."""
    student = self.columns.get("student", 0.0)
    return np.asarray(student - self.columns.get("reference", 0.0), np.float32)


def columns(
  recipe: Recipe,
  scored: Mapping[str, Embeddings],
  selection: curation.Selection,
  batch: Batch,
) -> dict[str, jax.Array]:
  """The columns of one step, `(B,)` each and split as the batch is.

  Args:
    recipe: the method.
    scored: embeddings of the batch by the models that score.
    selection: what was drawn from it.
    batch: the super-batch; without `index` there is nothing to tell.
  """
  if "index" not in batch:
    return {}
  rows = batch["_mask"].shape[0]
  kept = jnp.zeros(rows, bool).at[selection.indices].max(selection.mask)
  found = {"index": batch["index"], "kept": kept, "usable": batch["_mask"]}
  if recipe.scores_student:
    found["student"] = curation.pair_scores(
      scored[STUDENT], None, score="hard", loss=recipe.loss
    )
  if recipe.reference:
    found["reference"] = -curation.pair_scores(
      None, scored[recipe.reference], score="easy_reference", loss=recipe.loss
    )
  if "fault" in batch:
    found["fault"] = batch["fault"]
  return found


def moments(total_steps: int, times: int) -> frozenset[int]:
  """The steps that are written down: the first, the last, evenly between."""
  if times < 1:
    return frozenset()
  return frozenset(
    int(step) for step in np.linspace(1, total_steps, times).round()
  )


class Writer:
  """Writes picks one step late, so that devices never wait for the host.

  Args:
    workdir: of the run.
    steps: of `moments`.
  """

  def __init__(self, workdir: pathlib.Path, steps: frozenset[int]):
    self._folder, self._steps = workdir / FOLDER, steps
    self._pending: tuple[int, Mapping[str, jax.Array]] | None = None

  def push(self, step: int, found: Mapping[str, jax.Array] | None) -> None:
    """Takes the picks of a step, and writes those before it.

    Args:
      step: its number.
      found: of `columns`, on the devices; None or {} without curation.
    """
    self.flush()
    if found and step in self._steps:
      self._pending = step, found

  def flush(self) -> None:
    """Writes what waits. A disk that is full costs the page and not the run."""
    if self._pending is None:
      return
    (step, found), self._pending = self._pending, None
    if jax.process_count() > 1:  # Each has rows of its own.
      found = multihost_utils.process_allgather(found, tiled=True)
    if jax.process_index() == 0:
      try:
        _write(self._folder / f"{step:08d}.npz", found)
      except OSError as error:
        logging.warning("the picks of step %d are not kept: %s", step, error)


def read(workdir: str | os.PathLike) -> list[Picks]:
  """The picks of a run, by step; none where it has no curation.

  Raises:
    ValueError: a file that is damaged; says which.
  """
  found = []
  for path in sorted((pathlib.Path(workdir) / FOLDER).glob("*.npz")):
    try:
      with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
        found.append(Picks(int(path.stem), {k: kept[k] for k in kept.files}))
      rows = {len(found[-1].columns[name]) for name in ("index", "kept")}
      rows |= {len(column) for column in found[-1].columns.values()}
      if len(rows) > 1:
        raise ValueError(f"its columns have {sorted(rows)} rows")
    except (*DAMAGED, ValueError, KeyError) as error:
      raise ValueError(
        f"{path} is damaged ({error}); remove it, and the page does without."
      ) from error
  return found


def _write(path, found):
  arrays = {k: np.asarray(v) for k, v in found.items()}
  arrays["index"] = arrays["index"].astype(np.int64)
  with files.whole(path) as part, part.open("wb") as file:
    np.savez_compressed(file, **arrays)
