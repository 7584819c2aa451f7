"""The towers: big_vision's tree, a float64 forward pass, scan and remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.models import build, params

B16 = {
  "image": {"variant": "B/16", "pool_type": "map"},
  "text": {"variant": "B", "vocab_size": 32_000},
  "out_dim": (None, 768),
  "bias_init": -10.0,
}


def tiny(**changes):
  """A two-tower config; keys are "image__field", "text__field" or a field."""
  towers = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}
  config = {
    "image": {**towers, "patch_size": (4, 4), "pool_type": "map"},
    "text": {**towers, "vocab_size": 11},
    "out_dim": (None, 8),
    "bias_init": -10.0,
  }
  for key, value in changes.items():
    tower, _, field = key.rpartition("__")
    (config[tower] if tower else config)[field] = value
  return config


def both(**changes):
  """Changes of a field in both towers."""
  return tiny(
    **{
      f"{tower}__{k}": v
      for tower in ("image", "text")
      for k, v in changes.items()
    }
  )


def inputs(n=3, size=8, length=5, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(-1, 1, (n, size, size, 3)).astype(np.float32)
  return image, rng.integers(0, 11, (n, length)).astype(np.int32)


def draw(tree, seed=0):
  """Values for a tree of shapes, none of which is zero or one by itself.

  Fresh biases are zero and norms are one, which would hide their places; and
  to compile initialisers takes longer than all the rest of a test.
  """
  rng = np.random.default_rng(seed)
  flat = {
    name: (0.4 * rng.standard_normal(x.shape) + name.endswith("scale")).astype(
      np.float32
    )
    for name, x in params.flatten(tree).items()
  }
  return params.unflatten(flat)


def init(config, seed=0):
  return build(config), draw(shapes(config, 8, 5), seed)


def apply(model, tree, *args, **kwargs):
  return model.apply({"params": tree}, *args, **kwargs)


def shapes(config, size, length):
  model = build(config)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  text = jax.ShapeDtypeStruct((1, length), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), image, text)["params"]


def test_the_tree_of_a_b16_pair_is_big_visions():
  tree = shapes(B16, 224, 64)
  flat = {k: v.shape for k, v in params.flatten(tree).items()}
  assert len(flat) == 412
  assert params.count_params(tree) == 203_155_970
  block = "img/Transformer/encoderblock_11"
  for name, shape in {
    "t": (1,),
    "b": (1,),
    "img/embedding/kernel": (16, 16, 3, 768),
    "img/pos_embedding": (1, 196, 768),
    f"{block}/LayerNorm_1/scale": (768,),
    f"{block}/MultiHeadDotProductAttention_0/query/kernel": (768, 12, 64),
    f"{block}/MultiHeadDotProductAttention_0/out/kernel": (12, 64, 768),
    f"{block}/MlpBlock_0/Dense_1/kernel": (3072, 768),
    "img/Transformer/encoder_norm/bias": (768,),
    "img/MAPHead_0/probe": (1, 1, 768),
    "img/MAPHead_0/MlpBlock_0/Dense_0/kernel": (768, 3072),
    "img/MAPHead_0/LayerNorm_0/scale": (768,),
    "txt/Embed_0/embedding": (32_000, 768),
    "txt/pos_embedding": (1, 64, 768),
    "txt/Encoder_0/encoderblock_0/LayerNorm_0/bias": (768,),
    "txt/Encoder_0/encoder_norm/scale": (768,),
    "txt/head/kernel": (768, 768),
  }.items():
    assert flat[name] == shape, name
  assert "img/head/kernel" not in flat
  at_256 = params.flatten(shapes(B16, 256, 64))
  assert at_256["img/pos_embedding"].shape == (1, 256, 768)


def test_scanned_tree_stacks_the_layers():
  towers = {k: {**B16[k], "scan": True} for k in ("image", "text")}
  flat = params.flatten(shapes({**B16, **towers}, 224, 64))
  name = "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
  assert flat[name].shape == (12, 768, 3072)
  assert params.count_params(flat) == 203_155_970


# --- A forward pass in float64 numpy, written from the papers. ---


def layer_norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def attend(q, kv, p):
  query, key, value = (
    np.einsum("nld,dhk->nhlk", x, p[name]["kernel"])
    + p[name]["bias"][None, :, None]
    for name, x in (("query", q), ("key", kv), ("value", kv))
  )
  weights = np.einsum("nhlk,nhmk->nhlm", query, key) / np.sqrt(key.shape[-1])
  weights = np.exp(weights - weights.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  x = np.einsum("nhlm,nhmk->nlhk", weights, value)
  return np.einsum("nlhk,hkd->nld", x, p["out"]["kernel"]) + p["out"]["bias"]


def mlp(x, p):
  x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def encode(x, p):
  for k in range(2):
    block = p[f"encoderblock_{k}"]
    y = layer_norm(x, block["LayerNorm_0"])
    x = x + attend(y, y, block["MultiHeadDotProductAttention_0"])
    x = x + mlp(layer_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
  return layer_norm(x, p["encoder_norm"])


def pool_map(x, p):
  probe = np.repeat(p["probe"], len(x), axis=0)
  x = attend(probe, x, p["MultiHeadDotProductAttention_0"])
  return (x + mlp(layer_norm(x, p["LayerNorm_0"]), p["MlpBlock_0"]))[:, 0]


def by_hand(tree, image, text):
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
  img, txt = tree["img"], tree["txt"]
  n, size = image.shape[0], image.shape[1]
  patches = image.reshape(n, size // 4, 4, size // 4, 4, 3).transpose(
    0, 1, 3, 2, 4, 5
  )
  x = patches.reshape(n, -1, 48) @ img["embedding"]["kernel"].reshape(48, -1)
  x = encode(
    x + img["embedding"]["bias"] + img["pos_embedding"], img["Transformer"]
  )
  zimg = pool_map(x, img["MAPHead_0"])
  y = txt["Embed_0"]["embedding"][text] + txt["pos_embedding"]
  ztxt = encode(y, txt["Encoder_0"])[:, -1]
  ztxt = ztxt @ txt["head"]["kernel"] + txt["head"]["bias"]
  return tuple(
    z / np.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt)
  )


def test_forward_pass_is_that_of_the_papers():
  model, tree = init(tiny())
  image, text = inputs()
  zimg, ztxt, out = apply(model, tree, image, text)
  want = by_hand(tree, image.astype(np.float64), text)
  # Two layers of float32 sums of a dozen terms.
  np.testing.assert_allclose(zimg, want[0], atol=3e-6)
  np.testing.assert_allclose(ztxt, want[1], atol=3e-6)
  assert float(out["t"][0]) == pytest.approx(float(jnp.exp(tree["t"][0])))
  assert out["b"] is not None and out["t"].shape == (1,)


def test_fresh_scales_are_as_asked():
  def fresh(**changes):
    model = build(tiny(**changes))

    def scales(rng):
      (*_, out), variables = model.init_with_output(rng, *inputs())
      found = {k: out[k] for k in ("t", "b") if k in out}
      return found, {k: variables["params"].get(k) for k in ("t", "b")}

    # Under jit, what is not returned is not compiled.
    return jax.jit(scales)(jax.random.key(0))

  out, tree = fresh(temperature_init=20.0, bias_init=-3.0)
  assert float(out["t"][0]) == pytest.approx(20.0)
  assert float(tree["t"][0]) == pytest.approx(np.log(20.0))
  assert out["b"].tolist() == tree["b"].tolist() == [-3.0]
  out, tree = fresh(bias_init=None)
  assert "b" not in out and tree["b"] is None


def test_either_input_may_be_none_and_bytes_are_pixels():
  model, tree = init(tiny())
  image, text = inputs()
  zimg, ztxt, _ = apply(model, tree, image, text)
  alone, none, out = apply(model, tree, image, None)
  assert none is None and "img/encoded" in out
  np.testing.assert_allclose(alone, zimg, atol=1e-6)
  none, alone, _ = apply(model, tree, None, text)
  assert none is None
  np.testing.assert_allclose(alone, ztxt, atol=1e-6)
  pixels = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
  a = apply(model, tree, pixels, None)[0]
  b = apply(model, tree, pixels.astype(np.float32) / 127.5 - 1, None)[0]
  np.testing.assert_allclose(a, b, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1.0, atol=1e-6)


def test_scan_is_the_same_function():
  model, tree = init(tiny())
  scanned = build(both(scan=True))
  for a, b in zip(
    apply(model, tree, *inputs())[:2],
    apply(scanned, params.stack_layers(tree), *inputs())[:2],
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_keeps_values_and_gradients(scan):
  # One tower will do: both are made of the same encoder.
  tree = draw(shapes(both(scan=scan), 8, 5))
  image, _ = inputs()
  direction = np.linspace(-1, 1, 8, dtype=np.float32)

  def value_and_gradients(remat):
    model = build(both(scan=scan, remat=remat))

    def loss(tree):
      return jnp.sum(apply(model, tree, image, None)[0] @ direction)

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(tree))

  want = value_and_gradients("none")
  for remat in ("full", "dots_saveable"):
    for a, b in zip(want, value_and_gradients(remat), strict=True):
      # Sums in float32, in another order, of gradients of order one.
      np.testing.assert_allclose(a, b, atol=5e-6)


def test_bfloat16_products_stay_near():
  model, tree = init(tiny())
  low = build(both(dtype_mm="bfloat16"))
  for a, b in zip(
    apply(model, tree, *inputs())[:2],
    apply(low, tree, *inputs())[:2],
    strict=True,
  ):
    assert b.dtype == jnp.float32
    # bfloat16 has 8 bits: 0.4% an operation, over two layers.
    np.testing.assert_allclose(a, b, atol=0.05)
    assert np.abs(np.asarray(a) - b).max() > 1e-5


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
@pytest.mark.parametrize("text_pool", ["last", "first", "argmax", "map", "gap"])
def test_every_pooling_runs(pool, text_pool):
  config = tiny(image__pool_type=pool, text__pool_type=text_pool, out_dim=6)
  model, tree = init(config)
  zimg, ztxt, _ = apply(model, tree, *inputs())
  assert zimg.shape == ztxt.shape == (3, 6)


def test_argmax_pools_at_the_highest_token():
  model, tree = init(tiny(text__pool_type="argmax"))
  out = apply(model, tree, None, np.array([[3, 10, 3, 0, 0]] * 2))[2]
  picked = np.asarray(out["txt/encoded"])[:, 1]
  np.testing.assert_array_equal(picked, out["txt/pre_logits"])


def test_sincos_positions_and_dropout():
  model, tree = init(tiny(image__posemb="sincos2d", image__dropout=0.5))
  assert "pos_embedding" not in tree["img"]
  image, _ = inputs()
  calm = apply(model, tree, image, None)[0]
  again = apply(model, tree, image, None)[0]
  np.testing.assert_array_equal(calm, again)
  rngs = {"dropout": jax.random.key(0)}
  dropped = apply(model, tree, image, None, train=True, rngs=rngs)[0]
  assert np.abs(np.asarray(calm) - dropped).max() > 1e-3


def test_a_picture_that_does_not_divide_is_refused():
  model = build(tiny())
  with pytest.raises(
    ValueError, match="height 10 does not divide into patches"
  ):
    jax.eval_shape(model.init, jax.random.key(0), *inputs(size=10))
