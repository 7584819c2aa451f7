"""Weights of open_clip: equal to its own models, or refused by name."""

import copy
import functools
import json
from unittest import mock

import numpy as np
import pytest

from aced.models import build
from aced.models.formats import open_clip as ours
from aced.models.formats import read
from aced.models.params import ParamsError
from tests.models.formats import released
from tests.models.formats.hf_test import our_logits
from tests.models.formats.released import assert_close, channels_first

pytestmark = pytest.mark.parity

TEXT = {
  "context_length": released.LENGTH,
  "vocab_size": released.VOCAB,
  "width": 24,
  "heads": 3,
  "layers": 2,
}
CLIP = {
  "embed_dim": 20,
  "quick_gelu": True,
  "vision_cfg": {
    "image_size": released.IMAGE,
    "patch_size": 8,
    "width": 32,
    "layers": 2,
    "head_width": 8,
  },
  "text_cfg": TEXT,
}
SIGLIP = {
  "embed_dim": 192,
  "init_logit_bias": -10,
  "custom_text": True,
  "vision_cfg": {
    "image_size": released.IMAGE,
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
  },
  "text_cfg": TEXT
  | {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
    "tokenizer_kwargs": {"clean": "canonicalize"},
  },
}


def save(model_cfg, folder, preprocess=None):
  """Builds open_clip's model, saves its folder; returns the model."""
  _, open_clip, timm, safetensors = released.needs(
    "torch", "open_clip", "timm", "safetensors.torch"
  )
  fields = copy.deepcopy(model_cfg)
  custom = fields.pop("custom_text", False)
  make = open_clip.CustomTextCLIP if custom else open_clip.CLIP
  if custom:
    fields.pop("quick_gelu", None)
  small = functools.partial(
    timm.create_model,
    depth=2,
    embed_dim=192,
    num_heads=3,
    patch_size=8,
    img_size=released.IMAGE,
  )
  with mock.patch("timm.create_model", small), released.quiet():
    model = released.spread(make(**fields))
  folder.mkdir(exist_ok=True)
  tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
  safetensors.save_file(tensors, folder / ours.WEIGHTS)
  if preprocess is None:
    half = [0.5] * 3
    preprocess = {"mean": half, "std": half, "interpolation": "bicubic"}
  write_config(folder, model_cfg, preprocess)
  return model


def write_config(folder, model_cfg, preprocess):
  content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
  (folder / ours.CONFIG).write_text(json.dumps(content))


def their_logits(model, pixels, ids, mean=0.5, std=0.5):
  (torch,) = released.needs("torch")
  with torch.no_grad():
    found = model(channels_first(pixels, mean, std), torch.tensor(ids))
    zimg, ztxt, scale, *bias = found
    return scale * zimg @ ztxt.T + (bias[0] if bias else 0.0)


@pytest.mark.parametrize(
  "name", ["vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256"]
)
@pytest.mark.parametrize("pool", ["map", "avg"])
def test_siglip_gives_the_logits_of_open_clip(tmp_path, name, pool):
  config = copy.deepcopy(SIGLIP)
  config["vision_cfg"] |= {"timm_model_name": name, "timm_pool": pool}
  if pool == "avg":
    config["vision_cfg"]["timm_model_name"] = name.replace("p_", "p_gap_")
  model = save(config, tmp_path)
  pixels, ids = released.inputs()
  weights = read(tmp_path)
  assert weights.kind == "open_clip's SigLIP"
  assert weights.config["image"]["activation"] == (
    "gelu_tanh" if "patch32" in name else "gelu"
  )
  assert_close(
    our_logits(weights, pixels, ids), their_logits(model, pixels, ids)
  )


