"""From a table of a config to a model, with every field checked by name."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from aced.models import variants
from aced.models.text import TextTransformer
from aced.models.two_towers import TwoTowers
from aced.models.vit import ViT

MODELS = {"two_towers": TwoTowers}
TOWERS = {"image": ViT, "text": TextTransformer}


def build(config: Mapping[str, Any]) -> nn.Module:
  """Builds a model.

  Args:
    config: "model" (a key of `MODELS`; "two_towers" if absent) and its fields;
      "variant" names a pair of towers, over which fields that are given win.

  Returns:
    The flax module.

  Raises:
    ValueError: an unknown model, field or variant, or a value of another type.
  """
  fields = complete(config)
  name = fields.pop("model", "two_towers")
  if name not in MODELS:
    raise ValueError(
      f"model={name!r} is not known; it is one of {', '.join(MODELS)}."
    )
  for tower, module in TOWERS.items():
    fields[tower] = _checked(module, fields.get(tower, {}), f"{tower}.")
  model = MODELS[name](**_checked(MODELS[name], fields, ""))
  variants.expand_image(ViT(**model.image))
  variants.expand_text(TextTransformer(**model.text))
  return model


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as plain values, its named pair of towers written out."""
  fields = _plain(config)
  name = fields.pop("variant", "")
  if name:
    for key, value in variants.pair_config(name).items():
      given = fields.get(key)
      if isinstance(value, dict):
        fields[key] = {**value, **(given or {})}
      elif not given:
        fields[key] = value
  return fields


def _checked(module, given, where):
  """The fields, each known to the module and of its type."""
  known = typing.get_type_hints(module)
  own = [f.name for f in dataclasses.fields(module)]
  own = [name for name in own if name not in ("parent", "name")]
  for key, value in given.items():
    if key not in own:
      near = difflib.get_close_matches(key, own, n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"{where}{key} is not a field of {module.__name__}; its fields are"
        f" {', '.join(own)}.{hint}"
      )
    if not _fits(value, known[key]):
      raise ValueError(
        f"{where}{key}={value!r} is of type {type(value).__name__}; expected"
        f" {known[key]}."
      )
  return dict(given)


def _fits(value, hint):
  """Whether a value is of the type that a field is declared with."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, h) for h in typing.get_args(hint))
  if origin is tuple:
    inner = [h for h in typing.get_args(hint) if h is not Ellipsis]
    right = isinstance(value, tuple)
    return right and all(any(_fits(v, h) for h in inner) for v in value)
  if origin is not None:
    return isinstance(value, origin)
  if hint is Any:
    return True
  if hint is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, hint)


def _plain(value):
  """Mappings as dicts, lists as tuples."""
  if hasattr(value, "items"):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(_plain(v) for v in value)
  return value
