"""Durations: steps, examples, epochs or percent, read as steps."""

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
    ConfigError: more than one key is set, or none and there is no default.
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
  number = round(value * per_step)
  if value < 0 or (value > 0 and number == 0 and prefix == "total"):
    raise ConfigError(f"{key}={value} is {value * per_step:g} steps; raise it.")
  return max(number, 1) if prefix.endswith("every") else number
