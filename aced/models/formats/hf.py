"""Hugging Face folders of SigLIP, SigLIP 2 and CLIP.

They hold `config.json` and `model.safetensors`, perhaps in shards. SigLIP is
read and written; SigLIP 2 (whose own class packs patches) and CLIP are read.
What CLIP has otherwise becomes fields of our towers, or is folded into
parameters without a change of what they compute: the position of its class
token into the token, its pixels' mean and spread into the patch embedding.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from aced import contents
from aced.models import refusals
from aced.models.formats import folding, layout, preprocessing, tensors
from aced.models.formats.layout import HEADS, Rule
from aced.models.formats.weights import Weights, check_fields
from aced.models.trees import ParamsError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KINDS = {"siglip": "SigLIP", "siglip2": "SigLIP 2", "clip": "CLIP"}
ACTIVATIONS = {
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu": "gelu",
  "quick_gelu": "quick_gelu",
}
# What a config leaves out is what `transformers` has by default.
_BASE = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
}
_CLIP = {**_BASE, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_TEXT = {**_BASE, "vocab_size": 32_000, "max_position_embeddings": 64}
_CLIP_TEXT = _CLIP | {
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_attention_heads": 8,
  "vocab_size": 49_408,
  "max_position_embeddings": 77,
  "eos_token_id": 49_407,
}
DEFAULTS = {
  "siglip": (
    {**_BASE, "image_size": 224, "patch_size": 16},
    _SIGLIP_TEXT,
  ),
  "siglip2": ({**_BASE, "num_patches": 256, "patch_size": 16}, _SIGLIP_TEXT),
  "clip": ({**_CLIP, "image_size": 224, "patch_size": 32}, _CLIP_TEXT),
}
# Numbers of positions, which old files hold as tensors.
IGNORED = ("position_ids",)


def read(folder: pathlib.Path) -> Weights:
  """Reads a folder.

  Args:
    folder: with `config.json` and `model.safetensors`, or its shards.

  Returns:
    The `Weights`, fitted to their model.

  Raises:
    FileNotFoundError: a file is missing.
    ParamsError: another kind of model, options that our towers do not have, or
      weights that are damaged or of another architecture.
  """
  kind, vision, text, whole = _read_config(folder / CONFIG)
  side = vision.get("image_size")
  if side is None:
    grid = round(vision["num_patches"] ** 0.5)
    side = grid * vision["patch_size"]
  towers = _towers(folder, vision, text)
  check_fields(folder / CONFIG, *towers)
  if kind == "clip":
    width = whole.get("projection_dim", 512)
    config = _clip(folder, towers, text, width)
    rules = list(clip_rules(vision, text))
  else:
    width = text.get("projection_size", text["hidden_size"])
    config = _siglip(folder, towers, vision, width)
    rules = list(siglip_rules(vision, text, packed=kind == "siglip2"))
  params = layout.read(tensors.read(folder / WEIGHTS), rules, IGNORED)
  pixels = preprocessing.read_processor(folder)
  if kind == "siglip2":
    params = _unpack_patches(params, vision["patch_size"])
  if kind == "clip":
    params = folding.class_token(folding.biases(params))
  params = folding.pixels(params, pixels["mean"], pixels["std"])
  return Weights(
    kind=f"a Hugging Face folder of {KINDS[kind]}",
    where=folder,
    params=params,
    config=config,
    image_size=side,
    text_length=text["max_position_embeddings"],
    resize=pixels["resize"],
    released=True,
  ).fitted()


def siglip_rules(
  vision: Mapping[str, Any], text: Mapping[str, Any], *, packed: bool = False
) -> Iterator[Rule]:
  """The tensors of a SiglipModel.

  Args:
    vision: the image tower's config.
    text: the text tower's.
    packed: whether the patch embedding is a matrix, as of a Siglip2Model.
  """
  yield Rule("logit_scale", ("t",), "scalar")
  yield Rule("logit_bias", ("b",), "scalar")
  yield from _embeddings(vision, "matrix" if packed else "conv")
  yield from _encoder("vision_model", "img/Transformer", vision, "post_")
  head, ours = "vision_model.head", "img/MAPHead_0"
  attention = f"{ours}/MultiHeadDotProductAttention_0"
  heads = vision["num_attention_heads"]
  yield Rule(f"{head}.probe", (f"{ours}/probe",))
  yield from layout.heads_in(
    f"{head}.attention.in_proj", attention, HEADS, heads, dot="_"
  )
  yield from layout.heads_out(f"{head}.attention.out_proj", attention, heads)
  yield from layout.norm(f"{head}.layernorm", f"{ours}/LayerNorm_0")
  yield from layout.mlp(
    f"{head}.mlp.fc1", f"{head}.mlp.fc2", f"{ours}/MlpBlock_0"
  )
  yield from _text(text)
  yield from layout.dense("text_model.head", "txt/head")


def clip_rules(
  vision: Mapping[str, Any], text: Mapping[str, Any]
) -> Iterator[Rule]:
  """The tensors of a CLIPModel."""
  yield Rule("logit_scale", ("t",), "scalar")
  yield Rule("vision_model.embeddings.class_embedding", ("img/cls",))
  yield from _embeddings(vision, "conv", bias=False)
  yield from layout.norm("vision_model.pre_layrnorm", "img/pre_norm")
  yield from _encoder("vision_model", "img/Transformer", vision, "post_")
  yield from layout.dense("visual_projection", "img/head", bias=False)
  yield from _text(text)
  yield from layout.dense("text_projection", "txt/head", bias=False)


def activation(name: str, where: Any) -> str:
  """Our name of an activation; raises ParamsError if there is none."""
  if name not in ACTIVATIONS:
    raise ParamsError(
      f"{where}: hidden_act={name!r} is none that our towers have:"
      f" {', '.join(ACTIVATIONS)}."
    )
  return ACTIVATIONS[name]


def _read_config(path):
  """`(kind, image tower's, text tower's, whole)` of a config.json."""
  if not path.exists():
    raise FileNotFoundError(f"no {path}; a Hugging Face folder has one.")
  try:
    whole = json.loads(path.read_text("utf-8"))
    kind = whole.get("model_type")
  except (ValueError, AttributeError) as error:
    found = contents.not_json(path, error)
    raise ParamsError(f"{path} is no config of a model: it {found}") from error
  if kind not in DEFAULTS:
    raise refusals.unknown_config(path, whole, DEFAULTS)
  vision, text = (
    {**default, **(whole.get(key) or {})}
    for default, key in zip(DEFAULTS[kind], ("vision_config", "text_config"))
  )
  return kind, vision, text, whole


def _towers(folder, vision, text):
  """The fields that both towers have."""
  found = []
  for tower in (vision, text):
    found.append(
      {
        "width": tower["hidden_size"],
        "depth": tower["num_hidden_layers"],
        "mlp_dim": tower["intermediate_size"],
        "num_heads": tower["num_attention_heads"],
        "activation": activation(tower["hidden_act"], folder / CONFIG),
        "norm_eps": float(tower["layer_norm_eps"]),
      }
    )
  found[0]["patch_size"] = (vision["patch_size"],) * 2
  found[1]["vocab_size"] = text["vocab_size"]
  return found


def _siglip(folder, towers, vision, width):
  if not vision.get("vision_use_head", True):
    raise ParamsError(
      f"{folder / CONFIG}: vision_use_head=False leaves the image tower without"
      " an embedding; it is no two-tower model."
    )
  image, text = towers
  return {
    "model": "two_towers",
    "image": {**image, "pool_type": "map"},
    "text": {**text, "pool_type": "last"},
    "out_dim": (None, width),
    "bias_init": -10.0,
  }


def _clip(folder, towers, text, width):
  image, text_fields = towers
  # Of old configs 2 stands for the highest id, as in OpenAI's own code.
  if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
    raise ParamsError(
      f"{folder / CONFIG}: eos_token_id={text['eos_token_id']} is not the"
      f" highest of {text['vocab_size']} ids, by which our text tower finds the"
      " end of a text (pool_type='argmax')."
    )
  return {
    "model": "two_towers",
    "image": {**image, "pool_type": "tok", "pre_norm": True},
    "text": {**text_fields, "pool_type": "argmax", "causal": True},
    "out_dim": (width, width),
  }


def _unpack_patches(params, patch):
  """The patch embedding of a Siglip2Model, `(p * p * 3, d)`, as a kernel."""
  image = dict(params["img"])
  kernel = image["embedding"]["kernel"]
  image["embedding"] = {
    **image["embedding"],
    "kernel": kernel.reshape(patch, patch, -1, kernel.shape[-1]),
  }
  return {**params, "img": image}


def _embeddings(vision, kind, bias=True):
  place = "vision_model.embeddings"
  patches = f"{place}.patch_embedding"
  yield Rule(f"{patches}.weight", ("img/embedding/kernel",), kind)
  if bias:
    yield Rule(f"{patches}.bias", ("img/embedding/bias",))
  yield Rule(
    f"{place}.position_embedding.weight", ("img/pos_embedding",), "positions"
  )


def _text(text):
  place = "text_model.embeddings"
  yield Rule(f"{place}.token_embedding.weight", ("txt/Embed_0/embedding",))
  yield Rule(
    f"{place}.position_embedding.weight", ("txt/pos_embedding",), "positions"
  )
  yield from _encoder("text_model", "txt/Encoder_0", text, "final_")


def _encoder(theirs, ours, tower, last):
  heads = tower["num_attention_heads"]
  for k in range(tower["num_hidden_layers"]):
    layer, block = f"{theirs}.encoder.layers.{k}", f"{ours}/encoderblock_{k}"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    yield from layout.norm(f"{layer}.layer_norm1", f"{block}/LayerNorm_0")
    for name, short in zip(HEADS, "qkv"):
      yield from layout.heads_in(
        f"{layer}.self_attn.{short}_proj", attention, (name,), heads
      )
    yield from layout.heads_out(f"{layer}.self_attn.out_proj", attention, heads)
    yield from layout.norm(f"{layer}.layer_norm2", f"{block}/LayerNorm_1")
    yield from layout.mlp(
      f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", f"{block}/MlpBlock_0"
    )
  norm = "layer_norm" if last == "final_" else "layernorm"
  yield from layout.norm(f"{theirs}.{last}{norm}", f"{ours}/encoder_norm")
