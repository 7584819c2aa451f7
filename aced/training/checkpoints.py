"""Checkpoints: the state of a run and all that is needed to go on with it.

`<workdir>/checkpoints/<step>/` holds `state` (arrays) and `metadata` (JSON:
the resolved config, the data position, fingerprints of frozen models, the
metrics at that step). Writing is asynchronous and atomic, by Orbax.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from aced.models import params as params_lib
from aced.training.state import TrainState

FOLDER = "checkpoints"


class CheckpointError(ValueError):
  """A checkpoint that does not fit the run that wants to restore it."""


class Checkpoints:
  """The checkpoints of one run. A context manager; leaving it waits.

  Args:
    workdir: of the run.
    keep_last: how many of the newest to keep.
    best: name of the metric, larger is better, whose best checkpoint is kept
      as well; "" for none.
  """

  def __init__(
    self, workdir: str | pathlib.Path, *, keep_last: int = 1, best: str = ""
  ):
    self.best = best

    def value(metrics):
      return (metrics or {}).get(best, float("-inf"))

    policies = [preservation_policy.LatestN(max(keep_last, 1))]
    if best:
      policies.append(
        preservation_policy.BestN(
          get_metric_fn=value,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      pathlib.Path(workdir).resolve() / FOLDER,
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "metadata": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        # Without it Orbax does not write the metrics, and a run that goes on
        # would forget which of its checkpoints was the best.
        best_fn=value if best else None,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exc) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  def latest(self) -> int | None:
    """The newest step that was saved whole, or None."""
    return self._manager.latest_step()

  def save(
    self,
    state: TrainState,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to save; returns once the arrays have been copied."""
    step = int(state.step)
    if step == self.latest():
      return
    has_best = self.best and metrics and self.best in metrics
    best = {self.best: float(metrics[self.best])} if has_best else None
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        metadata=ocp.args.JsonSave(
          json.loads(json.dumps({**metadata, "metrics": best or {}}))
        ),
      ),
      metrics=best,
    )

  def metadata(self, step: int) -> dict[str, Any]:
    """What was saved beside the arrays."""
    restored = self._manager.restore(
      step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
    )
    return restored["metadata"]

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
    restored = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )
    return restored["state"]

  def wait(self) -> None:
    """Returns when everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def _check(self, step, like):
    saved = self._manager.item_metadata(step)["state"].tree
    problems = params_lib.compare(_shapes(saved), _shapes(like))
    if problems:
      raise CheckpointError(
        f"the checkpoint at step {step} in {self._manager.directory} does not"
        f" fit this config:\n{problems}\nUse the config it was trained with, or"
        " another workdir."
      )

  def _check_identities(self, step, identities):
    saved = self.metadata(step).get("identities", {})
    for name in sorted({*saved, *identities}):
      if saved.get(name) != identities.get(name):
        raise CheckpointError(
          f"{name} is now {identities.get(name)}, and the checkpoint at step"
          f" {step} in {self._manager.directory} was trained with"
          f" {saved.get(name)}; give it what it had, or choose another workdir."
        )


def _shapes(tree):
  """`{name: shape}`, the same for a state and for what Orbax says of one."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }
