"""Spreads and differences over seeds, against other ways to compute them."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from aced.evaluation import stability
from aced.evaluation.stability import (
  Run,
  analyse,
  bootstrap,
  holm,
  paired,
  spread,
  unpaired,
  verdict,
)

A = np.array([0.71, 0.74, 0.72, 0.755])
B = np.array([0.70, 0.715, 0.725, 0.71])


def task(score, **more):
  entry = {"title": "A task", "metric": "accuracy", "score": score}
  return entry | {"low": score - 0.01, "high": score + 0.03} | more


def test_spread_pools_recipes_and_has_chi_square_bounds():
  got = spread([A])
  assert got.sd == pytest.approx(np.std(A, ddof=1))
  got = spread([A, B[:3]], confidence=0.9)
  squares = np.sum((A - A.mean()) ** 2) + np.sum((B[:3] - B[:3].mean()) ** 2)
  assert got.sd == pytest.approx(math.sqrt(squares / 5))
  # Quantiles of the chi-square distribution of 5 degrees, from a table.
  assert got.sd_low == pytest.approx(math.sqrt(squares / 9.236), rel=1e-4)
  assert got.sd_high == pytest.approx(math.sqrt(squares / 1.610), rel=1e-3)


def test_the_bounds_of_a_spread_cover_it_as_often_as_they_say():
  rng = np.random.default_rng(0)
  found = [spread([rng.normal(0.5, 0.01, 4)]) for _ in range(2000)]
  # Binomial with p = 0.95: four standard errors are 0.0195.
  for covers in (
    [one.sd_high >= 0.01 for one in found],
    [one.sd_low <= 0.01 for one in found],
  ):
    assert abs(np.mean(covers) - 0.95) < 0.0195


def test_equal_scores_of_few_pictures_are_not_called_stable():
  same = [np.array([0.5, 0.5])]
  assert verdict(spread(same, step=1 / 100), 0.01) == "undecided"
  assert verdict(spread(same, step=1 / 100_000), 0.01) == "stable"
  assert spread(same, step=1 / 100).sd_low == 0


@pytest.mark.parametrize(
  ("sd", "want"), [(0.001, "stable"), (0.01, "undecided"), (0.1, "noisy")]
)
def test_verdicts(sd, want):
  scores = 0.5 + sd * np.array([-1.5, 0.5, 1.5, -0.5]) / math.sqrt(5 / 3)
  assert spread([scores]).sd == pytest.approx(sd)
  assert verdict(spread([scores])) == want
  # Without confidence in either, all is decided.
  assert verdict(spread([scores], 0.5), 0.00999) != "undecided"


def test_paired_interval_is_that_of_the_formula():
  got = paired(A, B)
  d = A - B
  # 3.182446: of Student's t with 3 degrees at 0.975, from a table.
  half = 3.182446 * np.std(d, ddof=1) / 2
  assert got.mean == pytest.approx(d.mean())
  assert got.low == pytest.approx(d.mean() - half, rel=1e-6)
  assert got.high == pytest.approx(d.mean() + half, rel=1e-6)
  assert got.p == pytest.approx(stats.ttest_rel(A, B).pvalue)
  back = paired(B, A)
  assert (back.mean, back.low, back.p) == pytest.approx(
    (-got.mean, -got.high, got.p)
  )


def test_unpaired_is_welch():
  got = unpaired(A, B[:3])
  theirs = stats.ttest_ind(A, B[:3], equal_var=False)
  interval = theirs.confidence_interval(0.95)
  assert got.mean == pytest.approx(A.mean() - B[:3].mean())
  assert (got.low, got.high) == pytest.approx((interval.low, interval.high))
  assert got.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_sign_flips_equal_enumeration(n):
  rng = np.random.default_rng(n)
  # Two decimals, so that there are exact ties and zeros.
  a, b = np.round(rng.random((2, n)), 1)
  d = [round(x - y, 9) for x, y in zip(a, b)]
  flips = list(itertools.product((1, -1), repeat=n))
  sums = [abs(round(sum(s * x for s, x in zip(f, d)), 9)) for f in flips]
  want = sum(x >= abs(round(sum(d), 9)) for x in sums) / 2**n
  got = paired(a, b)
  assert got.p_exact == pytest.approx(want, abs=1e-12)
  assert got.p_least == 2 / 2**n
  everywhere = paired(a + 1, b)  # Better in every seed.
  assert everywhere.p_exact == everywhere.p_least


@pytest.mark.parametrize(("n", "m"), [(2, 2), (4, 3), (5, 5)])
def test_dealings_equal_enumeration(n, m):
  rng = np.random.default_rng(n)
  scores = np.round(rng.random(n + m), 1)
  a, b = scores[:n], scores[n:]
  observed = round(abs(a.mean() - b.mean()), 9)
  hits = []
  for chosen in itertools.combinations(range(n + m), n):
    inside = np.isin(np.arange(n + m), chosen)
    difference = scores[inside].mean() - scores[~inside].mean()
    hits.append(round(abs(difference), 9) >= observed)
  got = unpaired(a, b)
  assert got.p_exact == pytest.approx(np.mean(hits))
  apart = unpaired(a + 9, b)
  assert apart.p_exact == apart.p_least == (1 + (n == m)) / math.comb(n + m, n)


def test_too_many_seeds_for_all_flips_have_none():
  rng = np.random.default_rng(0)
  for n, has in ((20, True), (21, False)):
    a, b = rng.random((2, n))
    assert (paired(a, b).p_exact is not None) == has
  assert unpaired(a, b).p_exact is None and unpaired(a, b).p is not None


def test_differences_without_a_spread_have_no_interval():
  for got in (paired(A, A - 0.01), unpaired(A[:1].repeat(2), B[:1].repeat(3))):
    assert got.mean == pytest.approx(0.01)
    assert got.low is got.high is got.p is None
  # All flips that lead as far: all up and all down.
  assert paired(A, A - 0.01).p_exact == 2 / 16
  assert paired(A, A).p_exact == 1


def test_holm_by_hand():
  p = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.6, "e": None}
  # In order 0.01, 0.03, 0.04, 0.6, 1, times 5, 4, 3, 2, 1; never falling.
  want = {"a": 0.12, "b": 0.05, "c": 0.12, "d": 1.0, "e": None}
  got = holm(p)
  assert list(got) == list(p) and got.pop("e") is None
  assert got == pytest.approx({k: x for k, x in want.items() if x is not None})
  assert holm({}) == {}


def test_without_a_difference_five_of_a_hundred_tests_reject():
  rng = np.random.default_rng(0)
  draws, rejected = 2000, {"t": 0, "flips": 0, "welch": 0, "deals": 0}
  for _ in range(draws):
    # What the seed does to both recipes does not matter to pairs.
    common = rng.normal(0.6, 0.02, 7)
    a, b = common + rng.normal(0, 0.01, (2, 7))
    one, other = paired(a, b), unpaired(*rng.normal(0.6, 0.01, (2, 4)))
    rejected["t"] += one.p < 0.05
    rejected["flips"] += one.p_exact < 0.05
    rejected["welch"] += other.p < 0.05
    rejected["deals"] += other.p_exact < 0.05
  share = {key: count / draws for key, count in rejected.items()}
  # Binomial: four standard errors are 0.0195. Of 128 flips six are 0.047, and
  # of 70 dealings two are 0.029; Welch's is an approximation, known to be
  # careful with few.
  assert abs(share["t"] - 0.05) < 0.0195
  assert abs(share["flips"] - 6 / 128) < 0.0195
  assert abs(share["deals"] - 2 / 70) < 0.0195
  assert 0.02 < share["welch"] < 0.065


def test_the_paired_test_finds_what_the_unpaired_one_cannot():
  rng = np.random.default_rng(0)
  common = rng.normal(0.6, 0.05, 6)
  a, b = common + 0.01 + rng.normal(0, 0.002, 6), common
  assert paired(a, b).p < 0.01 and paired(a, b).p_exact == 2 / 64
  assert unpaired(a, b).p > 0.2


def test_gains_are_over_the_records_that_all_have():
  first = [
    (np.array([3, 1, 2, 9]), np.array([True, False, True, True])),
    (np.array([1, 2, 3]), np.array([True, True, False])),
  ]
  second = [(np.array([2, 3, 1, 7]), np.array([False, True, False, True]))]
  got = stability.picture_gains(first, second)
  # Records 1, 2 and 3: 1/2 - 0, 1 - 0 and 1/2 - 1.
  np.testing.assert_allclose(got, [0.5, 1, -0.5])


def test_bootstrap_equals_drawing_pictures():
  rng = np.random.default_rng(1)
  gains = rng.choice(
    [-1, -1 / 3, 0, 2 / 3, 1], 300, p=[0.1, 0.2, 0.3, 0.2, 0.2]
  )
  got = bootstrap(gains, draws=20_000)
  drawn = gains[rng.integers(0, 300, (20_000, 300))].mean(axis=1)
  assert got["mean"] == pytest.approx(gains.mean()) and got["pictures"] == 300
  # The ends of 20,000 draws have standard errors of about 2% of a deviation.
  atol = 0.1 * gains.std() / math.sqrt(300)
  ends = [got["low"], got["high"]]
  np.testing.assert_allclose(ends, np.percentile(drawn, [2.5, 97.5]), atol=atol)
  assert got["p"] < 0.01
  assert bootstrap(gains) == bootstrap(gains)
  none = bootstrap(np.zeros(10))
  assert none == {"mean": 0, "low": 0, "high": 0, "p": 1, "pictures": 10}


def test_bootstrap_rejects_five_of_a_hundred_without_a_difference():
  rng = np.random.default_rng(0)
  rejected = [
    bootstrap(rng.choice([-1.0, 0, 1.0], 400, p=[0.1, 0.8, 0.1]), 1000)["p"]
    < 0.05
    for _ in range(1000)
  ]
  # Four standard errors are 0.028.
  assert abs(np.mean(rejected) - 0.05) < 0.028


# Tasks together.


def runs(letter, **scores):
  return [
    Run(f"{letter}{k}", {n: task(x) for n, x in zip(scores, row)}, {})
    for k, row in enumerate(zip(*scores.values(), strict=True))
  ]


def test_analysis_of_one_recipe():
  noise = np.array([-0.2, 0.1, 0.05, 0.1])
  found = analyse(runs("a", one=A / 50, two=A, three=0.5 + noise), max_sd=0.02)
  two = found["tasks"]["two"]
  assert two["seeds"] == 4 and two["mean"] == pytest.approx(A.mean())
  assert two["relative"] == pytest.approx(np.std(A, ddof=1) / A.mean())
  # Half the interval of 0.04, over 1.96.
  assert two["sampling"] == pytest.approx(0.02 / 1.96)
  assert two["ratio"] == pytest.approx(np.std(A, ddof=1) / (0.02 / 1.96))
  verdicts = [found["tasks"][n]["verdict"] for n in ("one", "two", "three")]
  assert verdicts == ["stable", "undecided", "noisy"]
  average = found["averages"]["all"]
  assert average["tasks"] == ["one", "two", "three"]
  means = (A / 50 + A + 0.5 + noise) / 3
  assert average["mean"] == pytest.approx(means.mean())
  assert average["sd"] == pytest.approx(np.std(means, ddof=1))
  assert found["averages"]["stable"]["tasks"] == ["one"]
  assert found["left_out"] == {} and "difference" not in two


def test_analysis_of_two_recipes():
  found = analyse(
    runs("a", one=A, two=A + [0.01, -0.01, 0, 0.02]), runs("b", one=B, two=A)
  )
  one, two = (found["tasks"][name]["difference"] for name in ("one", "two"))
  want = paired(A, B)
  assert {k: one[k] for k in want._asdict()} == want._asdict()
  corrected = holm({"one": one["p"], "two": two["p"]})
  assert (one["p_holm"], two["p_holm"]) == tuple(corrected.values())
  assert found["tasks"]["one"]["sd"] == pytest.approx(spread([A, B]).sd)
  average = found["averages"]["all"]["difference"]
  other = paired((A + A + [0.01, -0.01, 0, 0.02]) / 2, (B + A) / 2)
  assert average["mean"] == pytest.approx(other.mean)
  assert average["p"] == pytest.approx(other.p)
  assert found["averages"]["stable"] is None


def test_a_task_that_a_run_lacks_is_in_no_average_and_is_named():
  a, b = runs("a", one=A, two=A, three=A), runs("b", one=B, two=B, three=B)
  del b[1].tasks["one"]
  b[1] = b[1]._replace(skipped={"one": "no data", "four": "no data"})
  a[2].tasks["three"]["partial"] = True
  found = analyse(a, b)
  assert found["averages"]["all"]["tasks"] == ["two"]
  assert found["left_out"]["one"] == ["b1: no data"]
  assert found["left_out"]["three"] == ["a2: run on a part of its data"]
  assert len(found["left_out"]["four"]) == 8
  # Of the pairs that both have.
  kept = np.array([0, 2, 3])
  assert found["tasks"]["one"]["seeds"] == 3
  difference = found["tasks"]["one"]["difference"]
  assert difference["p"] == pytest.approx(paired(A[kept], B[kept]).p)
  assert "four" not in found["tasks"] and found["tasks"]["three"]["seeds"] == 4
  apart = analyse(a, b, compare=unpaired)["tasks"]["one"]
  assert (apart["seeds"], apart["against"]["seeds"]) == (4, 3)


def test_numbers_of_seeds():
  with pytest.raises(ValueError, match="'a0'. is one seed"):
    analyse(runs("a", one=A[:1]))
  with pytest.raises(ValueError, match="'b0'. is one seed"):
    analyse(runs("a", one=A), runs("b", one=B[:1]), compare=unpaired)
  with pytest.raises(ValueError, match="4 seeds against 3 cannot be paired"):
    analyse(runs("a", one=A), runs("b", one=B[:3]))
