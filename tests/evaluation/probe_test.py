"""Probes against loops over rows, optimality, and scikit-learn."""

import math

import numpy as np
import pytest

from aced.evaluation import probe
from aced.evaluation.probe import knn, linear_probe


def make(seed=0, n=90, m=60, d=6, classes=4, noise=0.7, offset=1.0):
  """Blobs that overlap, with a direction in common as embeddings have."""
  rng = np.random.default_rng(seed)
  centres = rng.standard_normal((classes, d))
  sets = []
  for size in (n, m):
    y = np.arange(size) % classes
    z = centres[y] + offset + noise * rng.standard_normal((size, d))
    sets += [z.astype(np.float32), y]
  return sets


def unit(z):
  z = np.float64(z)
  return z / np.sqrt(np.sum(z**2, axis=1, keepdims=True))


def brute_force_knn(train, train_labels, test, k, temperature, classes):
  """One row at a time, with a full stable sort and sums from the near end."""
  predicted = []
  for row in unit(test):
    similarity = [
      np.float32(math.fsum(a * b for a, b in zip(row, other)))
      for other in unit(train)
    ]
    nearest = sorted(range(len(train)), key=lambda j: (-similarity[j], j))[:k]
    votes = [0.0] * classes
    for j in nearest:
      votes[train_labels[j]] += math.exp(
        (float(similarity[j]) - float(similarity[nearest[0]])) / temperature
      )
    predicted.append(votes.index(max(votes)))
  return np.array(predicted)


@pytest.mark.parametrize("k", [1, 5, 89, 90])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_equals_brute_force(k, temperature):
  train, y, test, want = make()
  # Copies of other classes, so that neighbours and votes tie exactly.
  train[[3, 8, 21]], train[40] = train[2], 2 * train[1]
  test[5], test[6] = 3 * train[2], train[1]
  got = knn(train, y, test, want, k, temperature)
  predicted = brute_force_knn(train, y, test, k, temperature, 4)
  np.testing.assert_array_equal(got.predicted, predicted)
  np.testing.assert_array_equal(got.right, predicted == want)
  assert got.metrics["accuracy"] == pytest.approx((predicted == want).mean())
  assert 0.3 < got.metrics["accuracy"] < 1  # Neither hopeless nor trivial.


def test_mean_per_class_is_over_the_classes_of_the_test_rows():
  train, y = np.eye(3), np.arange(3)
  test = np.eye(3)[[0, 0, 0, 0, 1, 1]]
  got = knn(train, y, test, np.array([0, 0, 0, 1, 1, 1]), k=1, num_classes=9)
  assert got.metrics == pytest.approx(
    {"accuracy": 5 / 6, "mean_per_class": (1 + 2 / 3) / 2}
  )


def test_knn_weighs_near_rows_more():
  angle = np.deg2rad([0.0, 30.0, 31.0])
  train = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  test = np.array([[1.0, 0.0]])
  near, far = np.exp(1 / 0.07), 2 * np.exp(np.cos(np.deg2rad(30.5)) / 0.07)
  assert near > far  # One near row outvotes two that are farther.
  y = np.array([1, 0, 0])
  assert knn(train, y, test, np.array([1]), k=3).right.all()
  assert not knn(train, y, test, np.array([1]), k=3, temperature=1.0).right[0]


def test_of_equal_neighbours_and_votes_the_lower_wins():
  same, y = np.ones((6, 2)), np.array([2, 1, 1, 0, 0, 0])
  test = np.ones((1, 2)), np.array([0])
  for k, want in ((1, 2), (2, 1), (3, 1), (5, 0), (6, 0)):
    assert knn(same, y, *test, k=k).predicted[0] == want, k


def test_rows_of_one_direction_tie_whatever_their_length():
  rng = np.random.default_rng(0)
  for _ in range(50):
    row = rng.standard_normal(7)
    # Scaled to length 1, they differ in the last digits of float64.
    train = row * rng.uniform(0.1, 9, (4, 1))
    found = knn(train, np.arange(4), row[None], np.array([0]), k=1)
    assert found.predicted[0] == 0


def test_a_small_temperature_leaves_it_to_the_nearest():
  train, y, test, want = make()
  with np.errstate(over="raise", invalid="raise"):
    cold = knn(train, y, test, want, k=90, temperature=1e-6)
  np.testing.assert_array_equal(
    cold.predicted, knn(train, y, test, want, k=1).predicted
  )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int32])
def test_blocks_and_dtypes_change_nothing(monkeypatch, dtype):
  train, y, test, want = make()
  knn_whole = knn(train, y, test, want)
  whole = linear_probe(train, y, test, want, l2=0.1, tolerance=1e-9)
  y, want = y.astype(dtype), want.astype(dtype)
  for block in (1, 7 * 90):
    monkeypatch.setattr(probe, "_BLOCK", block)
    got = knn(train, y, test, want)
    np.testing.assert_array_equal(got.predicted, knn_whole.predicted)
  got = linear_probe(train, y, test, want, l2=0.1, tolerance=1e-9)
  # The same sums in another order, at a gradient of 1e-9.
  np.testing.assert_allclose(got.weight, whole.weight, atol=1e-5)
  np.testing.assert_array_equal(got.predicted, whole.predicted)


