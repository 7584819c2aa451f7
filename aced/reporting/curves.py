"""The curves of a run, drawn from its metrics."""

import re
from collections.abc import Callable, Mapping, Sequence

from aced.pages.charts import Series, lines

Lines = Sequence[Mapping[str, float]]


def curves(metrics: Lines, candidates: int = 0) -> list[str]:
  """Charts as HTML, those first that one looks at first.

  Args:
    metrics: of `metrics.jsonl`, a dict a line.
    candidates: pairs in a super-batch, the most that an effective sample size
      can be; 0 without curation.
  """
  charts = [
    lines("Loss", _losses(metrics)),
    *_scores(metrics),
    lines(
      "Selection gain: score kept less score of the pool (nats)",
      [_series(metrics, "selection gain", _gain)],
    ),
    lines(
      "Effective sample size of a draw (candidates)",
      [
        _of(metrics, "mean of chunks", "curation/effective_sample_size"),
        _of(metrics, "least chunk", "curation/effective_sample_size_least"),
      ],
      zero=True,
      marks=[("all candidates", candidates)] * bool(candidates),
    ),
    lines(
      "Clean pairs",
      [
        _of(metrics, "kept", "data/clean_kept"),
        _of(metrics, "pool", "data/clean_pool"),
      ],
      percent=True,
    ),
    lines(
      "Trained examples a second",
      [_of(metrics, "examples/s", "time/examples_per_second")],
      zero=True,
    ),
    lines(
      "Share of the time that steps waited for data",
      [_of(metrics, "waiting", "time/waiting")],
      percent=True,
      zero=True,
    ),
    lines("Scale of the logits, t", [_of(metrics, "t", "scale/t")]),
    lines("Bias of the logits, b", [_of(metrics, "b", "scale/b")]),
    lines("Norm of the gradient", [_of(metrics, "norm", "norm/gradient")]),
  ]
  return [f"<div>{chart}</div>" for chart in charts if chart]


def _series(
  metrics: Lines, label: str, value: Callable[[Mapping[str, float]], float]
) -> Series:
  """A line through all lines that have what it is made of."""
  points = []
  for line in metrics:
    try:
      points.append((line["step"], value(line)))
    except KeyError:
      continue
  return Series(label, [x for x, _ in points], [y for _, y in points])


def _of(metrics, label, key):
  return _series(metrics, label, lambda line: line[key])


def _gain(line):
  return line["curation/kept_score"] - line["curation/pool_score"]


def _losses(metrics):
  names = dict.fromkeys(
    key for line in metrics for key in line if re.match("loss(/|$)", key)
  )
  parts = [name for name in names if name != "loss"]
  if len(parts) < 2:  # The whole and its only part are one line.
    return [_of(metrics, "loss", "loss")]
  found = [_of(metrics, "all", "loss")]
  return found + [_of(metrics, n.removeprefix("loss/"), n) for n in parts]


# What is worth a chart of an evaluation; all of it is in the table.
_SHOWN = re.compile(
  r"(accuracy|mean_per_class|macro_f1|worst_group|jaccard|exact_match|cider_d"
  r"|bleu_4|mean/R@\d+)$"
)


def _scores(metrics):
  """A chart for every evaluator."""
  names = dict.fromkeys(
    key
    for line in metrics
    for key in line
    if key.startswith("eval/") and _SHOWN.search(key)
  )
  groups = {}
  for name in names:
    _, evaluator, metric = name.split("/", 2)
    groups.setdefault(evaluator, []).append((metric, name))
  return [
    lines(
      f"{evaluator.replace('_', ' ')}",
      [_of(metrics, metric, name) for metric, name in found],
      percent=not any("cider" in metric for metric, _ in found),
      zero=True,
    )
    for evaluator, found in groups.items()
  ]
