"""The decoder: a float64 forward pass, its cache, scan, remat, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from aced.models import Decoder, build_decoder, generate, params
from tests.models.two_towers_test import draw, layer_norm, mlp

DEPTH, WIDTH, MEMORY, VOCAB = 2, 8, 6, 11


def config(**changes):
  fields = {"width": WIDTH, "depth": DEPTH, "num_heads": 2, "mlp_dim": 12}
  return {**fields, "vocab_size": VOCAB, "max_length": 7, **changes}


def inputs(n=3, length=5, patches=4, seed=0):
  """`(n, length)` tokens and `(n, patches, MEMORY)` tokens of pictures."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, VOCAB, (n, length)).astype(np.int32)
  return tokens, rng.standard_normal((n, patches, MEMORY)).astype(np.float32)


def shapes(**changes):
  model = build_decoder(config(**changes))
  return jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]


def init(seed=0, **changes):
  return build_decoder(config(**changes)), draw(shapes(**changes), seed)


def apply(model, tree, *args, **kwargs):
  return model.apply({"params": tree}, *args, **kwargs)


# --- A forward pass in float64 numpy, written from the paper. ---


def attend(q, kv, p, causal):
  query, key, value = (
    np.einsum("nld,dhk->nhlk", x, p[name]["kernel"])
    + p[name]["bias"][None, :, None]
    for name, x in (("query", q), ("key", kv), ("value", kv))
  )
  weights = np.einsum("nhlk,nhmk->nhlm", query, key) / np.sqrt(key.shape[-1])
  if causal:
    for row in range(weights.shape[2]):
      weights[:, :, row, row + 1 :] = -np.inf
  weights = np.exp(weights - weights.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  x = np.einsum("nhlm,nhmk->nlhk", weights, value)
  return np.einsum("nlhk,hkd->nld", x, p["out"]["kernel"]) + p["out"]["bias"]


def by_hand(tree, tokens, memory):
  """Logits `(n, l, vocab)` in float64."""
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
  table = tree["Embed_0"]["embedding"]
  x = table[tokens] + tree["pos_embedding"][:, : tokens.shape[1]]
  memory = layer_norm(np.asarray(memory, np.float64), tree["memory_norm"])
  for k in range(DEPTH):
    p = tree[f"encoderblock_{k}"]
    y = layer_norm(x, p["LayerNorm_0"])
    x = x + attend(y, y, p["MultiHeadDotProductAttention_0"], True)
    y = layer_norm(x, p["LayerNorm_1"])
    x = x + attend(y, memory, p["MultiHeadDotProductAttention_1"], False)
    x = x + mlp(layer_norm(x, p["LayerNorm_2"]), p["MlpBlock_0"])
  return layer_norm(x, tree["decoder_norm"]) @ table.T


def log_p(tree, ids, memory):
  """`(n, l, vocab)` float64 log-probabilities of each next token."""
  logits = by_hand(tree, ids, memory)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_the_tree():
  flat = {k: v.shape for k, v in params.flatten(shapes()).items()}
  block = "encoderblock_1"
  for name, shape in {
    "Embed_0/embedding": (VOCAB, WIDTH),
    "pos_embedding": (1, 7, WIDTH),
    "memory_norm/scale": (MEMORY,),
    f"{block}/LayerNorm_2/bias": (WIDTH,),
    f"{block}/MultiHeadDotProductAttention_0/key/kernel": (WIDTH, 2, 4),
    f"{block}/MultiHeadDotProductAttention_1/query/kernel": (WIDTH, 2, 4),
    f"{block}/MultiHeadDotProductAttention_1/value/kernel": (MEMORY, 2, 4),
    f"{block}/MultiHeadDotProductAttention_1/out/kernel": (2, 4, WIDTH),
    f"{block}/MlpBlock_0/Dense_1/kernel": (12, WIDTH),
    "decoder_norm/scale": (WIDTH,),
  }.items():
    assert flat[name] == shape, name
  # Of a block: 3 norms, 2 attentions of 4 projections, 2 dense layers, each
  # with two arrays; beside the blocks the tables and 2 norms.
  assert len(flat) == DEPTH * (6 + 16 + 4) + 2 + 4
  scanned = params.flatten(shapes(scan=True))
  name = "encoderblock/MlpBlock_0/Dense_0/kernel"
  assert scanned[name].shape == (DEPTH, WIDTH, 12)


def test_forward_pass_is_that_of_the_paper():
  model, tree = init()
  tokens, memory = inputs()
  logits = apply(model, tree, tokens, memory)
  assert logits.dtype == jnp.float32 and logits.shape == (3, 5, VOCAB)
  want = by_hand(tree, tokens, memory)
  # Logits of order 3 after two layers of float32 sums of a dozen terms.
  np.testing.assert_allclose(logits, want, atol=1e-5)


def test_no_token_is_seen_before_its_place_and_every_picture_is():
  model, tree = init()
  tokens, memory = inputs()
  logits = np.asarray(apply(model, tree, tokens, memory))
  other = tokens.copy()
  other[:, 3] = (other[:, 3] + 1) % VOCAB
  changed = np.abs(apply(model, tree, other, memory) - logits).max(axis=(0, 2))
  assert not changed[:3].any() and (changed[3:] > 1e-3).all()
  # Patches are a set: their order says nothing, each of them something.
  swapped = apply(model, tree, tokens, memory[:, ::-1])
  np.testing.assert_allclose(swapped, logits, atol=1e-5)
  for patch in range(4):
    poked = memory.copy()
    poked[0, patch] += np.linspace(-1, 1, MEMORY)
    moved = np.abs(apply(model, tree, tokens, poked) - logits)
    assert moved[0].max() > 1e-3 and not moved[1:].any()


@pytest.mark.parametrize("scan", [False, True])
def test_steps_with_a_cache_are_the_whole_pass(scan):
  model, tree = init(scan=scan)
  tokens, memory = inputs()
  whole = apply(model, tree, tokens, memory)
  cache = apply(model, tree, memory, 6, method="start")
  assert cache.keys.shape == (DEPTH, 3, 6, 2, 4)
  assert cache.memory_keys.shape == (DEPTH, 3, 4, 2, 4)
  # What stands in a cache behind a position is not looked at.
  cache = cache._replace(
    keys=cache.keys + 9.0, values=cache.values.at[:].set(1e3)
  )
  step = jax.jit(lambda *args: apply(model, tree, *args, method="step"))
  for place in range(5):
    logits, cache = step(tokens[:, place], cache, place)
    assert logits.dtype == jnp.float32
    # The same sums in another order; logits are of order 3.
    np.testing.assert_allclose(logits, whole[:, place], atol=5e-6)


def test_several_texts_of_one_picture_share_its_keys():
  model, tree = init()
  tokens, memory = inputs(n=6)
  memory = memory[:2]
  cache = apply(model, tree, memory, 5, 3, method="start")
  assert cache.keys.shape[1] == 6 and cache.memory_keys.shape[1] == 2
  whole = apply(model, tree, tokens, np.repeat(memory, 3, axis=0))
  for place in range(5):
    logits, cache = apply(
      model, tree, tokens[:, place], cache, place, method="step"
    )
    # As above.
    np.testing.assert_allclose(logits, whole[:, place], atol=5e-6)


def test_scan_is_the_same_function():
  model, tree = init()
  scanned = build_decoder(config(scan=True))
  stacked = params.stack_layers(tree)
  np.testing.assert_allclose(
    apply(scanned, stacked, *inputs()), apply(model, tree, *inputs()), atol=5e-6
  )
  merged = params.flatten(params.merge(tree, shapes(scan=True)))
  assert merged.keys() == params.flatten(stacked).keys()


def loss(model, tree, tokens, memory):
  """Mean cross-entropy of every token but the first."""
  logits = apply(model, tree, tokens[:, :-1], memory)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, tokens[:, 1:]
  ).mean()


