"""Checkpoints: the state of a run and all that is needed to go on with it.

`<workdir>/checkpoints/<step>/` holds `state` (arrays), `metadata` (JSON: the
resolved config, the data position, fingerprints of frozen models) and
`manifest.json`, by which a damaged one is known. Writing is asynchronous and
atomic, by Orbax; nothing is removed before what takes its place is whole.
"""

import json
import pathlib
import shutil
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from aced import files
from aced.models import params as params_lib
from aced.models import saved as saved_lib
from aced.training import distributed, retention
from aced.training.retention import CheckpointError, Retention
from aced.training.state import TrainState

FOLDER = saved_lib.CHECKPOINTS
# How long processes wait for each other to have written a checkpoint.
_TIMEOUT_SECONDS = 600
# Arrays of which a device would write less are written by one alone.
_SLICE_BYTES = 2**22
_PAUSE_SECONDS = 5.0  # Between two tries to save what must be saved.


class NotSaved(OSError):
  """A state that could not be saved, at the end of a run."""


class Checkpoints:
  """The checkpoints of one run. A context manager; leaving it waits.

  A checkpoint that cannot be saved is told of, and the run goes on: the next
  one may be. One that is damaged is set aside, and the one before it is used.

  Args:
    workdir: of the run; several processes need one that all of them see.
    keep_last: how many of the newest to keep.
    keep_every: steps whose multiples are kept for good; 0 for none.
    best: name of the metric, larger is better, whose best checkpoint is kept
      as well; "" for none.

  Attributes:
    saved: how many were saved whole.
    failed: how many could not be.
    seconds_held: how long saving has held the caller up, in all.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep_last: int = 1,
    keep_every: int = 0,
    best: str = "",
  ):
    self.saved = self.failed = 0
    self.seconds_held = 0.0
    self.folder = pathlib.Path(workdir).resolve() / FOLDER
    self._retention = Retention(self.folder, keep_last, keep_every, best)
    self._first = jax.process_index() == 0
    self._saving: tuple[int, threading.Thread] | None = None
    self._error: BaseException | None = None  # Of what is being saved.
    self._why = ""  # Why the last one could not be.
    self._checkpointer = self._make()
    self._latest = distributed.from_first(
      retention.newest(self.folder) if self._first else None
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, trace) -> None:
    if kind is None or not issubclass(kind, Exception):
      self.wait()
    elif self._saving is not None:
      # The other processes may not come here, and are not asked.
      self._saving[1].join()
    self._close()

  def latest(self) -> int | None:
    """The newest step that is known to be saved whole, or None."""
    alone = jax.process_count() == 1
    if alone and self._saving and not self._saving[1].is_alive():
      self._settle()
    return self._latest

  def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
    """Starts to save; returns once the arrays have been copied.

    Where that fails, now or later, a warning is logged and the run goes on.

    Args:
      state: on the devices.
      metadata: what JSON can hold.
    """
    step = int(state.step)
    began = time.perf_counter()
    self.wait()
    if step == self._latest:
      return
    if self._first:
      retention.clear(self.folder)
    thread = threading.Thread(
      target=self._finish, args=(step,), name="finishes a checkpoint"
    )
    self._saving = (step, thread)
    try:
      self._checkpointer.save(
        self.folder / str(step),
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          metadata=ocp.args.JsonSave(json.loads(json.dumps(metadata))),
        ),
        # What is there was not finished, or had been set aside.
        force=True,
      )
    except Exception as error:
      # Of any type: Orbax and TensorStore have many for a disk that is full.
      self._error = error
    thread.start()
    self.seconds_held += time.perf_counter() - began

  def save_now(
    self, state: TrainState, metadata: Mapping[str, Any], seconds: float
  ) -> None:
    """Saves, and returns when it is on disk; tries again for so long.

    Raises:
      NotSaved: it could not be saved in that time.
    """
    step = int(state.step)
    began, tries = time.monotonic(), 0
    while True:
      self.save(state, metadata)
      self.wait()
      if self._latest == step:
        return
      tries += 1
      left = distributed.from_first(seconds - (time.monotonic() - began))
      if left <= 0:
        raise NotSaved(
          f"step {step} could not be saved in {self.folder}, in {tries} tries"
          f" over {seconds:g} s ({self._why}); of those before,"
          f" {_kept(self._latest)}. Make room or give permission, and the same"
          " command goes on from there."
        )
      time.sleep(max(0.0, min(_PAUSE_SECONDS, left)))

  def keep_all(self) -> None:
    """Removes nothing from now on."""
    self.wait()
    self._retention.keep_all()

  def score(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes the metrics of a step, for keeping the best."""
    if self._first:
      self._retention.score(step, metrics)

  def metadata(self, step: int) -> dict[str, Any]:
    """What was saved beside the arrays."""
    path = self.folder / str(step) / "metadata" / "metadata"
    return json.loads(path.read_text("utf-8"))

  def restore(
    self,
    step: int,
    like: TrainState,
    identities: Mapping[str, str] | None = None,
  ) -> TrainState:
    """Restores a state with the shapes, dtypes and shardings of `like`.

    Args:
      step: of the checkpoint.
      like: a state of the run that goes on.
      identities: of its data and frozen models, as in the metadata.

    Raises:
      CheckpointError: listing every array that is missing, extra or of
        another shape; or naming the data or the frozen model that is not
        the one it was trained with.
    """
    self._check(step, like)
    self._check_identities(step, identities or {})
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      like,
    )
    restored = self._checkpointer.restore(
      self.folder / str(step),
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          target,
          restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        )
      ),
    )
    return restored["state"]

  def wait(self) -> None:
    """Returns when what was being saved is on disk, or has failed."""
    if self._saving is not None:
      self._saving[1].join()
      self._settle()

  def summary(self, step_seconds: float | None) -> str:
    """One line on what was saved, and how long that held the run up."""
    text = f"checkpoints: {self.saved} saved"
    if self.saved:
      each = self.seconds_held / self.saved
      text += f", each held the run up for {each:.3f} s"
      if step_seconds:
        text += f" ({each / step_seconds:.2f} of a step)"
    return text + (f"; {self.failed} could not be saved" * bool(self.failed))

  def _make(self):
    # Barriers have names, which are not used again after a failure.
    return ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(type_handler_registry=_handlers()),
        metadata=ocp.JsonCheckpointHandler(),
      ),
      async_options=ocp.AsyncOptions(
        timeout_secs=_TIMEOUT_SECONDS,
        # Or threads of a save that failed at once are waited for at the end.
        create_directories_asynchronously=False,
      ),
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        barrier_sync_key_prefix=f"try{self.failed}"
      ),
    )

  def _finish(self, step):
    """Waits for a save, seals it, and removes what need not be kept."""
    if self._error is not None:  # It did not even begin.
      return
    try:
      self._checkpointer.wait_until_finished()
      if self._first:
        files.seal(self.folder / str(step))
    except BaseException as error:  # It is told of in the main thread.
      self._error = error
      return
    if self._first:
      self._retention.remove_old(step)

  def _settle(self):
    """Takes note of a save that has come to an end, on all processes alike."""
    step, self._saving = self._saving[0], None
    error, self._error = self._error, None
    told = error and f"{type(error).__name__}: {_first_line(error)}"
    # What was not sealed was not saved, whatever the others have seen.
    why = distributed.from_first(told)
    if why:
      self._failed(step, why)
    else:
      self._latest = step
      self.saved += 1

  def _failed(self, step, why):
    self.failed += 1
    self._why = why
    logging.warning(
      "step %d could not be saved in %s (%s); of the checkpoints before, %s.",
      step,
      self.folder,
      self._why,
      _kept(self._latest),
    )
    # What was written takes room that the next one needs.
    if self._first:
      retention.clear(self.folder)
      if not files.is_sealed(self.folder / str(step)):
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
    self._close()
    self._checkpointer = self._make()

  def _close(self):
    """Ends the threads of a checkpointer, whose errors are known by now."""
    try:
      self._checkpointer.close()
    except Exception as error:
      logging.debug("%s", error)

  def _check(self, step, like):
    saved = self._checkpointer.metadata(self.folder / str(step)).item_metadata
    problems = params_lib.compare(_shapes(saved["state"]), _shapes(like))
    if problems:
      raise CheckpointError(
        f"the checkpoint at step {step} in {self.folder} does not"
        f" fit this config:\n{problems}\nUse the config it was trained with, or"
        " another workdir."
      )

  def _check_identities(self, step, identities):
    saved = self.metadata(step).get("identities", {})
    for name in sorted({*saved, *identities}):
      if saved.get(name) != identities.get(name):
        raise CheckpointError(
          f"{name} is now {identities.get(name)}, and the checkpoint at step"
          f" {step} in {self.folder} was trained with"
          f" {saved.get(name)}; give it what it had, or choose another workdir."
        )


def _handlers():
  """How Orbax writes arrays: copies of small ones are not split to share work.

  It would compile a slice for each shape, and take longer than writing them.
  """
  handlers = ocp.type_handlers
  return handlers.create_type_handler_registry(
    (
      jax.Array,
      handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE_BYTES),
    )
  )


def _first_line(error) -> str:
  lines = str(error).strip().splitlines()
  return lines[0][:300] if lines else ""


def _kept(step: int | None) -> str:
  """What is left to go on from, for messages."""
  return f"step {step} is kept" if step else "there is none yet"


def _shapes(tree):
  """`{name: shape}`, the same for a state and for what Orbax says of one."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }
