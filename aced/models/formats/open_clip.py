"""Weights of open_clip: SigLIP with timm's image tower, and CLIP.

A folder holds `open_clip_config.json` beside `open_clip_model.safetensors`, as
open_clip and its hub have it.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aced import contents
from aced.models import variants
from aced.models.formats import folding, layout, preprocessing, tensors
from aced.models.formats.layout import HEADS, Rule
from aced.models.formats.weights import Weights, check_fields
from aced.models.trees import ParamsError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# Options that are followed; any other that is set is refused, but for those of
# `HARMLESS` and the values of `STANDARD`.
MODEL = ("embed_dim", "vision_cfg", "text_cfg", "custom_text", "quick_gelu")
MODEL += ("init_logit_bias",)
VISION = ("image_size", "layers", "width", "head_width", "mlp_ratio")
VISION += ("patch_size", "act_kwargs", "norm_kwargs", "pool_type", "no_ln_pre")
VISION += ("timm_model_name", "timm_pool", "timm_proj")
TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
TEXT += ("no_causal_mask", "pool_type", "proj_bias", "act_kwargs")
TEXT += ("norm_kwargs",)
# Options that change no embedding, and why.
HARMLESS = (
  # Training alone.
  *("patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained"),
  *("init_logit_scale", "nonscalar_logit_scale", "output_dict"),
  # What is returned beside the embedding.
  "output_tokens",
  # They belong to options that are refused: attentional_pool, timm_proj,
  # hf_model_name, embed_cls and pool_type "eos", tokenizer_type.
  *("attn_pooler_queries", "attn_pooler_heads", "timm_proj_bias"),
  *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
  *("pad_id", "eos_id", "bos_id", "tiktoken_name"),
  # `tokenizers.released` follows them, or refuses them by name.
  *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
)
# What open_clip has where an option is left out, as far as that is not false.
STANDARD = {
  "text_arch": "clip",
  "block_type": "default",
  "pos_embed_type": "learnable",
  "proj_type": "linear",
}
# timm's SigLIP towers that have the tanh form of GELU; the others are exact.
TANH = re.compile(
  r"base_patch32|large_patch16_siglip_(gap_)?512|so400m_patch16|giantopt"
)
# CLIP's own, where the config says nothing.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IGNORED = ("attn_mask",)
# open_clip's way to make a picture square -> how it differs from squashing.
MODES = {
  "squash": "",
  "shortest": "cut out of the middle",
  "longest": "filled up at two sides",
}
# "random" is of training; open_clip then takes the other two as here.
RESIZE = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bicubic"}


def read(path: pathlib.Path) -> Weights:
  """Reads a folder, or a safetensors file beside its config.

  Args:
    path: of either.

  Returns:
    The `Weights`, fitted to their model.

  Raises:
    FileNotFoundError: a file is missing.
    ParamsError: options that our towers do not have, or weights that are
      damaged or of another architecture.
  """
  folder, file = (
    (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
  )
  model, preprocess = _read_config(folder / CONFIG)
  held = tensors.read(file)
  vision, text = model["vision_cfg"], model["text_cfg"]
  timm = vision.get("timm_model_name")
  _check(folder / CONFIG, "model_cfg", model, MODEL)
  _check(folder / CONFIG, "vision_cfg", vision, VISION)
  _check(folder / CONFIG, "text_cfg", text, TEXT)
  gelu = "quick_gelu" if model.get("quick_gelu") else "gelu"
  txt = _text_tower(text, gelu, folder / CONFIG)
  if timm:
    image = _timm_tower(folder, vision, held)
    rules = [*timm_rules(image), *_text(txt, "text.", text.get("proj_bias"))]
  else:
    image = _clip_tower(vision, gelu, folder / CONFIG)
    inside = "text." if model.get("custom_text") else ""
    rules = [*clip_rules(image), *_text(txt, inside, text.get("proj_bias"))]
  rules.append(Rule("logit_scale", ("t",), "scalar"))
  has_bias = model.get("init_logit_bias") is not None
  if has_bias:
    rules.append(Rule("logit_bias", ("b",), "scalar"))
  check_fields(folder / CONFIG, image, txt)
  params = folding.biases(layout.read(held, rules, IGNORED))
  if not timm:
    params = folding.class_token(params)
  pixels = _pixels(folder / CONFIG, preprocess)
  return Weights(
    kind="open_clip's " + ("SigLIP" if timm else "CLIP"),
    where=path,
    params=folding.pixels(params, pixels["mean"], pixels["std"]),
    config={
      "model": "two_towers",
      "image": image,
      "text": txt,
      "out_dim": (None if timm else model["embed_dim"], model["embed_dim"]),
      **({"bias_init": -10.0} if has_bias else {}),
    },
    image_size=_square(vision.get("image_size", 224)),
    text_length=text.get("context_length", 77),
    resize=pixels["resize"],
  ).fitted()


def timm_rules(image: Mapping[str, Any]) -> Iterator[Rule]:
  """The tensors of timm's SigLIP image tower."""
  trunk, heads = "visual.trunk", image["num_heads"]
  yield Rule(f"{trunk}.pos_embed", ("img/pos_embedding",), "positions")
  patches = f"{trunk}.patch_embed.proj"
  yield Rule(f"{patches}.weight", ("img/embedding/kernel",), "conv")
  yield Rule(f"{patches}.bias", ("img/embedding/bias",))
  for k in range(image["depth"]):
    layer, block = f"{trunk}.blocks.{k}", f"img/Transformer/encoderblock_{k}"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    yield from layout.norm(f"{layer}.norm1", f"{block}/LayerNorm_0")
    yield from layout.heads_in(f"{layer}.attn.qkv", attention, HEADS, heads)
    yield from layout.heads_out(f"{layer}.attn.proj", attention, heads)
    yield from layout.norm(f"{layer}.norm2", f"{block}/LayerNorm_1")
    yield from layout.mlp(
      f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", f"{block}/MlpBlock_0"
    )
  yield from layout.norm(f"{trunk}.norm", "img/Transformer/encoder_norm")
  if image["pool_type"] == "map":
    pool, head = f"{trunk}.attn_pool", "img/MAPHead_0"
    attention = f"{head}/MultiHeadDotProductAttention_0"
    yield Rule(f"{pool}.latent", (f"{head}/probe",))
    yield from layout.heads_in(f"{pool}.q", attention, HEADS[:1], heads)
    yield from layout.heads_in(f"{pool}.kv", attention, HEADS[1:], heads)
    yield from layout.heads_out(f"{pool}.proj", attention, heads)
    yield from layout.norm(f"{pool}.norm", f"{head}/LayerNorm_0")
    yield from layout.mlp(
      f"{pool}.mlp.fc1", f"{pool}.mlp.fc2", f"{head}/MlpBlock_0"
    )


