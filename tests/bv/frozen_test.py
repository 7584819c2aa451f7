"""Checkpoints of big_vision's load as they do there, under our guard too."""

import jax
import numpy as np
import pytest
from jax.experimental.array_serialization import serialization
from ml_collections import ConfigDict

from aced.bv import compat, frozen, towers
from aced.config import ConfigError
from aced.models.params import save_npz
from aced.models.trees import flatten, unflatten
from tests.bv import program

pytestmark = pytest.mark.big_vision

NAME = "proj.image_text.two_towers"


def fields_of(scan=False, text_scan=False, width=32):
  found = program.towers(width, depth=2)
  found["image"]["scan"], found["text"]["scan"] = scan, text_scan
  return ConfigDict(found)


def params_of(fields, size=16, length=8, seed=0):
  """A model's parameters, drawn anew so that no two are alike."""
  model = towers.Towers(compat.module("models", NAME).Model(**fields))
  image, text = np.zeros((1, size, size, 3), np.float32), np.zeros((1, length))
  with jax.transfer_guard("allow"):
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), image, text.astype(np.int32)
    )["params"]
  rng = np.random.default_rng(seed)
  flat = {
    k: rng.standard_normal(v.shape).astype(np.float32)
    for k, v in sorted(flatten(shapes).items())
  }
  return unflatten(flat)


def save(bv, kind, params, tmp_path):
  """Keeps parameters as an .npz, or as a trainer of big_vision's does."""
  if kind == "npz":
    path = tmp_path / "weights.npz"
    save_npz(path, params)
    return str(path)
  path = str(tmp_path / "checkpoint.bv")
  manager = serialization.GlobalAsyncCheckpointManager()
  state = {"params": jax.device_put(params), "opt": jax.numpy.ones(3)}
  bv.utils.save_checkpoint_ts(manager, state, path, 7, keep=True)
  manager.wait_until_finished()
  return path


def load(params, init, fields, **extra):
  """As the trainer loads, which lets nothing move unasked."""
  module = compat.module("models", NAME)
  params = jax.device_put(params)
  with jax.transfer_guard("disallow"):
    found = frozen.load_params(
      module, params, init, fields, extra, "config.reference.big"
    )
    return jax.device_get(found)


def unstacked(flat):
  """Flat parameters, stacked layers of the image tower taken apart."""
  found = {}
  for name, value in flat.items():
    if "/encoderblock/" in name:
      for k, layer in enumerate(value):
        found[name.replace("encoderblock", f"encoderblock_{k}")] = layer
    else:
      found[name] = value
  return found


@pytest.mark.parametrize("kind", ["npz", "bv"])
@pytest.mark.parametrize(
  ("saved", "now", "text"),
  [
    (False, False, False),
    (True, True, True),
    (True, False, False),
    (False, True, True),
  ],
)
def test_what_is_saved_is_loaded_scanned_or_not(
  bv, tmp_path, kind, saved, now, text
):
  want = params_of(fields_of(saved, text))
  path = save(bv, kind, want, tmp_path)
  fields = fields_of(now, text)
  found = flatten(load(params_of(fields, seed=1), path, fields))
  found, want = unstacked(found), unstacked(flatten(want))
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("kind", ["npz", "bv"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("old", "new"), [(16, 32), (32, 16), (24, 40)])
def test_positions_are_resampled_as_their_model_does(
  bv, tmp_path, kind, scan, old, new
):
  from big_vision.models import vit

  fields = fields_of(scan, scan)
  want = params_of(fields, old)
  path = save(bv, kind, want, tmp_path)
  own = params_of(fields, new, seed=1)
  found, want = flatten(load(own, path, fields)), flatten(want)
  name = "img/pos_embedding"
  assert found[name].shape == (1, (new // 8) ** 2, 32)
  want[name] = vit.resample_posemb(want[name], own["img"]["pos_embedding"])
  for key, value in want.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-6, err_msg=key)


def test_one_tower_is_loaded_by_a_table(bv, tmp_path):
  fields = fields_of()
  saved, own = params_of(fields), params_of(fields, seed=1)
  path = save(bv, "bv", saved, tmp_path)
  init = {"image": f"{path}:img"}
  found, saved = flatten(load(own, init, fields)), flatten(saved)
  for name, value in flatten(own).items():
    value = saved[name] if name.startswith("img/") else value
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
  ("init", "words"),
  [
    ("{}/none.npz", "none.npz' cannot be read.*NotFound|No such file"),
    ("{}/checkpoint.bv", "checkpoint.bv' cannot be read: .*W/checkpoint.bv"),
    ("none.npz", "none.npz': .*Maybe prepend ./"),
    ("SigLIP B/16, 224", "Did you mean 'SigLIP B/16 224'"),
    ("SigLIP B-16 224", "Did you mean 'SigLIP B/16 224'"),
    ({"image": "{}/none.npz"}, "none.npz'} cannot be read"),
  ],
)
def test_weights_that_are_not_there_are_told_by_key_and_path(
  bv, tmp_path, init, words
):
  fields = fields_of()
  if isinstance(init, str):
    init = init.format(tmp_path)
  with pytest.raises(ConfigError, match=r"config\.reference\.big\.") as caught:
    load(params_of(fields), init, fields)
  assert caught.match(words)
  assert "model_init=" in str(caught.value)


def test_weights_of_another_model_are_told_before_it_runs(bv, tmp_path):
  path = save(bv, "npz", params_of(fields_of()), tmp_path)
  fields = fields_of(width=48)
  with pytest.raises(ConfigError, match=r"is \(.*\) there and \(.*48"):
    load(params_of(fields), path, fields)
  fields = fields_of()
  with pytest.raises(ConfigError, match="txt/pos_embedding is .1, 8, 32. ther"):
    load(params_of(fields, length=12), path, fields)
  with pytest.raises(ConfigError, match="big.model_init=.*img_load"):
    load(params_of(fields), path, fields, img_load={})


def test_weights_that_are_not_finite_are_refused(bv, tmp_path):
  params = params_of(fields_of())
  params["txt"]["head"]["bias"][3] = np.nan
  path = save(bv, "npz", params, tmp_path)
  with pytest.raises(ConfigError, match="1 parameters are not finite, such as"):
    load(params_of(fields_of()), path, fields_of())
