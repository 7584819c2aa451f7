"""Commands: flags are read, and wrong input ends in a line, not in a trace."""

import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from aced.training.watch import Diverged

# What is wrong with the input, or with what it leads to; all say what to do.
ERRORS = (
  ValueError,
  OSError,
  ModuleNotFoundError,
  Diverged,
  jax.errors.JaxRuntimeError,
)


def define_flags() -> None:
  """Defines `--config` and `--traceback`, which every command has."""
  config_flags.DEFINE_config_file(
    "config", None, "Config file, with words joined by commas after a colon."
  )
  flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
  flags.mark_flag_as_required("config")


def run(function: Callable[[], None]) -> None:
  """Runs a command, which reads its flags from `flags.FLAGS`."""

  def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"arguments {argv[1:]} are not known; see --help.")
    # The libraries below tell every detail of what they do at INFO.
    logging.set_verbosity(logging.WARNING)
    try:
      function()
    except KeyboardInterrupt:
      if flags.FLAGS.traceback:
        raise
      print("\ninterrupted; the same command goes on.", file=sys.stderr)
      sys.exit(130)  # As a shell has it.
    except ERRORS as error:
      if flags.FLAGS.traceback:
        raise
      sys.exit(f"{type(error).__name__}: {error}\n(--traceback shows where.)")

  app.run(main, flags_parser=_parse)


def _parse(argv):
  """As absl does; a key that a config has not is told in a line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    if any(word.startswith("--traceback") for word in argv):
      raise
    # ml_collections hands on the representation of another error.
    text = str(error).replace("\\n", " ").replace("\\'", "'").strip("\"'")
    sys.exit(f"{type(error).__name__}: {text}\n(--traceback shows where.)")
