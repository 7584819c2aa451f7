"""A workdir belongs to one run: the config that began it says which."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from aced import config as config_lib

FILE = "config.json"
# What a run writes beside it; without it, they are somebody else's.
FOREIGN = ("metrics.jsonl", "checkpoints")
# Keys that change how a run is carried out and not what comes out of it.
HARMLESS = re.compile(
  r"(log|eval|evals|checkpoint|mesh|sharding|frozen_sharding|name)(\..*)?"
  r"|input\.(num_threads|num_workers|prefetch)|(scoring|accumulation)\.microbatch"
  r"|loss_form|curation\.kernel"
)


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
  changed = config_lib.differences(json.loads(path.read_text()), flat)
  harmful = [c for c in changed if not HARMLESS.fullmatch(c.split(": ")[0])]
  if harmful:
    listing = "\n".join(f"  {line}" for line in harmful)
    raise WorkdirError(
      f"{where} holds another run; these keys differ from it:\n{listing}\n"
      "Choose another --workdir, or give these keys their old values to go on"
      " with that run."
    )
  return changed


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes JSON atomically: a reader sees all of it or nothing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f"{path.name}.part-{os.getpid()}")
  part.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
  os.replace(part, path)
