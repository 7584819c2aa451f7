"""Trains a student: `python -m aced.train --config C --workdir W`.

The loop, and nothing else. Killed at any moment and started again with the
same command, it goes on from the last checkpoint to the same parameters.
"""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from aced.config import ConfigError, to_plain
from aced.data import BadRecords
from aced.evaluation import embedders
from aced.training import startup, workdir
from aced.training.build import Run, build
from aced.training.checkpoints import CheckpointError, Checkpoints
from aced.training.progress import Progress
from aced.training.tracker import Tracker, make_tracker
from aced.training.watch import Diverged, Watch


def train(
  config: Mapping[str, Any], where: str | pathlib.Path
) -> dict[str, float]:
  """Runs a config to its end in a workdir; goes on with what is there.

  Args:
    config: as `get_config` of a config file returns it.
    where: the workdir, for `config.json`, `metrics.jsonl` and checkpoints.

  Returns:
    The metrics of the final evaluation, by name.

  Raises:
    ConfigError: the config is wrong, or at odds with data or devices.
    WorkdirError: the workdir holds another run.
    CheckpointError: a checkpoint does not fit the config.
    Diverged: a loss or a norm is not finite; earlier checkpoints stay.
  """
  run = build(config)
  for line in workdir.claim(where, run.config):
    logging.info("changed since this run began: %s", line)
  policy = run.config.checkpoint
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpoints(where, keep_last=policy.keep_last, best=policy.best)
    )
    start = checkpoints.latest() or 0
    tracker = stack.enter_context(
      make_tracker(run.config.log.trackers, where, start, run.config)
    )
    state = run.init_state()
    if start:
      logging.info("going on from the checkpoint at step %d", start)
      state = checkpoints.restore(start, state)
    return loop(run, state, start, checkpoints, tracker)


def loop(
  run: Run,
  state: Any,
  start: int,
  checkpoints: Checkpoints,
  tracker: Tracker,
) -> dict[str, float]:
  """Steps from `start` to the end; logs, evaluates and saves on the way."""
  evaluate = functools.partial(run_evaluators, run.evaluators(), run)
  if start >= run.total_steps:
    return evaluate(state)
  bad, scores = BadRecords(run.source), {}
  save_every, eval_every = run.every("checkpoint"), run.every("eval")
  with (
    run.batches(start) as batches,
    Progress(
      run.total_steps, start, run.config.name, run.shows_progress
    ) as bar,
  ):
    batch, info = next(batches)
    step_fn = run.train_step().lower(state, run.frozen, batch).compile()
    bar.write(startup.report(run, state, batch, step_fn))
    watch = Watch(
      tracker,
      bar,
      every=run.every("log"),
      host_metrics=lambda: batches.metrics() | bad.metrics(),
      saved=checkpoints.latest,
    )
    for step in range(start + 1, run.total_steps + 1):
      bad.update(info)
      state, metrics = step_fn(state, run.frozen, batch)
      watch.push(step, metrics)
      last = step == run.total_steps
      if not last:
        batch, info = next(batches)
      evaluates = run.config.evals and (last or step % eval_every == 0)
      if evaluates:
        watch.flush()
        scores = evaluate(state)
        tracker.log(step, scores)
        bar.write(summary(step, scores))
      if last or step % save_every == 0 or (evaluates and checkpoints.best):
        watch.flush()
        checkpoints.save(
          state, run.metadata(step), scores if evaluates else None
        )
  return scores


def run_evaluators(
  evaluators: Mapping[str, Any], run: Run, state: Any
) -> dict[str, float]:
  """Runs every evaluator on the student; names its metrics `eval/name/...`."""
  embed = [
    functools.partial(f, run.student_params(state))
    for f in embedders(run.student, run.mesh)
  ]
  return {
    f"eval/{name}/{key}": value
    for name, evaluator in evaluators.items()
    for key, value in evaluator.run(*embed).items()
  }


def summary(step: int, scores: Mapping[str, float]) -> str:
  """One line of scores for the terminal."""
  text = "  ".join(
    f"{k.removeprefix('eval/')} {v:.3f}" for k, v in scores.items()
  )
  return f"step {step}: {text}"


def main(argv: Sequence[str]) -> None:
  """Runs the command; a wrong input ends it with one message, not a trace."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --helpfull.")
  flags_ = flags.FLAGS
  if jax.process_index() == 0:
    logging.info("workdir %s", flags_.workdir)
  try:
    train(to_plain(flags_.config), flags_.workdir)
  except (
    ConfigError,
    CheckpointError,
    workdir.WorkdirError,
    Diverged,
  ) as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config", None, "Config file, with an argument after a colon."
  )
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
