"""Durations: steps, examples, epochs or percent, read as steps."""

import math
from collections.abc import Mapping
from typing import Any

from aced.config.defaults import DURATIONS
from aced.config.errors import ConfigError


def steps(
  prefix: str,
  config: Mapping[str, Any],
  *,
  batch_size: int,
  data_size: int,
  total_steps: int | None = None,
  default: int | None = None,
  where: str = "",
) -> int:
  """Reads a duration in steps, whatever unit it was given in.

  Args:
    prefix: "total", "warmup", "every" or "keep_every".
    config: holds at most one set key `{prefix}_{steps,examples,...}`.
    batch_size: `b`, examples trained on in a step.
    data_size: examples in an epoch.
    total_steps: what a percentage is of.
    default: returned where no key is set.
    where: of the config, for messages, such as "log.".

  Raises:
    ConfigError: more than one key is set, or none and there is no default; or
      a duration that no run can have.
  """
  keys = [f"{prefix}_{u}" for u in DURATIONS[: 3 if prefix == "total" else 4]]
  given = {k: config[k] for k in keys if config.get(k) is not None}
  if not given and default is not None:
    return default
  if len(given) != 1:
    raise ConfigError(
      f"exactly one of {', '.join(where + k for k in keys)} must be set; got"
      f" {given if given else 'none of them'}. To give a duration in another"
      " unit, set the one that stands there to None."
    )
  ((key, value),) = given.items()
  per_step = {
    "steps": 1,
    "examples": 1 / batch_size,
    "epochs": data_size / batch_size,
    "percent": (total_steps or 0) / 100,
  }[key.rsplit("_", 1)[1]]
  least = "0 or more" if prefix == "warmup" else "above 0"
  if not 0 <= value < math.inf or (value == 0 and prefix != "warmup"):
    raise ConfigError(f"config.{where}{key}={value} must be {least}.")
  if key.endswith("_percent") and value > 100:
    raise ConfigError(
      f"config.{where}{key}={value} is a share of the run: at most 100."
    )
  number = round(value * per_step)
  if prefix == "total" and number == 0:
    raise ConfigError(f"{key}={value} is {value * per_step:g} steps; raise it.")
  return max(number, 1) if prefix.endswith("every") else number
