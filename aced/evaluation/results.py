"""Results of a suite: the file, the average, and tables to read and to paste.

A results file is JSON: `format`, `suite`, `model` (what it is and costs),
`tasks` (name -> score, interval, all metrics), `skipped` (name -> reason, and
how to get the data), `average`, `device`, `date`, `versions`. What was found
for each record is in the `.npz` files that `tasks` names, beside it.
"""

import json
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FILE, FORMAT = "results.json", 1
COLUMNS = 80  # Of a terminal.
# Shown, never averaged: tasks that ran, but not on all of their data, and those
# whose classes are numbers, since nothing names them.
PARTIAL, UNNAMED = "partial", "unnamed"
# (name, 27-task average, ImageNet, COCO and Flickr mean R@1, GMACs), all but
# the last in percent; of arXiv 2411.18674.
PUBLISHED = (
  ("ACED-F0", 64.0, 68.5, 51.0, 79.5, 3.30),
  ("ACED-F1", 69.7, 74.9, 55.6, 84.7, 7.14),
  ("ACED-F2", 70.9, 76.9, 58.3, 85.3, 10.29),
  ("MobileCLIP-S0", 63.6, 67.8, 49.6, 76.7, 3.70),
  ("MobileCLIP-S1", 67.9, 72.6, 53.0, 80.0, 7.64),
  ("MobileCLIP-S2", 69.8, 74.4, 54.4, 81.8, 10.81),
)
# Task -> the metric of its column there.
_OF_THE_PAPER = {
  "imagenet1k": "accuracy",
  "mscoco_captions": "mean/R@1",
  "flickr30k": "mean/R@1",
}


class ResultsError(ValueError):
  """A results file that cannot be used."""


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads a results file.

  Raises:
    FileNotFoundError: it is not there.
    ResultsError: it is none, or of another format.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text("utf-8"))
  except FileNotFoundError:
    raise FileNotFoundError(
      f"{path} is not there; python -m aced.evaluate writes {FILE} into its"
      " --output."
    ) from None
  except ValueError as error:
    raise ResultsError(f"{path} is no JSON: {error}") from error
  if not isinstance(found, dict) or found.get("format") != FORMAT:
    kind = found.get("format") if isinstance(found, dict) else found
    raise ResultsError(
      f"{path} has format={kind!r:.40}; expected {FORMAT}, the results of"
      " python -m aced.evaluate."
    )
  return found


def average(tasks: Mapping[str, Mapping[str, Any]], of: int) -> dict[str, Any]:
  """The mean score over the tasks that count, and how many they are.

  Args:
    tasks: name -> entry.
    of: tasks of the suite.

  Returns:
    `score` (None where no task was run), `tasks` and `of`.
  """
  scores = [t["score"] for t in tasks.values() if not _marks(t)]
  return {
    "score": float(np.mean(scores)) if scores else None,
    "tasks": len(scores),
    "of": of,
  }


def _marks(entry: Mapping[str, Any]) -> list[str]:
  """Why a task is not averaged, in a word each; nothing where it is."""
  return [mark for mark in (PARTIAL, UNNAMED) if entry.get(mark)]


def table(results: Mapping[str, Any]) -> str:
  """The table for the terminal: tasks, the average, and the model's cost."""
  rows = [("task", "metric", "score", "95% interval", "pictures", "seconds")]
  rows += [row for task in results["tasks"].values() for row in _rows(task)]
  widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
  lines = [_aligned(row, widths) for row in rows]
  rule = "─" * len(lines[0])
  lines = [lines[0], rule, *lines[1:], rule]
  below = [average_line(results), *cost_lines(results), *note_lines(results)]
  return "\n".join(lines + [_wrapped(line) for line in below])


def average_line(results: Mapping[str, Any]) -> str:
  """The average, over how many tasks of how many, and what is left out."""
  found = results["average"]
  if found["score"] is None:
    numbers = any(task.get(UNNAMED) for task in results["tasks"].values())
    named = ", or its classes have no names" if numbers else ""
    return (
      f"no average: of the {found['of']} tasks of {results['suite']} none was"
      f" run on all of its data{named}"
    )
  text = (
    f"average {percent(found['score'])} over {found['tasks']} of"
    f" {found['of']} tasks of {results['suite']}"
  )
  left = found["of"] - found["tasks"]
  return f"{text}; {left} left out" if left else text


def cost_lines(results: Mapping[str, Any]) -> list[str]:
  """Parameters, multiply-accumulates and latency of the model."""
  model, latency = results["model"], results["model"]["latency"]
  lines = [
    f"{model['params'] / 1e6:,.1f} M parameters, {_three(model['gmacs'])} GMACs"
    f" a pair ({_three(model['image_gmacs'])} image +"
    f" {_three(model['text_gmacs'])} text) at {model['image_size']} px and"
    f" {model['text_length']} tokens"
  ]
  if latency:
    kind = results["device"].split(" x ", 1)[-1]
    lines.append(
      f"latency {_pair_ms(latency)} ms, batch {latency['batch_size']}"
      f" ({_three(latency['image_ms'])} image + {_three(latency['text_ms'])}"
      f" text), on one {kind}"
    )
  return lines


