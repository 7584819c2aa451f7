"""Checkpoints of our trainer: those of big_vision, which its tools read.

A checkpoint holds the train state `{params, opt}` and the chronometer. Frozen
models are never saved.
"""

import json
import os
import re
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.experimental.array_serialization import serialization
from ml_collections import ConfigDict

from aced.bv import compat, frozen, keys, tables
from aced.bv.building import Run
from aced.config import ConfigError
from aced.training.workdir import refuse_changes

NAME = "checkpoint.bv"
CONFIG = "config.json"  # That of the run, which big_vision's writer keeps.


# Of ours, what changes how a run is carried out and not what comes out of it.
HARMLESS = re.compile(r"curation\.(kernel|microbatch|loss_form)")


def last_step(where: str | None) -> int:
  """The step of the last checkpoint at a path; 0 if there is none.

  Args:
    where: without what names a step, such as `W/checkpoint.bv` of a workdir W;
      or the folder of one checkpoint.
  """
  if not where:
    return 0
  gfile = compat.load().utils.gfile
  if gfile.exists(f"{where}-LAST"):
    with gfile.GFile(f"{where}-LAST", "r") as file:
      where = f"{where}-{file.read().strip()}"
  found = re.search(r"-(\d+)(-tmp)?/?$", where)
  return int(found[1]) if found else 0


def first_step(config: ConfigDict, workdir: str | None) -> int:
  """The step that a run goes on from; 0 if it begins anew.

  Args:
    config: whose `resume` counts where the workdir has no checkpoint.
    workdir: of the run, if it has one.
  """
  here = last_step(os.path.join(workdir, NAME)) if workdir else 0
  return here or last_step(config.get("resume"))


def check_goes_on(config: ConfigDict, workdir: str | None) -> None:
  """Refuses a workdir whose run began with other keys of ours.

  big_vision's own may change, as they may there. Where `bv:aced` is read,
  those that say which pairs it has read may not.

  Raises:
    WorkdirError: says which keys differ.
  """
  if not workdir or not last_step(os.path.join(workdir, NAME)):
    return
  gfile, path = compat.load().utils.gfile, os.path.join(workdir, CONFIG)
  if not gfile.exists(path):
    logging.warning(
      "%s is gone: whether the run in %s began with the same curation,"
      " reference and teachers is not known.",
      path,
      workdir,
    )
    return
  with gfile.GFile(path, "r") as file:
    began = tables.resolved(json.loads(file.read()))
  now = tables.resolved(config)
  if "input" not in began or "input" not in now:
    for found in (began, now):
      found.pop("input", None)
  changed = refuse_changes(workdir, began, now, HARMLESS.fullmatch)
  for line in changed:
    logging.warning("%s goes on with another %s", workdir, line)


def check_resume(config: ConfigDict) -> None:
  """Refuses a `config.resume` from which a run cannot go on.

  Raises:
    ConfigError: there is no checkpoint, or its run read other numbers of pairs
      a step from `bv:aced`: the stream could not go on where it was.
  """
  where = config.resume
  gfile = compat.load().utils.gfile
  if not gfile.exists(f"{where}-LAST") and not gfile.isdir(where):
    raise ConfigError(
      f"config.resume={where!r}: there is no checkpoint. Give W/{NAME}, the"
      f" last in the workdir W of a run, or a folder W/{NAME}-STEP."
    )
  path = os.path.join(os.path.dirname(where.rstrip("/")), CONFIG)
  if not gfile.exists(path):
    return
  with gfile.GFile(path, "r") as file:
    began = tables.resolved(json.loads(file.read()))
  now = tables.resolved(config)
  data = [found["input"]["data"] for found in (began, now) if "input" in found]
  if len(data) < 2 or data[0] != data[1]:
    return  # Another stream, of which nothing has been read.
  read, reads = map(tables.pairs_of_a_step, (began, now))
  if read != reads:
    raise ConfigError(
      f"config.resume={where!r}: its run read {read} pairs a step from"
      f" {keys.SOURCE}, and this one would read {reads}, so that pairs would be"
      " read again or left out. Keep input.batch_size and"
      " curation.filter_ratio; or draw another order, with input.data.seed; or"
      " take the parameters alone, with model_init."
    )


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
    if here:
      return self.restore(self.path)
    if config.get("resume"):
      check_resume(config)
      return self.restore(config.resume)
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
