"""Samplers against brute force: enumerated probabilities and a full matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.curation import (
  check_sizes,
  pair_scores,
  sample_independently,
  sample_jointly,
  sample_uniformly,
  super_batch_size,
)

SAMPLERS = (sample_jointly, sample_independently, sample_uniformly)


def full_scores(student, reference):
  """The matrix S of the sigmoid learnability in float64."""
  total = 0.0
  for sign, model in ((1, student), (-1, reference)):
    zimg, ztxt = (np.asarray(z, np.float64) for z in model[:2])
    l_nn = model.t * zimg @ ztxt.T + model.b
    eye = 2 * np.eye(len(zimg)) - 1
    total = total + sign * np.logaddexp(0, -eye * l_nn)
  return total


def draw_probabilities(keys, size):
  """P of each ordered draw of `size` items without replacement."""
  weights = np.exp(keys - keys.max())
  probabilities = {}
  for order in itertools.permutations(np.flatnonzero(weights), size):
    p, left = 1.0, weights.sum()
    for i in order:
      p, left = p * weights[i] / left, left - weights[i]
    probabilities[order] = p
  return probabilities


def test_joint_probabilities_match_enumeration(make_embeddings):
  """All ordered draws of 4 from 6 in 2 chunks, at gain 0.7, temperature 2."""
  student = make_embeddings(0, n=6, d=4, t=6.0, b=-2.0)
  reference = make_embeddings(1, n=6, d=4, t=9.0, b=-4.0)
  mask = np.array([1, 1, 1, 0, 1, 1], bool)
  s_nn = full_scores(student, reference)

  want = {}
  first = np.where(mask, np.diagonal(s_nn) * 0.7 / 2, -np.inf)
  for chunk, p in draw_probabilities(first, 2).items():
    chunk = list(chunk)
    logits = np.diagonal(s_nn) + s_nn[:, chunk].sum(1) + s_nn[chunk].sum(0)
    logits = np.where(mask, logits * 0.7 / 2, -np.inf)
    logits[chunk] = -np.inf
    for rest, q in draw_probabilities(logits, 2).items():
      want[(*chunk, *rest)] = p * q
  assert sum(want.values()) == pytest.approx(1.0)

  draws = 20_000
  keys = jax.random.split(jax.random.key(0), draws)
  sample = jax.jit(
    jax.vmap(
      lambda key: (
        sample_jointly(
          key,
          student,
          reference,
          batch_size=4,
          num_chunks=2,
          gain=0.7,
          temperature=2.0,
          mask=mask,
        ).indices
      )
    )
  )
  got = dict.fromkeys(want, 0)
  for row in np.asarray(sample(keys)):
    got[tuple(row.tolist())] += 1
  # Pearson's chi-square; its mean is the number of outcomes less one and its
  # standard deviation sqrt(2 df), so five of those is far beyond chance.
  chi2 = sum((got[k] - draws * p) ** 2 / (draws * p) for k, p in want.items())
  df = len(want) - 1
  assert chi2 < df + 5 * np.sqrt(2 * df)


def test_greedy_equals_the_full_matrix_algorithm(make_embeddings):
  student = make_embeddings(0, n=96, d=16)
  reference = make_embeddings(1, n=96, d=24, noise=0.3, t=20.0)
  s_nn = full_scores(student, reference)
  want = []
  for _ in range(4):
    logits = np.diagonal(s_nn) + s_nn[:, want].sum(1) + s_nn[want].sum(0)
    logits[want] = -np.inf
    want += np.argsort(-logits)[:6].tolist()
  got = sample_jointly(
    jax.random.key(0),
    student,
    reference,
    batch_size=24,
    num_chunks=4,
    temperature=0.0,
  )
  np.testing.assert_array_equal(got.indices, want)
  np.testing.assert_array_equal(got.effective_sample_size, np.ones(4))


def test_one_chunk_is_independent_sampling(make_embeddings):
  models = make_embeddings(0, n=64), make_embeddings(1, n=64)
  kwargs = {"batch_size": 16, "temperature": 0.0}
  joint = sample_jointly(jax.random.key(0), *models, num_chunks=1, **kwargs)
  alone = sample_independently(jax.random.key(1), *models, **kwargs)
  np.testing.assert_array_equal(joint.indices, alone.indices)
  best = np.argsort(-np.asarray(pair_scores(*models)))[:16]
  np.testing.assert_array_equal(alone.indices, best)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_draw_is_distinct_valid_and_in_range(
  make_embeddings, sampler, loss
):
  models = make_embeddings(0, n=40), make_embeddings(1, n=40)
  mask = np.random.default_rng(0).random(40) < 0.7
  draw = jax.jit(
    lambda key: sampler(
      key, *models, batch_size=16, num_chunks=4, loss=loss, mask=mask
    )
  )
  for seed in range(5):
    got = draw(jax.random.key(seed))
    indices = np.asarray(got.indices)
    assert got.indices.dtype == jnp.int32
    assert len(set(indices.tolist())) == 16
    assert mask[indices].all() and np.asarray(got.mask).all()
    assert np.isfinite(got.scores).all()


def test_uniform_is_uniform():
  mask = jnp.arange(10) != 3
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = jax.vmap(
    lambda key: sample_uniformly(key, batch_size=3, mask=mask).indices
  )
  counts = np.bincount(np.asarray(draw(keys)).ravel(), minlength=10)
  assert counts[3] == 0
  # Each of nine is drawn 4000/3 times in the mean, variance 4000 * 1/3 * 2/3.
  kept = np.delete(counts, 3)
  assert np.abs(kept - 4000 / 3).max() < 5 * np.sqrt(4000 * 2 / 9)


def test_a_pool_that_runs_out_is_told_by_the_mask(make_embeddings):
  models = make_embeddings(0), make_embeddings(1)
  mask = jnp.arange(12) < 5
  got = sample_jointly(
    jax.random.key(0), *models, batch_size=8, num_chunks=4, mask=mask
  )
  assert np.asarray(got.mask).sum() == 5
  valid = np.asarray(got.indices)[np.asarray(got.mask)]
  assert sorted(valid.tolist()) == [0, 1, 2, 3, 4]
  for field in (got.kept_score, got.pool_score, got.effective_sample_size):
    assert np.isfinite(field).all()


def test_reports_of_the_draw(make_embeddings):
  models = make_embeddings(0, n=64), make_embeddings(1, n=64)
  got = sample_independently(jax.random.key(0), *models, batch_size=8, gain=3.0)
  pool = np.asarray(pair_scores(*models), np.float64)
  p = np.exp(3.0 * pool - np.logaddexp.reduce(3.0 * pool))
  assert float(got.kept_score) == pytest.approx(pool[got.indices].mean(), 1e-5)
  assert float(got.pool_score) == pytest.approx(pool.mean(), abs=1e-5)
  assert float(got.pool_spread) == pytest.approx(pool.std(), rel=1e-5)
  assert float(got.effective_sample_size[0]) == pytest.approx(
    1 / np.square(p).sum(), rel=1e-4
  )
  uniform = sample_uniformly(jax.random.key(0), *models, batch_size=8)
  # gain 0: every one of the 64 candidates counts fully.
  assert float(uniform.effective_sample_size[0]) == pytest.approx(64, rel=1e-5)


def test_huge_scores_neither_overflow_nor_underflow(make_embeddings):
  student = make_embeddings(0, n=64)._replace(t=1e4)
  reference = make_embeddings(1, n=64)._replace(t=3e4)
  got = sample_jointly(
    jax.random.key(0), student, reference, batch_size=16, num_chunks=4
  )
  assert len(set(np.asarray(got.indices).tolist())) == 16
  assert np.isfinite(got.effective_sample_size).all()


def test_one_and_eight_devices_select_the_same(make_embeddings):
  models = make_embeddings(0, n=64), make_embeddings(1, n=64, d=16)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  row = jax.NamedSharding(mesh, jax.P("data", None))
  sharded = [
    m._replace(
      zimg=jax.device_put(m.zimg, row), ztxt=jax.device_put(m.ztxt, row)
    )
    for m in models
  ]
  draw = jax.jit(
    lambda s, r: sample_jointly(
      jax.random.key(7), s, r, batch_size=16, num_chunks=4
    )
  )
  one, eight = draw(*models), draw(*sharded)
  np.testing.assert_array_equal(one.indices, eight.indices)
  np.testing.assert_allclose(one.scores, eight.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "sampler", [sample_jointly, sample_independently, sample_uniformly]
)
@pytest.mark.parametrize("compiled", [True, False])
def test_models_come_as_tuples_and_dicts_too(
  make_embeddings, sampler, compiled
):
  models = [make_embeddings(k, n=32, d=8) for k in range(2)]

  def draw(*given):
    return sampler(jax.random.key(3), *given, batch_size=8, num_chunks=2)

  draw = jax.jit(draw) if compiled else draw
  want = draw(*models)
  theirs = [
    {
      "image_features": m.zimg,
      "text_features": m.ztxt,
      "logit_scale": jnp.reshape(jnp.float32(m.t), 1),
      "logit_bias": jnp.reshape(jnp.float32(m.b), 1),
    }
    for m in models
  ]
  for given in ([tuple(m) for m in models], [[*m] for m in models], theirs):
    found = draw(*given)
    np.testing.assert_array_equal(found.indices, want.indices)
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_models_that_do_not_fit_are_refused_by_name(make_embeddings, compiled):
  good, short = make_embeddings(0, n=32, d=8), make_embeddings(1, n=16, d=8)

  def draw(student, reference, mask=None):
    key = jax.random.key(0)
    return sample_jointly(
      key, student, reference, batch_size=8, num_chunks=2, mask=mask
    )

  draw = jax.jit(draw) if compiled else draw
  mixed = good._replace(ztxt=short.ztxt)
  for arguments, message in (
    ((tuple(good)[:2], good), "student, a tuple, has no zimg, ztxt, t; expect"),
    ((good, {"zimg": good.zimg, "t": 5.0}), "reference, a dict, has no ztxt"),
    ((mixed, good), r"student.zimg has shape \(32, 8\) and student.ztxt \(16,"),
    ((good, short), "student and reference hold 32 and 16 pairs"),
    ((good, good._replace(t=jnp.ones(32))), r"reference.t has shape \(32,\)"),
    ((good, good, jnp.ones(1, bool)), r"mask has shape \(1,\); expected \(32,"),
  ):
    with pytest.raises(ValueError, match=message):
      draw(*arguments)


def test_sizes_that_do_not_fit_are_refused_by_name(make_embeddings):
  models = make_embeddings(0), make_embeddings(1)
  with pytest.raises(ValueError, match="not divisible by num_chunks=5"):
    sample_jointly(jax.random.key(0), *models, batch_size=8, num_chunks=5)
  with pytest.raises(ValueError, match="larger than the super-batch of 12"):
    sample_independently(jax.random.key(0), *models, batch_size=13)
  with pytest.raises(ValueError, match="must be positive"):
    check_sizes(12, 0)
  with pytest.raises(ValueError, match="pass `mask`"):
    sample_uniformly(jax.random.key(0), batch_size=2)


def test_super_batch_size():
  assert super_batch_size(32_768, 0.8) == 163_840
  assert super_batch_size(64, 0.0) == 64
  assert super_batch_size(100, 0.9) == 1000
  with pytest.raises(ValueError, match="not a whole number"):
    super_batch_size(32, 0.7)
  for ratio in (1.0, -0.1, 1.5):
    with pytest.raises(ValueError, match="share of the super-batch that is"):
      super_batch_size(32, ratio)
