"""Trains a student: `python -m aced.train --config C --workdir W`.

The loop, and nothing else. Killed at any moment and started again with the
same command, it goes on from the last checkpoint to the same parameters. With
several processes, each is started so; see `docs/operations.md`.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from aced import config as config_lib
from aced import report
from aced.models import params as params_lib
from aced.training import (
  build,
  command,
  decoding,
  distributed,
  sanity,
  startup,
  versions,
  workdir,
)
from aced.training.build import Run
from aced.training.checkpoints import Checkpoints
from aced.training.progress import Progress, unless_it_fails
from aced.training.session import Session, make_evaluate
from aced.training.tracker import make_tracker


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
    HostsDiffer: processes have another config, code, data or workdir.
    WorkdirError: the workdir holds another run.
    CheckpointError: a checkpoint does not fit the config.
    ValueError: a source, a tokenizer or weights are wrong.
    Diverged: losses or gradients are not finite, more often in a row than
      `guards.skip_limit` allows; earlier checkpoints stay.
    NotSaved: the last step could not be saved.
    Preempted: a signal or a notice asked to stop, and the step is saved.
  """
  config, where = config_lib.resolve(config), workdir.checked(where)
  if other := workdir.in_use(where):
    say(
      f"{where} is in use by {other}; this run is made ready, and waits"
      f" {workdir.HELD_SECONDS:g} s at most for that one to end"
    )
  distributed.agree("version", versions.code())
  flat = config_lib.flatten(config)
  distributed.agree("config", {key: repr(flat[key]) for key in flat})
  run = (decoding if config.decoder.model else build).build(config)
  distributed.agree("data", run.identities)
  evaluate = make_evaluate(run)
  policy = run.config.checkpoint
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdir.held(where))
    for line in workdir.claim(where, run.config):
      say(f"changed since this run began: {line}")
    checkpoints = stack.enter_context(
      Checkpoints(
        where,
        keep_last=policy.keep_last,
        keep_every=run.every["keep"],
        best=policy.best,
      )
    )
    start = checkpoints.latest() or 0
    state = run.init_state()
    sanity.warn_of_rules(run.config, params_lib.flatten(state.params))
    sanity.warn_of_intervals(run.config, run.every, run.total_steps)
    again = ""  # What is logged once more for the step that was saved.
    if start > run.total_steps:
      raise workdir.WorkdirError(
        f"{where} has a checkpoint of step {start}, and the run is to end at"
        f" {run.total_steps}; raise config.total_*, or choose another"
        " --workdir."
      )
    if start:
      state = checkpoints.restore(start, state, run.identities)
      saved = checkpoints.metadata(start)
      announce(run, start, saved)
      again = "" if saved["evaluated"] else "eval/"
    trackers = run.config.log.trackers
    tracker = stack.enter_context(
      make_tracker(trackers, where, start, run.config, again=again)
    )
    progress = stack.enter_context(make_progress(run, start))
    session = Session(
      run, checkpoints, tracker, progress, evaluate, where, start
    )
    if start >= run.total_steps:
      scores = session.look_again(state, start)
    else:
      scores = loop(run, state, start, session)
  if run.config.log.page:
    report.at_the_end(where)
  return scores


def loop(run: Run, state: Any, start: int, session: Session):
  """Steps from `start` to the end; logs, evaluates and saves on the way."""
  every, best = run.every, run.config.checkpoint.best
  with run.batches(start) as batches:
    batch, info = next(batches)
    where = jax.tree.map(lambda x: x.sharding, state)
    step_fn = run.train_step(where).lower(state, run.frozen, batch).compile()
    if run.config.log.report:
      say(startup.report(run, state, batch, step_fn))
    with session, session.keeping_what_is_good(lambda: state):
      session.begin(state, start)
      for step in range(start + 1, run.total_steps + 1):
        session.bad.name(info)
        state, metrics = step_fn(state, run.frozen, batch)
        logs = step % every["log"] == 0
        session.took(step, metrics, batches.metrics() if logs else {})
        last = step == run.total_steps
        evaluates = run.evaluates and (last or step % every["eval"] == 0)
        if session.stop.due():
          session.end(state, step, evaluated=not evaluates)
        if not last:
          batch, info = next(batches)
        if evaluates:
          session.evaluate(state, step)
        saves = step % every["checkpoint"] == 0 or (evaluates and best)
        if saves or last:
          session.save(state, step, last=last)
      session.conclude(batches.share_waited)
  return session.scores


def announce(run: Run, start: int, saved: Mapping[str, Any]) -> None:
  """Says where a run goes on, and what is not as it was.

  Args:
    run: that goes on.
    start: the step of the checkpoint.
    saved: its metadata.
  """
  if start >= run.total_steps:
    say(f"step {start} of {run.total_steps}: nothing is left but to evaluate")
  else:
    say(f"going on from the checkpoint at step {start}")
  for line in config_lib.differences(saved["versions"], versions.code()):
    say(f"changed since that checkpoint: {line}; roundings may differ")
  before, now = saved["devices"], run.mesh.size
  if before != now and (run.recipe.dropout or run.recipe.cotrains):
    say(
      f"changed since that checkpoint: devices: {before} -> {now}; dropout and"
      " co-training draw by the order of rows on them, so results will differ"
    )


def make_progress(run: Run, start: int) -> Progress:
  """The progress bar of a run."""
  return Progress(
    run.total_steps,
    start,
    run.config.name,
    run.config.log.progress and jax.process_index() == 0,
    batch_size=run.recipe.batch_size,
  )


def say(text: str) -> None:
  """Prints to standard error, from one process of several."""
  if jax.process_index() == 0:
    with unless_it_fails():
      print(text, file=sys.stderr, flush=True)


def main() -> None:
  """Runs the command."""
  train(config_lib.to_plain(flags.FLAGS.config), flags.FLAGS.workdir)


if __name__ == "__main__":
  command.define_flags(ours=True, together=True)
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.mark_flag_as_required("workdir")
  command.run(main)
