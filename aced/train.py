"""Trains a student: `python -m aced.train --config C --workdir W`.

The loop, and nothing else. Killed at any moment and started again with the
same command, it goes on from the last checkpoint to the same parameters.
"""

import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags

from aced import evaluation
from aced.config import to_plain
from aced.data.devices import BadRecords
from aced.training import command, startup, workdir
from aced.training.build import Run, build
from aced.training.checkpoints import Checkpoints
from aced.training.progress import Progress
from aced.training.state import student_params
from aced.training.tracker import Tracker, make_tracker
from aced.training.watch import Watch


def train(
  config: Mapping[str, Any], where: str | os.PathLike
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
    ValueError: a source, a tokenizer or weights are wrong.
    Diverged: a loss or a norm is not finite; earlier checkpoints stay.
  """
  run, where = build(config), pathlib.Path(where)
  evaluate = make_evaluate(run)
  first = jax.process_index() == 0
  for line in workdir.claim(where, run.config, write=first):
    say(f"changed since this run began: {line}")
  policy = run.config.checkpoint
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpoints(where, keep_last=policy.keep_last, best=policy.best)
    )
    start = checkpoints.latest() or 0
    state = run.init_state()
    if start >= run.total_steps:
      say(f"step {start} of {run.total_steps}: nothing is left but to evaluate")
    elif start:
      say(f"going on from the checkpoint at step {start}")
    if start:
      state = checkpoints.restore(start, state, run.identities)
    tracker = stack.enter_context(
      make_tracker(run.config.log.trackers, where, start, run.config)
    )
    if start >= run.total_steps:
      return evaluate(state)
    return loop(run, state, start, evaluate, checkpoints, tracker)


def loop(
  run: Run,
  state: Any,
  start: int,
  evaluate: Callable[[Any], dict[str, float]],
  checkpoints: Checkpoints,
  tracker: Tracker,
) -> dict[str, float]:
  """Steps from `start` to the end; logs, evaluates and saves on the way."""
  bad, scores = BadRecords(run.input.source), {}
  if start:
    bad.counts.update(checkpoints.metadata(start)["bad_records"])
  save_every, eval_every = run.every["checkpoint"], run.every["eval"]
  with run.batches(start) as batches, make_progress(run, start) as progress:
    batch, info = next(batches)
    where = jax.tree.map(lambda x: x.sharding, state)
    step_fn = run.train_step(where).lower(state, run.frozen, batch).compile()
    if run.config.log.report:
      say(startup.report(run, state, batch, step_fn))
    watch = Watch(
      tracker,
      progress,
      every=run.every["log"],
      saved=checkpoints.latest,
    )
    for step in range(start + 1, run.total_steps + 1):
      bad.update(info)
      state, metrics = step_fn(state, run.frozen, batch)
      logs = step % run.every["log"] == 0
      of_data = bad.metrics() | batches.metrics() if logs else {}
      watch.push(step, metrics, of_data)
      last = step == run.total_steps
      if not last:
        batch, info = next(batches)
      evaluates = run.evaluates and (last or step % eval_every == 0)
      if evaluates:
        watch.flush()
        with progress.paused("evaluating"):
          scores = evaluate(state)
        tracker.log(step, scores)
        progress.write(summary(step, scores))
      if last or step % save_every == 0 or (evaluates and checkpoints.best):
        watch.flush()
        metadata = run.metadata(step) | {"bad_records": dict(bad.counts)}
        checkpoints.save(state, metadata, scores if evaluates else None)
    progress.write(data_summary(batches.share_waited, bad.counts))
  return scores


def make_evaluate(run: Run) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(state) -> {"eval/name/metric": value}`."""
  evaluators = run.evaluators()
  embedders = evaluation.embedders(run.student, run.mesh)

  def evaluate(state):
    params = student_params(state.params)
    bound = [functools.partial(embed, params) for embed in embedders]
    scores = evaluation.run_all(evaluators, *bound)
    return {f"eval/{name}": value for name, value in scores.items()}

  return evaluate


def make_progress(run: Run, start: int) -> Progress:
  """The progress bar of a run."""
  return Progress(
    run.total_steps,
    start,
    run.config.name,
    run.config.log.progress and jax.process_index() == 0,
    batch_size=run.recipe.batch_size,
  )


def summary(step: int, scores: Mapping[str, float]) -> str:
  """One line of the scores that matter, for the terminal."""
  shown = {
    name.removeprefix("eval/"): value
    for name, value in scores.items()
    if name.endswith(("/accuracy", "mean/R@1"))
  }
  parts = [f"{name} {100 * value:.1f}%" for name, value in shown.items()]
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


def say(text: str) -> None:
  """Prints to standard error, from one process of several."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
  """Runs the command."""
  train(to_plain(flags.FLAGS.config), flags.FLAGS.workdir)


if __name__ == "__main__":
  command.define_flags()
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.mark_flag_as_required("workdir")
  command.run(main)
