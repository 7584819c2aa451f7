"""Watches the metrics of a run: logs them, and stops a run that diverges."""

import math
from collections.abc import Mapping
from typing import Any

import jax


class Diverged(ArithmeticError):
  """A loss or a norm that is not finite.

  Attributes:
    step: the number of the step that gave it.
    parts: names of the metrics that are not finite, with their values.
  """

  def __init__(self, step: int, parts: Mapping[str, float], saved: int | None):
    self.step = step
    self.parts = dict(parts)
    values = ", ".join(f"{name} = {value}" for name, value in parts.items())
    kept = f"step {saved} is kept" if saved else "there is none yet"
    super().__init__(
      f"step {step} is not finite: {values}. Nothing was saved from it; of the"
      f" last good checkpoints, {kept}. Lower the learning rate, or clip"
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
  """

  def __init__(self, tracker, progress, *, every, saved):
    self._tracker = tracker
    self._progress = progress
    self._every = every
    self._saved = saved
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
      Diverged: they are not finite.
    """
    if self._pending is None:
      return
    step, metrics, host_metrics = self._pending
    self._pending = None
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    check_data(step, metrics)
    check_finite(step, metrics, self._saved())
    self._progress.update(step, metrics)
    if step % self._every == 0:
      self._tracker.log(step, metrics | host_metrics)


def check_data(step: int, metrics: Mapping[str, float]) -> None:
  """Raises `NoData` if none of the pairs of a step could be used."""
  if metrics.get("data/masked") == 1.0:
    raise NoData(
      f"step {step}: none of the pairs of the super-batch could be used; the"
      " log names the first record of each cause. Check the source's pictures,"
      " captions and names of fields."
    )


def check_finite(
  step: int, metrics: Mapping[str, float], saved: int | None
) -> None:
  """Raises `Diverged`, naming the parts, if a loss or norm is not finite."""
  watched = {k: v for k, v in metrics.items() if k.startswith(("loss", "norm"))}
  bad = {k: v for k, v in watched.items() if not math.isfinite(v)}
  if bad:
    raise Diverged(step, bad, saved)