def test_gradients_are_those_of_the_float64_pass():
  model, tree = init()
  tokens, memory = inputs()
  value, gradient = jax.jit(
    jax.value_and_grad(lambda t: loss(model, t, tokens, memory))
  )(tree)

  def loss_by_hand(tree):
    following = log_p(tree, tokens[:, :-1], memory)
    return -np.take_along_axis(following, tokens[:, 1:, None], axis=2).mean()

  assert float(value) == pytest.approx(loss_by_hand(tree), rel=1e-6)
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
  for seed in range(4):
    along = draw(shapes(), seed + 1)

    def at(s, along=along):
      return loss_by_hand(jax.tree.map(lambda x, d: x + s * d, tree, along))

    # Central differences in float64 are exact to about 1e-8 at this step; the
    # gradients are float32 sums of slopes of order one.
    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    dots = jax.tree.map(lambda g, d: np.vdot(g, d), gradient, along)
    assert sum(jax.tree.leaves(dots)) == pytest.approx(slope, abs=2e-5)
  for name, x in params.flatten(gradient).items():
    # A bias of keys moves all logits of a softmax alike. Its gradient is
    # rounding alone.
    assert np.abs(x).max() > 1e-6 or name.endswith("key/bias"), name


def test_a_trained_decoder_does_the_task_that_its_prompt_names():
  model, tree = init()
  tree = jax.tree.map(lambda x: 0.5 * x, tree)
  memory = np.repeat(inputs(n=2)[1], 2, axis=0)
  # Of each picture two tasks: one is asked for by 2, the other by 3 and 4. A
  # text ends with 1, and 0 is padding.
  texts = np.array(
    [
      [2, 5, 6, 7, 1, 0, 0],
      [3, 4, 8, 1, 0, 0, 0],
      [2, 4, 9, 5, 10, 1, 0],
      [3, 4, 5, 1, 0, 0, 0],
    ]
  )
  lengths = np.array([1, 2, 1, 2])
  prompt = np.arange(7)[None] < lengths[:, None]
  counted = ((texts > 0) & ~prompt)[:, 1:]
  optimizer = optax.adam(1e-2)

  def loss(tree):
    logits = apply(model, tree, texts[:, :-1], memory, train=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, texts[:, 1:]
    )
    return losses.mean(where=counted)

  @jax.jit
  def train(tree):
    def step(carry, _):
      tree, state = carry
      value, gradient = jax.value_and_grad(loss)(tree)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(tree, updates), state), value

    carry = tree, optimizer.init(tree)
    (tree, _), values = jax.lax.scan(step, carry, length=200)
    return tree, values

  tree, values = train(tree)
  assert values[0] > 1.0 and values[-1] < 0.1
  prompts = np.where(prompt, texts, 0)
  written = generate.greedy(
    model, tree, memory, prompts, lengths, eos=1, pad=0, max_length=7
  )
  np.testing.assert_array_equal(written, texts)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_keeps_values_and_gradients(scan):
  tree = draw(shapes(scan=scan))
  tokens, memory = inputs()

  def value_and_gradients(remat):
    model = build_decoder(config(scan=scan, remat=remat))
    return jax.tree.leaves(
      jax.jit(jax.value_and_grad(lambda t: loss(model, t, tokens, memory)))(
        tree
      )
    )

  want = value_and_gradients("none")
  for remat in ("full", "dots_saveable"):
    for a, b in zip(want, value_and_gradients(remat), strict=True):
      # Sums in float32, in another order, of gradients of order one.
      np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_is_for_training_alone(scan):
  model, tree = init(dropout=0.5, scan=scan)
  tokens, memory = inputs()

  @jax.jit
  def train(key):
    rngs = {"dropout": key}
    return apply(model, tree, tokens, memory, train=True, rngs=rngs)

  calm = apply(model, tree, tokens, memory)
  plain = apply(build_decoder(config(scan=scan)), tree, tokens, memory)
  np.testing.assert_array_equal(calm, plain)
  first, second = train(jax.random.key(0)), train(jax.random.key(1))
  np.testing.assert_array_equal(first, train(jax.random.key(0)))
  assert np.abs(first - second).max() > 1e-2
  assert np.abs(first - calm).max() > 1e-2
  # The input is dropped as well: blocks that add nothing do not hide it.
  flat = params.flatten(tree)
  for name in flat:
    if "/out/" in name or "/Dense_1/" in name:
      flat[name] = np.zeros_like(flat[name])
  tree = params.unflatten(flat)
  calm = apply(model, tree, tokens, memory)
  rngs = {"dropout": jax.random.key(0)}
  noisy = apply(model, tree, tokens, memory, train=True, rngs=rngs)
  assert np.abs(noisy - calm).max() > 1e-2


