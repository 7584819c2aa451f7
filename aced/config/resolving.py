"""Completing a config: what is given over the defaults, and checked."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from aced.config.checks import (
  check_choices,
  check_decoder,
  check_ranges,
  check_roles,
)
from aced.config.defaults import default, frozen_model, lock
from aced.config.errors import ConfigError, did_you_mean
from aced.curation import check_sizes, super_batch_size


def resolve(config: Mapping[str, Any]) -> ConfigDict:
  """Checks a config against `default()` and returns it complete.

  Raises:
    ConfigError: naming the key, its value, what was expected and what to do.
  """
  resolved = complete(config)
  check_choices(resolved)
  check_ranges(resolved)
  try:
    super_batch = loaded_size(resolved)
    check_sizes(
      super_batch,
      resolved.batch_size,
      resolved.curation.num_chunks
      if resolved.curation.method == "joint"
      else 1,
    )
  except ValueError as error:
    raise ConfigError(f"curation: {error}") from error
  check_decoder(resolved)
  check_roles(resolved)
  return resolved


def complete(config: Mapping[str, Any]) -> ConfigDict:
  """Returns a config over the defaults: every key, each of its type.

  Raises:
    ConfigError: a key that is not known, or a value of another type.
  """
  completed = default()
  with completed.unlocked():
    _merge(completed, config)
  return lock(completed)


def loaded_size(config: ConfigDict) -> int:
  """Pairs read for each step: `B` where they are scored, `b` otherwise.

  Raises:
    ValueError: the filter ratio does not fit the method or the batch size.
  """
  if config.curation.method == "uniform":
    if config.curation.filter_ratio:
      raise ValueError(
        f"filter_ratio={config.curation.filter_ratio} with method='uniform'"
        " would read pairs only to drop them; set filter_ratio=0."
      )
    return config.batch_size
  return super_batch_size(config.batch_size, config.curation.filter_ratio)


# Tables whose keys are free here: what they configure checks them.
FREE = re.compile(
  r"evals|frozen|distillation\.teachers|decoder\.model|"
  r"(student|frozen\.[^.]+)\.(image|text)"
)


def _merge(into, given, path=""):
  """Writes `given` over `into`, refusing unknown keys and wrong types."""
  if not isinstance(given, Mapping | ConfigDict):
    raise ConfigError(f"config.{path}={given!r} must be a table of keys.")
  free = FREE.fullmatch(path) is not None
  for key, value in given.items():
    name = f"{path}.{key}" if path else key
    if path == "frozen":
      into[key] = frozen_model()
    if not free and key not in into:
      raise ConfigError(
        f"config.{name} is not a known key;"
        f" known here: {', '.join(sorted(into.keys()))}."
        f"{did_you_mean(key, into.keys())}"
      )
    if isinstance(into.get(key), ConfigDict):
      _merge(into[key], value, name)
    else:
      _assign(into, key, value, name)


def _assign(into, key, value, name):
  """Sets one value, naming the key and both types where they differ."""
  try:
    if value is None and into.get(key) is not None:
      raise TypeError("this key has a value in every config")
    into[key] = value
  except TypeError as error:
    want = into.get_type(key)
    raise ConfigError(
      f"config.{name}={value!r} is of type {type(value).__name__}; expected"
      f" {getattr(want, '__name__', want)}."
    ) from error
