"""A workdir belongs to one run: the config that began it says which."""

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.files import is_sealed, write_json
from aced.models import trees
from aced.models.saved import CHECKPOINTS
from aced.training import distributed
from aced.training.recipe import Recipe

FILE = "config.json"
# What a run writes beside it; without it, they are somebody else's.
FOREIGN = ("metrics.jsonl", "checkpoints", "cache.json")
# What is moved aside where a run is begun anew.
OF_RUN = ("picks", CHECKPOINTS, "metrics.jsonl", "wandb_id")
# Keys that mean nothing where no decoder is trained.
IDLE = ("decoder.tasks", "decoder.freeze")
# The token that all processes of a run are to see.
SHARED = "shared.json"
# Keys that change how a run is carried out and not what comes out of it.
HARMLESS = re.compile(
  r"(log|eval|evals|checkpoint|guards|mesh|sharding|frozen_sharding|name)(\..*)?"
  r"|input\.(num_threads|num_workers|prefetch)|scoring\.microbatch"
  r"|loss_form|curation\.kernel"
)
# Paths whose content the fingerprints of a checkpoint guard.
GUARDED = re.compile(r"frozen\..*\.(init|cache)")


# Held by the process that trains in it.
LOCK = "lock"
HELD_SECONDS = 60.0
# How long a shared file system may take to show what another host wrote.
SEEN_SECONDS = 30.0


class WorkdirError(ValueError):
  """The workdir holds another run."""


def checked(where: str | os.PathLike) -> pathlib.Path:
  """The path of a workdir, if a run can be saved there.

  Raises:
    WorkdirError: it is in a bucket, or has characters that Orbax trips over.
  """
  given = os.fspath(where)
  if re.match(r"[A-Za-z0-9]+:/", given):
    raise WorkdirError(
      f"--workdir={given}: a bucket is not written to directly; mount it (Cloud"
      " Storage FUSE, s3fs) and give the folder where it is mounted."
    )
  path = pathlib.Path(given).expanduser()
  if set(str(path.resolve())) & set("*?[]"):
    raise WorkdirError(
      f"--workdir={given}: {path.resolve()} has one of * ? [ ] in it, with"
      " which Orbax would save checkpoints without content and without a word;"
      " choose another name."
    )
  return path


def claim(where: str | pathlib.Path, config: Mapping[str, Any]) -> list[str]:
  """Makes a workdir this run's, or checks that it already is.

  Of several processes the first does so, and all of them must see it. A run
  that saved nothing is given up for one of another config. Call it within
  `held`, or that run may be going on.

  Args:
    where: the workdir; made if it is not there.
    config: the resolved config.

  Returns:
    `key: old -> new` of the keys that differ from those it began with.

  Raises:
    WorkdirError: the workdir holds a run of another config; says which keys.
    HostsDiffer: another process sees another folder.
  """
  changed = []
  if jax.process_index() == 0:
    changed = _claim(where, config)
  changed = distributed.from_first(changed)
  check_shared(where)
  return changed


def _claim(where, config) -> list[str]:
  path = pathlib.Path(where) / FILE
  flat = config_lib.flatten(config)
  if not path.exists():
    left = [n for n in FOREIGN if (path.parent / n).exists()]
    if left:
      raise WorkdirError(
        f"{where} holds {' and '.join(left)} but no {FILE} that would say of"
        " which run; choose another --workdir, or move them away."
      )
    write_json(path, flat)
    return []
  began = _read(path)
  if not config.get("decoder", {}).get("model"):
    # Keys of no effect, whose defaults were others once.
    began, flat = (
      {key: value for key, value in x.items() if key not in IDLE}
      for x in (began, flat)
    )

  def may_change(key):
    return harmless(key, began, flat, config)

  changed = config_lib.differences(began, flat)
  if _saved_anything(path.parent) or all(
    may_change(line.split(": ")[0]) for line in changed
  ):
    return refuse_changes(where, began, flat, may_change)
  _begin_anew(path.parent)
  write_json(path, config_lib.flatten(config))
  return changed


def refuse_changes(
  where: str | os.PathLike,
  began: Mapping[str, Any],
  now: Mapping[str, Any],
  harmless: Callable[[str], bool],
) -> list[str]:
  """Refuses to go on with a run under another config.

  Args:
    where: the workdir.
    began: the config that the run began with.
    now: the config that it is to go on with.
    harmless: whether a flat key may change.

  Returns:
    `key: old -> new` of the keys that may.

  Raises:
    WorkdirError: says which others differ.
  """
  changed = config_lib.differences(began, now)
  harmful = [line for line in changed if not harmless(line.split(": ")[0])]
  if harmful:
    listing = "\n".join(f"  {line}" for line in harmful)
    raise WorkdirError(
      f"{where} holds another run; these keys differ from it:\n{listing}\n"
      "Choose another --workdir, or give these keys their old values to go on"
      f" with that run.{_longer(where, harmful, now)}"
    )
  return changed


