"""Distillation losses against numpy in float64, and by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from aced.embeddings import Embeddings
from aced.objectives import (
  DISTILLATION,
  feature_distillation,
  sigmoid_distillation,
  sigmoid_loss,
  softmax_distillation,
  softmax_loss,
)

N = 12


def logits64(model):
  zimg, ztxt = (np.asarray(z, np.float64) for z in model[:2])
  return model.t * zimg @ ztxt.T + model.b


def log_softmax64(x):
  return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def by_hand(name, student, teacher):
  ours, theirs = logits64(student), logits64(teacher)
  if name == "softmax":
    rows = np.exp(log_softmax64(theirs)) * log_softmax64(ours)
    columns = np.exp(log_softmax64(theirs.T)) * log_softmax64(ours.T)
    return -0.5 * (rows.sum(1).mean() + columns.sum(1).mean())
  if name == "sigmoid":
    p = 1 / (1 + np.exp(-theirs))
    bce = p * np.logaddexp(0, -ours) + (1 - p) * np.logaddexp(0, ours)
    return bce.sum(1).mean()
  errors = [
    np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()
    for a, b in zip(student[:2], teacher[:2], strict=True)
  ]
  return np.mean(errors)


@pytest.fixture
def pair(make_embeddings):
  return make_embeddings(0, t=5.0, b=-2.0), make_embeddings(1, t=20.0, b=-9.0)


@pytest.mark.parametrize("name", DISTILLATION)
def test_value(pair, name):
  got = DISTILLATION[name](*pair)
  assert got.dtype == jnp.float32
  assert float(got) == pytest.approx(by_hand(name, *pair), rel=1e-5)


@pytest.mark.parametrize("name", DISTILLATION)
def test_masked_pairs_are_as_if_they_were_not_there(pair, name):
  mask = np.arange(N) % 3 != 0
  kept = np.flatnonzero(mask)
  got = DISTILLATION[name](*pair, mask)
  want = DISTILLATION[name](*(m.take(kept) for m in pair))
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  gradient = jax.grad(lambda s: DISTILLATION[name](s, pair[1], mask))(pair[0])
  np.testing.assert_array_equal(gradient.zimg[~mask], 0.0)
  assert all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", DISTILLATION)
def test_gradients_against_differences(pair, name, masked):
  mask = jnp.arange(N) % 4 != 1 if masked else None
  student, teacher = pair

  def loss(zimg, ztxt, t, b):
    return DISTILLATION[name](Embeddings(zimg, ztxt, t, b), teacher, mask)

  with jax.enable_x64(True):
    args = [jnp.asarray(np.asarray(x, np.float64)) for x in student]
    # Accumulation stays in float32 by design, so the step is a coarse one.
    check_grads(
      loss, args, order=1, modes=("rev",), eps=1e-2, atol=2e-3, rtol=2e-3
    )


@pytest.mark.parametrize("name", DISTILLATION)
def test_no_gradient_reaches_the_teacher(pair, name):
  gradient = jax.grad(lambda t: DISTILLATION[name](pair[0], t))(pair[1])
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_a_certain_teacher_gives_the_contrastive_loss(pair):
  """Soft labels that are the hard ones: the diagonal, and nothing else."""
  student, _ = pair
  eye = jnp.eye(N)
  softmax_teacher = Embeddings(eye, eye, t=1e3)
  sigmoid_teacher = Embeddings(eye, eye, t=2e3, b=-1e3)
  assert float(softmax_distillation(student, softmax_teacher)) == (
    pytest.approx(float(softmax_loss(student)), rel=1e-6)
  )
  assert float(sigmoid_distillation(student, sigmoid_teacher)) == (
    pytest.approx(float(sigmoid_loss(student)), rel=1e-6)
  )


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_least_is_reached_at_the_teacher(pair, name):
  """The gradient of a cross-entropy vanishes where the two agree."""
  _, teacher = pair
  gradient = jax.grad(lambda s: DISTILLATION[name](s, teacher))(teacher)
  for leaf in jax.tree.leaves(gradient):
    # Sums of 144 terms, at scale 20, each rounded to 6e-8.
    np.testing.assert_allclose(leaf, np.zeros_like(leaf), atol=2e-5)


def test_feature_distillation_across_widths(make_embeddings):
  student, teacher = make_embeddings(0, d=8), make_embeddings(1, d=5)
  with pytest.raises(ValueError, match="needs `projections`"):
    feature_distillation(student, teacher)
  rng = np.random.default_rng(2)
  maps = tuple(rng.standard_normal((8, 5)).astype(np.float32) for _ in "ab")
  got = feature_distillation(student, teacher, projections=maps)
  want = np.mean(
    [
      np.square(np.asarray(z) @ m - np.asarray(w)).mean()
      for z, m, w in zip(student[:2], maps, teacher[:2], strict=True)
    ]
  )
  assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_easy_reference_curation_distils_implicitly():
  """The identity behind ACID (arXiv 2411.18674, section 3.2).

  Over a data set that can be enumerated, weighting each example's loss by the
  reference's probability of it turns the expected loss of the sample into a
  distillation loss: sum_x p(x) p_ref(y_x|x) (-log p_student(y_x|x)) where the
  curated labels are replaced by the reference's full soft labels once every
  label of every picture is in the data. Here: every (image, text) pair stands
  in the data set, each equally often, and is drawn with probability
  proportional to exp(-nll_reference); the expected student loss of the draw
  equals the cross-entropy from teacher to student.
  """
  rng = np.random.default_rng(0)
  n = 7
  ours, theirs = rng.standard_normal((2, n, n)) * 3
  log_student, log_reference = log_softmax64(ours), log_softmax64(theirs)
  pairs = [(i, j) for i in range(n) for j in range(n)]
  scores = jnp.asarray([log_reference[i, j] for i, j in pairs])  # -nll_ref
  losses = jnp.asarray([-log_student[i, j] for i, j in pairs])

  draws = jax.random.categorical(jax.random.key(0), scores, shape=(200_000,))
  expected = float((jax.nn.softmax(scores) * losses).sum())
  # The empirical mean of what Gumbel sampling draws: 5 standard errors.
  error = 5 * float(losses[draws].std()) / np.sqrt(200_000)
  assert float(losses[draws].mean()) == pytest.approx(expected, abs=error)

  distilled = -(np.exp(log_reference) * log_student).sum(1).mean()
  assert expected == pytest.approx(distilled, rel=1e-5)