def gradient(train, labels, found):
  """Of the objective as documented, in numpy: of weights, and of biases."""
  z = unit(train)
  logits = z @ found.weight + found.bias
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  p /= p.sum(axis=1, keepdims=True)
  error = p - (labels[:, None] == found.classes)
  return z.T @ error + found.l2 * found.weight, error.sum(axis=0)


@pytest.mark.parametrize("l2", [10.0, 0.1, 1e-4])
def test_the_gradient_vanishes(l2):
  train, y, test, want = make()
  got = linear_probe(train, y, test, want, l2=l2, tolerance=1e-8)
  assert got.converged and got.gradient <= 1e-8
  of_weight, of_bias = gradient(train, y, got)
  # 90 rows at 1e-8 each, by the weights, for unit rows with a common part
  # that adds as much again.
  np.testing.assert_allclose(of_weight, 0, atol=90 * 2e-8)
  np.testing.assert_allclose(of_bias, 0, atol=90 * 1e-8)
  before = gradient(train, y, got._replace(weight=got.weight * 1.01))
  assert np.abs(before[0]).max() > 1e3 * np.abs(of_weight).max()
  logits = unit(test) @ got.weight + got.bias
  np.testing.assert_array_equal(got.predicted, logits.argmax(axis=1))
  np.testing.assert_array_equal(got.right, got.predicted == want)
  assert got.metrics["accuracy"] == pytest.approx(got.right.mean())
  assert got.held_out == {} and got.l2 == l2


def test_two_opposite_rows_have_a_minimum_in_closed_form():
  # Logits are +-a with a = w1 - w0 = 2w: p = sigmoid(-2w) is the error, and
  # 2p = l2 * w by symmetry; solved here by bisection.
  l2 = 0.5
  low, high = 0.0, 10.0
  for _ in range(100):
    w = (low + high) / 2
    if 2 / (1 + math.exp(2 * w)) > l2 * w:
      low = w
    else:
      high = w
  z, y = np.array([[-3.0], [2.0]]), np.array([0, 1])
  got = linear_probe(z, y, z, y, l2=l2, tolerance=1e-10)
  # A gradient of 1e-10, over a curvature of at least l2 / 2.
  np.testing.assert_allclose(got.weight, [[-w, w]], atol=1e-9)
  np.testing.assert_allclose(got.bias, 0, atol=1e-9)
  assert got.metrics == {"accuracy": 1.0, "mean_per_class": 1.0}


def test_equal_rows_leave_the_shares_of_the_classes():
  z, y = np.ones((8, 3)), np.array([0, 0, 0, 0, 0, 2, 2, 2])
  got = linear_probe(z, y, z, y, l2=1.0, tolerance=1e-10)
  logits = unit(z[:1]) @ got.weight + got.bias
  assert logits[0, 0] - logits[0, 1] == pytest.approx(math.log(5 / 3))
  assert got.classes.tolist() == [0, 2]
  assert got.predicted.tolist() == [0] * 8


def test_a_class_without_training_rows_is_never_predicted():
  train, y, test, want = make(classes=4)
  kept = y != 1
  for found in (
    knn(train[kept], y[kept], test, want),
    linear_probe(train[kept], y[kept], test, want, l2=0.1),
  ):
    assert set(found.predicted) == {0, 2, 3}
    assert not found.right[want == 1].any()
    share = [found.right[want == c].mean() for c in range(4)]
    assert found.metrics["mean_per_class"] == pytest.approx(np.mean(share))


def test_the_strength_is_chosen_on_held_out_training_rows():
  train, y, test, want = make(n=120, noise=1.5)
  got = linear_probe(train, y, test, want, l2=[1e4, 0.1, 1e-6], seed=3)
  assert sorted(got.held_out) == [1e-6, 0.1, 1e4]
  held = probe._hold_out(y, 3)
  assert [held[y == c].sum() for c in range(4)] == [6] * 4  # A fifth of 30.
  for l2, accuracy in got.held_out.items():
    alone = linear_probe(train[~held], y[~held], train[held], y[held], l2=l2)
    assert alone.metrics["accuracy"] == pytest.approx(accuracy)
  assert got.held_out[got.l2] == max(got.held_out.values())
  assert got.held_out[got.l2] > min(got.held_out.values())
  again = linear_probe(train, y, test, want, l2=got.l2)
  # Both within the tolerance of one minimum, from other starts.
  np.testing.assert_allclose(got.weight, again.weight, rtol=1e-2, atol=1e-3)
  other = linear_probe(train, y, -test, want, l2=[1e4, 0.1, 1e-6], seed=3)
  assert other.held_out == got.held_out  # Test rows have no say.
  np.testing.assert_array_equal(other.weight, got.weight)


