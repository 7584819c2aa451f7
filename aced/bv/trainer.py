"""big_vision's SigLIP trainer, with curation and distillation.

    PYTHONPATH=big_vision python -m aced.bv.trainer --config C --workdir W

It takes a config of `big_vision.trainers.proj.image_text.siglip`, and three
more keys: `curation`, `reference` and `teachers` (see `aced.bv.tables`).
Without them it trains as that trainer does, to the same parameters. It is made
of big_vision's own input pipeline, optimiser, shardings, evaluators, metrics
and checkpoints.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from aced.bv import building, compat, frozen, tables
from aced.bv.building import Run
from aced.bv.saving import Checkpoints, check_goes_on, first_step
from aced.config import ConfigError
from aced.training import command


def train(config: ConfigDict, workdir: str | None = None) -> Any:
  """Runs a config to its end; goes on from the last checkpoint in the workdir.

  Args:
    config: of big_vision's SigLIP trainer, perhaps with our three keys.
    workdir: for metrics and checkpoints; None writes nothing.

  Returns:
    The train state, `{"params": ..., "opt": ...}`.

  Raises:
    ConfigError: one of the three keys is wrong, or one that nobody reads.
    WorkdirError: the workdir holds a run with others of the three.
    ModuleNotFoundError: big_vision, or what it needs, cannot be imported.
    ValueError: something else in the config is.
    NotFinite: the loss is not; checkpoints that were kept stay.
  """
  bv = compat.load()
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")  # They are JAX's.
  tables.read(config)  # Or a wrong config would leave a workdir behind.
  check_goes_on(config, workdir)  # Before the writer puts a new config there.
  if workdir:
    bv.utils.gfile.makedirs(workdir)
  with contextlib.ExitStack() as stack:
    writer = bv.utils.BigVisionMetricWriter(-1, -1, workdir, config)
    stack.callback(writer.close)
    # That of an earlier run in this process would not start at its start.
    bv.utils.chrono = bv.utils.Chrono()
    bv.utils.chrono.inform(measure=writer.measure, write_note=note)
    run = building.build(config, first_step(config, workdir))
    checkpoints = Checkpoints(run, workdir)
    stack.callback(checkpoints.close)
    # What is moved between host and devices unasked would cost every step.
    stack.enter_context(jax.transfer_guard("disallow"))
    state = Loop(run, writer, checkpoints).run_to_the_end()
  bv.utils.sync()
  return state


class NotFinite(ValueError):
  """A loss, or scores, that are not finite numbers."""


class Loop:
  """Steps, and what is done between them: metrics, checkpoints, evaluations.

  Args:
    run: the objects of the run.
    writer: of metrics.
    checkpoints: of the run.
  """

  def __init__(self, run: Run, writer: Any, checkpoints: Checkpoints):
    self.run, self.writer, self.checkpoints = run, writer, checkpoints
    self.utils = compat.load().utils
    self.chrono = self.utils.chrono
    self._evaluators = None

  def run_to_the_end(self) -> Any:
    """Trains from where the last checkpoint is, or from the start."""
    run, total = self.run, self.run.total_steps
    batch_size = run.config.input.batch_size
    self.chrono.inform(
      total_steps=total,
      global_bs=batch_size,
      steps_per_epoch=run.data_size / batch_size,
    )
    batches = self.batches()
    state = self.checkpoints.first_state()
    models = frozen.load(run)
    first = self.count(state)
    self.chrono.inform(first_step=first)
    self.announce(state, first)
    if first in (0, total):
      self.writer.step_start(first)
      self.evaluate(
        state, lambda name, _: first == total or not self.skips(name)
      )
      self.end_step()
    update = run.update()
    rng = self.utils.reshard(run.rngs[1], run.replicated)
    for step, batch in zip(range(first + 1, total + 1), batches):
      self.writer.step_start(step)
      timing = self.chrono.log_timing("z/secs/update0", noop=step > first + 1)
      with timing, run.placed():
        state, metrics = update(state, models, rng, batch)
      self.log(step, metrics)
      self.save(step, state)
      self.evaluate(state, lambda _, every, s=step: self.due(s, every))
      self.end_step()
    self.writer.step_start(total)  # Or closing it writes the last row again.
    return state

  def batches(self):
    """Super-batches on the devices, split by rows in the order of the mesh."""
    return compat.load().input_pipeline.start_global(
      self.run.checked_batches(),
      self.run.devices,
      self.run.config.get("prefetch_to_device", 1),
    )

  def count(self, state: Any) -> int:
    """Steps that a state has taken."""
    optax = compat.load().optax
    return int(jax.device_get(optax.get_count(state["opt"], jittable=True)))

  def announce(self, state: Any, first: int) -> None:
    """Says what is trained on what."""
    recipe, run = self.run.method.recipe, self.run
    count = sum(x.size for x in jax.tree.leaves(state["params"]))
    self.writer.measure("num_params", count)
    note(
      f"step {first} of {run.total_steps}; {recipe.batch_size} pairs trained on"
      f" of {recipe.super_batch} loaded ({recipe.method} curation), on"
      f" {run.mesh.size} devices"
    )

  def log(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Writes metrics where it is time to; ends a run that diverged."""
    every = self.run.steps("log_training")
    due = self.utils.itstime(step, every, self.run.total_steps, host=0)
    if not (due or (self.chrono.warmup and jax.process_index() == 0)):
      return
    for k, schedule in enumerate(self.run.schedules):
      value = schedule(self.utils.put_cpu(step - 1))
      self.writer.measure(f"global_schedule{k or ''}", value)
    values = jax.device_get(metrics)
    for name, value in values.items():
      self.writer.measure(name, value)
    self.chrono.tick(step)
    if not np.isfinite(values["training_loss"]):
      raise NotFinite(
        f"the loss is {values['training_loss']} at step {step}; it ceased to be"
        " finite since metrics were last written: the last checkpoint may be of"
        " no use. Lower config.lr, or go on in a new workdir from one that"
        " was kept (config.keep_ckpt_steps), by config.resume."
      )
    score = values.get("curation/pool_score", 0.0)
    if np.isnan(score):
      raise NotFinite(
        f"the scores of curation are nan at step {step}, so that chance alone"
        " chose: embeddings of the student or of the reference are not finite."
        " Look at their model_init, and at what config.input.pp makes for them."
      )

  def end_step(self) -> None:
    """Writes what was measured, under the step that it was measured at.

    The writer looks up the step when a thread of its own comes to write, which
    may be in a later one.
    """
    if self.writer.step_metrics:
      self.writer.step_metrics["step"] = self.writer.step
    self.writer.step_end()

  def save(self, step: int, state: Any) -> None:
    """Saves where it is time to."""
    if not self.checkpoints.path:
      return
    total = self.run.total_steps
    keeps = self.run.steps("keep_ckpt", None) or total
    saves = self.run.steps("ckpt", None)
    keep = self.utils.itstime(step, keeps, total, first=False)
    if keep or self.utils.itstime(step, saves, total, first=True):
      self.chrono.pause(wait_for=state)
      self.checkpoints.save(state, step, keep=keep)
      self.chrono.resume()

  def evaluate(self, state: Any, wanted: Any) -> None:
    """Runs the evaluators for which `wanted(name, steps between two)`."""
    for name, evaluator, every, prefix in self.evaluators():
      if not wanted(name, every):
        continue
      self.chrono.pause(wait_for=state)
      note(f"{name} evaluation")
      with self.chrono.log_timing(f"z/secs/eval/{name}"), self.run.placed():
        for key, value in evaluator.run(state):
          self.writer.measure(f"{prefix}{key}", jax.device_get(value))
      self.chrono.resume()

  def evaluators(self):
    """Built when first needed: some load much."""
    if self._evaluators is None:
      run = self.run
      names = []  # Those of the evaluators, the one that is built last.

      def building_now(name):
        names.append(name)
        note(f"building the evaluator {name}")

      try:
        self._evaluators = compat.load().evaluators.from_config(
          run.config,
          {"predict": self.predict},
          building_now,
          lambda key, table: run.steps(key, None, table),
          run.devices,
        )
      except TypeError as error:  # An argument too few, or one not known.
        raise ConfigError(f"config.evals.{names[-1]}: {error}") from error
    return self._evaluators

  def predict(self, state: Any, batch: Mapping[str, Any]) -> Any:
    """Embeds a batch, as evaluators ask for it: `(zimg, ztxt, out)`."""
    params = {"params": state["params"]}
    return self.run.model.apply(params, batch.get("image"), batch.get("labels"))

  def due(self, step: int, every: int | None) -> bool:
    """Whether an evaluator is to run."""
    return self.utils.itstime(
      step, every, self.run.total_steps, first=False, last=True
    )

  def skips(self, name: str) -> bool:
    """Whether an evaluator is not to run before the first step."""
    return bool(self.run.config.evals[name].get("skip_first"))


def note(text: str) -> None:
  """Tells the log what is going on, from one process of several."""
  if jax.process_index() == 0:
    logging.info("NOTE: %s", text)


def main() -> None:
  """Runs the command."""
  logging.set_verbosity(logging.INFO)
  jax.config.update("jax_threefry_partitionable", True)
  train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
  command.define_flags(together=True)
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  command.run(main)