def clip_rules(image: Mapping[str, Any]) -> Iterator[Rule]:
  """The tensors of open_clip's own image tower."""
  yield Rule("visual.class_embedding", ("img/cls",))
  yield Rule("visual.positional_embedding", ("img/pos_embedding",), "positions")
  yield Rule("visual.conv1.weight", ("img/embedding/kernel",), "conv")
  if image["pre_norm"]:
    yield from layout.norm("visual.ln_pre", "img/pre_norm")
  yield from _blocks("visual.transformer", "img/Transformer", image)
  yield from layout.norm("visual.ln_post", "img/Transformer/encoder_norm")
  # Not of a dense layer, and so not transposed.
  yield Rule("visual.proj", ("img/head/kernel",))


def _text(fields, inside, bias):
  yield Rule(f"{inside}token_embedding.weight", ("txt/Embed_0/embedding",))
  yield Rule(
    f"{inside}positional_embedding", ("txt/pos_embedding",), "positions"
  )
  yield from _blocks(f"{inside}transformer", "txt/Encoder_0", fields)
  yield from layout.norm(f"{inside}ln_final", "txt/Encoder_0/encoder_norm")
  if bias:
    yield from layout.dense(f"{inside}text_projection", "txt/head")
  else:
    yield Rule(f"{inside}text_projection", ("txt/head/kernel",))


