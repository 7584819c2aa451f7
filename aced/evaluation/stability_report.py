"""The files, the tables and the command of `aced.evaluation.stability`."""

import argparse
import itertools
import math
import pathlib
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aced.evaluation import results as results_lib
from aced.evaluation import stability
from aced.evaluation.results import ResultsError
from aced.evaluation.stability import Run
from aced.files import write_json

_WIDTH, _TITLE = 96, 21
_DAMAGED = (ValueError, TypeError, KeyError, OSError, EOFError)
_DAMAGED += (zipfile.BadZipFile, zlib.error)


def read(where: str) -> Run:
  """Reads a results file, or that of a folder.

  Raises:
    FileNotFoundError: it is not there.
    ResultsError: it is none, or has a score that is no number.
  """
  path = pathlib.Path(where).expanduser()
  path = path / results_lib.FILE if path.is_dir() else path
  found = results_lib.read(path)
  for key in ("tasks", "skipped", "model"):
    if not isinstance(found.get(key), dict):
      raise ResultsError(f"{path} has no table of {key}; evaluate again.")
  tasks, skipped = found["tasks"], found["skipped"].items()
  for name, one in (*tasks.items(), *skipped):
    if not isinstance(one, dict):
      raise ResultsError(f"{path}: {name} is no table; evaluate again.")
  for name, task in tasks.items():
    if not isinstance(task.get("metric"), str):
      raise ResultsError(f"{path}: task {name} has no metric; evaluate again.")
    score, *ends = (task.get(key) for key in ("score", "low", "high"))
    for value in (score, *(end for end in ends if end is not None)):
      if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ResultsError(
          f"{path}: task {name} has the score {score!r} in the interval {ends};"
          " expected numbers. If the model has diverged, evaluate an earlier"
          " checkpoint."
        )
  return Run(
    path=str(path),
    tasks=tasks,
    skipped={name: str(one.get("reason")) for name, one in skipped},
    suite=str(found.get("suite")),
    fingerprint=str(found["model"].get("fingerprint") or ""),
  )


def check(groups: Sequence[Sequence[Run]]) -> None:
  """Refuses results that cannot be compared, or are given twice.

  Raises:
    ResultsError: naming the files and what differs.
  """
  runs = [run for group in groups for run in group]
  _check_twice("file", runs, lambda run: pathlib.Path(run.path).resolve())
  for group in groups:
    # The same model in both groups, on pictures read otherwise, may be meant.
    _check_twice("model", group, lambda run: run.fingerprint)
  first: dict[str, Run] = {}
  for run in runs:
    if run.suite != runs[0].suite:
      raise ResultsError(
        f"{runs[0].path} is of suite {runs[0].suite} and {run.path} of"
        f" {run.suite}; give results of one suite."
      )
    for name, task in run.tasks.items():
      other = first.setdefault(name, run)
      before = other.tasks[name]
      for what, now, then in (
        ("metric", task["metric"], before["metric"]),
        ("number of records", _records(task), _records(before)),
        ("set of pictures, classes or prompts", *map(_data, (task, before))),
      ):
        if now != then and None not in (now, then):
          raise ResultsError(
            f"task {name} has another {what} in {run.path} ({now}) than in"
            f" {other.path} ({then}); evaluate both in the same way."
          )


def _check_twice(what, runs, key):
  for first, second in itertools.combinations(runs, 2):
    if key(first) and key(first) == key(second):
      raise ResultsError(
        f"{first.path} and {second.path} are of the same {what}, and would show"
        " a spread of 0 that is none; give each seed once."
      )


def _data(task):
  """What a score is of; None of results from before it was written down."""
  return task.get("data")


def _records(task):
  """Records that were looked at, whether or not they could be decoded."""
  return task.get("evaluated", 0) + task.get("masked", 0)


