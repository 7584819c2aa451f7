"""The table of a study: a row for each cell, and the curves behind it."""

import csv
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.data import faults
from aced.files import whole
from aced.reporting.run import cost_ledger
from aced.training import picks
from aced.training.blueprint import step_costs
from aced.training.recipe import Recipe
from aced.training.tracker import METRICS_FILE, read_jsonl

TABLE, CURVES = "table.csv", "curves.csv"
# Means over the run of what a step tells.
TOLD = {
  "clean_kept": "data/clean_kept",
  "effective_sample_size": "curation/effective_sample_size",
  "waiting": "time/waiting",
  "examples_per_second": "time/examples_per_second",
}
# A hash may look like a number: 12e456789012.
TEXTS = ("config", "run", "study", "method", "variant", "reference")
# What curves hold beside evaluations.
DRAWN = (
  "loss/contrastive",
  "data/clean_kept",
  "data/clean_pool",
  "curation/effective_sample_size",
  "time/examples_per_second",
  "time/waiting",
  "selection_gain",
)


def costs(config: ConfigDict) -> dict[str, Any]:
  """What a run costs, in examples and FLOPs, scoring included.

  Args:
    config: of the run.
  """
  resolved = config_lib.resolve(config)
  found = cost_ledger(resolved)
  steps = config.total_steps
  recipe = Recipe.from_config(resolved)
  return {
    "filter_ratio": resolved.curation.filter_ratio if recipe.curated else 0.0,
    "trained_examples": found.trained * steps,
    "scored_examples": found.scored * steps,
    "flops": found.total * steps,
    "flops_without_cache": step_costs(resolved).total * steps,
    "relative_cost": found.relative,
  }


def outcome(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The last evaluation of a run, and means of what its steps told.

  Args:
    lines: of its `metrics.jsonl`.
  """
  scores = [line for line in lines if any(k.startswith("eval/") for k in line)]
  found = {
    key: value for key, value in scores[-1].items() if key.startswith("eval/")
  }
  failed = [key for key in found if key.endswith("/failed")]
  if failed:
    raise ValueError(
      f"the last evaluation failed ({', '.join(failed)}), and its log says why;"
      " mend that, remove the cell's folder, and run the same command again."
    )
  for name, key in TOLD.items():
    values = [line[key] for line in lines if key in line]
    if values:
      found[name] = float(np.mean(values))
  gains = [gain for line in lines if (gain := _gain(line)) is not None]
  if gains:
    found["selection_gain"] = float(np.mean(gains))
  return found


def _gain(line):
  """By how much the pairs kept score more than the pool; None without."""
  if "curation/kept_score" not in line:
    return None
  return line["curation/kept_score"] - line["curation/pool_score"]


def shares(run: pathlib.Path) -> dict[str, float]:
  """Of each fault, its share of what was kept over that of the pool.

  Args:
    run: the workdir of a run.

  Returns:
    `{"kept/swapped": ...}` and so on: 1 is a draw that does not see it.
  """
  found = picks.read(run)
  if not found or "fault" not in found[0].columns:
    return {}
  fault = np.concatenate([p.columns["fault"] for p in found])
  kept = np.concatenate([p.kept for p in found])
  names = {"clean": faults.NONE, **faults.KINDS}
  return {
    f"kept/{name}": float((fault[kept] == code).mean() / (fault == code).mean())
    for name, code in names.items()
    if (fault == code).any()
  }


def write(workdir: pathlib.Path) -> None:
  """Writes both tables of all rows that are there."""
  rows, curves = [], []
  for path in sorted(workdir.glob("*/*/row.json")):
    row = read_row(path)
    try:
      told = shares(path.parent)
    except ValueError as error:  # Of pictures; the row is as good without.
      logging.warning("%s", error)
      told = {}
    row = {"run": path.parent.name, **row, **told}
    rows.append(row)
    if row["method"] != "reference":
      curves += _curve(row, read_jsonl(path.parent / METRICS_FILE))
  # The curves first: no row is without its own.
  _write_csv(workdir / CURVES, curves)
  _write_csv(workdir / TABLE, rows)


def read_row(path: pathlib.Path) -> dict[str, Any]:
  """The row of one run.

  Raises:
    ValueError: the file is damaged; says which, and what to do.
  """
  try:
    return json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}); remove it, and the same command makes it"
      " anew of the run beside it."
    ) from error


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a table; what is empty is left out.

  But for `TEXTS`, what looks like a number is one.

  Raises:
    FileNotFoundError: no such table; says what makes it.
    ValueError: a line of it is cut short.
  """
  if not path.exists():
    raise FileNotFoundError(
      f"{path} is not there; `python -m studies.run` makes it."
    )
  with path.open(newline="", encoding="utf-8") as file:
    found = list(csv.DictReader(file))
  for number, row in enumerate(found, start=2):
    if None in row.values() or None in row:
      raise ValueError(
        f"{path} has another number of columns in line {number}; `python -m"
        " studies.run` writes it anew."
      )
  return [
    {k: v if k in TEXTS else _value(v) for k, v in row.items() if v != ""}
    for row in found
  ]


def _curve(row, lines) -> Iterable[dict[str, Any]]:
  """The evaluations of a run, with what its steps told since the last one."""
  steps = max(line["step"] for line in lines)
  since, seconds, before, speed = [], 0.0, 0, 0.0
  for line in lines:
    # Up to an evaluation that is logged before the next speed, at the last.
    speed = line.get("time/examples_per_second", speed)
    if speed:
      done = (line["step"] - before) / steps * row["trained_examples"]
      seconds, before = seconds + done / speed, line["step"]
    scores = {k: v for k, v in line.items() if k.startswith("eval/")}
    if not scores:
      gain = _gain(line)
      since.append(line if gain is None else line | {"selection_gain": gain})
      continue
    share = line["step"] / steps
    told = {
      key: float(np.mean([x[key] for x in since if key in x]))
      for key in DRAWN
      if any(key in x for x in since)
    }
    since = []
    yield {
      "run": row["run"],
      "config": row["config"],
      "step": line["step"],
      "trained_examples": round(share * row["trained_examples"]),
      "flops": share * row["flops_without_cache"],
      "seconds": seconds,
      **told,
      **scores,
    }


def _write_csv(path, rows):
  names = list(dict.fromkeys(name for row in rows for name in row))
  with (
    whole(path) as part,
    part.open("w", newline="", encoding="utf-8") as file,
  ):
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _text(v) for k, v in row.items()} for row in rows)


def _text(value):
  return f"{value:.6g}" if isinstance(value, float) else value


def _value(text):
  try:
    return int(text)
  except ValueError:
    pass
  try:
    return float(text)
  except ValueError:
    return text
