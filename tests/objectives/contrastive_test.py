"""Contrastive losses against plain loops in float64, and by differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from aced.objectives import CONTRASTIVE, sigmoid_loss, softmax_loss


def by_hand(model, loss):
  """The definition, pair by pair, in Python floats."""
  n = model.zimg.shape[0]
  z, w = (np.asarray(x, np.float64) for x in model[:2])
  logits = (model.t * z @ w.T + model.b).tolist()
  total = 0.0
  for i in range(n):
    if loss == "sigmoid":
      total += sum(
        math.log1p(math.exp(-logits[i][j] if i == j else logits[i][j]))
        for j in range(n)
      )
    else:
      row = math.log(sum(math.exp(logits[i][j]) for j in range(n)))
      column = math.log(sum(math.exp(logits[j][i]) for j in range(n)))
      total += 0.5 * (row + column) - logits[i][i]
  return total / n


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_value(make_embeddings, loss):
  model = make_embeddings(t=12.0, b=-6.0)
  got = CONTRASTIVE[loss](model)
  assert got.dtype == jnp.float32
  assert float(got) == pytest.approx(by_hand(model, loss), rel=1e-5)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_masked_pairs_are_as_if_they_were_not_there(make_embeddings, loss):
  model = make_embeddings()
  mask = np.arange(12) % 3 != 0
  got = CONTRASTIVE[loss](model, mask)
  want = CONTRASTIVE[loss](model.take(np.flatnonzero(mask)))
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  gradient = jax.grad(lambda m: CONTRASTIVE[loss](m, mask))(model)
  np.testing.assert_array_equal(gradient.zimg[~mask], 0.0)
  assert all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_nothing_valid_is_zero_with_zero_gradients(make_embeddings, loss):
  nothing = np.zeros(12, bool)
  value, gradient = jax.value_and_grad(lambda m: CONTRASTIVE[loss](m, nothing))(
    make_embeddings()
  )
  assert float(value) == 0.0
  assert all((np.asarray(g) == 0).all() for g in gradient)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_gradients_against_differences(make_embeddings, loss, masked):
  mask = jnp.arange(12) % 4 != 1 if masked else None
  with jax.enable_x64(True):
    model = make_embeddings(t=3.0, b=-1.0, dtype=np.float64)
    # Accumulation stays in float32 by design, so the step is a coarse one.
    check_grads(
      lambda z, w, t, b: CONTRASTIVE[loss](model.__class__(z, w, t, b), mask),
      (model.zimg, model.ztxt, jnp.float64(3.0), jnp.float64(-1.0)),
      order=1,
      modes=("rev",),
      eps=1e-2,
      atol=2e-3,
      rtol=2e-3,
    )


def test_bias_has_no_part_in_softmax(make_embeddings):
  model = make_embeddings()
  other = softmax_loss(model._replace(b=3.0))
  assert float(softmax_loss(model)) == pytest.approx(float(other), rel=1e-5)


def test_large_scale_stays_finite(make_embeddings):
  model = make_embeddings()._replace(t=1e4)
  for loss in (sigmoid_loss, softmax_loss):
    assert np.isfinite(loss(model))