def picture_gains(
  runs: Sequence[Run], against: Sequence[Run]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Reads the outcomes of the tasks whose metric is accuracy.

  Returns:
    Task -> as of `stability.picture_gains`; and the tasks without, for not all
    outcomes are on disk.

  Raises:
    ResultsError: outcomes that are damaged, or are not of the score.
  """
  gains, absent = {}, []
  everything = [*runs, *against]
  for name, task in runs[0].tasks.items():
    whole = not stability.lacking(everything, name)
    if not whole or task["metric"] != "accuracy":
      continue
    found = [_outcomes(run, name) for run in everything]
    if None in found:
      absent.append(name)
      continue
    groups = found[: len(runs)], found[len(runs) :]
    gains[name] = stability.picture_gains(*groups)
    if not len(gains[name]):
      raise ResultsError(f"task {name}: no record is in the outcomes of all.")
  return gains, absent


def _outcomes(run: Run, name: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Record numbers and which are right, or None if they are not on disk."""
  where, score = run.tasks[name].get("outcomes"), run.tasks[name]["score"]
  folder = pathlib.Path(run.path).resolve().parent
  path = (folder / str(where or "")).resolve()
  if not path.is_relative_to(folder):
    raise ResultsError(
      f"{run.path}: {name} has outcomes elsewhere, at {where}."
    )
  if not path.is_file():
    return None
  try:
    # Opened here, for numpy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      right, index = arrays["right"], arrays["index"]
  except _DAMAGED as error:
    raise ResultsError(
      f"{path} is damaged or holds no outcomes ({error}); evaluate again."
    ) from error
  if right.dtype != bool or index.dtype.kind not in "iu":
    problem = f"has right as {right.dtype} and index as {index.dtype}"
  elif not right.size or {right.shape, index.shape} != {np.unique(index).shape}:
    problem = "does not have one outcome for each of its records"
  # Of another model; scores may be rounded to four digits.
  elif abs(np.mean(right) - score) > 1e-4:
    problem = f"gives an accuracy of {np.mean(right):.4f}, not {score:.4f}"
  else:
    return index, right
  raise ResultsError(f"{path} {problem}; evaluate again.")


def render(found: Mapping[str, Any], markdown: bool = False) -> str:
  """Tables, in points, and notes.

  Args:
    found: as of `stability.analyse`, with `suite`, `runs`, `against` (None
      where there is nothing to compare with), `paired`, `without_pictures`.
    markdown: whether for a file of Markdown, or for the terminal.
  """
  against = found["against"]
  head = [f"Suite {found['suite']}, {len(found['runs'])} seeds"]
  if against:
    how = "paired in this order" if found["paired"] else "not paired"
    head[0] += f" of A against {len(against)} of B, {how}"
  for letter, paths in (("A", found["runs"]), ("B", against or [])):
    head += [f"{letter}{k + 1}: {path}" for k, path in enumerate(paths)]
  columns = [_spread_columns, _difference_columns][: 2 if against else 1]
  rows = [_rows(found, of(found)) for of in columns]
  tables = ["\n".join(_table(one, markdown)) for one in rows]
  notes = list(_notes(found))
  if markdown:
    head = [f"- {line}" for line in head]
  else:
    notes = [textwrap.fill(note, _WIDTH) for note in notes]
  return "\n\n".join(["\n".join(head), *tables, *notes])


def _rows(found, columns):
  """Cells of a header, of tasks, of a rule (None), and of averages."""
  rows = [["task", *columns]]
  for name, one in found["tasks"].items():
    mark = "*" if name in found["left_out"] else ""
    title, room = one["title"], _TITLE - len(mark)
    title = title if len(title) <= room else f"{title[: room - 1]}…"
    rows.append([title + mark, *(cell(one) for cell in columns.values())])
  rows.append(None)
  for key, words in (("all", "average"), ("stable", "average, stable")):
    one = found["averages"][key]
    title = f"{words} ({len(one['tasks']) if one else 0})"
    rows.append(
      [title, *(cell(one) if one else "" for cell in columns.values())]
    )
  return rows


def _spread_columns(found):
  return {
    "seeds": _seeds,
    "mean": lambda one: _points(one["mean"]),
    "sd": lambda one: _points(one["sd"]),
    f"{found['confidence']:.0%} bounds": lambda one: (
      f"{_points(one['sd_low'])} to {_points(one['sd_high'])}"
    ),
    "sd/mean": lambda one: _number(one.get("relative"), ".1%"),
    "sampling": lambda one: _points(one.get("sampling")),
    "ratio": lambda one: _number(one.get("ratio"), ".2f"),
    "verdict": lambda one: one.get("verdict", ""),
  }


def _difference_columns(found):
  def exact(one):
    mark = "†" if one["difference"]["p_least"] > 0.05 else " "
    return _p(one["difference"]["p_exact"]) + mark

  return {
    "A": lambda one: _points(one["mean"]),
    "B": lambda one: _points(one["against"]["mean"]),
    "A - B": lambda one: _points(one["difference"]["mean"], "+"),
    "95% interval": lambda one: _interval(one["difference"]),
    "p": lambda one: _p(one["difference"]["p"]),
    "p Holm": lambda one: _p(one["difference"].get("p_holm")),
    "p flips" if found["paired"] else "p deals": exact,
    "over pictures": lambda one: _interval(one.get("pictures")),
  }


def _number(value, form):
  return "-" if value is None else f"{value:{form}}"


def _points(value, sign=""):
  return "-" if value is None else f"{100 * value:{sign}.2f}"


def _interval(one):
  if one is None or one["low"] is None:
    return "-"
  return f"{_points(one['low'], '+')} to {_points(one['high'], '+')}"


def _seeds(one):
  counts = one["seeds"], one.get("against", one)["seeds"]
  return "+".join(map(str, dict.fromkeys(counts)))


def _p(value):
  return (
    "<.001" if value is not None and value < 0.001 else _number(value, ".3f")
  )


def _table(rows, markdown):
  """Aligned lines: words to the left, numbers to the right."""
  widths = [max(map(len, cells)) for cells in zip(*filter(None, rows))]
  left = [head in ("task", "verdict") for head in rows[0]]
  rule = ["-" * width for width in widths]
  if markdown:
    rule = [x if words else f"{x[1:]}:" for x, words in zip(rule, left)]
    rows = [[x.replace("|", "\\|") for x in row] for row in rows if row]
  lines = []
  for row in (rows[0], rule, *rows[1:]):
    cells = [
      f"{cell:{'<' if words else '>'}{width}}"
      for cell, width, words in zip(row or rule, widths, left)
    ]
    lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells))
  return [line.rstrip() for line in lines]