def _blocks(theirs, ours, fields):
  heads = fields["num_heads"]
  for k in range(fields["depth"]):
    layer, block = f"{theirs}.resblocks.{k}", f"{ours}/encoderblock_{k}"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    yield from layout.norm(f"{layer}.ln_1", f"{block}/LayerNorm_0")
    yield from layout.heads_in(
      f"{layer}.attn.in_proj", attention, HEADS, heads, dot="_"
    )
    yield from layout.heads_out(f"{layer}.attn.out_proj", attention, heads)
    yield from layout.norm(f"{layer}.ln_2", f"{block}/LayerNorm_1")
    yield from layout.mlp(
      f"{layer}.mlp.c_fc", f"{layer}.mlp.c_proj", f"{block}/MlpBlock_0"
    )


def _read_config(path):
  """`(model, preprocessing)` of an open_clip_config.json."""
  if not path.exists():
    if (path.parent / "config.json").exists():
      raise FileNotFoundError(
        f"no {path.name} in {path.parent}, but a config.json: of Hugging Face's"
        " weights, name the folder."
      )
    raise FileNotFoundError(
      f"no {path.name} in {path.parent}: weights of open_clip do not say how"
      " many heads or which activation they are of; put it beside them."
    )
  try:
    whole = json.loads(path.read_text("utf-8"))
    model = whole["model_cfg"]
    if not all(isinstance(model[k], dict) for k in ("vision_cfg", "text_cfg")):
      raise TypeError("vision_cfg and text_cfg must be tables")
    return model, whole.get("preprocess_cfg") or {}
  except UnicodeDecodeError as error:
    raise ParamsError(f"{path} {contents.not_json(path, error)}") from error
  except json.JSONDecodeError as error:
    raise ParamsError(f"{path} {contents.not_json(path, error)}") from error
  except (KeyError, TypeError) as error:
    raise ParamsError(f"{path} is no config of open_clip: {error!r}") from error


def _check(path, name, given, known):
  """Refuses options that our towers do not have."""
  for key, value in given.items():
    unset = not value or STANDARD.get(key) == value
    if key not in known + HARMLESS and not unset:
      raise ParamsError(
        f"{path}: {name}.{key}={value!r} is an option that our towers do not"
        " have; these weights cannot be read."
      )


def _pixels(path, given):
  """`mean`, `std` and `resize` of a preprocess_cfg; null is what is left out.

  The size is that of the image tower, as in open_clip.
  """
  found = {key: value for key, value in given.items() if value is not None}
  resize, mode = found.get("interpolation", "bicubic"), found.get("resize_mode")
  for name, value, known in (
    ("interpolation", resize, RESIZE),
    ("resize_mode", mode, (None, "", *MODES)),
    ("mode", found.get("mode", "RGB"), ("RGB",)),
  ):
    if value not in known:
      raise ParamsError(
        f"{path}: preprocess_cfg.{name}={value!r} cannot be read; expected one"
        f" of {', '.join(filter(None, known))}."
      )
  preprocessing.warn_of_shape(path, MODES[mode or "shortest"])
  three = {}
  for name, usual in (("mean", MEAN), ("std", STD)):
    value = found.get(name) or usual
    three[name] = tuple(
      value if isinstance(value, list | tuple) else [value] * 3
    )
  return three | {"resize": RESIZE[resize]}


def _text_tower(text, gelu, path=CONFIG):
  width = text.get("width", 512)
  pool = text.get("pool_type", "argmax")
  if pool not in ("argmax", "last", "first"):
    raise ParamsError(
      f"text_cfg.pool_type={pool!r} cannot be read; expected argmax, last or"
      " first."
    )
  return {
    "width": width,
    "depth": text.get("layers", 12),
    "mlp_dim": int(width * text.get("mlp_ratio", 4.0)),
    "num_heads": text.get("heads", 8),
    "vocab_size": text.get("vocab_size", 49_408),
    "pool_type": pool,
    "causal": not text.get("no_causal_mask", False),
    **_forms(path, "text_cfg", text, gelu),
  }


