"""From a table of a config to a model, with every field checked by name."""

import dataclasses
import difflib
import importlib.metadata
import types
import typing
from collections import abc
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from aced.models import text, transformer, variants, vit
from aced.models.text import TextTransformer
from aced.models.two_towers import TwoTowers, heads
from aced.models.vit import ViT

MODELS = {"two_towers": TwoTowers}
TOWERS = {"image": ViT, "text": TextTransformer}
# The group of entry points by which other packages add families of models.
FAMILIES = "aced.models"
COMMON = {
  "remat": transformer.REMAT,
  "dtype_mm": ("float32", "bfloat16"),
  "activation": tuple(transformer.ACTIVATIONS),
}
CHOICES = {
  "image": {"pool_type": vit.POOLS, "posemb": vit.POSITIONS, **COMMON},
  "text": {"pool_type": text.POOLS, **COMMON},
  "decoder": COMMON,
}


def build(config: Mapping[str, Any]) -> nn.Module:
  """Builds a model.

  Args:
    config: "model" (a key of `MODELS`, "two_towers" if absent, or
      "family:name", see `FAMILIES`) and its fields; "variant" names a pair of
      towers, over which fields that are given win.

  Returns:
    The flax module; of a family, an object with its `init` and `apply`, and
    with `count(image_size, text_length) -> costs.PairCost`.

  Raises:
    ValueError: an unknown model, field, variant or choice, a value of another
      type, or towers whose embeddings differ in width.
  """
  fields = complete(config)
  name = fields.pop("model", "two_towers")
  if ":" in name:
    return _of_family(name, fields)
  if name not in MODELS:
    raise ValueError(
      f"model={name!r} is not known; it is one of {', '.join(MODELS)}, auto or"
      f" 'family:name' with one of {', '.join(_families()) or 'none'}."
    )
  for tower, module in TOWERS.items():
    fields[tower] = tower_fields(tower, module, fields.get(tower, {}))
  model = MODELS[name](**_checked(MODELS[name], fields, ""))
  if model.temperature_init <= 0:
    raise ValueError(
      f"temperature_init={model.temperature_init} must be positive: the"
      " parameter is its logarithm."
    )
  _check_widths(model)
  return model


def _families():
  """Family -> its entry point: `build(name, fields)` returns a model."""
  found = importlib.metadata.entry_points(group=FAMILIES)
  return {point.name: point for point in found}


def towers(model: TwoTowers) -> dict[str, nn.Module]:
  """The image and the text tower of a model, with all of their fields."""
  image, text = heads(model.out_dim)
  return {
    "image": ViT(**{"num_classes": image, **model.image}),
    "text": TextTransformer(**{"num_classes": text, **model.text}),
  }


def _of_family(name, fields):
  family, _, inside = name.partition(":")
  families = _families()
  if family not in families:
    raise ValueError(
      f"model={name!r}: no family {family!r} of models is installed; there are"
      f" {', '.join(families) or 'none'} (entry points {FAMILIES!r}; for those"
      " of this package, pip install it)."
    )
  return families[family].load()(inside, fields)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as plain values, its named pair of towers written out."""
  fields = plain(config)
  name = fields.pop("variant", "")
  if name:
    for key, value in variants.pair_config(name).items():
      given = fields.get(key)
      if isinstance(value, dict):
        fields[key] = {**value, **(given or {})}
      elif not given:
        fields[key] = value
  return fields


def tower_fields(
  tower: str, module: type[nn.Module], given: Mapping[str, Any]
) -> dict[str, Any]:
  """The fields of one tower, each known, of its type and of its choices.

  Args:
    tower: a key of `CHOICES`, by which errors call the fields.
    module: what has them.
    given: of a config, as `plain` returns it.

  Raises:
    ValueError: an unknown field or choice, a value of another type, or a share
      that is none.
  """
  if not isinstance(given, Mapping):
    raise ValueError(
      f"{tower}={given!r} must be a table of fields of {module.__name__}."
    )
  checked = _checked(module, given, f"{tower}.")
  for key, choices in CHOICES[tower].items():
    if key in checked and checked[key] not in choices:
      raise ValueError(
        f"{tower}.{key}={checked[key]!r} is not known; it is one of"
        f" {', '.join(choices)}."
      )
  for key in ("dropout", "token_drop"):
    if not 0 <= checked.get(key, 0) < 1:
      raise ValueError(
        f"{tower}.{key}={checked[key]} must be at least 0 and below 1."
      )
  return checked


def _check_widths(model):
  """Embeddings that are compared must be of one width."""
  shapes = (
    variants.expand_image(ViT(**model.image)),
    variants.expand_text(TextTransformer(**model.text)),
  )
  towers = zip((model.image, model.text), heads(model.out_dim), shapes)
  image, text = (
    fields.get("num_classes", head) or shape.width
    for fields, head, shape in towers
  )
  if image != text:
    raise ValueError(
      f"image embeddings are {image} wide and text embeddings {text}, with"
      f" out_dim={model.out_dim!r}; set out_dim=(None, {image})."
    )


def _checked(module, given, where):
  """The fields, each known to the module and of its type."""
  own = field_types(module)
  for key, value in given.items():
    if key not in own:
      near = difflib.get_close_matches(key, own, n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"{where}{key} is not a field of {module.__name__}; its fields are"
        f" {', '.join(own)}.{hint}"
      )
    if not fits(value, own[key]):
      raise ValueError(
        f"{where}{key}={value!r} is of type {type(value).__name__}; expected"
        f" {type_name(own[key])}."
      )
  return dict(given)


def field_types(module: type[nn.Module]) -> dict[str, Any]:
  """The fields of a module that a config may set, and their types."""
  hints = typing.get_type_hints(module)
  own = [field.name for field in dataclasses.fields(module)]
  return {name: hints[name] for name in own if name not in ("parent", "name")}


def type_name(hint: Any) -> str:
  """A type as messages call it."""
  return hint.__name__ if isinstance(hint, type) else str(hint)


def plain_type(hint: Any) -> type:
  """The type that a declaration allows beside None; `object` if several.

  Sequences are tuples, as configs have them.
  """
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    inner = [h for h in typing.get_args(hint) if h is not types.NoneType]
    return plain_type(inner[0]) if len(inner) == 1 else object
  if origin in (tuple, abc.Sequence):
    return tuple
  return hint if hint in (bool, int, float, str) else object


def fits(value: Any, hint: Any) -> bool:
  """Whether a value is of the type that a field is declared with."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, h) for h in typing.get_args(hint))
  if origin is abc.Sequence:
    (inner,) = typing.get_args(hint)
    listed = isinstance(value, list | tuple)
    return listed and all(fits(v, inner) for v in value)
  if origin is tuple:
    inner = typing.get_args(hint)
    if not isinstance(value, tuple):
      return False
    if inner[-1] is Ellipsis:
      return all(fits(v, inner[0]) for v in value)
    return len(value) == len(inner) and all(map(fits, value, inner))
  if origin is not None:
    return isinstance(value, origin)
  if hint is Any:
    return True
  if hint is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, hint)


def plain(value: Any) -> Any:
  """Mappings as dicts, lists as tuples."""
  if isinstance(value, Mapping) or hasattr(value, "items"):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(plain(v) for v in value)
  return value
