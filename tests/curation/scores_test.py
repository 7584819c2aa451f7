"""Scores against the losses they are defined by, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.curation import pair_scores, scores


def loss_of(model, chosen, loss):
  """L(A), straight from its definition in the module's docstring."""
  zimg, ztxt = (np.asarray(z, np.float64)[chosen] for z in model[:2])
  l_aa = model.t * zimg @ ztxt.T + model.b
  if loss == "sigmoid":
    sign = 2 * np.eye(len(chosen)) - 1
    return np.logaddexp(0, -sign * l_aa).sum()
  rows = np.logaddexp.reduce(l_aa, axis=1)
  columns = np.logaddexp.reduce(l_aa, axis=0)
  return (0.5 * (rows + columns) - np.diagonal(l_aa)).sum()


def score_of(models, chosen, loss):
  return sum(sign * loss_of(model, chosen, loss) for sign, model in models)


@pytest.mark.parametrize("loss", scores.LOSSES)
@pytest.mark.parametrize("score", scores.SCORES)
def test_conditional_score_is_the_increment_of_the_loss(
  make_embeddings, score, loss
):
  student = make_embeddings(0, n=12, t=7.0, b=-3.0)
  reference = make_embeddings(1, n=12, d=5, t=15.0, b=-8.0)
  models = scores.signed_models(student, reference, score)
  conditional = scores.conditional_scores(models, loss, 4, 2)
  state, _ = conditional.start()
  selected = []
  for chunk in ([3, 7], [0, 11], [5, 4]):
    selected += chunk
    state, got = conditional.extend(state, jnp.asarray(chunk))
    for i in set(range(12)) - set(selected):
      want = score_of(models, [*selected, i], loss)
      want -= score_of(models, selected, loss)
      # float32 sums of some twenty terms of size up to 20.
      assert float(got[i]) == pytest.approx(want, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("score", scores.SCORES)
def test_pair_score_is_the_loss_of_a_single_pair(make_embeddings, score):
  student, reference = make_embeddings(0), make_embeddings(1, t=20.0)
  models = scores.signed_models(student, reference, score)
  got = pair_scores(student, reference, score=score)
  want = [score_of(models, [i], "sigmoid") for i in range(12)]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_softmax_pair_score_is_its_own_logit(make_embeddings):
  student = make_embeddings(0, t=3.0, b=0.0)
  got = pair_scores(student, None, score="hard", loss="softmax")
  want = -3.0 * np.sum(np.asarray(student.zimg) * student.ztxt, axis=1)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_each_model_is_scored_at_its_own_scale(make_embeddings):
  model = make_embeddings(0)
  same = pair_scores(model, model)
  other = pair_scores(model, model._replace(t=30.0, b=-2.0))
  np.testing.assert_array_equal(same, np.zeros(12))
  assert np.abs(other).min() > 0.01


def test_scores_are_float32_from_bfloat16_embeddings(make_embeddings):
  models = [make_embeddings(s, dtype=jnp.bfloat16) for s in (0, 1)]
  assert pair_scores(*models).dtype == jnp.float32
  conditional = scores.conditional_scores([(1.0, models[0])], "sigmoid", 2, 2)
  state, _ = conditional.start()
  assert conditional.extend(state, jnp.arange(2))[1].dtype == jnp.float32


def test_softplus_at_the_ends():
  x = np.array([-80.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 200.0])
  want = np.logaddexp(0.0, x)
  np.testing.assert_allclose(scores.softplus(jnp.float32(x)), want, rtol=1e-6)
  assert jnp.isnan(scores.softplus(jnp.float32(np.nan)))


def test_unknown_names_and_missing_models_are_refused(make_embeddings):
  model = make_embeddings()
  with pytest.raises(ValueError, match="Did you mean 'learnability'"):
    pair_scores(model, model, score="learnabilty")
  with pytest.raises(ValueError, match="loss='hinge' is not known"):
    pair_scores(model, model, loss="hinge")
  with pytest.raises(ValueError, match="needs the embeddings of the student"):
    pair_scores(None, model)
  with pytest.raises(ValueError, match="reference is None"):
    pair_scores(model, None, score="easy_reference")
  assert pair_scores(None, model, score="easy_reference").shape == (12,)
  assert jax.eval_shape(
    lambda m: pair_scores(m, None, score="hard"), model
  ).shape == (12,)
