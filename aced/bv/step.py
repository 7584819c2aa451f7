"""The update of our trainer: big_vision's, on a batch that was chosen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aced.bv import compat
from aced.training.step import TrainStep, data_metrics

State = dict[str, Any]
# Short vectors of our trainer's metrics, which only it can make use of.
VECTORS = ("sketch", "errors")


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """`update(train_state, frozen, rng, batch) -> (train_state, metrics)`.

  Without curation and teachers it computes what the update of big_vision's
  SigLIP trainer does, with the same random numbers: the number of the step is
  folded into `rng`, and of the two keys that this is split into the second is
  that of dropout. The first, of which that trainer makes no use, is ours to
  draw with.

  Attributes:
    inner: scores, draws, and computes losses and their gradient.
    schedule: `config.schedule`, which says what is frozen.
  """

  inner: TrainStep
  schedule: Any

  def __call__(
    self, train_state: State, frozen: Any, rng: jax.Array, batch: Any
  ) -> tuple[State, dict[str, jax.Array]]:
    """Takes one step.

    Args:
      train_state: `{"params": ..., "opt": ...}`.
      frozen: name -> parameters.
      rng: of the run.
      batch: `image` and `labels` of the pairs that were loaded; `_mask`,
        `index` and `fault` where the pipeline kept them.
    """
    bv = compat.load()
    count = bv.optax.get_count(train_state["opt"], jittable=True)
    rng = jax.random.fold_in(rng, count)
    draw_rng, dropout_rng = jax.random.split(rng, 2)
    # Only IIDistill embeds other rows, which need random numbers of their own.
    rngs = dropout_rng, jax.random.fold_in(dropout_rng, 1)
    params, opt = train_state["params"], train_state["opt"]
    batch = self.with_mask(batch)
    draw = self.inner.draw(draw_rng, params, frozen, batch)
    (loss, parts), grads = self.inner.gradients(params, draw, rngs)
    updates, opt = self.inner.optimizer.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
    trained = bv.optax.replace_frozen(self.schedule, grads, 0.0)
    metrics = {
      "training_loss": loss,
      "l2_grads": optax.tree.norm(trained),
      "l2_params": optax.tree.norm(params),
      "l2_updates": optax.tree.norm(updates),
      **parts,
      **self.seen(batch, draw),
    }
    return {"params": params, "opt": opt}, metrics

  def with_mask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with a mask; None where nothing is masked nor drawn."""
    batch = dict(batch)
    if "_mask" in batch:
      batch["_mask"] = batch["_mask"].astype(bool)
    else:
      rows = batch["image"].shape[0]
      curated = self.inner.recipe.curated
      batch["_mask"] = jnp.ones(rows, bool) if curated else None
    return batch

  def seen(self, batch: Mapping[str, Any], draw: Any) -> dict[str, jax.Array]:
    """What was loaded, and what curation made of it, by our names."""
    if batch["_mask"] is None:
      return {}
    found = data_metrics(batch, draw.learn, draw.selection)
    return {k: v for k, v in found.items() if k not in VECTORS}
