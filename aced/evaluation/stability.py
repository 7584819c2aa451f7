"""Which tasks can tell models apart, by their spread over seeds.

    python -m aced.evaluation.stability runs/a0 runs/a1 runs/a2
    python -m aced.evaluation.stability a0 a1 a2 --against b0 b1 b2 \\
        --output stability.json

takes the results of `python -m aced.evaluate` for several seeds of one recipe,
and of another one to compare it with. ACED (arXiv 2411.18674) looked at 34
evaluations, measured the spread of each over seeds and kept the 27 stable ones.
Its threshold could not be read: here it is an option. As a few seeds tell their
spread badly, a task is called stable or noisy only where its bounds say so.

Here is the mathematics, of scores as fractions; the files, the tables and the
command are in `stability_report`.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

# Standard deviation over seeds, of a score as a fraction: one point. Ours; that
# of the paper could not be read.
MAX_SD = 0.01
CONFIDENCE = 0.95
# Differences of scores that are nearer than this differ by rounding alone.
_ROUNDING = 1e-12
# Sign flips, or dealings, beyond which they are too many to try them all.
_ALL = 2**20


class Spread(NamedTuple):
  """How much a score varies over seeds.

  Attributes:
    sd: standard deviation, with one degree of freedom less than seeds.
    sd_low: one-sided lower confidence bound of it, for normal scores.
    sd_high: upper bound, no less than steps between scores leave possible.
  """

  sd: float
  sd_low: float
  sd_high: float


class Difference(NamedTuple):
  """How much better one recipe is than another, over seeds.

  Attributes:
    mean: difference of the mean scores.
    low, high: its 95% t interval; None where the difference has no spread.
    p: two-sided, of the t-test; None likewise.
    p_exact: two-sided, of sign flips or dealings; None where they are many.
    p_least: the least that `p_exact` can be with so many seeds.
  """

  mean: float
  low: float | None
  high: float | None
  p: float | None
  p_exact: float | None
  p_least: float


class Run(NamedTuple):
  """The results of one seed.

  Attributes:
    path: of its file.
    tasks: name -> `metric`, `score`, `low`, `high`, and more of the file.
    skipped: name -> why it was not run.
    suite: that was evaluated.
    fingerprint: of the model's parameters, or "".
  """

  path: str
  tasks: Mapping[str, Mapping[str, Any]]
  skipped: Mapping[str, str]
  suite: str = ""
  fingerprint: str = ""


def spread(
  groups: Sequence[np.ndarray],
  confidence: float = CONFIDENCE,
  step: float = 0.0,
) -> Spread:
  """The standard deviation over seeds, pooled over recipes, and its bounds.

  Args:
    groups: scores of each recipe, `(seeds,)`; two seeds of one at least.
    confidence: of each bound by itself.
    step: between scores that are possible, 1 / pictures: a spread below that
      of rounding to it, `step / sqrt(12)`, cannot be seen.
  """
  freedom = sum(len(scores) - 1 for scores in groups)
  squares = sum(float(np.sum((x - np.mean(x)) ** 2)) for x in groups)
  low, high = freedom / stats.chi2.ppf([confidence, 1 - confidence], freedom)
  sd = math.sqrt(squares / freedom)
  seen = max(sd, step / math.sqrt(12))
  return Spread(sd, sd * math.sqrt(low), seen * math.sqrt(high))


def verdict(found: Spread, max_sd: float = MAX_SD) -> str:
  """Says "stable" or "noisy" where the bounds of a spread do, or "undecided".

  Stable is a task whose standard deviation is `max_sd` or less; so is one at
  which all models guess, so look at the mean as well.
  """
  if found.sd_high <= max_sd:
    return "stable"
  return "noisy" if found.sd_low > max_sd else "undecided"


def paired(a: np.ndarray, b: np.ndarray) -> Difference:
  """Compares scores of two recipes, `(n,)` each, seed by seed.

  By the t-test of the differences, and by all flips of their signs, which
  asks no more than that they are symmetric around 0 if neither is better.
  """
  d = np.asarray(a, float) - np.asarray(b, float)
  error = np.std(d, ddof=1) / math.sqrt(len(d))
  p = sign_flip(d)
  return _difference(d.mean(), error, len(d) - 1, p, 2 / 2 ** len(d))


def unpaired(a: np.ndarray, b: np.ndarray) -> Difference:
  """Compares scores of two recipes, `(n,)` and `(m,)`, as independent samples.

  By Welch's t-test, and by all ways to deal the scores to the recipes.
  """
  parts = [np.var(x, ddof=1) / len(x) for x in (a, b)]
  total = sum(parts)
  degrees = [part**2 / (len(x) - 1) for part, x in zip(parts, (a, b))]
  freedom = total**2 / sum(degrees) if sum(degrees) else math.inf
  least = (1 + (len(a) == len(b))) / math.comb(len(a) + len(b), len(a))
  mean = np.mean(a) - np.mean(b)
  return _difference(mean, math.sqrt(total), freedom, deal(a, b), least)


def _difference(mean, error, freedom, p_exact, p_least) -> Difference:
  if error < _ROUNDING:
    return Difference(float(mean), None, None, None, p_exact, p_least)
  half = stats.t.ppf(0.975, freedom) * error
  p = 2 * stats.t.sf(abs(mean) / error, freedom)
  ends = float(mean - half), float(mean + half)
  return Difference(float(mean), *ends, float(p), p_exact, p_least)


def sign_flip(d: np.ndarray) -> float | None:
  """Share of all sign flips of `d` `(n,)` with as large a mean.

  A two-sided p-value; None beyond 20 seeds, whose flips are too many.
  """
  if 2 ** len(d) > _ALL:
    return None
  sums = np.zeros(1)
  for x in d:
    sums = np.concatenate([sums + x, sums - x])
  return float(np.mean(np.abs(sums) >= abs(np.sum(d)) - _ROUNDING))


def deal(a: np.ndarray, b: np.ndarray) -> float | None:
  """Share of all ways to deal the scores with as large a difference of means.

  A two-sided p-value; None beyond 2**20 ways, which are too many.
  """
  scores, n = np.concatenate([a, b]), len(a)
  if math.comb(len(scores), n) > _ALL:
    return None
  scores = scores - scores.mean()  # Then the mean of one tells that of both.
  dealt = itertools.combinations(scores, n)
  sums = np.fromiter((math.fsum(one) for one in dealt), float)
  return float(np.mean(np.abs(sums) >= abs(scores[:n].sum()) - _ROUNDING))


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
  """Corrects p-values for their number (Holm, 1979).

  Args:
    p: name -> p-value. One that is None stays so, and counts as 1.
  """
  order = sorted(p, key=lambda name: 1.0 if p[name] is None else p[name])
  corrected, largest = {}, 0.0
  for k, name in enumerate(order):
    value = 1.0 if p[name] is None else p[name]
    largest = max(largest, min(1.0, (len(p) - k) * value))
    corrected[name] = None if p[name] is None else largest
  return {name: corrected[name] for name in p}


def picture_gains(
  first: Sequence[tuple[np.ndarray, np.ndarray]],
  second: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
  """How much more often the first recipe is right, for each picture.

  Args:
    first: for each seed, `(n,)` record numbers and `(n,)` bool, which of them
      are right.
    second: the same of the other recipe.

  Returns:
    `(m,)` differences of the shares of seeds that are right, of the records
    that all of them have.
  """
  common = functools.reduce(np.intersect1d, [x for x, _ in (*first, *second)])
  shares = []
  for group in (first, second):
    found = [right[np.argsort(index)] for index, right in group]
    kept = [np.isin(np.sort(index), common) for index, _ in group]
    shares.append(np.mean([x[y] for x, y in zip(found, kept)], axis=0))
  return shares[0] - shares[1]


def bootstrap(
  gains: np.ndarray, draws: int = 10_000, seed: int = 0
) -> dict[str, float]:
  """Bootstraps the mean of `gains` `(n,)` over pictures (Efron, 1979).

  Of these seeds, on other pictures of the kind; other seeds it knows nothing
  of.

  Args:
    gains: of each picture, how much more often one recipe is right.
    draws: of as many pictures, with replacement.
    seed: of the draws.

  Returns:
    `mean`, `low` and `high` of its 95% percentile interval, the two-sided `p`,
    and the number of `pictures`.
  """
  n = len(gains)
  # A draw is how often each value occurs, of which there are few.
  values, count = np.unique(np.round(gains, 9), return_counts=True)
  rng = np.random.default_rng(seed)
  means = rng.multinomial(n, count / n, size=draws) @ values / n
  below = np.count_nonzero(means <= _ROUNDING)
  above = np.count_nonzero(means >= -_ROUNDING)
  p = min(1.0, 2 * (1 + min(below, above)) / (1 + draws))
  low, high = np.percentile(means, [2.5, 97.5])
  ends = {"low": float(low), "high": float(high)}
  return {"mean": float(np.mean(gains)), **ends, "p": p, "pictures": n}


def analyse(
  runs: Sequence[Run],
  against: Sequence[Run] = (),
  *,
  compare: Callable[..., Difference] = paired,
  gains: Mapping[str, np.ndarray] | None = None,
  max_sd: float = MAX_SD,
  confidence: float = CONFIDENCE,
) -> dict[str, Any]:
  """Looks at every task, and at the averages over tasks.

  Args:
    runs: seeds of a recipe, of one suite and with one metric for each task.
    against: seeds of another one, in the same order where they are paired.
    compare: `paired` or `unpaired`.
    gains: task -> as `bootstrap` takes it.
    max_sd: standard deviation up to which a task is stable.
    confidence: of each bound that a verdict rests on.

  Returns:
    Plain values, ready for JSON. `tasks`: name -> mean, spread, verdict and
    difference of each that has two seeds. `averages`: `all` is over the tasks
    that every run has, whole, and `stable` over the stable ones of them; None
    where there are none. `left_out`: name -> why, of those in no average.

  Raises:
    ValueError: one seed alone, or numbers of seeds that do not pair.
  """
  groups = [runs, against] if against else [runs]
  together = bool(against) and compare is paired
  check_seeds(groups, together)
  everything = [run for group in groups for run in group]
  names = dict.fromkeys(n for r in everything for n in (*r.tasks, *r.skipped))
  left_out = {name: lacking(everything, name) for name in names}
  tasks, scores = {}, {}
  for name in names:
    scores[name] = _scores(groups, name, together)
    if min(map(len, scores[name])) < 2:
      continue
    entries = [run.tasks[name] for run in everything if name in run.tasks]
    first = entries[0]
    step = 1 / max(1, first.get("evaluated", math.inf))
    found = spread(scores[name], confidence, step)
    entry = {"title": first.get("title", name), "metric": first["metric"]}
    entry |= _means(scores[name], compare) | found._asdict()
    sampling, mean = sampling_error(entries), entry["mean"]
    entry["relative"] = found.sd / mean if mean > 0 else None
    entry["sampling"] = sampling
    entry["ratio"] = found.sd / sampling if sampling else None
    entry["verdict"] = verdict(found, max_sd)
    if gains and name in gains:
      entry["pictures"] = bootstrap(gains[name])
    tasks[name] = entry
  if against:
    for key in ("p", "p_exact"):
      every = {name: entry["difference"][key] for name, entry in tasks.items()}
      for name, value in holm(every).items():
        tasks[name]["difference"][f"{key}_holm"] = value
  whole = [name for name in names if not left_out[name]]
  stable = [name for name in whole if tasks[name]["verdict"] == "stable"]
  averages = {
    key: _average([scores[name] for name in some], compare, some)
    for key, some in (("all", whole), ("stable", stable))
  }
  return {
    "max_sd": max_sd,
    "confidence": confidence,
    "tasks": tasks,
    "averages": averages,
    "left_out": {name: why for name, why in left_out.items() if why},
  }


def check_seeds(groups: Sequence[Sequence[Run]], pair: bool) -> None:
  """Refuses a group of one seed, and those that do not pair."""
  for group in groups:
    if len(group) < 2:
      raise ValueError(
        f"{[run.path for run in group]} is one seed, of unknown spread; train"
        " the same recipe with more seeds (five tell much more than two), and"
        " give the results of all."
      )
  counts = [len(group) for group in groups]
  if pair and len(set(counts)) > 1:
    raise ValueError(
      f"{counts[0]} seeds against {counts[1]} cannot be paired; give as many"
      " of each, in the same order, or --unpaired."
    )


def lacking(runs: Sequence[Run], name: str) -> list[str]:
  """Why a task is not in the averages: the runs that lack it, or part of it."""
  why = []
  for run in runs:
    if name not in run.tasks:
      reason = run.skipped.get(name, "not among its tasks")
      why.append(f"{run.path}: {reason}")
    elif run.tasks[name].get("partial"):
      why.append(f"{run.path}: run on a part of its data")
  return why


def sampling_error(tasks: Sequence[Mapping[str, Any]]) -> float | None:
  """Standard error of a score by the number of pictures, over seeds.

  From the files' 95% intervals; None where any has none. Seeds are scored on
  the same pictures: did chance alone decide for each seed and picture anew, the
  spread would be this at most.
  """
  if any(task.get(end) is None for task in tasks for end in ("low", "high")):
    return None
  halves = [(task["high"] - task["low"]) / 2 for task in tasks]
  return float(np.sqrt(np.mean(np.square(halves))) / 1.96)


def _scores(groups, name, together):
  """Scores of each group; of pairs, where they are, that both have."""
  found = [
    [run.tasks[name]["score"] if name in run.tasks else None for run in group]
    for group in groups
  ]
  if together:
    pairs = [pair for pair in zip(*found, strict=True) if None not in pair]
    return [np.array(x, float) for x in zip(*pairs)] or [np.zeros(0)]
  return [np.array([x for x in xs if x is not None], float) for xs in found]


def _means(scores, compare):
  """Seeds and mean of each group, and their difference where there are two."""
  one = [{"seeds": len(x), "mean": float(np.mean(x))} for x in scores]
  if len(one) == 1:
    return one[0]
  found = compare(*scores)._asdict()
  return one[0] | {"against": one[1], "difference": found}


def _average(scores, compare, names):
  """The mean over tasks of each seed, as a task; None where there are none."""
  if not names:
    return None
  means = [np.mean(group, axis=0) for group in zip(*scores)]
  found = _means(means, compare) | spread(means)._asdict()
  return {"tasks": list(names)} | found


if __name__ == "__main__":
  from aced.evaluation.stability_report import main

  sys.exit(main())
