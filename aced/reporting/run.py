"""The page of a run, put together from what its workdir holds."""

import html
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.data.sources import open_source
from aced.pages import frame
from aced.reporting.contact import kept_and_dropped
from aced.reporting.curves import curves
from aced.training import workdir
from aced.training.blueprint import step_costs
from aced.training.ledger import Ledger
from aced.training.recipe import Recipe
from aced.training.tracker import METRICS_FILE, read_jsonl

Lines = Sequence[Mapping[str, float]]


def run_page(where: pathlib.Path) -> str:
  """The page of a run, whether it is over or not.

  Args:
    where: its workdir.

  Raises:
    WorkdirError: it holds no run of ours.
    ValueError: something in it is damaged; says what.
  """
  config = workdir.config_of(where)
  metrics_file = where / METRICS_FILE
  metrics = read_jsonl(metrics_file) if metrics_file.exists() else []
  student = not config.decoder.model
  costs = cost_ledger(config) if student else None
  total = total_steps(config)
  parts = [
    _head(config, where, metrics, total),
    frame.section("Figures", frame.figures(_figures(config, metrics, costs))),
    _section_of_curves(config, metrics, student),
    frame.section("Last evaluation", _scores(metrics)),
  ]
  if costs is not None:
    parts.append(frame.section("Cost", *cost_tables(costs, total)))
  parts += [
    frame.section("Kept and dropped", *kept_and_dropped(config, where)),
    frame.section("Config", *config_tables(config)),
  ]
  title = f"{config.name} · {where.name}"
  return frame.page(title, "\n".join(filter(None, parts)))


def total_steps(config: ConfigDict) -> int | None:
  """The steps of a resolved config; None where its data would have to say.

  Args:
    config: of the run.
  """
  size = 1
  if config.total_epochs is not None:
    try:
      size = len(open_source(config.input.source))
    except ValueError:  # It has moved.
      return None
  return config_lib.steps(
    "total", config, batch_size=config.batch_size, data_size=size
  )


def cost_ledger(config: ConfigDict) -> Ledger:
  """The cost of a step of a resolved config, caches taken into account."""
  cached = {
    name: (table.out_dim or (0, 0))[1] or 0
    for name, table in config.frozen.items()
    if table.cache
  }
  return step_costs(config, cached)


def _section_of_curves(config, metrics, student):
  candidates = 0
  if student:
    recipe = Recipe.from_config(config)
    candidates = recipe.super_batch if recipe.curated else 0
  charts = "\n".join(curves(metrics, candidates))
  return frame.section(
    "Curves", f'<div class="charts">{charts}</div>' * bool(charts)
  )


def _head(config, where, metrics, total):
  done = max((line["step"] for line in metrics), default=0)
  over = total is not None and done >= total
  words = f"{done:,} steps" + (f" of {total:,}" if total else "")
  notes = [html.escape(line) for line in _warnings(metrics)]
  words = ("Finished: " if over else "So far: ") + words
  tone = "bad" if notes else "good" if over else "plain"
  return (
    f"<h1>{html.escape(config.name)}</h1>\n"
    f'<p class="path dim">{html.escape(str(where))}</p>\n'
    f"{frame.verdict(tone, words, notes)}"
  )


def _warnings(metrics):
  """What a reader should know before looking at anything else."""
  last = _last(metrics)
  found = [
    (last.get("guard/skipped"), "steps were not finite and changed nothing"),
    (last.get("data/bad_records"), "records could not be used"),
    (last.get("alarm/loss_spike"), "steps had a loss far above the median"),
    (last.get("alarm/narrow_draw"), "alarms of draws with hardly a choice"),
    (last.get("alarm/repeats"), "alarms of the same records again and again"),
  ]
  lines = [f"{int(n):,} {what}" for n, what in found if n]
  return lines + [
    f"the evaluator {name.split('/')[1]} failed"
    for name in _last_evaluation(metrics)
    if name.endswith("/failed")
  ]


def _last(metrics: Lines) -> dict[str, float]:
  """The latest value of every metric."""
  found = {}
  for line in metrics:
    found |= line
  return found


def _figures(config, metrics, costs):
  """Names and values that say what the run was."""
  done = max((line["step"] for line in metrics), default=0)
  rows = [("trained pairs", f"{done * config.batch_size:,}")]
  if costs is not None:
    rows += [
      ("scored pairs", f"{done * costs.scored:,}"),
      ("cost of a step, IID = 1", f"{costs.relative:.2f}"),
      ("FLOPs, scoring included", _flops(done * costs.total)),
    ]
  if config.curation.method != "uniform":
    rows.append(("filter ratio", f"{config.curation.filter_ratio:g}"))
  for name, key, style in (
    ("trained examples a second", "time/examples_per_second", ",.0f"),
    ("waiting for data", "time/waiting", ".1%"),
    ("clean pairs kept", "data/clean_kept", ".1%"),
    ("clean pairs in the pool", "data/clean_pool", ".1%"),
    ("effective sample size", "curation/effective_sample_size", ",.1f"),
  ):
    values = [line[key] for line in metrics if key in line]
    if values:
      rows.append((f"{name}, mean", f"{np.mean(values):{style}}"))
  return rows


def _last_evaluation(metrics):
  """The line of the last evaluation; {} before the first."""
  found = (
    line
    for line in reversed(metrics)
    if any(key.startswith("eval/") for key in line)
  )
  return next(found, {})


def _scores(metrics):
  """All metrics of the last evaluation."""
  last = _last_evaluation(metrics)
  if not last:
    return ""
  rows = [
    (key.removeprefix("eval/"), f"{value:.4f}")
    for key, value in last.items()
    if key.startswith("eval/")
  ]
  return frame.table((f"step {last['step']:,}", "score"), rows)


def cost_tables(costs: Ledger, steps: int | None) -> tuple[str, str]:
  """The ledger of a step and, where its length is known, of a run, as HTML."""
  shares = costs.shares()
  head = ["part", "a step", "share"] + ["the run"] * bool(steps)

  def row(name, flops, share):
    cells = [name, _flops(flops), share]
    return cells + ([_flops(flops * steps)] if steps else [])

  rows = [
    row(name, flops, f"{shares[name]:.1%}")
    for name, flops in costs.parts.items()
  ]
  rows.append(row("all", costs.total, "100%"))
  rows.append(row("an IID step of this student", costs.iid, ""))
  note = (
    '<p class="dim">FLOPs: a multiply-accumulate is two, a backward pass costs'
    " two forward ones.</p>"
  )
  return frame.table(head, rows), note


def _flops(count):
  for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
    if count >= size:
      return f"{count / size:,.2f} {unit}FLOPs"
  return f"{count / 1e6:,.2f} MFLOPs"


def config_tables(config: ConfigDict) -> list[str]:
  """What differs from the defaults, and all of it folded away, as HTML."""
  flat = config_lib.flatten(config)
  base = config_lib.flatten(config_lib.default())
  given = {k: v for k, v in flat.items() if v is not None}
  changed = {k: v for k, v in given.items() if base.get(k) != v}
  return [
    frame.mapping(changed),
    frame.details("All keys", frame.mapping(given)),
  ]
