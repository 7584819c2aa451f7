"""The configuration: every key with its default, and how a config is checked.

A config file defines `get_config(arg=None)`: it starts from `default()`, sets
what its experiment changes and returns the `ConfigDict`. A mistyped key or a
value of the wrong type raises where it is written; `resolve` checks the rest
and fills in what follows from other keys.
"""

import importlib

from aced.config.errors import ConfigError, did_you_mean

# Public name -> the module that has it. They are loaded when first used: they
# need jax, and processes that only read data do without it.
_MODULES = {
  "default": "defaults",
  "steps": "durations",
  "differences": "plain",
  "flatten": "plain",
  "to_plain": "plain",
  "complete": "resolving",
  "loaded_size": "resolving",
  "resolve": "resolving",
}
__all__ = ["ConfigError", "did_you_mean", *sorted(_MODULES)]


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
  return getattr(module, name)


def __dir__():
  return sorted({*globals(), *__all__})
