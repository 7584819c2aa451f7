"""What an evaluation found, record by record, and the scores made of it.

A score is a function of the records' weights, so that its bootstrap is the
same function of other weights.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000  # Of a bootstrap.


class Outcome(ABC):
  """What was found for the records of one data set.

  Attributes:
    clusters: what is drawn in a bootstrap, pictures or instances: how many.
  """

  clusters: int

  @abstractmethod
  def metrics(self, weights: np.ndarray | None = None) -> dict[str, float]:
    """All scores, as fractions.

    Args:
      weights: `(clusters,)`, how often each counts; None is once.
    """

  @abstractmethod
  def arrays(self) -> dict[str, np.ndarray]:
    """What was found, to be stored."""


@dataclasses.dataclass(frozen=True, eq=False)
class Classified(Outcome):
  """Pictures that were classified.

  Attributes:
    index: `(n,)` int64, which record each picture is.
    labels: `(n,)` integers, the right class.
    predicted: `(n,)` integers, the nearest class.
    rank: `(n,)` int64, classes that are nearer than the right one.
    classes: how many there are.
    group: `(n,)` int64, of which group a picture is, or None; below 0 is of
      none.
  """

  index: np.ndarray
  labels: np.ndarray
  predicted: np.ndarray
  rank: np.ndarray
  classes: int
  group: np.ndarray | None = None

  @property
  def clusters(self):
    """The number of pictures."""
    return len(self.labels)

  def metrics(self, weights=None):
    """Scores of a classification.

    Returns:
      `accuracy` over pictures; `mean_per_class`, the mean over the classes that
      occur of the accuracy within each; `macro_f1`, the mean over them of the
      harmonic mean of precision and recall (WILDS, arXiv 2012.07421);
      `worst_group_accuracy`, the least over the groups that occur, where any
      does. With more than five classes there are `accuracy_top5` and
      `worst_group_top5`, too.
    """
    weights = np.ones(self.clusters) if weights is None else weights
    right, top5 = self.rank == 0, self.rank < 5
    count = self._sums(self.labels, weights)
    hits = self._sums(self.labels, weights * right)
    found = self._sums(self.predicted, weights)
    occurs = count > 0
    metrics = {
      "accuracy": float(hits.sum() / count.sum()),
      "mean_per_class": float(np.mean(hits[occurs] / count[occurs])),
      "macro_f1": float(
        np.mean((2 * hits / (count + found + ~occurs))[occurs])
      ),
    }
    if self.classes > 5:
      metrics["accuracy_top5"] = float((weights * top5).sum() / weights.sum())
    # A small draw of a bootstrap may have no picture of any group.
    if self.group is not None and weights[self.group >= 0].any():
      metrics["worst_group_accuracy"] = self._worst(right, weights)
      if self.classes > 5:
        metrics["worst_group_top5"] = self._worst(top5, weights)
    return metrics

  def arrays(self):
    """`index`, `labels`, `predicted`, `right`, and `group` where there is."""
    found = {
      "index": self.index,
      "labels": self.labels,
      "predicted": self.predicted,
      "right": self.rank == 0,
    }
    return found | ({} if self.group is None else {"group": self.group})

  def _sums(self, classes, weights):
    return np.bincount(classes, weights=weights, minlength=self.classes)

  def _worst(self, right, weights):
    known = self.group >= 0
    group, weights = self.group[known], weights[known]
    count = np.bincount(group, weights=weights)
    hits = np.bincount(group, weights=weights * right[known])
    occurs = count > 0
    return float(np.min(hits[occurs] / count[occurs]))


@dataclasses.dataclass(frozen=True, eq=False)
class Retrieved(Outcome):
  """Pictures and texts that were looked for among the others.

  Attributes:
    image_rank: `(q,)` int64, texts that are nearer than the first of its own.
    image_index: `(q,)` int64, which of `clusters` pictures each is.
    text_rank: `(m,)` int64, pictures that are nearer than its own.
    text_index: `(m,)` int64, the picture that each text describes.
    clusters: the number of pictures.
    ks: the ranks at which recall is taken.
  """

  image_rank: np.ndarray
  image_index: np.ndarray
  text_rank: np.ndarray
  text_index: np.ndarray
  clusters: int
  ks: Sequence[int] = (1, 5, 10)

  def metrics(self, weights=None):
    """Recall of either direction and their mean, for every `k`.

    Returns:
      `{"image_to_text/R@1": ..., "text_to_image/R@1": ..., "mean/R@1": ...}`.
    """
    weights = np.ones(self.clusters) if weights is None else weights
    ways = {
      "image_to_text": (self.image_rank, weights[self.image_index]),
      "text_to_image": (self.text_rank, weights[self.text_index]),
    }
    metrics = {}
    for k in self.ks:
      recall = {
        way: float((weight * (rank < k)).sum() / weight.sum())
        for way, (rank, weight) in ways.items()
      }
      metrics |= {f"{way}/R@{k}": value for way, value in recall.items()}
      metrics[f"mean/R@{k}"] = sum(recall.values()) / len(recall)
    return metrics

  def arrays(self):
    """Ranks and indices, by their names."""
    names = "image_rank", "image_index", "text_rank", "text_index"
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, eq=False)
class Associated(Outcome):
  """Cues whose associated pictures were picked among candidates (WinoGAViL).

  Attributes:
    jaccard: `(i,)` float64 of each instance: pictures picked rightly, over
      those that were picked or are right.
    candidates: `(i,)` integers, how many there were.
  """

  jaccard: np.ndarray
  candidates: np.ndarray

  HARD = 10  # Candidates of an instance of the larger sort.

  @property
  def clusters(self):
    """The number of instances."""
    return len(self.jaccard)

  def metrics(self, weights=None):
    """`jaccard`, and `jaccard_hard` of instances of ten candidates or more."""
    weights = np.ones(self.clusters) if weights is None else weights
    metrics = {"jaccard": float(np.average(self.jaccard, weights=weights))}
    hard = self.candidates >= self.HARD
    if weights[hard].any():
      metrics["jaccard_hard"] = float(
        np.average(self.jaccard[hard], weights=weights[hard])
      )
    return metrics

  def arrays(self):
    """`jaccard` and `candidates`."""
    return {"jaccard": self.jaccard, "candidates": self.candidates}


class Interval(NamedTuple):
  """A score, and between what it would lie on other pictures of its kind."""

  score: float
  low: float
  high: float


def bootstrap(
  outcome: Outcome,
  metric: str,
  *,
  resamples: int = RESAMPLES,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """A score and its percentile bootstrap interval (Efron, 1979).

  Pictures are drawn with replacement, each with its captions: those of one
  picture hang together. The interval knows of the choice of pictures alone,
  not of another seed in training.

  The worst of a draw's groups is worse, on average, than the worst of all
  pictures', and so is the F1 of small classes: of such scores the interval
  lies low, and may end below the score itself.

  Args:
    outcome: what was found.
    metric: a key of `outcome.metrics()`.
    resamples: draws.
    level: share of them between `low` and `high`.
    seed: of the draws.

  Raises:
    ValueError: the outcome has no such metric.
  """
  found = outcome.metrics()
  if metric not in found:
    raise ValueError(
      f"there is no metric {metric!r} of these records; there are"
      f" {', '.join(found)}."
    )
  rng, n = np.random.default_rng(seed), outcome.clusters
  scores = []
  for _ in range(resamples):
    draw = np.bincount(rng.integers(n, size=n), minlength=n).astype(float)
    # A small draw may have no query, or none of the sort.
    with np.errstate(invalid="ignore"):
      scores.append(outcome.metrics(draw).get(metric, np.nan))
  edge = 50 * (1 - level)
  low, high = np.nanpercentile(scores, [edge, 100 - edge])
  return Interval(found[metric], float(low), float(high))
