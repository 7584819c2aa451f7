"""What goes on around the steps of a run: evaluating, saving, stopping."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from aced import evaluation
from aced.data.devices import BadRecords
from aced.training import distributed, picks, sanity
from aced.training.alarms import Alarms
from aced.training.build import Run
from aced.training.checkpoints import Checkpoints, NotSaved
from aced.training.preemption import Notices, Preempted, Stop, StopNow
from aced.training.progress import Progress
from aced.training.state import student_params
from aced.training.tracker import Tracker
from aced.training.watch import Diverged, Watch
from aced.training.watchdog import Watchdog

# How long a save is tried again after a signal: machines are taken away 30 s
# after it.
GRACE_SECONDS = 20.0
STACKS_FILE = "stacks.txt"
# How long processes wait to hear that an evaluator failed on all of them.
_FAIL_SECONDS = 60.0

# `run_all` in words: evaluators with `check` called at every batch.
Evaluate = Callable[[Any, int, Callable[[], None]], dict[str, float]]


class Session:
  """A context manager around the loop of a run.

  Args:
    run: from `build`.
    checkpoints: of the run.
    tracker: of the run.
    progress: the bar.
    evaluate: of `make_evaluate`.
    workdir: for stacks of a run that hangs.
    start: the step that it goes on from.

  Attributes:
    stop: whether to stop.
    watch: of the metrics.
    bad: names the records that cannot be used.
    scores: of the last evaluation.
  """

  def __init__(
    self,
    run: Run,
    checkpoints: Checkpoints,
    tracker: Tracker,
    progress: Progress,
    evaluate: Evaluate,
    workdir: pathlib.Path,
    start: int = 0,
  ):
    self.run, self.scores = run, {}
    self._checkpoints, self._tracker = checkpoints, tracker
    self._progress, self._evaluate = progress, evaluate
    self.bad = BadRecords(run.input.source)
    guards = run.config.guards
    self.watch = Watch(
      tracker,
      progress,
      every=run.every["log"],
      saved=checkpoints.latest,
      skip_limit=guards.skip_limit,
      alarms=make_alarms(run),
      bad=self.bad,
    )
    self._picks = picks.Writer(
      workdir, picks.moments(run.total_steps, run.config.log.picks)
    )
    # Whether the step that was saved is still to be evaluated.
    self._due = False
    if start:
      metadata = checkpoints.metadata(start)
      self.watch.resume(metadata)
      self._due = not metadata["evaluated"]
    self.stop = Stop(jax.process_index(), jax.process_count())
    self._watchdog = Watchdog(
      factor=guards.stall_factor,
      least_seconds=guards.stall_seconds,
      path=workdir / STACKS_FILE,
    )
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Session":
    for part in (self.stop, Notices(self.stop.request), self._watchdog):
      self._stack.enter_context(part)
    return self

  def __exit__(self, *error) -> None:
    self._stack.close()

  def begin(self, state: Any, start: int) -> None:
    """Makes up for an evaluation that a stop fell into."""
    if self._due:
      self.evaluate(state, start)

  def look_again(self, state: Any, step: int) -> dict[str, float]:
    """Evaluates a run that is over; logged only if it had not been."""
    with self:
      if self._due:
        self.evaluate(state, step)
        return self.scores
    scores = self._evaluate(state, step, lambda: None)
    self._progress.write(summary(step, scores))
    return scores

  def took(
    self,
    step: int,
    metrics: Mapping[str, jax.Array],
    of_data: Mapping[str, float],
  ) -> None:
    """Takes note of a step that was dispatched."""
    speed = self._progress.steps_per_second
    if of_data and speed:
      trained = speed * self.run.recipe.batch_size
      of_data = {**of_data, "time/examples_per_second": trained}
    metrics = dict(metrics)
    self._picks.push(step, metrics.pop(picks.PICKS, None))
    self.watch.push(step, metrics, of_data)
    self._watchdog.beat(step)

  def evaluate(self, state: Any, step: int) -> None:
    """Evaluates and logs.

    Raises:
      Preempted: a stop was due meanwhile, and the step is saved.
    """
    self._flush()
    try:
      with self._progress.paused("evaluating"), self._watchdog.paused():
        self.scores = self._evaluate(state, step, self.stop.check)
    except StopNow:
      self.end(state, step, evaluated=False)
    self._tracker.log(step, self.scores)
    self._checkpoints.score(step, self.scores)
    self._progress.write(summary(step, self.scores))

  def save(self, state: Any, step: int, *, last: bool = False) -> None:
    """Saves a step; the last one is tried again until it is on disk.

    Raises:
      NotSaved: the last one could not be saved.
    """
    self._flush()
    self._tracker.flush()
    with self._watchdog.paused():
      if last:
        patience = self.run.config.checkpoint.patience_seconds
        self._checkpoints.save_now(state, self._metadata(step), patience)
      else:
        self._checkpoints.save(state, self._metadata(step))

  def end(self, state: Any, step: int, *, evaluated: bool) -> None:
    """Saves because of a stop.

    Args:
      state: after the step.
      step: its number.
      evaluated: whether it needs no evaluation any more.

    Raises:
      Preempted: always.
    """
    self._flush()
    saved = True
    with self._watchdog.paused():
      try:
        self._checkpoints.save_now(
          state, self._metadata(step, evaluated), GRACE_SECONDS
        )
      except NotSaved as error:
        logging.warning("%s", error)
        saved = False
    raise Preempted(step, self.stop.why, saved)

  def conclude(self, share_waited: float) -> None:
    """Says how data came and checkpoints went.

    Args:
      share_waited: share of the time that steps waited for data.
    """
    self._progress.write(data_summary(share_waited, self.bad.counts))
    speed = self._progress.steps_per_second
    self._progress.write(
      self._checkpoints.summary(1 / speed if speed else None)
    )

  @contextlib.contextmanager
  def keeping_what_is_good(self, state: Callable[[], Any]):
    """Saves the state where steps that changed nothing end a run.

    The checkpoints before are kept as well: what was good may be so no longer.
    """
    try:
      yield
    except Diverged as error:
      if error.good:
        self._checkpoints.keep_all()
        last = state()
        self._checkpoints.save(last, self._metadata(int(last.step)))
        self._checkpoints.wait()
      raise

  def _flush(self):
    self._picks.flush()
    self.watch.flush()

  def _metadata(self, step, evaluated=True):
    return (
      self.run.metadata(step) | self.watch.counts() | {"evaluated": evaluated}
    )


def make_evaluate(run: Run) -> Evaluate:
  """Returns `evaluate(state, step, check) -> {"eval/name/metric": value}`.

  Raises:
    ConfigError: an evaluator has no records, or none has the metric of
      `checkpoint.best`.
  """
  evaluators = run.evaluators()
  sanity.check_evaluators(run.config, evaluators)
  functions = run.evaluated()

  def evaluate(state, step, check=lambda: None):
    params = student_params(state.params)

    def bound(function):
      def of_rows(rows):
        check()
        return function(params, rows)

      return of_rows

    scores = evaluation.run_all(
      evaluators,
      *map(bound, functions),
      failed=functools.partial(evaluator_failed, step),
    )
    return {f"eval/{name}": value for name, value in scores.items()}

  return evaluate


def evaluator_failed(step: int, name: str, error: Exception) -> None:
  """Tells of an evaluator that failed; the run goes on.

  Raises:
    RuntimeError: it failed on some processes and not on all: the others are in
      the middle of it.
  """
  logging.warning(
    "the evaluator %s failed at step %d, and the run goes on: %s: %s",
    name,
    step,
    type(error).__name__,
    error,
  )
  if not distributed.on_all(f"failed/{step}/{name}", _FAIL_SECONDS):
    raise RuntimeError(
      f"the evaluator {name} failed at step {step} here and not on every host:"
      f" {type(error).__name__}: {error}"
    ) from error


def make_alarms(run: Run) -> Alarms:
  """The alarms of a run, as `config.guards` sets them."""
  guards, recipe = run.config.guards, run.recipe
  draws = recipe.curated and recipe.temperature > 0
  epochs = guards.repeat_epochs
  return Alarms(
    records=len(run.input.source),
    super_batch=recipe.super_batch,
    batch_size=recipe.batch_size,
    loss_factor=guards.loss_spike,
    # A greedy draw has one candidate by definition.
    least_effective=guards.least_candidates if draws else 0.0,
    **({"window_epochs": epochs} if epochs else {"repeats_factor": 0.0}),
  )


def summary(step: int, scores: Mapping[str, float]) -> str:
  """One line of the scores that matter, for the terminal."""
  shown = {
    name.removeprefix("eval/"): value
    for name, value in scores.items()
    if name.endswith(("/accuracy", "mean/R@1", "/exact_match", "/cider_d"))
  }
  parts = [
    f"{name} {value:.3f}" if name.endswith("cider_d") else f"{name} {value:.1%}"
    for name, value in shown.items()
  ]
  parts += [
    f"{name.split('/')[1]} failed"
    for name in scores
    if name.endswith("/failed")
  ]
  return f"step {step}: {', '.join(parts)}"


def data_summary(waited: float, bad: Mapping[str, int]) -> str:
  """One line of how the data came.

  Args:
    waited: share of the time that steps waited for data.
    bad: cause -> records that could not be used.
  """
  causes = ", ".join(f"{cause} {n:,}" for cause, n in sorted(bad.items()))
  return (
    f"data: waited for {waited:.1%} of the time; {sum(bad.values()):,} records"
    f" could not be used{causes and f' ({causes})'}"
  )