def skipped_lines(results: Mapping[str, Any]) -> list[str]:
  """What was not run, why, and how to get it."""
  skipped = results["skipped"]
  if not skipped:
    return []
  lines = [f"{len(skipped)} of {results['average']['of']} tasks were not run:"]
  for name, entry in skipped.items():
    lines.append(f"  {name}: {entry['reason']}")
    if entry["get"]:
      lines.append(f"      get it: {entry['get']}")
  return lines


def markdown(results: Mapping[str, Any]) -> str:
  """Tables in Markdown: every task, and the model as a row of a paper."""
  lines = [
    f"# {results['model']['name']}: {results['suite']}",
    "",
    "| task | metric | score | 95% interval | pictures |",
    "|---|---|---:|---:|---:|",
  ]
  for entry in results["tasks"].values():
    lines += [_cells(row[:5]) for row in _rows(entry)]
  lines += ["", f"{_capital(average_line(results))}.", ""]
  told = [f"- {_line(note)}" for note in note_lines(results)]
  lines += [*told, ""] if told else []
  lines += _summary(results)
  skipped = skipped_lines(results)
  if skipped:
    lines += ["", skipped[0], ""]
    lines += [f"- {name}" for name in results["skipped"]]
  about = ["", results["about"]] if results["about"] else []
  return "\n".join([*lines, *about, ""])


def note_lines(results: Mapping[str, Any]) -> list[str]:
  """What a reader of the scores should know, task by task."""
  return [
    f"{name}: {note}"
    for name, entry in results["tasks"].items()
    for note in entry["notes"]
  ]


def _summary(results):
  """The model in one row, with the published ones below it.

  Columns that no row has anything for are left out.
  """
  model, found = results["model"], results["average"]
  # Beside each average, for the published ones are over all tasks.
  score = f"({found['tasks']} of {found['of']})"
  if found["score"] is not None:
    score = f"{percent(found['score'])} {score}"
  rows = [
    (
      model["name"],
      f"{model['params'] / 1e6:.1f}",
      _three(model["gmacs"]),
      _pair_ms(model["latency"]) if model["latency"] else "",
      score,
      *(_score(results, *column) for column in _OF_THE_PAPER.items()),
    )
  ]
  if results["suite"] == "stableeval":
    for name, mean, *scores, gmacs in PUBLISHED:
      row = f"{name} (published)", "", f"{gmacs:.2f}", "", f"{mean} (27 of 27)"
      rows.append((*row, *map(str, scores)))
  heads = (
    *("model", "params (M)", "GMACs", "latency (ms)", "average (tasks)"),
    *("ImageNet", "COCO mean R@1", "Flickr mean R@1"),
  )
  kept = [k for k in range(len(heads)) if any(row[k] for row in rows)]
  return [
    _cells([heads[k] for k in kept]),
    f"|---|{'---:|' * (len(kept) - 1)}",
    *(_cells([row[k] for k in kept]) for row in rows),
  ]


def _cells(row: Sequence[str]) -> str:
  """A row of a Markdown table; a bar within a cell would end it."""
  cells = (_line(cell).replace("|", "\\|") for cell in row)
  return f"| {' | '.join(cells)} |"


def _line(text: str) -> str:
  """A text on one line."""
  return " ".join(text.split())


def _score(results, name, metric):
  entry = results["tasks"].get(name)
  if not entry or _marks(entry) or metric not in entry["metrics"]:
    return ""
  return percent(entry["metrics"][metric])


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
  """A task as texts: title, metric, score, interval, pictures, seconds."""
  marks = ", ".join(_marks(entry))
  return (
    entry["title"] + (f" ({marks})" if marks else ""),
    entry["metric"].replace("group_accuracy", "group").replace("_", " "),
    percent(entry["score"]),
    f"{percent(entry['low'])} to {percent(entry['high'])}",
    f"{entry['evaluated']:,}",
    f"{entry['seconds']:,.1f}",
  )


# Scores that are shown below their task's own, and never averaged.
_BESIDE = {
  "knn/accuracy": "nearest neighbours",
  "linear_probe/accuracy": "linear probe",
}


def _rows(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """A task, and below it its probes, where it has any."""
  found = [_row(entry)]
  for name, title in _BESIDE.items():
    if name in entry["metrics"]:
      score = percent(entry["metrics"][name])
      found.append((f"  {title}", "accuracy", score, "", "", ""))
  return found


def _wrapped(text: str) -> str:
  """A text in lines of a terminal; paths and commands stay whole."""
  return textwrap.fill(
    text,
    COLUMNS,
    subsequent_indent="  ",
    break_long_words=False,
    break_on_hyphens=False,
  )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
  """Words to the left, numbers to the right."""
  return "  ".join(
    f"{cell:{'<' if k < 2 else '>'}{width}}"
    for k, (cell, width) in enumerate(zip(row, widths, strict=True))
  )


def percent(value: float) -> str:
  """A fraction in percent, with one decimal."""
  return f"{100 * value:.1f}"


def _three(value: float) -> str:
  """Three digits, or all those of a whole number."""
  return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _pair_ms(latency: Mapping[str, float]) -> str:
  return _three(latency["image_ms"] + latency["text_ms"])


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]
