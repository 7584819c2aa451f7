"""Suites: lists of tasks that a model is scored on, and where their data is."""

from aced.config import ConfigError, did_you_mean
from aced.evaluation.suites.custom import read_suite
from aced.evaluation.suites.finding import Found, Missing, find, find_training
from aced.evaluation.suites.tables import (
  DATACOMP38,
  SMOKE,
  STABLEEVAL,
  SUITES,
)
from aced.evaluation.suites.task import METRICS, Suite, Task

__all__ = [
  "DATACOMP38",
  "METRICS",
  "SMOKE",
  "STABLEEVAL",
  "SUITES",
  "Found",
  "Missing",
  "Suite",
  "Task",
  "find",
  "find_training",
  "names",
  "suite",
]


def suite(name: str) -> Suite:
  """Returns a suite of the package, or one in a file.

  Args:
    name: in `SUITES`, or a path that ends in .toml.

  Raises:
    ConfigError: there is no such suite, or the file is wrong.
  """
  if name.endswith(".toml"):
    return read_suite(name)
  if name not in SUITES:
    raise ConfigError(
      f"suite {name!r} is not one of the package, {', '.join(SUITES)}; nor is"
      f" it a .toml file.{did_you_mean(name, SUITES)}"
    )
  return SUITES[name]


def names(of: str = "") -> tuple[str, ...]:
  """The names of a suite's tasks, or those of the suites of the package.

  Raises:
    ConfigError: there is no such suite.
  """
  return tuple(task.name for task in suite(of).tasks) if of else tuple(SUITES)
