"""The plots, the tables and the page of a study."""

import html
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aced.pages import charts, frame
from aced.reporting.contact import kept_and_dropped
from aced.reporting.run import config_tables, cost_ledger, cost_tables
from aced.training.workdir import FILE as CONFIG_FILE
from aced.training.workdir import config_of
from studies import answers
from studies.answers import Claim, Group, Row
from studies.study import METHODS, Cell, Study

standalone = charts.standalone
COLOUR = {name: k for k, name in enumerate(METHODS)}
# What the page shows pairs of.
SHOWN = "h_acid"
CAUTION = (
  "Wall-clock is of one shared machine, and pictures are read from memory: it"
  " says what scoring costs here, and little about a pod."
)


class Answer(NamedTuple):
  """A question and its answer.

  Attributes:
    name: a key of `QUESTIONS`.
    title: of it.
    groups: what was run.
    charts: SVG.
    head: of the table.
    rows: of the table.
  """

  name: str
  title: str
  groups: Sequence[Group]
  charts: Sequence[str]
  head: Sequence[str]
  rows: Sequence[Sequence[str]]


def plots(found: Answer) -> list[str]:
  """The names of the files of an answer's charts."""
  numbers = ("", *(f"_{k}" for k in range(1, len(found.charts))))
  return [f"{found.name}{number}.svg" for number in numbers]


def answer(
  study: Study,
  name: str,
  groups: Sequence[Group],
  rows: Sequence[Row],
  curves: Sequence[Row],
) -> tuple[list[str], list[str], list[list[str]]]:
  """Charts, and head and rows of the table, of one question."""
  drawn = {
    "a": lambda: _of_methods(study, groups, curves),
    "noise": lambda: [_of_noise(study, groups)],
    "g": lambda: _of_picked(groups, curves),
    "h": lambda: [_bars(study, groups), _of_cost(groups)],
  }.get(name, lambda: [_bars(study, groups)])()
  head, body = _table(study, name, groups, rows, curves)
  return [chart for chart in drawn if chart], head, body


def markdown(
  study: Study,
  found: Sequence[Answer],
  claims: Sequence[Claim],
  rows: Sequence[Row],
) -> str:
  """The tables as text, for documents."""
  parts = [f"# {study.name}: {study.about}", "## What it was to show"]
  parts.append("\n".join(f"- {_told(c)}" for c in claims))
  for one in found:
    parts += [f"## {one.name}: {one.title}", _lines([one.head, *one.rows])]
    parts += [CAUTION] * (one.name == "a")
    parts.append("\n".join(f"![{one.title}]({name})" for name in plots(one)))
  references = [row for row in rows if row["method"] == "reference"]
  body = [
    [r["reference"], f"{100 * r[study.metric]:.1f}", r["config"]]
    for r in references
  ]
  parts += ["## References", _lines([["size", "score", "config"], *body])]
  return "\n\n".join(parts) + "\n"


def html_page(
  study: Study,
  found: Sequence[Answer],
  claims: Sequence[Claim],
  rows: Sequence[Row],
  curves: Sequence[Row],
  workdir: pathlib.Path,
) -> str:
  """The page of a study, which asks for nothing else."""
  runs = [row for row in rows if row["method"] != "reference"]
  notes = [html.escape(_told(c)) for c in claims]
  asked = [c.met for c in claims]
  failed = any(c.met is False and not c.within for c in claims)
  tone = "good" if all(asked) else "bad" if failed else "plain"
  met, known = asked.count(True), len(asked) - asked.count(None)
  words = f"{met} of {known} claims hold"
  if known < len(asked):
    words += f", {len(asked) - known} are open"
  devices = ", ".join(sorted({str(row["device"]) for row in runs}))
  parts = [
    f"<h1>Study: {html.escape(study.name)}</h1>",
    f'<p class="dim">{html.escape(study.about)}; {len(runs)} runs on'
    f" {html.escape(devices)}</p>",
    frame.verdict(tone, words, notes),
  ]
  for one in found:
    parts.append(
      frame.section(
        f"{one.name}: {one.title}",
        _grid(one.charts),
        frame.table(one.head, one.rows),
        f'<p class="dim">{CAUTION}</p>' if one.name == "a" else "",
      )
    )
  went = _went(answers.groups(study, "a", rows), curves)
  parts.append(frame.section("How the runs went", _grid(went)))
  parts += _of_one_run(study, workdir)
  return frame.page(f"Study: {study.name}", "\n".join(filter(None, parts)))


