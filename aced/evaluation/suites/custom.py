"""Suites of one's own, in a TOML file.

    name = "mine"

    [[tasks]]
    name = "grocery"
    kind = "zero_shot"
    source = "jsonl:{data_dir}/grocery/test.jsonl?label=name"
    records = 2485
    class_names = ["banana", "kiwi"]
    templates = ["a photo of a {}."]

`kind`, `source` and `records` must be there. Without `class_names` the classes
are those of the source; `metric` is accuracy, or mean/R@1 of retrieval.
"""

import pathlib
import re
import tomllib
from typing import Any

from aced.config import ConfigError, did_you_mean
from aced.evaluation.suites.task import Suite, Task

# Key -> its type in TOML; those of `Task` that a file may give.
KEYS = {
  "name": str,
  "title": str,
  "group": str,
  "kind": str,
  "source": str,
  "train": str,
  "records": int,
  "metric": str,
  "class_names": list,
  "templates": list,
  "group_field": str,
  "groups_left_out": list,
  "get": str,
}
# Kind -> its metric, where none is named.
_METRICS = {"retrieval": "mean/R@1", "association": "jaccard"}
_NEEDED = ("name", "kind", "source", "records")


def read_suite(path: str) -> Suite:
  """Reads a suite.

  Raises:
    ConfigError: it is not there, is no TOML, or a task in it is wrong.
  """
  file = pathlib.Path(path).expanduser()
  try:
    table = tomllib.loads(file.read_text("utf-8-sig"))
  except OSError as error:
    raise ConfigError(f"suite {path}: {error.strerror}.") from error
  except ValueError as error:
    raise ConfigError(f"suite {path} is no TOML: {error}") from error
  for key in table:
    if key not in ("name", "about", "tasks"):
      raise ConfigError(
        f"suite {path}: {key!r} is not a key of a suite; they are name, about"
        f" and [[tasks]].{did_you_mean(key, ('name', 'about', 'tasks'))}"
      )
  rows = table.get("tasks")
  if not isinstance(rows, list) or not rows:
    raise ConfigError(f"suite {path} has no [[tasks]].")
  tasks = tuple(_task(path, k, row) for k, row in enumerate(rows))
  names = [task.name for task in tasks]
  for name in names:
    if names.count(name) > 1:
      raise ConfigError(f"suite {path} has several tasks of the name {name!r}.")
  name = table.get("name", file.stem)
  _check_name(name, f"suite {path}")
  return Suite(name, tasks, table.get("about", ""))


def _check_name(name: Any, where: str) -> None:
  """Refuses a name that could not be that of a file."""
  if not isinstance(name, str) or not re.fullmatch(r"\w[\w.@-]*", name):
    raise ConfigError(
      f"{where}: name={name!r} must be a word of letters, digits and any of"
      " '_.@-': files are named so."
    )


def _task(path: str, number: int, row: dict[str, Any]) -> Task:
  where = f"suite {path}, task {row.get('name', number)!r}"
  for key, value in row.items():
    if key not in KEYS:
      raise ConfigError(
        f"{where}: {key!r} is not a key of a task; known are"
        f" {', '.join(KEYS)}.{did_you_mean(key, KEYS)}"
      )
    if not isinstance(value, KEYS[key]) or isinstance(value, bool):
      raise ConfigError(
        f"{where}: {key}={value!r} must be of type {KEYS[key].__name__}."
      )
  for key in ("class_names", "templates"):
    if not all(isinstance(text, str) for text in row.get(key, ())):
      raise ConfigError(f"{where}: {key}={row[key]!r} must be a list of texts.")
  for key in _NEEDED:
    if key not in row:
      raise ConfigError(f"{where} lacks {key}.")
  _check_name(row["name"], where)
  try:
    return Task(
      name=row["name"],
      title=row.get("title", row["name"]),
      group=row.get("group", ""),
      kind=row["kind"],
      sources=(row["source"],),
      train_sources=(row["train"],) if "train" in row else (),
      records=row["records"],
      metric=row.get("metric", _METRICS.get(row["kind"], "accuracy")),
      num_classes=len(row.get("class_names", ())),
      classes=tuple(row.get("class_names", ())),
      templates=tuple(row.get("templates", ())),
      group_field=row.get("group_field", ""),
      groups_left_out=tuple(row.get("groups_left_out", ())),
      get=row.get("get", ""),
    )
  except ValueError as error:
    raise ConfigError(f"{where}: {error}") from error
