"""Hugging Face folders: read whole, equal to transformers, or refused."""

import json

import numpy as np
import pytest

from aced.embeddings import logits
from aced.models import build, params
from aced.models.formats import read
from aced.models.params import ParamsError
from tests.models.formats import released
from tests.models.formats.released import assert_close, channels_first

pytestmark = pytest.mark.parity


def our_logits(weights, pixels, ids):
  """`(n, n)` logits of weights that were read."""
  model = build(weights.config)
  zimg, ztxt, out = model.apply({"params": weights.params}, pixels, ids)
  return logits(zimg, ztxt, out["t"][0], out["b"][0] if "b" in out else 0.0)


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu", "quick_gelu"])
def test_siglip_gives_the_logits_of_transformers(tmp_path, act):
  (torch,) = released.needs("torch")
  model = released.hugging_face("siglip", tmp_path)
  set_activation(tmp_path, act)
  for tower in (model.vision_model, model.text_model):
    swap_activation(tower, act)
  pixels, ids = released.inputs()
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(ids), pixel_values=channels_first(pixels)
    ).logits_per_image
  weights = read(tmp_path)
  assert weights.config["image"]["activation"] == {
    "gelu_pytorch_tanh": "gelu_tanh"
  }.get(act, act)
  assert_close(our_logits(weights, pixels, ids), theirs)
  assert (weights.image_size, weights.text_length) == (16, 8)
  assert weights.resize == "bicubic"


def set_activation(folder, act):
  """Writes another activation into both towers' configs."""
  config = json.loads((folder / "config.json").read_text())
  for tower in ("vision_config", "text_config"):
    config[tower]["hidden_act"] = act
  (folder / "config.json").write_text(json.dumps(config))


def swap_activation(tower, act):
  from transformers.activations import ACT2FN

  for module in tower.modules():
    if hasattr(module, "activation_fn"):
      module.activation_fn = ACT2FN[act]


def test_siglip2_of_a_fixed_resolution(tmp_path):
  (torch,) = released.needs("torch")
  model = released.hugging_face("siglip2", tmp_path)
  pixels, ids = released.inputs()
  side = released.IMAGE // 8
  patches = (pixels / 127.5 - 1).reshape(-1, side, 8, side, 8, 3)
  patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(5, side * side, -1)
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(ids),
      pixel_values=torch.tensor(np.float32(patches)),
      pixel_attention_mask=torch.ones(5, side * side),
      spatial_shapes=torch.tensor([[side, side]] * 5),
    ).logits_per_image
  assert_close(our_logits(read(tmp_path), pixels, ids), theirs)


@pytest.mark.parametrize("eos", [2, released.VOCAB - 1])
def test_clip_folds_what_our_towers_do_not_have(tmp_path, eos):
  (torch,) = released.needs("torch")
  model = released.hugging_face("clip", tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  config["text_config"]["eos_token_id"] = eos
  (tmp_path / "config.json").write_text(json.dumps(config))
  pixels, ids = released.inputs()
  mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(ids),
      pixel_values=channels_first(pixels, mean, std),
    ).logits_per_image
  weights = read(tmp_path)
  assert "bias_init" not in weights.config
  assert_close(our_logits(weights, pixels, ids), theirs)


def test_shards_hold_the_same(tmp_path):
  model = released.hugging_face("siglip", tmp_path / "one")
  with released.quiet():
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
  released.write_processor(tmp_path / "many", "siglip")
  shards = sorted((tmp_path / "many").glob("*.safetensors"))
  assert len(shards) > 2
  one, many = (
    params.flatten(read(tmp_path / k).params) for k in ("one", "many")
  )
  assert one.keys() == many.keys()
  for name, value in one.items():
    np.testing.assert_array_equal(value, many[name])
  shards[1].unlink()
  with pytest.raises(FileNotFoundError, match=shards[1].name):
    read(tmp_path / "many")


def test_half_precision_is_read_as_float32(tmp_path):
  (torch,) = released.needs("torch")
  model = released.hugging_face("siglip", tmp_path)
  with released.quiet():
    model.to(torch.bfloat16).save_pretrained(tmp_path)
  kernel = read(tmp_path).params["img"]["embedding"]["kernel"]
  wanted = model.vision_model.embeddings.patch_embedding.weight
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(
    kernel, wanted.detach().float().numpy().transpose(2, 3, 1, 0)
  )


def edit(folder, path, value):
  """Sets one value of a folder's config."""
  config = json.loads((folder / "config.json").read_text())
  *tables, last = path.split(".")
  table = config
  for name in tables:
    table = table[name]
  table[last] = value
  (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
  "path, value, message",
  [
    ("model_type", "bert", "model_type='bert' cannot be read; expected one of"),
    ("vision_config.hidden_act", "relu", "hidden_act='relu' is none"),
    ("vision_config.vision_use_head", False, "without an embedding"),
    ("vision_config.num_hidden_layers", 3, r"missing(.|\n)*layers\.2\."),
    (
      "text_config.num_hidden_layers",
      1,
      r"extra(.|\n)*text_model.*layers\.1\.",
    ),
    ("vision_config.image_size", 32, r"another shape(.|\n)*img/pos_embedding"),
    ("text_config.vocab_size", 60, r"another shape(.|\n)*Embed_0/embedding"),
    ("text_config.num_attention_heads", 5, "with 5 heads"),
    ("text_config.num_attention_heads", "4", "num_heads='4'"),
    ("text_config.num_hidden_layers", 10**9, "depth=1000000000"),
    ("vision_config.image_size", None, "not of the form"),
    ("vision_config.layer_norm_eps", -1.0, r"norm_eps=-1\.0"),
    ("text_config.vocab_size", 2.5, r"vocab_size=2\.5"),
  ],
)
def test_another_architecture_is_refused_by_name(
  tmp_path, path, value, message
):
  released.hugging_face("siglip", tmp_path)
  edit(tmp_path, path, value)
  with pytest.raises(ParamsError, match=message):
    read(tmp_path)


def test_pixels_need_a_spread(tmp_path):
  released.hugging_face("siglip", tmp_path)
  path = tmp_path / "preprocessor_config.json"
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {"image_std": [0.0, 0.0, 0.0]}))
  with pytest.raises(ParamsError, match="spreads above 0"):
    read(tmp_path)


def test_damaged_files_are_refused(tmp_path):
  released.hugging_face("siglip", tmp_path)
  path = tmp_path / "model.safetensors"
  whole = path.read_bytes()
  for content in (whole[: len(whole) // 2], whole[:4], b"", b"{}" * 99):
    path.write_bytes(content)
    with pytest.raises(ParamsError, match="not a whole safetensors file"):
      read(tmp_path)
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"no weights at .*safetensors"):
    read(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ParamsError, match="no config of a model"):
    read(tmp_path)


def test_weights_must_compute_what_the_model_does(tmp_path):
  released.hugging_face("clip", tmp_path)
  config = read(tmp_path).config
  right = build(config)
  assert params.load(tmp_path, model=right)
  wrong = dict(config, image={**config["image"], "activation": "gelu_tanh"})
  wrong["text"] = {**config["text"], "causal": False}
  with pytest.raises(ParamsError) as error:
    params.load(tmp_path, model=build(wrong))
  assert "image.activation: 'quick_gelu' of the weights" in str(error.value)
  assert "text.causal: True of the weights, False of the" in str(error.value)
