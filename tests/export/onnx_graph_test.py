"""Towers as ONNX: equal to the model under ONNX Runtime."""

import sys

import jax
import numpy as np
import pytest

from aced.export.int8 import dequantise, quantise
from aced.export.onnx_graph import export_onnx
from aced.models import build, params
from tests.models.two_towers_test import both, shapes, tiny

SIZES = {"image_size": 16, "text_length": 5}
REASON = "ONNX export is tested with the extra `onnx`"
parity = pytest.mark.parity


@pytest.fixture
def onnx():
  pytest.importorskip("onnxruntime", reason=REASON)
  return pytest.importorskip("onnx", reason=REASON)


def inputs(n=5):
  rng = np.random.default_rng(n)
  image = rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
  return image, rng.integers(0, 11, (n, 5)).astype(np.int32)


def make(config):
  """A model and parameters that tell its parts apart, two blocks deep."""
  tree = params.flatten(shapes(config, 16, 5))
  rng = np.random.default_rng(0)
  for name, x in tree.items():
    # A class token, a probe and positions as large as what they are added to.
    size = 1.0 if x.ndim == 3 and x.shape[0] == 1 else 0.3
    value = size * rng.standard_normal(x.shape) + name.endswith("scale")
    tree[name] = value.astype(np.float32)
  return build(config), params.unflatten(tree)


def run(folder, tower, x, **options):
  """Runs the file of a tower in ONNX Runtime."""
  import onnxruntime

  settings = onnxruntime.SessionOptions()
  settings.intra_op_num_threads = 1
  for key, value in options.items():
    settings.add_session_config_entry(f"session.{key}", value)
  session = onnxruntime.InferenceSession(
    folder / f"{tower}.onnx", settings, providers=["CPUExecutionProvider"]
  )
  (given,), (output,) = session.get_inputs(), session.get_outputs()
  assert (given.name, given.shape) == (
    {"image": "image", "text": "labels"}[tower],
    ["n", *x.shape[1:]],
  )
  assert (output.name, output.type) == ("embedding", "tensor(float)")
  (found,) = session.run(["embedding"], {given.name: x})
  return found


def assert_equals(folder, model, tree, rtol=1e-4, **options):
  """Compares both files with the model, of 5 rows and of one."""
  image, text = inputs()
  zimg, ztxt, _ = jax.jit(model.apply)({"params": tree}, image, text)
  for n in (5, 1):
    for tower, x, want in (("image", image, zimg), ("text", text, ztxt)):
      found = run(folder, tower, x[:n], **options)
      assert found.dtype == np.float32 and found.shape == want[:n].shape
      # Sums in another order: measured 4e-7 at most, of embeddings of length
      # one, some of whose entries are near zero.
      np.testing.assert_allclose(found, want[:n], rtol=rtol, atol=1e-5)


OPTIONS = [
  tiny(),
  tiny(out_dim=6, bias_init=None, image__depth=1),
  tiny(image__pool_type="gap", text__pool_type="gap", image__posemb="sincos2d"),
  tiny(image__pool_type="tok", text__pool_type="first", image__token_drop=0.6),
  tiny(image__patch_size=(8, 4), text__pool_type="map", text__depth=1),
  # CLIP's.
  {
    **both(activation="quick_gelu", norm_eps=1e-5),
    "image": {
      **both(activation="quick_gelu", norm_eps=1e-5)["image"],
      "pool_type": "tok",
      "pre_norm": True,
    },
    "text": {
      **both(activation="quick_gelu", norm_eps=1e-5)["text"],
      "pool_type": "argmax",
      "causal": True,
    },
    "out_dim": 4,
  },
  # A large epsilon, which the model is seen to use.
  both(activation="gelu", norm_eps=0.1, dropout=0.5, remat="full"),
  both(scan=True, depth=3),
  tiny(image__token_drop=0.4, image__posemb="sincos2d", text__causal=True),
]


@parity
@pytest.mark.parametrize("config", OPTIONS)
def test_graphs_equal_the_model(tmp_path, onnx, config):
  model, tree = make(config)
  files = export_onnx(model, tree, tmp_path, **SIZES)
  assert [f.name for f in files] == ["image.onnx", "text.onnx"]
  assert sorted(tmp_path.iterdir()) == sorted(files)
  assert_equals(tmp_path, model, tree)


@parity
@pytest.mark.parametrize("config", [OPTIONS[k] for k in (0, 3, 5, 7)])
def test_graphs_of_int8_equal_the_rounded_model(tmp_path, onnx, config):
  model, tree = make(config)
  export_onnx(model, tree, tmp_path, int8=True, **SIZES)
  rounded = dequantise(quantise(tree))
  # Level 0 keeps the activations in float32, as the graph says.
  assert_equals(tmp_path, model, rounded, qdq_matmulnbits_accuracy_level="0")
  # Left to itself, the runtime may round them to int8 as well: measured 0.99995
  # at least, and other processors may do otherwise.
  image, text = inputs()
  zimg, ztxt, _ = jax.jit(model.apply)({"params": rounded}, image, text)
  for tower, x, want in (("image", image, zimg), ("text", text, ztxt)):
    cosine = np.sum(run(tmp_path, tower, x) * want, axis=1)
    assert cosine.min() > 0.999


