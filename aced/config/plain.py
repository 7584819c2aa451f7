"""Configs as plain values, flat names, and their differences."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns `key: old -> new` for every key whose value differs."""
  old, new = flatten(old), flatten(new)
  missing = "(absent)"
  return [
    f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
    for key in sorted({*old, *new})
    if old.get(key, missing) != new.get(key, missing)
  ]


def to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts of plain values; keys that are not set are None."""
  return {
    key: to_plain(value) if isinstance(value, Mapping | ConfigDict) else value
    for key, value in config.items()
  }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns `{"a.b.c": value}`; tuples become lists, as JSON has them."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = _plain(value)
  return flat


def _plain(value):
  if isinstance(value, tuple | list):
    return [_plain(v) for v in value]
  return value
