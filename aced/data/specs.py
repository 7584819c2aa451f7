"""The options of short texts that name things: `kind:where?option=value`."""

from aced.config import ConfigError


def options_of(
  query: str, what: str, error: type[ConfigError] = ConfigError
) -> dict[str, str]:
  """Splits what follows the question mark of a spec.

  Args:
    query: `option=value`, joined by `&`; or nothing.
    what: the spec, for messages.
    error: what is raised.

  Raises:
    ConfigError: an option without a value, or one that is there twice.
  """
  options: dict[str, str] = {}
  for item in filter(None, query.split("&")):
    name, _, value = item.partition("=")
    if not value or name in options:
      raise error(f"{what}: {item!r} must be option=value, each option once.")
    options[name] = value
  return options