def test_bfloat16_products_stay_near():
  model, tree = init()
  low = build_decoder(config(dtype_mm="bfloat16"))
  tokens, memory = inputs()
  want = np.asarray(apply(model, tree, tokens, memory))
  got = apply(low, tree, tokens, memory.astype(jnp.bfloat16))
  assert got.dtype == jnp.float32
  # bfloat16 has 8 bits: 0.4% an operation on logits of order 3.
  np.testing.assert_allclose(got, want, atol=0.15)
  assert np.abs(got - want).max() > 1e-4
  cache = apply(low, tree, memory, 5, method="start")
  assert {x.dtype for x in cache} == {jnp.dtype("bfloat16")}
  for place in range(5):
    logits, cache = apply(
      low, tree, tokens[:, place], cache, place, method="step"
    )
    np.testing.assert_allclose(logits, want[:, place], atol=0.15)


def test_variants_and_config_dicts():
  model = build_decoder(ConfigDict({"variant": "mu", "vocab_size": 50}))
  assert model == Decoder(variant="mu", vocab_size=50)
  tree = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
  assert tree["pos_embedding"].shape == (1, 64, 32)
  assert "encoderblock_1" not in tree


def test_initial_logits_are_of_order_one():
  model = build_decoder(config(width=64, mlp_dim=None, vocab_size=500))
  tokens, memory = inputs()

  @jax.jit
  def start(key):
    return model.init_with_output(key, tokens, memory)[0]

  # Normed rows of 64 on embeddings of standard deviation 1/8 are standard
  # normal; over 7,500 of them, correlated by token, 10% is over 3 sigma.
  assert np.std(start(jax.random.key(0))) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"widht": 8}, "decoder.widht is not a field of Decoder.*'width'"),
    ({"depth": 2.0}, "decoder.depth=2.0 is of type float"),
    ({"scan": "yes"}, "decoder.scan='yes' is of type str"),
    ({"remat": "some"}, "decoder.remat='some' is not known"),
    ({"dtype_mm": "fp8"}, "decoder.dtype_mm='fp8' is not known.*bfloat16"),
    ({"activation": "relu"}, "decoder.activation='relu' is not known"),
    ({"variant": "Q"}, "decoder: width 'Q' is not known"),
    ({"width": 0}, "decoder: .* needs a variant, or width, depth"),
    ({"num_heads": 3}, "decoder: .*width=8 is not divisible by num_heads=3"),
    ({"vocab_size": 0}, "decoder.vocab_size=0 must be at least 1"),
    ({"max_length": 0}, "decoder.max_length=0 must be at least 1"),
    ({"dropout": 1.0}, "decoder.dropout=1.0 must be at least 0 and below 1"),
  ],
)
def test_what_is_wrong_in_a_config_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    build_decoder(config(**changes))


def test_what_is_wrong_in_a_call_is_named():
  model, tree = init()
  tokens, memory = inputs()
  with pytest.raises(ValueError, match="3 texts and the tokens of 2 pictures"):
    apply(model, tree, tokens, memory[:2])
  with pytest.raises(ValueError, match="8 tokens.*max_length=7 positions"):
    apply(model, tree, np.zeros((3, 8), np.int32), memory)
  with pytest.raises(ValueError, match="9 tokens.*max_length=7 positions"):
    apply(model, tree, memory, 9, method="start")
  odd = Decoder(**config(remat="odd"))
  with pytest.raises(ValueError, match="remat='odd' is not known"):
    jax.eval_shape(odd.init, jax.random.key(0), tokens, memory)