def _told(claim: Claim) -> str:
  return f"{claim.verdict}: {claim.text} ({claim.why})"


def _bars(study, groups):
  rows = [
    charts.Bar(
      g.label,
      g.mean(study.metric),
      g.values(study.metric),
      COLOUR[g.cell.method],
    )
    for g in groups
  ]
  return charts.bars(
    f"{study.metric.removeprefix('eval/')} at the end", rows, percent=True
  )


def _of_cost(groups):
  """What each run cost, a cache taken into account."""
  rows = [
    charts.Bar(g.label, _cost_as_run(g.rows[0]), (), COLOUR[g.cell.method])
    for g in groups
  ]
  return charts.bars("FLOPs of a step over IID's, as it was run", rows)


def _of_methods(study, groups, curves):
  """The score over trained examples, FLOPs and wall-clock, and at the end."""
  name = study.metric.removeprefix("eval/")
  found = [
    charts.lines(
      f"{name} {words}",
      [_band(g, curves, study.metric, unit) for g in groups],
      x_label=label,
      percent=True,
      zero=True,
    )
    for unit, words, label in (
      ("trained_examples", "at equal trained examples", "trained examples"),
      ("flops", "at equal FLOPs", "FLOPs, all scoring included, no cache"),
      ("seconds", "at equal time", "seconds on this machine, from a cache"),
    )
  ]
  return [_bars(study, groups), *found]


def _of_noise(study, groups):
  """The final score over the share of noise."""
  series = []
  for method in dict.fromkeys(g.cell.method for g in groups):
    same = sorted(
      (g for g in groups if g.cell.method == method),
      key=lambda g: g.cell.noise,
    )
    values = [g.values(study.metric) for g in same]
    series.append(
      charts.Series(
        METHODS[method].label,
        [100 * g.cell.noise for g in same],
        [float(np.mean(v)) for v in values],
        [min(v) for v in values],
        [max(v) for v in values],
        COLOUR[method],
      )
    )
  return charts.lines(
    f"{study.metric.removeprefix('eval/')} at the end",
    series,
    x_label="pairs with a fault (%)",
    percent=True,
    zero=True,
  )


def _of_picked(groups, curves):
  """The share of clean pairs, and of every fault over its share of the pool."""
  clean = charts.lines(
    "Clean pairs among those trained on",
    [_band(g, curves, "data/clean_kept", "trained_examples") for g in groups],
    x_label="trained examples",
    percent=True,
    zero=True,
  )
  kinds = _kinds(groups)
  bars = [
    charts.bars(
      f"{g.label}: share of what is kept over that of the pool",
      [
        charts.Bar(
          k, g.mean(f"kept/{k}"), g.values(f"kept/{k}"), COLOUR[g.cell.method]
        )
        for k in kinds
      ],
      marks=[("as in the pool", 1.0)],
    )
    for g in groups
    if g.cell.method != "iid"
  ]
  return [clean, *bars]


def _kinds(groups):
  names = dict.fromkeys(
    key
    for g in groups
    for row in g.rows
    for key in row
    if key.startswith("kept/")
  )
  return [name.removeprefix("kept/") for name in names]


def _band(group: Group, curves, metric, unit):
  """The mean of a metric over seeds, and the least and the most."""
  names = {row["run"] for row in group.rows}
  points = {}
  for point in curves:
    if point["run"] in names and metric in point:
      points.setdefault(int(point["step"]), []).append(
        (float(point[unit]), float(point[metric]))
      )
  whole = [p for _, p in sorted(points.items()) if len(p) == len(names)]
  ys = [[y for _, y in p] for p in whole]
  return charts.Series(
    group.label,
    [float(np.mean([x for x, _ in p])) for p in whole],
    [float(np.mean(y)) for y in ys],
    [min(y) for y in ys],
    [max(y) for y in ys],
    COLOUR[group.cell.method],
    dashed=group.cell.method == "softmax_kd",
  )