def _clip_tower(vision, gelu, path=CONFIG):
  if vision.get("pool_type", "tok") != "tok":
    raise ParamsError(
      f"vision_cfg.pool_type={vision['pool_type']!r} cannot be read; expected"
      " tok."
    )
  width = vision.get("width", 768)
  return {
    "width": width,
    "depth": vision.get("layers", 12),
    "mlp_dim": int(width * vision.get("mlp_ratio", 4.0)),
    "num_heads": width // vision.get("head_width", 64),
    "patch_size": (_square(vision.get("patch_size", 16)),) * 2,
    "pool_type": "tok",
    "pre_norm": not vision.get("no_ln_pre", False),
    **_forms(path, "vision_cfg", vision, gelu),
  }


def _timm_tower(folder, vision, held):
  """The fields of timm's tower, whose sizes its name and tensors tell."""
  name = vision["timm_model_name"]
  pools = {"map": "map", "avg": "gap"}
  pool = vision.get("timm_pool", "avg")
  if "_siglip_" not in name or pool not in pools:
    raise ParamsError(
      f"{folder / CONFIG}: vision_cfg.timm_model_name={name!r} with"
      f" timm_pool={pool!r} cannot be read; expected one of timm's SigLIP"
      f" towers with timm_pool {' or '.join(pools)}."
    )
  if vision.get("timm_proj", "linear") != "none":
    raise ParamsError(
      f"{folder / CONFIG}: vision_cfg.timm_proj="
      f"{vision.get('timm_proj', 'linear')!r} cannot be read; expected none, as"
      " of SigLIP, whose image tower ends without a projection."
    )
  kernel = held.get("visual.trunk.patch_embed.proj.weight", np.zeros((0,) * 4))
  hidden = held.get("visual.trunk.blocks.0.mlp.fc1.bias", np.zeros(0))
  layers = {
    int(found[1])
    for found in map(re.compile(r"visual\.trunk\.blocks\.(\d+)\.").match, held)
    if found
  }
  heads = {shape.width: shape.num_heads for shape in variants.WIDTHS.values()}
  width = kernel.shape[0]
  if width not in heads or not layers or not len(hidden):
    raise ParamsError(
      f"{folder}: an image tower {width} wide with {len(layers)} layers is none"
      f" of timm's SigLIP towers; widths: {', '.join(map(str, heads))}."
    )
  return {
    "width": width,
    "depth": max(layers) + 1,
    "mlp_dim": len(hidden),
    "num_heads": heads[width],
    "patch_size": tuple(kernel.shape[2:]),
    "pool_type": pools[pool],
    "activation": "gelu_tanh" if TANH.search(name) else "gelu",
    "norm_eps": 1e-6,
  }


def _forms(path, name, tower, gelu):
  """Activation and epsilon of a tower of open_clip's own."""
  act, norm = (tower.get(f"{part}_kwargs") or {} for part in ("act", "norm"))
  approximate = act.get("approximate", "none")
  if {*act} - {"approximate"} or approximate not in ("none", "tanh"):
    raise ParamsError(
      f"{path}: {name}.act_kwargs={act!r} cannot be read; expected approximate"
      " alone, none or tanh."
    )
  if {*norm} - {"eps"}:
    raise ParamsError(
      f"{path}: {name}.norm_kwargs={norm!r} cannot be read; expected eps alone."
    )
  if gelu == "gelu" and approximate == "tanh":
    gelu = "gelu_tanh"
  return {"activation": gelu, "norm_eps": float(norm.get("eps", 1e-5))}


def _square(size):
  """The side of a square; raises ParamsError for any other."""
  sides = size if isinstance(size, list | tuple) else (size, size)
  if len(set(sides)) != 1:
    raise ParamsError(f"a size of {size!r} is no square, as our pictures are.")
  return sides[0]
