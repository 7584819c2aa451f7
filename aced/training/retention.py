"""The folder of checkpoints: what in it is whole, what is kept, what goes."""

import pathlib
import shutil
import sys
from collections.abc import Mapping

from absl import logging

from aced import files
from aced.models import saved as saved_lib

DAMAGED = "damaged-"  # In front of the name of what is set aside.


class CheckpointError(ValueError):
  """A checkpoint that does not fit the run that wants to restore it."""


def newest(folder: pathlib.Path) -> int | None:
  """Returns the newest step that is whole, and sets aside what is damaged.

  Raises:
    CheckpointError: there were some, and none is whole.
    OSError: one is there and cannot be read.
  """
  clear(folder)
  damaged = {}
  for step in reversed(saved_lib.begun_steps(folder)):
    path = folder / str(step)
    finished, found = files.is_sealed(path), files.damage(path)
    if found is None:
      return step
    if finished:
      damaged[step] = found
    aside = path.with_name(f"{DAMAGED}{step}")
    logging.warning(
      "the checkpoint of step %d is passed over: %s. It is set aside as %s.",
      step,
      found,
      aside,
    )
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
  if damaged:
    listed = "; ".join(f"step {k}: {found}" for k, found in damaged.items())
    raise CheckpointError(
      f"no checkpoint in {folder} is whole ({listed}). They are set aside;"
      " to begin anew, choose another workdir."
    )
  return None


def clear(folder: pathlib.Path) -> None:
  """Removes what saves that were killed or failed have left behind."""
  for part in folder.glob("*orbax-checkpoint-tmp*"):
    shutil.rmtree(part, ignore_errors=True)


class Retention:
  """Which checkpoints are kept.

  Args:
    folder: of the checkpoints.
    keep_last: how many of the newest.
    keep_every: steps whose multiples are kept for good; 0 for none.
    best: name of the metric, larger is better, whose best is kept; "" for none.
  """

  def __init__(
    self, folder: pathlib.Path, keep_last: int, keep_every: int, best: str
  ):
    self._folder, self._best = folder, best
    self._last, self._every = max(keep_last, 1), keep_every

  def keep_all(self) -> None:
    """Removes nothing from now on."""
    self._last = sys.maxsize

  def score(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes the metrics of a step, for keeping the best."""
    if self._best not in metrics:
      return
    path = self._folder / saved_lib.SCORES
    scores = self._scores() | {step: float(metrics[self._best])}
    try:
      files.write_json(path, {"metric": self._best, "scores": scores})
    except OSError as error:
      logging.warning("%s cannot be written: %s", path, error)

  def remove_old(self, newest: int) -> None:
    """Removes the checkpoints that no rule keeps.

    Args:
      newest: a step that is kept in any case.
    """
    steps = saved_lib.saved_steps(self._folder)
    kept = {newest, *steps[-self._last :]}
    if self._every:
      kept |= {step for step in steps if step % self._every == 0}
    if self._best:
      scores = self._scores()
      scored = [step for step in steps if step in scores]
      kept |= {max(scored, key=scores.get)} if scored else set()
    for step in steps:
      if step not in kept:
        try:
          files.remove(self._folder / str(step))
        except OSError as error:
          logging.warning("checkpoint %d cannot be removed: %s", step, error)

  def _scores(self) -> dict[int, float]:
    """Step -> the metric that checkpoints are kept by."""
    try:
      return saved_lib.read_scores(self._folder, self._best)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
      path = self._folder / saved_lib.SCORES
      logging.warning("%s cannot be read and begins anew: %s", path, e)
      return {}