@parity
def test_bfloat16_is_exported_as_float32(tmp_path, onnx):
  low, tree = make(both(dtype_mm="bfloat16"))
  export_onnx(low, tree, tmp_path, **SIZES)
  assert_equals(tmp_path, build(tiny()), tree)
  # Parameters in bfloat16 as well: the same numbers, in float32.
  stored = jax.tree.map(lambda x: jax.numpy.asarray(x, "bfloat16"), tree)
  export_onnx(low, stored, tmp_path / "stored", **SIZES)
  widened = jax.tree.map(lambda x: np.asarray(x, np.float32), stored)
  assert_equals(tmp_path / "stored", build(tiny()), widened)


@parity
def test_the_files_say_what_they_are(tmp_path, onnx):
  for bias in (-10.0, None):
    model, tree = make(tiny(bias_init=bias))
    for path in export_onnx(model, tree, tmp_path, **SIZES):
      found = onnx.load(path)
      onnx.checker.check_model(found, full_check=True)
      (opset,) = found.opset_import
      assert (opset.domain, opset.version) == ("", 20)
      metadata = {x.key: x.value for x in found.metadata_props}
      assert metadata.keys() == {"image_size", "text_length", "t", "b"}
      assert metadata["image_size"] == "16" and metadata["text_length"] == "5"
      # Printed in full: it reads back as the float32 it was.
      assert np.float32(metadata["t"]) == np.exp(tree["t"][0])
      want = tree["b"][0] if bias else 0
      assert np.float32(metadata["b"]) == want
      names = [node.name for node in found.graph.node]
      assert len(set(names)) == len(names) and all(names)


@parity
def test_int8_makes_the_files_small(tmp_path, onnx):
  config = both(width=96, mlp_dim=384, num_heads=4, depth=1)
  config["text"]["vocab_size"], config["out_dim"] = 2_000, (None, 96)
  model, tree = make(config)
  whole = export_onnx(model, tree, tmp_path / "whole", **SIZES)
  small = export_onnx(model, tree, tmp_path / "small", int8=True, **SIZES)
  for a, b in zip(whole, small, strict=True):
    # Four, but for scales, norms, positions and the graph itself.
    assert a.stat().st_size / b.stat().st_size > 3.3


@parity
def test_weights_beyond_the_limit_lie_beside(tmp_path, onnx, monkeypatch):
  monkeypatch.setattr("aced.export.onnx_graph.LARGEST_FILE", 100)
  config = both(width=32, mlp_dim=64, depth=1)
  model, tree = make({**config, "out_dim": (None, 32)})
  files = export_onnx(model, tree, tmp_path, **SIZES)
  names = [f"{k}.onnx{end}" for k in ("image", "text") for end in ("", ".data")]
  assert [path.name for path in files] == names
  assert sorted(tmp_path.iterdir()) == files
  graph, weights = (path.stat().st_size for path in files[:2])
  assert weights > graph
  assert_equals(tmp_path, model, tree)


@parity
def test_a_file_that_is_refused_leaves_nothing(tmp_path, onnx, monkeypatch):
  def refuse(*args, **kwargs):
    raise onnx.checker.ValidationError("no")

  monkeypatch.setattr(onnx.checker, "check_model", refuse)
  model, tree = make(tiny())
  with pytest.raises(onnx.checker.ValidationError, match="no"):
    export_onnx(model, tree, tmp_path, **SIZES)
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="a dict cannot be.*StableHLO"):
    export_onnx({}, {}, tmp_path, **SIZES)
  model, tree = make(tiny(image__pool_type="none"))
  with pytest.raises(ValueError, match="pool_type='none' leaves tokens"):
    export_onnx(model, tree, tmp_path, **SIZES)
  model, tree = make(tiny())
  # None in its place is how Python is told that a module is not there.
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(ImportError, match=r"\.\[onnx\]"):
    export_onnx(model, tree, tmp_path / "new", **SIZES)
  assert not (tmp_path / "new").exists()


@parity
def test_parameters_that_do_not_fit_are_refused_by_name(tmp_path, onnx):
  model, tree = make(tiny())
  with pytest.raises(params.ParamsError, match="txt/pos_embedding"):
    export_onnx(model, tree, tmp_path, image_size=16, text_length=6)
  del tree["img"]["MAPHead_0"]["probe"]
  with pytest.raises(params.ParamsError, match="img/MAPHead_0/probe"):
    export_onnx(model, tree, tmp_path, **SIZES)
