"""A workdir belongs to one run: the config that began it says which."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from aced import config as config_lib
from aced.training.recipe import Recipe

FILE = "config.json"
# What a run writes beside it; without it, they are somebody else's.
FOREIGN = ("metrics.jsonl", "checkpoints", "cache.json")
# Keys that change how a run is carried out and not what comes out of it.
HARMLESS = re.compile(
  r"(log|eval|evals|checkpoint|mesh|sharding|frozen_sharding|name)(\..*)?"
  r"|input\.(num_threads|num_workers|prefetch)|scoring\.microbatch"
  r"|loss_form|curation\.kernel"
)
# Paths whose content the fingerprints of a checkpoint guard.
GUARDED = re.compile(r"frozen\..*\.(init|cache)")


class WorkdirError(ValueError):
  """The workdir holds another run."""


def claim(
  where: str | pathlib.Path, config: Mapping[str, Any], *, write: bool = True
) -> list[str]:
  """Makes a workdir this run's, or checks that it already is.

  Args:
    where: the workdir; made if it is not there.
    config: the resolved config.
    write: whether this process writes; one of several does.

  Returns:
    `key: old -> new` of harmless keys that differ from those it began with.

  Raises:
    WorkdirError: the workdir holds a run of another config; says which keys.
  """
  path = pathlib.Path(where) / FILE
  flat = config_lib.flatten(config)
  if not path.exists():
    left = [n for n in FOREIGN if (path.parent / n).exists()]
    if left:
      raise WorkdirError(
        f"{where} holds {' and '.join(left)} but no {FILE} that would say of"
        " which run; choose another --workdir, or move them away."
      )
    if write:
      write_json(path, flat)
    return []
  began = json.loads(path.read_text())
  changed = config_lib.differences(began, flat)
  harmful = [
    line
    for line in changed
    if not harmless(line.split(": ")[0], began, flat, config)
  ]
  if harmful:
    listing = "\n".join(f"  {line}" for line in harmful)
    raise WorkdirError(
      f"{where} holds another run; these keys differ from it:\n{listing}\n"
      "Choose another --workdir, or give these keys their old values to go on"
      " with that run."
    )
  return changed


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


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes JSON atomically: a reader sees all of it or nothing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f"{path.name}.part-{os.getpid()}")
  part.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
  os.replace(part, path)
