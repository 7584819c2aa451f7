"""Commands for data sets: `python -m aced.data check` and `convert`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from aced.config import ConfigError
from aced.data.transforms import own_process

# Name -> what it does. Its module `command` has `add_arguments(parser)` and
# `run(options)`, and is imported when it is asked for: it takes a second.
COMMANDS = {
  "check": "say whether a source is fit to train on, and what a run needs",
  "convert": "write a source anew in a format that reads fast",
}


def main(argv: Sequence[str] | None = None) -> int:
  """The command line.

  Returns:
    The exit status: what the command says, 2 where what it was given is wrong,
    or 130 where it was interrupted.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  parser = argparse.ArgumentParser(prog="python -m aced.data")
  commands = parser.add_subparsers(dest="command", required=True)
  for name, text in COMMANDS.items():
    command = commands.add_parser(name, help=text)
    if name in argv[:1]:
      module = importlib.import_module(f"{__package__}.{name}.command")
      command.description = module.__doc__
      command.formatter_class = argparse.RawDescriptionHelpFormatter
      module.add_arguments(command)
  options = parser.parse_args(argv)
  module = importlib.import_module(f"{__package__}.{options.command}.command")
  try:
    return module.run(options)
  except ConfigError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130  # As a shell has it.


if __name__ == "__main__":
  own_process()
  sys.exit(main())
