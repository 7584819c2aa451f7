"""Watches the metrics of a run: logs them, and stops a run that diverges."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from aced.data.devices import BadRecords
from aced.training.alarms import Alarms

# Metrics of a step that are no scalars, and are not logged.
VECTORS = ("sketch", "errors")
SKIPPED = "guard/skipped"


class Diverged(ArithmeticError):
  """A loss or a norm that is not finite, once too often.

  Attributes:
    step: the number of the step that gave it.
    parts: names of the metrics that are not finite, with their values.
    good: whether the state is still good, since such steps changed nothing.
  """

  def __init__(
    self,
    step: int,
    parts: Mapping[str, float],
    saved: int | None,
    skipped: int = 0,
  ):
    self.step, self.good = step, skipped > 0
    self.parts = dict(parts)
    values = ", ".join(f"{name} = {value}" for name, value in parts.items())
    kept = (
      f"The checkpoint of step {saved} is kept."
      if saved
      else "There is no checkpoint yet."
    )
    if self.good:
      what = (
        f"It is the {_th(skipped)} in a row; they changed nothing"
        " (config.guards.skip_limit)."
      )
    else:
      what = "Nothing was saved from it."
    super().__init__(
      f"step {step} is not finite: {values}. {what} {kept} Lower the learning"
      " rate, or clip"
      " (config.optimizer.learning_rate, config.optimizer.clip)."
    )


class NoData(ValueError):
  """A super-batch without a single pair that can be used."""


class Watch:
  """Takes the metrics of every step, one step late.

  Those of step `n - 1` are fetched after step `n` is dispatched, so that the
  devices never wait for the host.

  Args:
    tracker: where metrics go, every `every` steps.
    progress: the progress bar.
    every: steps between two logged lines.
    saved: called for the step of the last good checkpoint.
    skip_limit: the most steps in a row that may be skipped.
    alarms: what warns of odd metrics; None for nothing.
    bad: counts the records that could not be used.

  Attributes:
    skipped: steps that were not finite and changed nothing, so far.
    in_a_row: how many of them were the last ones.
  """

  def __init__(
    self,
    tracker,
    progress,
    *,
    every,
    saved,
    skip_limit: int = 0,
    alarms: Alarms | None = None,
    bad: BadRecords | None = None,
  ):
    self.skipped = self.in_a_row = 0
    self._tracker = tracker
    self._progress = progress
    self._every = every
    self._saved = saved
    self._limit = skip_limit
    self._alarms = alarms
    self._bad = bad or BadRecords()
    self._pending: tuple[int, Any, Mapping[str, float]] | None = None

  def push(
    self,
    step: int,
    metrics: Mapping[str, jax.Array],
    host_metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Takes the metrics of step `step`, and deals with those before it.

    Args:
      step: its number.
      metrics: of the step, on the devices and perhaps not there yet.
      host_metrics: of the host, as they are now.

    Raises:
      Diverged: the step before was not finite.
    """
    self.flush()
    self._pending = (step, metrics, dict(host_metrics or {}))

  def flush(self) -> None:
    """Deals with the metrics that were pushed last.

    Raises:
      Diverged: they are not finite, and were not skipped or too often so.
      NoData: none of the pairs could be used.
    """
    if self._pending is None:
      return
    step, metrics, host_metrics = self._pending
    self._pending = None
    fetched = jax.device_get(dict(metrics))
    vectors = {k: np.asarray(fetched.pop(k)) for k in VECTORS if k in fetched}
    metrics = {k: float(v) for k, v in fetched.items()}
    if "errors" in vectors:
      self._bad.count(vectors["errors"])
    check_data(step, metrics)
    self._check_finite(step, metrics)
    if self._alarms is not None:
      for line in self._alarms.see(step, metrics, vectors.get("sketch")):
        logging.warning("%s", line)
    self._progress.update(step, metrics)
    if step % self._every == 0:
      self._tracker.log(step, metrics | self.metrics() | host_metrics)

  def metrics(self) -> dict[str, float]:
    """What has been counted so far, in the place of what each step counts."""
    of_alarms = self._alarms.metrics() if self._alarms is not None else {}
    return {
      SKIPPED: float(self.skipped),
      **self._bad.metrics(),
      **of_alarms,
    }

  def counts(self) -> dict[str, Any]:
    """What a checkpoint keeps, for `resume`."""
    return {
      "bad_records": dict(self._bad.counts),
      "skipped": self.skipped,
      "skipped_in_a_row": self.in_a_row,
      "alarms": dict(self._alarms.counts) if self._alarms else {},
    }

  def resume(self, counts: Mapping[str, Any]) -> None:
    """Goes on counting from what a checkpoint kept."""
    self._bad.counts.update(counts["bad_records"])
    self.skipped = counts["skipped"]
    self.in_a_row = counts["skipped_in_a_row"]
    if self._alarms is not None:
      self._alarms.counts.update(counts.get("alarms", {}))

  def _check_finite(self, step, metrics):
    """Counts a step that was skipped; raises `Diverged` for one that counts."""
    parts = not_finite(metrics)
    if not metrics.get(SKIPPED):
      self.in_a_row = 0
      if parts:
        raise Diverged(step, parts, self._saved())
      return
    self.skipped += 1
    self.in_a_row += 1
    if self.in_a_row > self._limit:
      raise Diverged(step, parts, self._saved(), self.in_a_row)
    logging.warning(
      "step %d is not finite and changes nothing: %s; %d so far",
      step,
      ", ".join(f"{name} = {value}" for name, value in parts.items()),
      self.skipped,
    )


def check_data(step: int, metrics: Mapping[str, float]) -> None:
  """Raises `NoData` if none of the pairs of a step could be used."""
  if metrics.get("data/masked") == 1.0:
    raise NoData(
      f"step {step}: none of the pairs of the super-batch could be used; the"
      " log names the first record of each cause. Check the source's pictures,"
      " captions and names of fields."
    )


def not_finite(metrics: Mapping[str, float]) -> dict[str, float]:
  """The losses and norms among metrics that are not finite."""
  watched = {k: v for k, v in metrics.items() if k.startswith(("loss", "norm"))}
  return {k: v for k, v in watched.items() if not math.isfinite(v)}


def _th(number: int) -> str:
  """A number as an ordinal: 1st, 2nd, 3rd, 11th."""
  if number % 100 in (11, 12, 13):
    return f"{number}th"
  return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