def _notes(found) -> Iterator[str]:
  """What a reader must know to read the tables."""
  confidence, max_sd = found["confidence"], 100 * found["max_sd"]
  pooled = ", pooled over A and B" if found["against"] else ""
  yield (
    f"In points. sd: standard deviation over seeds{pooled}. A task is stable"
    f" where its upper {confidence:.0%} bound is at most {max_sd:g}, noisy if"
    " its lower one is above, undecided otherwise: more seeds decide it."
    " sampling: standard error by the number of pictures; ratio: sd over it,"
    " above 1 where seeds differ by more than chance on each picture explains."
  )
  if found["against"]:
    yield from _difference_notes(found)
  for name, why in found["left_out"].items():
    mark = "*" if name in found["tasks"] else ""
    yield f"{mark}{name} is left out of the averages: {'; '.join(why)}."


def _difference_notes(found):
  paired, tasks = found["paired"], found["tasks"].values()
  test = "the paired t-test" if paired else "Welch's t-test"
  exact = "flips of signs" if paired else "ways to deal the scores"
  yield (
    f"95% interval and p: {test}; p Holm: corrected for the {len(tasks)} tasks;"
    f" last p: of all {exact}; over pictures: 95% interval by a bootstrap over"
    " pictures, for these seeds alone."
  )
  every = [one for one in (*tasks, *found["averages"].values()) if one]
  least = {one["difference"]["p_least"]: _seeds(one) for one in every}
  for p, seeds in sorted(least.items()):
    if p > 0.05:
      formula = f"2/2^{seeds} = {p:.3g}" if paired else f"{p:.3g}"
      yield (
        f"† With {seeds} seeds no p of {exact} is below {formula}: it cannot"
        " reach 0.05, whatever the scores; give"
        f" {'six seeds or more' if paired else 'more seeds'}."
      )
  if found["without_pictures"]:
    names = ", ".join(found["without_pictures"])
    yield f"Not over pictures, as not all their outcomes are on disk: {names}."


def parser() -> argparse.ArgumentParser:
  """The command line."""
  found = argparse.ArgumentParser(
    prog="python -m aced.evaluation.stability",
    description=stability.__doc__.rpartition("\n\n")[0],
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add(
    "results", nargs="+", help="results files of a recipe's seeds, or folders"
  )
  add("--against", nargs="+", default=[], help="those of another recipe")
  unpaired = "compare as independent samples; else seeds are paired as given"
  add("--unpaired", action="store_true", help=unpaired)
  for name, default, about in (
    ("max_sd", 100 * stability.MAX_SD, "points up to which a task is stable"),
    ("confidence", stability.CONFIDENCE, "of each bound; 0.5 decides on all"),
  ):
    about += " (%(default)s)"
    add(f"--{name}", type=float, default=default, help=about)
  add("--output", help="write all numbers to this JSON file")
  add("--markdown", action="store_true", help="print Markdown")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  options = parser().parse_args(argv)
  try:
    found = run(options)
    if options.output:
      write_json(options.output, found)
  except (ValueError, OSError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2
  print(render(found, options.markdown))
  return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
  """Reads and analyses; returns plain values, as `render` takes them."""
  if not 0 < options.max_sd < math.inf or not 0.5 <= options.confidence < 1:
    raise ValueError(
      f"--max_sd={options.max_sd} must be above 0 and finite, and"
      f" --confidence={options.confidence} from 0.5 to below 1."
    )
  if options.unpaired and not options.against:
    raise ValueError("--unpaired needs results to compare with: --against.")
  groups = [[read(x) for x in xs] for xs in (options.results, options.against)]
  check(groups)
  if not any(one.tasks for group in groups for one in group):
    raise ResultsError(
      f"no task was run in {groups[0][0].path}, nor in the others: there is"
      " nothing to tell apart."
    )
  files = [pathlib.Path(one.path).resolve() for one in groups[0] + groups[1]]
  if options.output and pathlib.Path(options.output).resolve() in files:
    raise ValueError(f"--output={options.output} is one of the results.")
  against = bool(groups[1])
  gains, absent = picture_gains(*groups) if against else ({}, [])
  found = stability.analyse(
    *groups,
    compare=stability.unpaired if options.unpaired else stability.paired,
    gains=gains,
    max_sd=options.max_sd / 100,
    confidence=options.confidence,
  )
  return found | {
    "suite": groups[0][0].suite,
    "runs": [one.path for one in groups[0]],
    "against": [one.path for one in groups[1]] or None,
    "paired": against and not options.unpaired,
    "without_pictures": absent,
  }
