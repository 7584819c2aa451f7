"""What is said of a key or a value that is wrong."""

import difflib
from typing import Any


class ConfigError(ValueError):
  """A key that is unknown, of the wrong type, or at odds with another."""


def did_you_mean(word: str, known: Any) -> str:
  """Returns " Did you mean 'x'?" or an empty string."""
  near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
  return f" Did you mean {near[0]!r}?" if near else ""