def _read(path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise WorkdirError(
      f"{path}, which says of which run this workdir is, is damaged ({error});"
      " put it back from the config in a checkpoint's metadata, or choose"
      " another --workdir."
    ) from error


def _begin_anew(where: pathlib.Path) -> None:
  """Moves what a run that saved nothing has left into a folder of its own."""
  numbers = itertools.count(1)
  aside = next(p for k in numbers if not (p := where / f"before-{k}").exists())
  for name in OF_RUN:
    if (where / name).exists():
      aside.mkdir(exist_ok=True)
      (where / name).rename(aside / name)
  logging.warning(
    "%s has no checkpoint of the run that was begun there; it is begun anew"
    " with this config. What that run left, if anything, is in %s.",
    where,
    aside,
  )


def _saved_anything(where: pathlib.Path) -> bool:
  """Whether a checkpoint was ever finished, even if it is damaged now.

  A run that came to its end had some, and the page of a run is what it ends by.
  """
  saved = any(map(is_sealed, (where / CHECKPOINTS).glob("*/")))
  return saved or (where / "report.html").exists()


def _longer(where, harmful, config) -> str:
  """How to train longer, where the length of a run of ours is what differs."""
  length = any(line.startswith("total_") for line in harmful)
  if not length or "student.init" not in config:
    return ""
  if config.get("decoder.model"):
    return (
      " The schedule of the learning rate depends on the length of the run: to"
      " train a decoder for longer, begin anew in another --workdir."
    )
  return (
    " The schedule of the learning rate depends on the length of the run, so"
    " that it cannot be changed on the way. To train its model further, begin"
    f" in another --workdir with --config.student.init={where}; that run has a"
    " schedule of its own, from its first step on, and total_* is its length"
    " alone."
  )


def config_of(where: str | os.PathLike) -> ConfigDict:
  """The config that a run keeps in its workdir, resolved.

  Raises:
    WorkdirError: there is none, or it cannot be read.
  """
  path = pathlib.Path(where) / FILE
  try:
    flat = json.loads(path.read_text("utf-8"))
    fields = {name.replace(".", "/"): value for name, value in flat.items()}
    return config_lib.resolve(trees.unflatten(fields))
  except (OSError, ValueError, AttributeError) as error:
    raise WorkdirError(
      f"{path} does not say what run this is: {error}. Expected the workdir of"
      " a run of aced.train."
    ) from error


@contextlib.contextmanager
def held(where: str | pathlib.Path, seconds: float = HELD_SECONDS):
  """Keeps other runs out of a workdir; the system lets go of it by itself.

  Of several processes the first does so. A file system without locks has none.

  Args:
    where: the workdir.
    seconds: how long one that is about to end is waited for.

  Raises:
    WorkdirError: another process has it.
  """
  if jax.process_index() > 0:
    yield
    return
  path = pathlib.Path(where) / LOCK
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a+") as file:
    deadline, other = time.monotonic() + seconds, ""
    while not _locked(file):
      if not other:
        other = _holder(file)
        logging.warning(
          "%s is in use by %s; waiting for it to end, %g s at most",
          where,
          other,
          seconds,
        )
      if time.monotonic() > deadline:
        raise WorkdirError(
          f"{where} is in use by {_holder(file)}; end it or wait for it to end,"
          " or choose another --workdir."
        )
      time.sleep(0.1)
    with contextlib.suppress(OSError):  # The disk may be full; the lock holds.
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
      file.flush()
    yield


def in_use(where: str | pathlib.Path) -> str:
  """What process has a workdir; "" for none, or none that can be told."""
  path = pathlib.Path(where) / LOCK
  if not path.exists():
    return ""
  with path.open() as file:
    # Shared: it does not hold up another that looks.
    return "" if _locked(file, fcntl.LOCK_SH) else _holder(file)


def _holder(file) -> str:
  """The process that a lock tells of."""
  file.seek(0)
  return file.read().strip() or "another process"


def _locked(file, kind=fcntl.LOCK_EX) -> bool:
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    logging.warning("%s cannot be locked: %s", file.name, error)
  return True


def check_shared(where: str | pathlib.Path) -> None:
  """Checks that several processes have one workdir, and not one each.

  Raises:
    HostsDiffer: naming the hosts that see another folder.
  """
  if jax.process_count() == 1:
    return
  path = pathlib.Path(where) / SHARED
  token = secrets.token_hex(8)
  if jax.process_index() == 0:
    write_json(path, token)
  token = distributed.from_first(token)
  deadline = time.monotonic() + SEEN_SECONDS
  while not (seen := _holds(path, token)) and time.monotonic() < deadline:
    time.sleep(0.1)
  which = "the folder of the first host" if seen else "a folder of its own"
  distributed.agree("workdir", {str(where): which})


def _holds(path, token) -> bool:
  try:
    return json.loads(path.read_text("utf-8")) == token
  except (OSError, ValueError):
    return False


def harmless(
  key: str,
  began: Mapping[str, Any],
  now: Mapping[str, Any],
  config: Mapping[str, Any],
) -> bool:
  """Whether a run may go on with another value of a key.

  Args:
    key: of the flat configs.
    began: the flat config that the run began with.
    now: the flat config that it is to go on with.
    config: the latter, resolved.
  """
  if key == "accumulation.microbatch":
    # Which rows are dropped or looked at cheaply depends on the pieces.
    recipe = Recipe.from_config(config)
    return not (recipe.dropout or recipe.cotrains)
  if key.startswith("total_"):
    # With this alone the length of a run has no part in what is learnt.
    optimizer = config["optimizer"]
    return optimizer["decay"] == "constant" and not optimizer["warmup_percent"]
  if GUARDED.fullmatch(key):
    # With a cache in the place of a model, or the reverse, roundings differ.
    return bool(began.get(key)) and bool(now.get(key))
  return HARMLESS.fullmatch(key) is not None