def test_the_search_refines_around_the_best():
  train, y, test, want = make(n=120, noise=1.5)
  got = linear_probe(train, y, test, want)
  tried = np.log10(sorted(got.held_out))
  assert {-6, -4, -2, 0, 2, 4, 6} <= set(np.round(tried, 6))
  assert len(tried) > 9 and tried.min() >= -6 and tried.max() <= 6
  assert np.diff(tried).min() == pytest.approx(1 / 8)
  at = np.log10(got.l2)
  for step in (1 / 8, -1 / 8):
    assert np.abs(tried - (at + step)).min() < 0.1251
  assert got.held_out[got.l2] == max(got.held_out.values())
  same = linear_probe(train, y, test, want)
  assert same.held_out == got.held_out and same.l2 == got.l2


def test_rare_classes_keep_a_row_to_learn_from():
  target = np.array([0] * 10 + [1] * 2 + [2])
  held = probe._hold_out(target, 0)
  assert [int(held[target == c].sum()) for c in range(3)] == [2, 1, 0]
  assert (probe._hold_out(target, 1) != held).any()


def test_a_fit_that_did_not_converge_says_so(caplog):
  train, y, test, want = make()
  got = linear_probe(train, y, test, want, l2=1e-6, max_iters=2)
  assert not got.converged and got.gradient > 1e-6
  assert "max_iters=2" in caplog.text
  caplog.clear()
  assert linear_probe(train, y, test, want, l2=0.1).converged
  assert not caplog.text


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"train": np.zeros((0, 6))}, "train has shape"),
    ({"test": np.ones((60, 5))}, "train is 6 wide and test 5"),
    ({"test": np.full((60, 6), np.inf)}, "test has values .* not finite"),
    ({"train_labels": np.zeros(90)}, "train_labels is float64"),
    ({"test_labels": np.arange(5)}, "test_labels is int64 of shape"),
    ({"test_labels": np.arange(60) - 1}, r"test_labels holds -1\.\.58"),
    ({"train_labels": np.full(90, 3)}, "class 3 alone"),
  ],
)
def test_both_refuse(change, message):
  names = ("train", "train_labels", "test", "test_labels")
  arguments = dict(zip(names, make())) | change
  for function in (knn, linear_probe):
    with pytest.raises(ValueError, match=message):
      function(**arguments)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"k": 91}, "k=91 .* from 1 to 90"),
    ({"k": 0}, "k=0"),
    ({"k": 2.5}, "k=2.5"),
    ({"temperature": 0}, "temperature=0"),
    ({"temperature": math.nan}, "temperature=nan"),
    ({"num_classes": 3}, r"train_labels holds 0\.\.3; expected .* to 2"),
    ({"num_classes": 0}, r"train_labels holds 0\.\.3"),
  ],
)
def test_knn_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    knn(*make(), **options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"l2": 0}, "l2=0 must be"),
    ({"l2": [1.0, -1.0]}, r"l2=\[1.0, -1.0\]"),
    ({"l2": []}, r"l2=\[\]"),
    ({"l2": math.nan}, "l2=nan"),
    ({"max_iters": 0}, "max_iters=0"),
    ({"tolerance": 0.0}, "tolerance=0.0"),
  ],
)
def test_linear_probe_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    linear_probe(*make(), **options)


def test_one_row_a_class_cannot_choose_a_strength():
  train, y = np.eye(3), np.arange(3)
  with pytest.raises(ValueError, match="give l2 as one number"):
    linear_probe(train, y, train, y)
  assert linear_probe(train, y, train, y, l2=[0.1]).metrics["accuracy"] == 1


@pytest.mark.parity
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("c", [0.1, 10.0, 1e3])
def test_scikit_learn_finds_the_same_minimum(classes, c):
  linear_model = pytest.importorskip(
    "sklearn.linear_model", reason="scikit-learn is of the extra `parity`"
  )
  train, y, test, want = make(n=200, m=300, d=16, classes=classes, noise=1.2)
  # For two classes it has one weight vector, the difference of our two.
  l2 = 1 / c if classes > 2 else 2 / c
  got = linear_probe(train, y, test, want, l2=l2, tolerance=1e-9)
  theirs = linear_model.LogisticRegression(C=c, tol=1e-9, max_iter=20_000)
  theirs.fit(unit(train), y)
  np.testing.assert_array_equal(got.predicted, theirs.predict(unit(test)))
  weight, bias = theirs.coef_.T, theirs.intercept_
  if classes == 2:
    weight, bias = weight * [[-0.5, 0.5]], bias * [-0.5, 0.5]
  logits = unit(test) @ got.weight + got.bias
  other = unit(test) @ weight + bias
  # Logits of up to a hundred; both ended at gradients of 1e-9, whose distance
  # from the minimum is that over the curvature, l2 / n or more: 1e-3 at most.
  centred = [x - x.mean(axis=1, keepdims=True) for x in (logits, other)]
  np.testing.assert_allclose(*centred, rtol=1e-4, atol=1e-4)

  def objective(weight, bias):
    logits = unit(train) @ weight + bias
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(200), y]
    return loss.sum() + l2 / 2 * np.sum(weight**2)

  ours, best = objective(got.weight, got.bias), objective(weight, bias)
  # Second order in that distance: both are flat there to rounding.
  assert ours == pytest.approx(best, rel=1e-9)
  assert ours <= best * (1 + 1e-12)
