"""What the rows of a study say, as numbers: means, spreads, and what is met."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from studies.questions import cells
from studies.study import METHODS, REFERENCES, Cell, Study

Row = Mapping[str, Any]
# The most of IID's examples in which H-ACID is to reach IID's final score.
HALF = 0.5
# The fewest seeds of which a claim is made.
SEEDS = 3


class Group(NamedTuple):
  """Cells that differ by their seed alone.

  Attributes:
    label: for plots and tables.
    cell: one of them, of seed 0.
    rows: one for each seed that was run.
  """

  label: str
  cell: Cell
  rows: Sequence[Row]

  def values(self, name: str) -> list[float]:
    """A column, of the rows that have it."""
    return [float(row[name]) for row in self.rows if name in row]

  def mean(self, name: str) -> float:
    """Its mean; not a number where no row has it."""
    values = self.values(name)
    return statistics.fmean(values) if values else float("nan")

  def spread(self, name: str) -> float:
    """Its standard deviation over seeds; 0 of a single one."""
    values = self.values(name)
    return statistics.stdev(values) if len(values) > 1 else 0.0


def groups(study: Study, question: str, rows: Iterable[Row]) -> list[Group]:
  """The cells of a question that were run, seeds together."""
  by_run = {row["run"]: row for row in rows}
  seeds = sorted({int(row["seed"]) for row in by_run.values()} - {1000})
  found = []
  for cell in cells(study, [question], seeds=1):
    same = [dataclasses.replace(cell, seed=seed).name for seed in seeds]
    there = [by_run[name] for name in same if name in by_run]
    if there:
      found.append(Group(label(cell, question), cell, there))
  return found


def has_own(study: Study, question: str, found: Iterable[Group]) -> bool:
  """Whether anything was run for a question that "a" does not ask for too."""
  if question in ("a", "g"):
    return True
  shared = set(cells(study, ["a"], seeds=1))
  return any(group.cell not in shared for group in found)


def label(cell: Cell, question: str = "") -> str:
  """A cell in words: what it differs by, where its question says the rest."""
  name = METHODS[cell.method].label
  if question == "noise":
    return f"{name}, noise {cell.noise:.0%}"
  if question == "b":
    times = REFERENCES[cell.reference].times
    size = cell.reference if times == 1 else f"equal, {times} times as long"
    return f"{name}, {size}"
  words = {
    "filter_ratio": "filter ratio",
    "num_chunks": "chunks",
    "learning_rate": "learning rate",
    "patch_size": "scored at patches of",
    "token_drop": "scored with tokens dropped",
    "weight": "lambda",
    "per_device": "per device",
  }
  variant = " ".join(
    part.replace("=", " ")
    for part in cell.variant.split(" ")
    if not part.startswith("devices=")
  )
  for key, word in words.items():
    variant = variant.replace(key, word)
  defaults = {
    "c": "filter ratio 0.8",
    "d": "chunks 8",
    "f": "gain 1",
    "h": "scored from a cache",
  }
  if not variant and question == "lr":
    variant = "learning rate of the study"
  if not variant and question == "lambda":
    variant = "lambda 4.0"
  if not variant and cell.method == "h_acid":
    variant = defaults.get(question, "")
  return f"{name}, {variant}" if variant else name


def reached(
  curve: Iterable[Row], metric: str, level: float, unit: str
) -> float | None:
  """Where a run first was as good as a level.

  Args:
    curve: its evaluations, in order.
    metric: the score.
    level: to be reached.
    unit: the column that is told, such as "trained_examples".

  Returns:
    The value at the first evaluation that reached it; None if none did.
  """
  for point in curve:
    if point.get(metric, float("-inf")) >= level:
      return float(point[unit])
  return None


def shares_of_iid(
  study: Study,
  group: Group,
  rows: Iterable[Row],
  curves: Iterable[Row],
  unit: str,
) -> list[float | None]:
  """How soon a group was as good as IID of its seed and noise in the end.

  Args:
    study: the study.
    group: of its cells.
    rows: of its table.
    curves: of its curves.
    unit: "trained_examples" or "flops".

  Returns:
    For every seed that IID was run with, the share of what IID took; None where
    that score never was reached.
  """
  by_run, points = {row["run"]: row for row in rows}, {}
  for point in curves:
    points.setdefault(point["run"], []).append(point)
  found = []
  for row in group.rows:
    iid = Cell("iid", group.cell.noise, int(row["seed"])).name
    if iid not in by_run or iid not in points:
      continue
    level, whole = by_run[iid][study.metric], float(points[iid][-1][unit])
    at = reached(points.get(row["run"], ()), study.metric, level, unit)
    found.append(None if at is None else at / whole)
  return found


class Claim(NamedTuple):
  """Something that the study was to show, and whether it does.

  Attributes:
    text: what.
    met: whether it does; None where cells are missing.
    why: the figures.
    within: whether it is not met for lying within the spread, either way.
  """

  text: str
  met: bool | None
  why: str
  within: bool = False

  @property
  def verdict(self) -> str:
    """In words."""
    if self.within:
      return "not shown (within the spread)"
    return {True: "met", False: "NOT met", None: "open"}[self.met]


def claims(
  study: Study, rows: Sequence[Row], curves: Sequence[Row]
) -> list[Claim]:
  """What the study was to show; `met` is None where cells are missing."""
  found = [_sooner(study, rows, curves)]
  by_method = {g.cell.method: g for g in groups(study, "a", rows)}
  for other in ("iid", "softmax_kd", "i_acid", "h_acid"):
    text = f"ACED (ACIDistill) ends above {METHODS[other].label}"
    found.append(
      _above(study, text, by_method.get("acidistill"), by_method.get(other))
    )
  sizes = {
    (g.cell.method, g.cell.reference): g for g in groups(study, "b", rows)
  }
  for method in ("h_acid", "acidistill"):
    name = METHODS[method].label
    text = f"{name}: the larger reference is ahead of the equal"
    larger, equal = (sizes.get((method, s)) for s in ("larger", "equal"))
    claim = _above(study, text, larger, equal)
    found.append(claim._replace(why=claim.why + _of_references(study, rows)))
  return found


def _of_references(study, rows):
  """How good the two are themselves: a larger one need not be a better one."""
  own = {
    row["reference"]: f"{100 * row[study.metric]:.1f}%"
    for row in rows
    if row["method"] == "reference"
  }
  if not {"larger", "equal"} <= own.keys():
    return ""
  return f"; by themselves they score {own['larger']} and {own['equal']}"


def _sooner(study, rows, curves):
  text = "H-ACID reaches IID's final score in at most half of its examples"
  ours = [g for g in groups(study, "a", rows) if g.cell.method == "h_acid"]
  shares = (
    shares_of_iid(study, ours[0], rows, curves, "trained_examples")
    if ours
    else []
  )
  if len(shares) < SEEDS:
    return Claim(text, None, _too_few(len(shares)))
  if None in shares:
    return Claim(text, False, "not every seed reached it")
  told = ", ".join(f"{share:.0%}" for share in shares)
  return Claim(text, max(shares) <= HALF, f"{told} of them, seed by seed")


def _seeds(group):
  return {int(row["seed"]) for row in group.rows} if group else set()


def _too_few(count):
  return f"{count} of {SEEDS} seeds were run"


def _above(study, text, ours, theirs):
  """Whether one mean is above another by more than the spread.

  The spread is the larger standard deviation of the two. Of seeds that one of
  them lacks nothing is said: they differ more than methods do.
  """
  text += ", by more than the spread"
  shared = _seeds(ours) & _seeds(theirs)
  if len(shared) < SEEDS:
    return Claim(text, None, _too_few(len(shared)))
  ours, theirs = (
    g._replace(rows=[row for row in g.rows if int(row["seed"]) in shared])
    for g in (ours, theirs)
  )
  difference = ours.mean(study.metric) - theirs.mean(study.metric)
  spread = max(ours.spread(study.metric), theirs.spread(study.metric))
  why = (
    f"{100 * ours.mean(study.metric):.1f}% against"
    f" {100 * theirs.mean(study.metric):.1f}%, spread {100 * spread:.1f}"
  )
  return Claim(text, difference > spread, why, abs(difference) <= spread)
