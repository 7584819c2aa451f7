"""Counts on paper against the model itself, XLA and the papers."""

import jax
import jax.numpy as jnp
import pytest

from aced.models import build, build_decoder, count, params, variants
from aced.models.costs import count_decoder, markdown_table
from tests.models.two_towers_test import shapes, tiny


@pytest.mark.parametrize(
  ("name", "gmacs"),
  [("ACED-F0", 3.298), ("ACED-F1", 7.141), ("ACED-F2", 10.33)],
)
def test_named_pairs_cost_what_the_papers_say(name, gmacs):
  pair = variants.pair(name)
  cost = count({"variant": name}, pair.image_size, pair.text_length)
  assert cost.macs / 1e9 == pytest.approx(gmacs, abs=0.005)
  # The papers round, and count F2 a little lower.
  assert cost.macs / 1e9 == pytest.approx(pair.gmacs, rel=0.005)


@pytest.mark.parametrize(
  "config",
  [
    tiny(),
    tiny(image__pool_type="gap", text__pool_type="map", bias_init=None),
    tiny(image__pool_type="tok", image__posemb="sincos2d", out_dim=5),
    tiny(image__mlp_dim=None, text__scan=True),
    {"variant": "ACED-F1"},
    {"image": {"variant": "So400m/16"}, "text": {"variant": "So400m"}},
    {"image": {"variant": "g/16"}, "text": {"variant": "mu"}, "out_dim": 32},
    {"image": {"variant": "Ti/16"}, "text": {"variant": "M"}, "out_dim": 9},
    {"image": {"variant": "L/32"}, "text": {"variant": "H"}, "out_dim": 9},
  ],
)
def test_parameters_are_those_of_the_model(config):
  found = shapes(config, 64, 16)
  assert count(config, 64, 16).params == params.count_params(found)


def test_macs_are_half_of_xlas_flops():
  config = tiny(out_dim=(None, 64))
  for tower in ("image", "text"):
    config[tower] |= {"width": 64, "mlp_dim": 256, "depth": 3}
  model = build(config)
  image = jnp.zeros((1, 32, 32, 3))
  text = jnp.zeros((1, 16), jnp.int32)
  tree = shapes(config, 32, 16)
  compiled = (
    jax.jit(lambda p: model.apply({"params": p}, image, text)[:2])
    .lower(tree)
    .compile()
  )
  flops = compiled.cost_analysis()["flops"]
  # XLA counts element-wise operations as well: norms, softmax, GELU.
  assert 1.0 <= flops / (2 * count(config, 32, 16).macs) < 1.12


DECODERS = [
  {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12, "vocab_size": 11},
  {"variant": "mu", "scan": True, "max_length": 32},
  {"variant": "S"},
  {"variant": "B", "depth": 2, "vocab_size": 999},
]


@pytest.mark.parametrize("fields", DECODERS)
def test_parameters_of_a_decoder_are_those_of_the_model(fields):
  model = build_decoder(fields)
  memory = jnp.zeros((1, 49, 24))
  tree = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 16), int), memory
  )
  cost = count_decoder(model, 49, 24, 16)
  assert cost.params == params.count_params(tree["params"])


def test_macs_of_a_decoder_are_half_of_xlas_flops():
  fields = {"width": 64, "depth": 3, "num_heads": 4, "vocab_size": 300}
  model = build_decoder({**fields, "max_length": 16})
  tokens, memory = jnp.zeros((1, 16), int), jnp.zeros((1, 49, 96))
  tree = jax.eval_shape(model.init, jax.random.key(0), tokens, memory)

  def flops(function, *args):
    found = jax.jit(function).lower(*args).compile()
    return found.cost_analysis()["flops"]

  whole = flops(lambda tree: model.apply(tree, tokens, memory), tree)
  macs = count_decoder(model, 49, 96, 16).macs
  # XLA counts element-wise operations as well: norms, softmax, GELU.
  assert 1.0 <= whole / (2 * macs) < 1.12

  def start(tree):
    return model.apply(tree, memory, 16, method="start")

  def step(tree, cache):
    return model.apply(tree, tokens[:, 0], cache, 3, method="step")

  cache = jax.eval_shape(start, tree)
  written = flops(start, tree) + 16 * flops(step, tree, cache)
  # As above.
  assert 1.0 <= written / (2 * macs) < 1.12


def test_a_text_that_is_too_long_for_a_decoder_is_refused():
  model = build_decoder(DECODERS[1])
  with pytest.raises(ValueError, match="length=33 must be .* max_length=32"):
    count_decoder(model, 49, 24, 33)


def test_the_readme_has_the_table(repository):
  assert markdown_table() in (repository / "README.md").read_text()