def _table(study, question, groups, rows, curves):
  """Head and rows of a question's table."""
  kinds = _kinds(groups) if question == "g" else []
  # Elsewhere all are told as if nothing were cached.
  cost = _cost_as_run if question == "h" else _cost
  head = ["", "score %", "±", "seeds", "cost", "examples", "FLOPs"]
  head += ["clean %", "ESS", *kinds, "configs"]
  body = []
  for g in groups:
    examples, flops = (
      _share(answers.shares_of_iid(study, g, rows, curves, unit))
      for unit in ("trained_examples", "flops")
    )
    body.append(
      [
        g.label,
        f"{100 * g.mean(study.metric):.1f}",
        f"{100 * g.spread(study.metric):.1f}" if len(g.rows) > 1 else "",
        str(len(g.rows)),
        f"{cost(g.rows[0]):.2f}",
        examples,
        flops,
        _number(100 * g.mean("clean_kept"), 0),
        _number(g.mean("effective_sample_size")),
        *(_number(g.mean(f"kept/{kind}"), 2) for kind in kinds),
        " ".join(str(row["config"]) for row in g.rows),
      ]
    )
  return head, body


def _cost_as_run(row):
  """FLOPs of a step over those of IID, what is cached left out."""
  return float(row["relative_cost"])


def _cost(row):
  """FLOPs of a step over those of IID, nothing read from a cache."""
  of_cache = float(row["flops_without_cache"]) / float(row["flops"])
  return float(row["relative_cost"]) * of_cache


def _share(values):
  """The mean share of what IID took, or in how many seeds it was reached."""
  if not values:
    return ""
  if None in values:
    return f"{sum(v is not None for v in values)} of {len(values)} seeds"
  return f"{np.mean(values):.2f}"


def _number(value, places=1):
  return "" if np.isnan(value) else f"{value:.{places}f}"


def _went(groups, curves):
  """What the steps of every method told, at equal trained examples."""
  return [
    charts.lines(
      title,
      [_band(g, curves, name, "trained_examples") for g in groups],
      x_label="trained examples",
      percent=percent,
    )
    for name, title, percent in (
      ("loss/contrastive", "Contrastive loss (nats)", False),
      (
        "selection_gain",
        "Selection gain: score kept less score of the pool (nats)",
        False,
      ),
      (
        "curation/effective_sample_size",
        "Effective sample size of a draw (candidates)",
        False,
      ),
      ("time/examples_per_second", "Trained examples a second", False),
      ("time/waiting", "Share of the time that steps waited for data", True),
    )
  ]


def _of_one_run(study, workdir):
  """Config, ledger and contact sheet of one run, where it is still there."""
  cell = Cell(SHOWN, study.noise, seed=0)
  where = workdir / "cells" / cell.name
  if not (where / CONFIG_FILE).exists():
    return []
  config = config_of(where)
  costs = cost_tables(cost_ledger(config), config.total_steps)
  intro = f'<p class="dim">Of one run, {html.escape(cell.name)}</p>'
  return [
    frame.section("Cost of a run", intro, *costs),
    frame.section("Config of a run", intro, *config_tables(config)),
    frame.section("Kept and dropped", intro, *kept_and_dropped(config, where)),
  ]


def _grid(drawn):
  """Charts beside one another; nothing where there are none."""
  cells = "".join(f"<div>{chart}</div>" for chart in drawn if chart)
  return f'<div class="charts">{cells}</div>' * bool(cells)


def _lines(rows):
  """A table in Markdown, its columns aligned."""
  widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]

  def line(cells):
    return (
      "| "
      + " | ".join(
        c.ljust(w) if k == 0 else c.rjust(w)
        for k, (c, w) in enumerate(zip(cells, widths, strict=True))
      )
      + " |"
    )

  rule = (
    "|"
    + "|".join(
      "-" * (w + 2) if k == 0 else "-" * (w + 1) + ":"
      for k, w in enumerate(widths)
    )
    + "|"
  )
  return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
