"""Scores against their definitions, and intervals against known ones."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from aced.evaluation.outcomes import (
  Associated,
  Classified,
  Retrieved,
  bootstrap,
)
from tests.models.formats import released


def classified(seed=0, n=200, classes=9, grouped=True):
  """Uneven classes, of which two never occur and yet are predicted."""
  rng = np.random.default_rng(seed)
  share = np.array([0, 5, 1, 1, 0, 9, 2, 2, 1])[:classes] / 21
  labels = rng.choice(classes, n, p=share / share.sum())
  right = rng.random(n) < 0.5
  predicted = np.where(right, labels, rng.integers(classes, size=n))
  rank = np.where(predicted == labels, 0, rng.integers(1, classes, n))
  group = rng.integers(-1, 5, n) if grouped else None
  return Classified(np.arange(n), labels, predicted, rank, classes, group)


def retrieved(seed=0, n=60, captions=5, ks=(1, 5, 10)):
  """Pictures with none to several captions."""
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, captions + 1, n)
  text_index = np.repeat(np.arange(n), counts)
  text_rank = rng.geometric(0.3, len(text_index)) - 1
  image_index = np.flatnonzero(counts)
  image_rank = rng.geometric(0.4, len(image_index)) - 1
  return Retrieved(image_rank, image_index, text_rank, text_index, n, ks)


def associated(seed=0, n=70):
  rng = np.random.default_rng(seed)
  return Associated(rng.choice([0, 1 / 3, 1 / 2, 1], n), rng.integers(5, 13, n))


def repeated(outcome, times):
  """The data set in which every cluster stands so many times."""
  old = np.repeat(np.arange(outcome.clusters), times)
  if isinstance(outcome, Retrieved):
    found = {}
    for way in ("image", "text"):
      rank = getattr(outcome, f"{way}_rank")
      index = getattr(outcome, f"{way}_index")
      rows = [
        (rank[row], new)
        for new, picture in enumerate(old)
        for row in np.flatnonzero(index == picture)
      ]
      found[f"{way}_rank"], found[f"{way}_index"] = np.array(rows).T
    return dataclasses.replace(outcome, clusters=len(old), **found)
  arrays = {
    name: value[old]
    for name, value in vars(outcome).items()
    if isinstance(value, np.ndarray)
  }
  return dataclasses.replace(outcome, **arrays)


def by_definition(found):
  """All scores of a classification, counted picture by picture."""
  rows = list(zip(found.labels.tolist(), found.predicted.tolist(), found.rank))
  occur = sorted({label for label, _, _ in rows})
  recall, f1 = [], []
  for c in occur:
    true = sum(label == c and predicted == c for label, predicted, _ in rows)
    missed = sum(label == c and predicted != c for label, predicted, _ in rows)
    wrongly = sum(label != c and predicted == c for label, predicted, _ in rows)
    recall.append(true / (true + missed))
    precision = true / (true + wrongly) if true else 0.0
    f1.append(
      2 * precision * recall[-1] / (precision + recall[-1]) if true else 0.0
    )
  first, five = (
    np.array([rank < k for _, _, rank in rows], float) for k in (1, 5)
  )
  scores = {
    "accuracy": np.mean(first),
    "mean_per_class": np.mean(recall),
    "macro_f1": np.mean(f1),
    "accuracy_top5": np.mean(five),
  }
  if found.group is not None:
    groups = [found.group == g for g in range(5) if (found.group == g).any()]
    scores["worst_group_accuracy"] = min(np.mean(first[g]) for g in groups)
    scores["worst_group_top5"] = min(np.mean(five[g]) for g in groups)
  return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grouped", [False, True])
def test_classification_by_its_definition(seed, grouped):
  found = classified(seed, grouped=grouped)
  assert set(found.predicted) > set(found.labels)
  want = by_definition(found)
  # Sums of fractions in another order.
  assert found.metrics() == pytest.approx(want, rel=1e-12)
  assert len(set(want.values())) == len(want)


def test_classes_that_do_not_occur_do_not_count():
  # Class 2 is predicted, and class 3 is not even that.
  labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
  rank = (labels != predicted).astype(int)
  found = Classified(np.arange(4), labels, predicted, rank, 4)
  assert found.metrics() == {
    "accuracy": 0.75,
    "mean_per_class": 0.75,
    "macro_f1": pytest.approx((2 / 3 + 1) / 2),
  }


def test_few_classes_have_no_top5():
  found = classified(classes=5)
  assert set(found.metrics()) == {
    "accuracy",
    "mean_per_class",
    "macro_f1",
    "worst_group_accuracy",
  }


@pytest.mark.parametrize("captions", [1, 5])
def test_recall_by_its_definition(captions):
  found = retrieved(captions=captions, ks=(1, 3))
  got = found.metrics()
  for k in (1, 3):
    i2t = [rank < k for rank in found.image_rank.tolist()]
    t2i = [rank < k for rank in found.text_rank.tolist()]
    i2t, t2i = sum(i2t) / len(i2t), sum(t2i) / len(t2i)
    assert got.pop(f"image_to_text/R@{k}") == pytest.approx(i2t)
    assert got.pop(f"text_to_image/R@{k}") == pytest.approx(t2i)
    assert got.pop(f"mean/R@{k}") == pytest.approx((i2t + t2i) / 2)
  assert not got


def test_association_by_its_definition():
  found = associated()
  assert found.metrics() == {
    "jaccard": pytest.approx(sum(found.jaccard) / 70),
    "jaccard_hard": pytest.approx(
      np.mean([x for x, size in zip(*vars(found).values()) if size > 9])
    ),
  }
  easy = Associated(found.jaccard, np.full(70, 9))
  assert set(easy.metrics()) == {"jaccard"}


OUTCOMES = pytest.mark.parametrize(
  "outcome",
  [
    classified(1),
    classified(2, n=25),
    classified(3, grouped=False),
    retrieved(),
    retrieved(captions=1),
    associated(),
  ],
  ids=lambda outcome: f"{type(outcome).__name__}-{outcome.clusters}",
)


@pytest.mark.parametrize("mean", [0.2, 1.0, 3.0])
@OUTCOMES
def test_weights_are_records_that_stand_so_many_times(outcome, mean):
  times = np.random.default_rng(0).poisson(mean, outcome.clusters)
  want = repeated(outcome, times).metrics()
  # Means of fractions, in another order.
  assert outcome.metrics(times.astype(float)) == pytest.approx(want, rel=1e-12)
  assert outcome.metrics(times) == pytest.approx(want, rel=1e-12)
  assert outcome.metrics() != pytest.approx(want, rel=1e-3)
  ones = np.ones(outcome.clusters)
  assert outcome.metrics(ones) == outcome.metrics()


# It warns of classes that are predicted and occur nowhere, which it leaves out.
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parity
@pytest.mark.parametrize("seed", range(6))
def test_scores_of_scikit_learn(seed):
  (metrics,) = released.needs("sklearn.metrics")
  found = classified(seed, n=30 if seed % 2 else 300)
  times = np.random.default_rng(seed).poisson(0.7, found.clusters)
  for weights in (None, times):
    # What is not drawn is not there: its class is not in the mean.
    shown = np.arange(found.clusters) if weights is None else weights > 0
    given = found.labels[shown], found.predicted[shown]
    own = None if weights is None else weights[shown]
    got = found.metrics(weights)
    f1 = metrics.f1_score(
      *given,
      labels=np.unique(given[0]),
      average="macro",
      zero_division=0,
      sample_weight=own,
    )
    # Theirs is of precision and recall, with roundings of its own.
    assert got["macro_f1"] == pytest.approx(f1, rel=1e-12)
    balanced = metrics.balanced_accuracy_score(*given, sample_weight=own)
    assert got["mean_per_class"] == pytest.approx(balanced, rel=1e-12)
    accuracy = metrics.accuracy_score(*given, sample_weight=own)
    assert got["accuracy"] == pytest.approx(accuracy, rel=1e-12)


@OUTCOMES
def test_arrays_are_all_that_a_score_is_made_of(outcome):
  arrays = outcome.arrays()
  assert all(array.dtype.kind in "iufb" for array in arrays.values())
  if isinstance(outcome, Classified):
    assert ("group" in arrays) == (outcome.group is not None)
    assert np.mean(arrays["right"]) == outcome.metrics()["accuracy"]
    np.testing.assert_array_equal(
      arrays["right"], arrays["predicted"] == arrays["labels"]
    )
  else:
    again = dataclasses.replace(outcome, **arrays)
    assert again.metrics() == outcome.metrics()


def coin(rng, n, share):
  """Pictures of one class, of which each is right with a probability."""
  rank = (rng.random(n) >= share).astype(int)
  return Classified(np.arange(n), np.zeros(n, int), rank, rank, 2)


def test_interval_of_an_accuracy_is_that_of_a_binomial():
  # Draws of n pictures of which a share p is right are Binomial(n, p).
  n = 400
  found = coin(np.random.default_rng(0), n, 0.8)
  score, low, high = bootstrap(found, "accuracy", resamples=4000)
  assert score == found.metrics()["accuracy"]
  # A 2.5% quantile of 4,000 draws is known to 0.042 standard deviations, which
  # are eight pictures: one of them is three times that.
  edges = stats.binom.ppf([0.025, 0.975], n, score) / n
  np.testing.assert_allclose([low, high], edges, atol=1.01 / n)
  # The normal approximation is off by the skew and by half a picture as well.
  width = 1.96 * np.sqrt(score * (1 - score) / n)
  np.testing.assert_allclose(
    [low, high], [score - width, score + width], atol=2 / n
  )


def test_intervals_hold_the_truth_as_often_as_they_should():
  n, share, trials = 60, 0.7, 250
  held = 0
  for trial in range(trials):
    found = coin(np.random.default_rng(trial), n, share)
    _, low, high = bootstrap(found, "accuracy", resamples=250, seed=trial)
    held += low <= share <= high
  # How often it would be with all draws, summed over what could be found.
  right = np.arange(n + 1)
  low, high = (stats.binom.ppf(q, n, right / n) / n for q in (0.025, 0.975))
  found = stats.binom.pmf(right, n, share) @ ((low <= share) & (share <= high))
  assert 0.92 < found < 0.96
  # Four standard errors of 250 trials; a level of 80 or of 99.9% is outside.
  spread = np.sqrt(found * (1 - found) / trials)
  assert abs(held / trials - found) < 4 * spread


def width(*args, **kwargs):
  _, low, high = bootstrap(*args, **kwargs)
  return high - low


def test_pictures_are_drawn_with_all_their_captions():
  # Five captions each: those that hang together are one observation, and the
  # interval is wider by the root of five.
  rng = np.random.default_rng(0)
  n, captions = 300, 5
  index = np.repeat(np.arange(n), captions)
  hit = (rng.random(n) < 0.5).astype(int)
  together = Retrieved(hit, np.arange(n), hit[index], index, n, (1,))
  apart = dataclasses.replace(
    together, text_rank=rng.permutation(together.text_rank)
  )
  metric = "text_to_image/R@1"
  assert together.metrics()[metric] == apart.metrics()[metric]
  ratio = width(together, metric) / width(apart, metric)
  # Each width is known to some 4%, and the shuffle is one of many.
  assert ratio == pytest.approx(np.sqrt(captions), rel=0.15)
  # Directions that hit together: their mean varies as one of them.
  assert width(together, "mean/R@1") == pytest.approx(width(together, metric))
  assert width(together, "mean/R@1") == pytest.approx(
    2 * 1.96 * np.sqrt(0.25 / n), rel=0.1
  )


@OUTCOMES
def test_same_seed_same_interval(outcome):
  for metric in outcome.metrics():
    first = bootstrap(outcome, metric, resamples=60, seed=3)
    assert first == bootstrap(outcome, metric, resamples=60, seed=3)
    assert first.score == outcome.metrics()[metric]
    assert first.low <= first.high
    assert first.low < first.high or first.score in (0.0, 1.0)
  metric = next(iter(outcome.metrics()))
  first, other = (
    bootstrap(outcome, metric, resamples=60, seed=seed) for seed in (3, 4)
  )
  assert other != first and other.score == first.score


def test_a_lower_level_is_a_narrower_interval():
  found = classified(n=500)
  levels = [width(found, "accuracy", level=q) for q in (0.5, 0.8, 0.95)]
  # Normal quantiles of both; each width to some 5%.
  for level, q in zip(levels, (0.5, 0.8)):
    want = stats.norm.ppf(0.5 + q / 2) / stats.norm.ppf(0.975)
    assert level / levels[2] == pytest.approx(want, rel=0.12)


@pytest.mark.parametrize(
  ("outcome", "metric"),
  [
    (classified(), "acuracy"),
    (classified(grouped=False), "worst_group_accuracy"),
    (retrieved(), "mean/R@2"),
    (Associated(np.ones(3), np.full(3, 5)), "jaccard_hard"),
  ],
)
def test_a_metric_that_is_not_there_is_refused(outcome, metric):
  known = ", ".join(outcome.metrics())
  with pytest.raises(ValueError, match=f"no metric '{metric}'.*{known}"):
    bootstrap(outcome, metric)


def with_groups(group, right, classes=9):
  rank = 1 - np.asarray(right)
  n = len(rank)
  return Classified(
    np.arange(n), np.zeros(n, int), rank, rank, classes, np.asarray(group)
  )


def test_a_group_that_a_draw_lost_is_not_its_worst():
  # Group 1 is one picture, wrong, and lost in 37% of the draws.
  found = with_groups([0] * 19 + [1], [1] * 10 + [0] * 9 + [0])
  assert found.metrics()["worst_group_accuracy"] == 0.0
  draws = np.array(
    [
      found.metrics(
        np.bincount(
          np.random.default_rng(k).integers(20, size=20), minlength=20
        )
      )["worst_group_accuracy"]
      for k in range(200)
    ]
  )
  # (19/20)^20 of the draws, give or take four standard errors.
  assert np.mean(draws > 0) == pytest.approx(0.3585, abs=4 * 0.034)
  _, low, high = bootstrap(found, "worst_group_accuracy")
  assert low == 0.0 and 0.6 < high < 0.8


@pytest.mark.parametrize("right", [0, 1])
def test_draws_without_any_group_do_not_count(right):
  # The one picture with a group is lost in a third of the draws, which then
  # say nothing, and above all not that every group is right.
  found = with_groups([-1] * 9 + [2], [1 - right] * 9 + [right])
  for metric in ("worst_group_accuracy", "worst_group_top5"):
    score, low, high = bootstrap(found, metric, resamples=200)
    want = right if metric == "worst_group_accuracy" else 1
    assert score == low == high == want


def test_pictures_without_a_group_do_not_count_in_the_worst():
  found = with_groups([-1, -1, 0, 0, 4, 4], [0, 0, 1, 1, 1, 0])
  assert found.metrics()["worst_group_accuracy"] == 0.5
  found = with_groups([-1, -1, -1], [1, 0, 1])
  assert "worst_group_accuracy" not in found.metrics()


def test_the_interval_of_a_worst_group_lies_low():
  # As its docstring says: six groups, each of 160 right of 200.
  found = with_groups(np.repeat(range(6), 200), np.tile([1] * 4 + [0], 240))
  score, low, high = bootstrap(found, "worst_group_accuracy", resamples=300)
  assert score == 0.8 and low < high < 0.81 and low < 0.74


def test_draws_without_a_query_do_not_count():
  # One picture of three has captions, which are lost in 30% of the draws.
  none = np.zeros(1, int)
  found = Retrieved(none, none + 2, np.array([0, 3]), np.array([2, 2]), 3, (1,))
  assert bootstrap(found, "text_to_image/R@1", resamples=50)[1:] == (0.5, 0.5)


def test_draws_without_a_hard_instance_do_not_count():
  found = Associated(np.array([0.5, 1.0, 0.0]), np.array([12, 5, 6]))
  assert bootstrap(found, "jaccard_hard", resamples=50)[:] == (0.5, 0.5, 0.5)
  assert "jaccard_hard" not in found.metrics(np.array((0, 2, 1)))
