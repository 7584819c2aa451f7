"""Gradients in pieces against those of the whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import objectives
from aced.training import accumulation
from aced.training.embedding import embed
from tests.config_test import curated
from tests.training.step_test import METHODS
from tests.training.toy import Setup, Toy, init_params, make_batch


def close(a, b, rtol=1e-5):
  """Trees are equal to `rtol` of the largest entry of each leaf."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    scale = float(jnp.abs(x).max())
    np.testing.assert_allclose(y, x, rtol=0, atol=rtol * scale)


def test_join_is_the_inverse_of_split():
  x = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
  parts = accumulation.split(x, 4)
  assert parts["a"].shape == (3, 4, 2)
  np.testing.assert_array_equal(parts["b"][1], [1, 4, 7, 10])
  again = accumulation.join(parts)
  for name in x:
    np.testing.assert_array_equal(again[name], x[name])


def test_mapped_rows_are_embedded_as_if_at_once():
  model, batch = Toy(), make_batch(80)
  params = init_params(model, 0)
  rows = {k: batch[k] for k in ("image", "labels")}
  whole = embed(model, params, batch)
  parts = accumulation.map_rows(
    lambda rows, _: embed(model, params, rows), rows, 16
  )
  for a, b in zip(whole, parts, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def both_gradients(size, count, loss, known=False):
  """Gradients by one pass and in pieces, of `count` toy pairs."""
  model, batch = Toy(), make_batch(count)
  params = init_params(model, 0)
  rows = {k: batch[k] for k in ("image", "labels")}
  rng = jax.random.key(0)

  def of_embeddings(params, embeddings):
    return loss(embeddings), {"t": embeddings.t}

  @jax.jit
  @partial(jax.value_and_grad, has_aux=True)
  def whole(params):
    return of_embeddings(params, embed(model, params, rows))

  @jax.jit
  def pieces(params):
    embeddings = embed(model, params, rows) if known else None
    return accumulation.gradients(
      lambda params, rows, _: embed(model, params, rows),
      of_embeddings,
      params,
      [accumulation.Pass(rows, rng, embeddings)],
      size,
    )

  return whole(params), pieces(params)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_gradient_in_pieces_is_that_of_the_whole(loss, size, known):
  whole, pieces = both_gradients(size, 64, objectives.CONTRASTIVE[loss], known)
  close(whole[0], pieces[0])
  if loss == "softmax":  # No gradient by the bias, only what rounding leaves.
    whole[1].pop("b"), pieces[1].pop("b")
  close(whole[1], pieces[1])


@pytest.mark.slow
def test_a_batch_of_32768_on_one_device():
  """The papers' batch, whose logits would be 4 GB, in pieces of 4096."""
  form = objectives.ring_form(None)
  whole, pieces = both_gradients(4096, 32_768, form.contrastive["sigmoid"])
  close(whole, pieces)


@pytest.mark.parametrize("method", ["iid", "kd", "acidistill", "iidistill"])
def test_a_step_in_pieces_is_the_step(method):
  """Also with a teacher, a second batch, and eight devices."""
  config = METHODS[method]
  whole_state, whole = Setup(config).run(2)
  pieces = Setup({**config, "accumulation": {"microbatch": 8}})
  assert pieces.recipe.accumulates
  state, metrics = pieces.run(2)
  for a, b in zip(whole, metrics, strict=True):
    for name in a:
      assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), name
  # Adam turns a gradient's rounding into a share of the learning rate, 1e-3.
  for a, b in zip(
    jax.tree.leaves(whole_state.params),
    jax.tree.leaves(state.params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def products(config, **more):
  """FLOPs of a step's matrix products."""
  from aced.training import program

  setup = Setup({**config, **more}, devices=1)
  traced = jax.jit(setup.step).trace(
    setup.init(), setup.frozen, setup.put(make_batch(setup.recipe.super_batch))
  )
  return program.flops(traced.jaxpr)


def test_scoring_serves_as_the_first_pass():
  forward = 2 * 16 * 6 * (4 * 4 * 3 + 3 * 8)  # The toy on the 16 pairs.
  pieces = {"accumulation": {"microbatch": 8}}
  curated_ = METHODS["h_acid"]
  assert products(curated_, **pieces) == products(curated_)
  iid = METHODS["iid"]
  assert products(iid, **pieces) == products(iid) + forward


def test_with_dropout_it_is_the_gradient_of_what_was_dropped():
  """Two batches and a second loss, against JAX's through the same pieces."""
  model = Toy(dropout=0.5)
  params = init_params(Toy(), 0)
  passes = []
  for k in range(2):
    batch = make_batch(32, k)
    rows = {name: batch[name] for name in ("image", "labels")}
    passes.append(accumulation.Pass(rows, jax.random.key(7 + k)))

  def train(params, rows, rng):
    return embed(model, params, rows, train=True, rng=rng)

  def loss(params, first, second):
    teacher = first.stop_gradient()
    distilled = objectives.softmax_distillation(second, teacher)
    return objectives.sigmoid_loss(first) + distilled, first.t

  def by_jax(params):
    return loss(
      params,
      *(
        accumulation.map_rows(
          lambda rows, rng: train(params, rows, rng), p.rows, 8, p.rng
        )
        for p in passes
      ),
    )

  want = jax.jit(jax.value_and_grad(by_jax, has_aux=True))(params)
  got = jax.jit(
    lambda params: accumulation.gradients(train, loss, params, passes, 8)
  )(params)
  close(want, got)


def test_dropout_needs_a_first_pass_of_its_own():
  config = curated(
    accumulation={"microbatch": 8}, student__image={"dropout": 0.5}
  )
  setup = Setup(config, dropout=0.5)
  assert setup.recipe.accumulates and not setup.recipe.reuses_scoring
  _, dropped = setup.run(1)
  _, plain = Setup(config).run(1)
  assert dropped[0]["loss"] != plain[0]["loss"]
  assert dropped[0]["curation/kept_score"] == plain[0]["curation/kept_score"]


def test_microbatches_that_do_not_divide_are_refused():
  for size, message in (
    (12, "accumulation.microbatch=12 does not divide over the 8 devices"),
    (48, "batch_size=64 is not divisible by accumulation.microbatch=48"),
  ):
    with pytest.raises(ValueError, match=message):
      Setup(
        {
          "batch_size": 64,
          "total_steps": 2,
          "accumulation": {"microbatch": size},
        }
      )
