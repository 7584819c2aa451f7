"""A workdir belongs to one run: the config that began it says which."""

import contextlib
import fcntl
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
from aced.files import write_json
from aced.models import trees
from aced.training import distributed
from aced.training.recipe import Recipe

FILE = "config.json"
# What a run writes beside it; without it, they are somebody else's.
FOREIGN = ("metrics.jsonl", "checkpoints", "cache.json")
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

  Of several processes the first does so, and all of them must see it.

  Args:
    where: the workdir; made if it is not there.
    config: the resolved config.

  Returns:
    `key: old -> new` of harmless keys that differ from those it began with.

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
  try:
    began = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise WorkdirError(
      f"{path}, which says of which run this workdir is, is damaged ({error});"
      " put it back from the config in a checkpoint's metadata, or choose"
      " another --workdir."
    ) from error
  return refuse_changes(
    where, began, flat, lambda key: harmless(key, began, flat, config)
  )


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
      " with that run."
    )
  return changed


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
  with path.open("a+") as file:
    deadline = time.monotonic() + seconds
    while not _locked(file):
      if time.monotonic() > deadline:
        file.seek(0)
        raise WorkdirError(
          f"{where} is in use by {file.read().strip() or 'another process'};"
          " wait for it to end, or choose another --workdir."
        )
      time.sleep(0.1)
    with contextlib.suppress(OSError):  # The disk may be full; the lock holds.
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
      file.flush()
    yield


def _locked(file) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    # Which rows are dropped or looked at cheaply hangs on the pieces.
    recipe = Recipe.from_config(config)
    return not (recipe.dropout or recipe.cotrains)
  if GUARDED.fullmatch(key):
    # With a cache in the place of a model, or the reverse, roundings differ.
    return bool(began.get(key)) and bool(now.get(key))
  return HARMLESS.fullmatch(key) is not None
