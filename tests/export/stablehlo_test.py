"""Towers as programs: equal to the model, and run by jax alone."""

import ast
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.export.int8 import dequantise, quantise
from aced.export.stablehlo import export_stablehlo
from aced.models import build, params
from tests.models.two_towers_test import both, draw, shapes, tiny

SIZES = {"image_size": 8, "text_length": 5}
# Run in a Python of its own, in which neither this package nor what it is
# built on can be imported.
ALONE = """
import json, sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("aced", "flax", "orbax", "optax", "onnx"):
      raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
folder = sys.argv[1]
sys.path.insert(0, folder)
import loader
import numpy as np

given = np.load(f"{folder}/given.npz", allow_pickle=False)
np.savez(
  f"{folder}/found.npz",
  image=loader.embed_images(given["image"]),
  text=loader.embed_texts(given["text"]),
)
tops = {name.split(".")[0] for name in sys.modules}
print(json.dumps([loader.scale, loader.bias, sorted(tops)]))
"""


def inputs(n):
  rng = np.random.default_rng(n)
  image = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
  return image, rng.integers(0, 11, (n, 5)).astype(np.int32)


def make(config):
  return build(config), draw(shapes(config, 8, 5))


def wide():
  config = both(width=64, mlp_dim=256, num_heads=4, depth=1)
  return {**config, "out_dim": (None, 64)}


def load(folder):
  """The loader of an export, imported here."""
  spec = importlib.util.spec_from_file_location("loader", folder / "loader.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def alone(program, folder, *arguments):
  """What a program prints that finds no packages but those of jax."""
  done = subprocess.run(
    [sys.executable, "-I", "-c", program, str(folder), *arguments],
    capture_output=True,
    text=True,
    cwd=folder,
  )
  assert not done.returncode, done.stderr
  return done.stdout


def assert_equals(model, tree, embed_images, embed_texts, rows):
  """Compares embeddings of the first 1, 3, ... rows with the model's."""
  image, text = inputs(max(rows))
  zimg, ztxt, _ = jax.jit(model.apply)({"params": tree}, image, text)
  for n in rows:
    for embed, x, want in (
      (embed_images, image[:n], zimg[:n]),
      (embed_texts, text[:n], ztxt[:n]),
    ):
      found = embed(x)
      assert found.dtype == np.float32
      # Program and model are one computation, compiled twice: measured 2e-7
      # at most, of embeddings of length one.
      np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("int8", "fields"),
  [
    (False, {"depth": 1}),
    (True, {"activation": "gelu", "remat": "dots_saveable", "depth": 1}),
    (False, {"dtype_mm": "bfloat16", "scan": True, "remat": "full"}),
    (True, {"dtype_mm": "bfloat16", "scan": True, "pool_type": "gap"}),
  ],
)
def test_programs_equal_the_model_for_any_number_of_rows(
  tmp_path, int8, fields
):
  model, tree = make(both(**fields))
  files = export_stablehlo(model, tree, tmp_path, int8=int8, **SIZES)
  assert sorted(tmp_path.iterdir()) == sorted(files)
  loader = load(tmp_path)
  want = dequantise(quantise(tree)) if int8 else tree
  rows = (1, 3, 8)
  assert_equals(model, want, loader.embed_images, loader.embed_texts, rows)


def test_the_loader_needs_jax_alone(tmp_path):
  model, tree = make(tiny())
  export_stablehlo(model, tree, tmp_path, int8=True, **SIZES)
  image, text = inputs(3)
  np.savez(tmp_path / "given.npz", image=image, text=text)
  scale, bias, modules = json.loads(alone(ALONE, tmp_path))
  assert not {"aced", "flax", "orbax", "optax"} & set(modules)
  found = np.load(tmp_path / "found.npz", allow_pickle=False)
  assert_equals(
    model,
    dequantise(quantise(tree)),
    lambda _: found["image"],
    lambda _: found["text"],
    (3,),
  )
  np.testing.assert_allclose(scale, np.exp(tree["t"][0]), rtol=1e-6)
  assert bias == tree["b"][0]