@pytest.mark.parametrize("quick", [True, False])
def test_clip_gives_the_logits_of_open_clip(tmp_path, quick):
  config = CLIP | {"quick_gelu": quick}
  preprocess = {"mean": ours.MEAN, "std": ours.STD, "interpolation": "bicubic"}
  model = save(config, tmp_path, preprocess)
  pixels, ids = released.inputs()
  theirs = their_logits(model, pixels, ids, ours.MEAN, ours.STD)
  for where in (tmp_path, tmp_path / ours.WEIGHTS):
    weights = read(where)
    assert_close(our_logits(weights, pixels, ids), theirs)
  # Where the config says nothing of pixels, they are CLIP's.
  write_config(tmp_path, config, {})
  assert_close(our_logits(read(tmp_path), pixels, ids), theirs)


def test_custom_text_clip_with_a_bias(tmp_path):
  config = CLIP | {"custom_text": True, "init_logit_bias": -3.0}
  del config["quick_gelu"]
  model = save(config, tmp_path)
  pixels, ids = released.inputs()
  weights = read(tmp_path)
  assert build(weights.config).bias_init is not None
  assert_close(
    our_logits(weights, pixels, ids), their_logits(model, pixels, ids)
  )


def test_activations_of_timms_towers_are_known():
  (_, timm) = released.needs("torch", "timm")
  names = [n for n in timm.list_models("vit_*siglip*") if "_siglip_" in n]
  assert len(names) > 20
  for name in names:
    with released.quiet():
      model = timm.create_model(name, depth=1, pretrained=False, num_classes=0)
    tanh = "tanh" in repr(model.blocks[0].mlp.act).lower()
    assert tanh == bool(ours.TANH.search(name)), name


@pytest.mark.parametrize(
  "tower, key, value",
  [
    ("vision_cfg", "ls_init_value", 0.1),
    ("vision_cfg", "attentional_pool", True),
    ("text_cfg", "hf_model_name", "roberta-base"),
    ("text_cfg", "qk_norm", True),
  ],
)
def test_options_that_our_towers_lack_are_refused(tmp_path, tower, key, value):
  save(CLIP, tmp_path)
  config = copy.deepcopy(CLIP)
  config[tower][key] = value
  write_config(tmp_path, config, {})
  with pytest.raises(ParamsError, match=f"{tower}.{key}={value!r} is an opt"):
    read(tmp_path)


def test_what_cannot_be_read_is_refused(tmp_path):
  save(CLIP, tmp_path)
  other = copy.deepcopy(CLIP)
  other["vision_cfg"]["layers"] = 3
  write_config(tmp_path, other, {})
  with pytest.raises(ParamsError, match=r"missing(.|\n)*resblocks\.2\."):
    read(tmp_path)
  other["vision_cfg"] |= {"timm_model_name": "resnet50", "timm_pool": "avg"}
  write_config(tmp_path, other, {})
  with pytest.raises(ParamsError, match=r"'resnet50' with timm_pool='avg'"):
    read(tmp_path)
  (tmp_path / ours.CONFIG).write_text("[]")
  with pytest.raises(ParamsError, match="no config of open_clip"):
    read(tmp_path)
  (tmp_path / ours.CONFIG).unlink()
  with pytest.raises(FileNotFoundError, match="put it beside them"):
    read(tmp_path / ours.WEIGHTS)


def test_images_with_other_pixels_give_the_same_patches():
  """The fold by brute force, in float64."""
  from aced.models.formats import folding

  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((8, 8, 3, 4))
  params = {"img": {"embedding": {"kernel": kernel, "bias": np.ones(4)}}}
  folded = folding.pixels(params, ours.MEAN, ours.STD)["img"]["embedding"]
  y = rng.uniform(0, 1, (8, 8, 3))
  theirs = np.einsum("hwc,hwcd->d", (y - ours.MEAN) / ours.STD, kernel) + 1
  found = np.einsum("hwc,hwcd->d", 2 * y - 1, folded["kernel"]) + folded["bias"]
  np.testing.assert_allclose(found, theirs, rtol=1e-5)  # float32 parameters.
