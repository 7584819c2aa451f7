"""The configuration: every key with its default, and how a config is checked.

A config file defines `get_config(arg=None)`: it starts from `default()`, sets
what its experiment changes and returns the `ConfigDict`. A mistyped key or a
value of the wrong type raises where it is written; `resolve` checks the rest
and fills in what follows from other keys.
"""

from aced.config.defaults import default, durations
from aced.config.durations import steps
from aced.config.errors import ConfigError, did_you_mean
from aced.config.plain import differences, flatten, to_plain
from aced.config.resolving import loaded_size, resolve

__all__ = [
  "ConfigError",
  "default",
  "did_you_mean",
  "differences",
  "durations",
  "flatten",
  "loaded_size",
  "resolve",
  "steps",
  "to_plain",
]
