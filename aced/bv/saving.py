"""Checkpoints of our trainer: those of big_vision, which its tools read.

A checkpoint holds the train state `{params, opt}` and the chronometer. Frozen
models are never saved.
"""

import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.experimental.array_serialization import serialization

from aced.bv import compat, frozen
from aced.bv.building import Run

NAME = "checkpoint.bv"


def last_step(workdir: str | None) -> int:
  """The step of the last checkpoint in a workdir; 0 if there is none."""
  gfile = compat.load().utils.gfile
  path = os.path.join(workdir, f"{NAME}-LAST") if workdir else ""
  if not path or not gfile.exists(path):
    return 0
  with gfile.GFile(path, "r") as file:
    return int(file.read().strip().removesuffix("-tmp"))


class Checkpoints:
  """Saves and restores the state of a run.

  Args:
    run: whose state it is.
    workdir: where to save; None saves nothing.
  """

  def __init__(self, run: Run, workdir: str | None):
    self.run = run
    self.path = os.path.join(workdir, NAME) if workdir else None
    self.manager = None

  def first_state(self) -> Any:
    """Where training starts; the first of these that there is.

    The last checkpoint of the workdir; `config.resume`; new parameters loaded
    by `config.model_init`; new ones, random.
    """
    utils, config = compat.load().utils, self.run.config
    here = self.path and utils.gfile.exists(f"{self.path}-LAST")
    where = self.path if here else config.get("resume")
    if where:
      return self.restore(where)
    state = self.run.init_state()
    if config.get("model_init"):
      params = frozen.load_params(
        self.run.module,
        state["params"],
        config.model_init,
        config.get("model"),
        config.get("model_load", {}),
        "config",
      )
      places = self.run.shardings["params"]
      state["params"] = utils.reshard(params, places)
    return state

  def restore(self, where: str) -> Any:
    """The state at a path, or the last of those whose paths begin so."""
    utils = compat.load().utils
    places = self.run.shardings | {"chrono": self._chrono_places()}
    found = utils.load_checkpoint_ts(where, tree=places, shardings=places)
    utils.chrono.load(jax.device_get(found.pop("chrono")))
    return found

  def save(self, state: Any, step: int, *, keep: bool) -> None:
    """Saves, while training goes on; the one before is removed unless kept."""
    utils = compat.load().utils
    if self.manager is None:
      self.manager = serialization.GlobalAsyncCheckpointManager()
    with jax.transfer_guard("allow"):
      chrono = multihost_utils.broadcast_one_to_all(utils.chrono.save())
    chrono = utils.reshard(chrono, self._chrono_places())
    utils.save_checkpoint_ts(
      self.manager, {**state, "chrono": chrono}, self.path, step, keep
    )

  def close(self) -> None:
    """Waits until what is being saved is."""
    if self.manager is not None:
      self.manager.wait_until_finished()

  def _chrono_places(self):
    saved = compat.load().utils.chrono.save()
    return dict.fromkeys(saved, self.run.replicated)