def test_the_loader_is_ten_statements(tmp_path):
  model, tree = make(tiny())
  export_stablehlo(model, tree, tmp_path, **SIZES)
  code = ast.parse((tmp_path / "loader.py").read_text())
  statements = [
    node
    for node in ast.walk(code)
    if isinstance(node, ast.stmt) and not isinstance(node, ast.Expr)
  ]
  assert len(statements) <= 10


def test_weights_are_those_of_the_towers_and_load_as_ours(tmp_path):
  model, tree = make(tiny(bias_init=None))
  tree["projections"] = {"kernel": np.ones((2, 2), np.float32)}
  export_stablehlo(model, tree, tmp_path, **SIZES)
  found = params.flatten(params.load_npz(tmp_path / "weights.npz"))
  want = params.flatten({k: tree[k] for k in ("img", "txt", "t")})
  assert found.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(found[name], want[name])
  assert load(tmp_path).bias == 0


def test_programs_hold_no_weights_and_no_paths(tmp_path, repository):
  model, tree = make(wide())
  export_stablehlo(model, tree, tmp_path, **SIZES)
  weights = (tmp_path / "weights.npz").stat().st_size
  for name in ("image.stablehlo", "text.stablehlo"):
    content = (tmp_path / name).read_bytes()
    assert len(content) < 50_000 < weights / 4
    assert str(repository).encode() not in content
    assert b"site-packages" not in content
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
  assert jax.config.values["jax_traceback_in_locations_limit"] != 0


def test_int8_makes_the_weights_small(tmp_path):
  model, tree = make(wide())
  sizes = {}
  for int8 in (False, True):
    folder = tmp_path / str(int8)
    export_stablehlo(model, tree, folder, int8=int8, **SIZES)
    with np.load(folder / "weights.npz", allow_pickle=False) as archive:
      sizes[int8] = sum(archive[k].nbytes for k in archive.files)
  # Four but for the scales, and the biases and norms of so small a model.
  assert sizes[False] / sizes[True] > 3.3


class Plain:
  """A model of another package: the contract, and no flax."""

  def __init__(self, used="w"):
    self.used = used

  def apply(self, variables, image, text, train=False):
    p, zimg, ztxt = variables["params"], None, None
    if image is not None:
      zimg = image.mean((1, 2)) @ p[self.used]
      zimg /= jnp.linalg.norm(zimg, axis=-1, keepdims=True)
    if text is not None:
      ztxt = p["table"]["embedding"][text].mean(1)
      ztxt /= jnp.linalg.norm(ztxt, axis=-1, keepdims=True)
    return zimg, ztxt, {"t": jnp.exp(p["logit_scale"])}

  def params(self):
    rng = np.random.default_rng(0)
    return {
      self.used: rng.standard_normal((3, 4)).astype(np.float32),
      "table": {"embedding": rng.standard_normal((11, 4)).astype(np.float32)},
      "logit_scale": np.float32(2.5),
    }


def test_any_model_that_keeps_the_contract(tmp_path):
  model = Plain()
  export_stablehlo(model, model.params(), tmp_path, **SIZES)
  loader = load(tmp_path)
  image, text = inputs(3)
  zimg, _, out = model.apply({"params": model.params()}, image, None)
  _, ztxt, _ = model.apply({"params": model.params()}, None, text)
  # Sums of pixels up to 255 in another order; measured 2e-7.
  np.testing.assert_allclose(loader.embed_images(image), zimg, atol=1e-5)
  np.testing.assert_allclose(loader.embed_texts(text), ztxt, atol=1e-5)
  np.testing.assert_allclose(loader.scale, out["t"], rtol=1e-6)
  assert loader.bias == 0
  assert loader.WEIGHTS.keys() == {"w", "table/embedding", "t"}


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
  model, tree = make(tiny(image__pool_type="none"))
  with pytest.raises(ValueError, match=r"image tower of a TwoTowers.*\(n, d\)"):
    export_stablehlo(model, tree, tmp_path, **SIZES)
  model = Plain(used="t")
  with pytest.raises(ValueError, match="towers of a Plain use a parameter 't'"):
    export_stablehlo(model, model.params(), tmp_path, **SIZES)
