"""Two towers of both projects: the same numbers, and each in the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import config as config_lib
from aced.models import costs
from aced.models.build import build
from aced.models.trees import flatten, unflatten
from aced.train import train
from aced.training.tracker import METRICS_FILE, read_jsonl
from tests.config_test import load

pytestmark = pytest.mark.big_vision

NAME = "big_vision:proj.image_text.two_towers"
# Of the traces of both: 1e-4 relative is asked for, on values of order one.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def inputs(n=4, size=16, length=8):
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (n, size, size, 3), np.uint8)
  return image, rng.integers(0, 258, (n, length)).astype(np.int32)


def random_like(shapes, seed=0):
  """Weights in which no bias is 0 and no scale is 1."""
  rng = np.random.default_rng(seed)

  def weights(name, shape):
    x = 0.3 * rng.standard_normal(shape).astype(np.float32)
    return x + 1 if name.endswith(("scale", "t")) else x

  flat = sorted(flatten(shapes).items())
  return unflatten({k: weights(k, v.shape) for k, v in flat})


def both(fields):
  """`(ours, theirs)`, and weights for both."""
  ours, theirs = build(fields), build({"model": NAME, **fields})
  image, text = inputs()
  shapes = [
    jax.eval_shape(m.init, jax.random.key(0), image, text)["params"]
    for m in (ours, theirs)
  ]
  assert shapes[0] == shapes[1]
  return ours, theirs, {"params": random_like(shapes[0])}


def logits(model, variables, image, text):
  zimg, ztxt, out = jax.jit(model.apply)(variables, image, text)
  return out["t"].item() * zimg @ ztxt.T + out["b"].item()


@pytest.mark.parametrize(
  ("image_pool", "text_pool", "scan"),
  [
    ("map", "last", False),
    ("map", "last", True),
    ("gap", "first", False),
    ("tok", "gap", True),
    ("gap", "map", False),
  ],
)
def test_logits_are_equal_on_the_same_weights(
  bv, fields, image_pool, text_pool, scan
):
  fields["image"] |= {"pool_type": image_pool, "scan": scan}
  fields["text"] |= {"pool_type": text_pool, "scan": scan}
  ours, theirs, variables = both(fields)
  found, want = (logits(m, variables, *inputs()) for m in (ours, theirs))
  assert np.ptp(want) > 1  # Or all of it would be the bias.
  np.testing.assert_allclose(found, want, **CLOSE)


def test_our_towers_name_what_their_evaluators_read(bv, fields):
  ours, theirs, variables = both(fields)
  image, text = inputs()
  found, want = (
    jax.jit(m.apply)(variables, image, text)[2] for m in (ours, theirs)
  )
  shared = {"t", "t/parameter", "b", "img/norm", "img/normalized", "txt/norm"}
  shared |= {"txt/normalized", "img/pre_logits", "txt/pre_logits"}
  for name in shared:
    np.testing.assert_allclose(found[name], want[name], **CLOSE)


def test_either_input_may_be_left_out_and_pixels_may_be_bytes(bv, fields):
  _, theirs, variables = both(fields)
  image, text = inputs()
  apply = jax.jit(theirs.apply)
  zimg, ztxt, _ = apply(variables, image, text)
  only_image, only_text = (
    apply(variables, image, None),
    apply(variables, None, text),
  )
  assert only_image[1] is only_text[0] is None
  np.testing.assert_allclose(only_image[0], zimg, **CLOSE)
  np.testing.assert_allclose(only_text[1], ztxt, **CLOSE)
  floats = np.float32(image) / np.float32(127.5) - 1
  np.testing.assert_allclose(apply(variables, floats)[0], zimg, **CLOSE)


def test_embeddings_are_float32_whatever_the_model_computes_in(bv, fields):
  fields["image"] |= {"dtype_mm": "bfloat16"}
  theirs = build({"model": NAME, **fields})
  image, text = inputs()
  variables = jax.eval_shape(theirs.init, jax.random.key(0), image, text)
  zimg, ztxt, _ = jax.eval_shape(theirs.apply, variables, image, text)
  assert zimg.dtype == ztxt.dtype == jnp.float32


@pytest.mark.parametrize("scan", [False, True])
def test_costs_are_counted_as_those_of_ours(bv, fields, scan):
  fields["image"]["scan"] = fields["text"]["scan"] = scan
  theirs = build({"model": NAME, **fields})
  assert theirs.count(16, 8) == costs.count(fields, 16, 8)
  assert costs.count({"model": NAME, **fields}, 32, 8).image.tokens == 16


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"imge": {}}, "^imge is not a field of .*two_towers"),
    ({"image": {"remat": "full"}}, r"^image\.remat is not a field .*\.vit"),
    ({"text": {"dtype_mm": "bfloat16"}}, r"^text\.dtype_mm is not a field"),
    ({"image": {"variant": "XL"}}, r"^image\.variant='XL'"),
    ({"model": "big_vision:proj.two_tower"}, "no module .*proj.two_tower"),
    ({"model": "big_vision:common"}, "has no Model"),
    ({"model": "big_vision:../vit"}, "no module"),
  ],
)
def test_what_is_not_known_is_told_by_name(bv, fields, changes, words):
  with pytest.raises(ValueError, match=words):
    build({"model": NAME, **fields, **changes})


def run(repository, workdir, model):
  """Metrics of each of four steps of ACED, all models of which are alike."""
  config = config_lib.to_plain(load(repository, "aced").get_config("smoke"))
  config |= {"evals": {}, "total_steps": 4}
  config["checkpoint"]["best"] = ""
  config["log"] |= {"every_steps": 1, "progress": False, "report": False}
  config["student"]["model"] = model
  config["frozen"]["reference"]["model"] = model
  train(config, workdir)
  return read_jsonl(workdir / METRICS_FILE)


@pytest.mark.slow
def test_our_trainer_trains_their_models_as_it_does_ours(
  bv, repository, tmp_path
):
  theirs = run(repository, tmp_path / "theirs", NAME)
  ours = run(repository, tmp_path / "ours", "two_towers")
  # Both start from the same random weights and draw the same pairs, so that
  # only roundings differ: those of a few steps, each magnified by Adam.
  for metric in ("loss", "norm/gradient", "norm/parameters", "data/clean_kept"):
    found, want = (
      [line[metric] for line in lines if metric in line]
      for lines in (theirs, ours)
    )
    assert len(want) == 4
    np.testing.assert_allclose(found, want, rtol=1e-3)
