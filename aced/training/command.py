"""Commands: flags are read, processes join, and errors end in a line.

Exit codes, which launchers go by: 0 is done; 75, stopped and saved, or another
host was lost: the same command goes on; 130, interrupted from the keyboard;
1 and 2, wrong input or a run that diverged: another try would not help.
"""

import logging as python_logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from aced.config import ConfigError
from aced.data import transforms
from aced.training import distributed, keys, platforms
from aced.training.preemption import (
  EXIT_INTERRUPTED,
  Preempted,
)
from aced.training.rollcall.call import RollCall
from aced.training.watch import Diverged

# What is wrong with the input, or with what it leads to; all say what to do.
ERRORS = (
  ValueError,
  OSError,
  ModuleNotFoundError,
  Diverged,
  jax.errors.JaxRuntimeError,
)


class Refused(Exception):
  """A config, or a key of it, that ends the command; its cause says why.

  It is no ValueError, which absl would take for a flag that cannot be read.
  """


class _ConfigParser(ConfigFileFlagParser):
  """Reads a config file, and makes room for the keys that are set by flags."""

  def parse(self, path):
    """Returns the config, complete."""
    file = path.split(":")[0]
    try:
      if not os.path.isfile(file):
        raise FileNotFoundError(f"--config={path}: there is no file {file!r}.")
      arguments = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
      return keys.complete(self._read(path), keys.named(arguments))
    except (ConfigError, FileNotFoundError) as error:
      raise Refused from error

  def _read(self, path):
    try:
      return super().parse(path)
    except ValueError as error:
      # What the file raises is there with its trace for a message.
      if isinstance(error.__context__, ConfigError):
        raise error.__context__ from None
      raise


class _OrNone(flags.ArgumentParser):
  """As another parser, with "None" for a key that is not to be set."""

  def __init__(self, parser):
    self._parser, self.syntactic_help = parser, parser.syntactic_help

  def parse(self, argument):
    """Returns the value."""
    return None if argument == "None" else self._parser.parse(argument)

  def flag_type(self):
    """The name of the type, for --help."""
    return self._parser.flag_type()


def define_flags(
  *, config: bool = True, ours: bool = False, together: bool = False
) -> None:
  """Defines `--traceback`, which every command has, and what most have.

  Args:
    config: whether it reads a config; defines `--config`.
    ours: whether that is a config of `aced.config`, any key of which can be set
      by a flag; another has the flags of the keys that it holds.
    together: whether several processes may run it as one; defines the flags
      that tell them of each other.
  """
  flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
  if config:
    config_flags.DEFINE_config_file(
      "config", None, "Config file, with words joined by commas after a colon."
    )
    flags.mark_flag_as_required("config")
    if ours:
      flags.FLAGS["config"].parser = _ConfigParser("config")
      for kind, parser in (
        (int, flags.IntegerParser()),
        (float, flags.FloatParser()),
      ):
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))
  if together:
    flags.DEFINE_string(
      "coordinator", None, "HOST:PORT where the first of several is to listen."
    )
    flags.DEFINE_integer("num_processes", None, "How many there are.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_integer(
      "heartbeat_seconds",
      distributed.HEARTBEAT_SECONDS,
      "Seconds of silence after which a process is taken for dead.",
    )


def run(function: Callable[[], None]) -> None:
  """Runs a command, which reads its flags from `flags.FLAGS`."""

  def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"arguments {argv[1:]} are not known; see --help.")
    # The libraries below tell every detail of what they do at INFO.
    logging.set_verbosity(logging.WARNING)
    _quieten()
    try:
      _join()
      platforms.check()
      if jax.process_count() == 1:
        function()
        return
      with roll_call():
        function()
        jax.distributed.shutdown()  # Waits for the others.
    except BaseException as error:
      _end(error)

  app.run(main, flags_parser=_parse)


def exit_code(error: BaseException) -> int:
  """The exit code of a process that an exception ends."""
  if isinstance(error, Preempted):
    return error.code
  if isinstance(error, KeyboardInterrupt):
    return EXIT_INTERRUPTED
  return 1


def roll_call() -> RollCall:
  """Names the process that was lost, where one of several is."""
  process = jax.process_index()
  return _Ending(
    process,
    jax.process_count(),
    publish=lambda text: distributed.put("roll_call", text),
    lookup=lambda: distributed.get("roll_call", 60),
    address=distributed.coordinator_host(),
    code_for=exit_code,
  )


class _Ending(RollCall):
  """Roll call around a command."""

  def __exit__(self, kind, error, trace):
    if isinstance(error, Preempted):
      # All have saved and end; the first must not do so before the others.
      jax.distributed.shutdown()
      self.leave(0)
      return
    super().__exit__(kind, error, trace)


def _quieten() -> None:
  """Leaves out what libraries tell of, and we tell better or need not.

  Of a checkpoint that could not be saved, Orbax would tell in some hundred
  tracebacks, one for each array.
  """
  python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
  logging.get_absl_handler().addFilter(
    lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
  )
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
  transforms.own_process()


def _join() -> None:
  """Makes one of several processes of this one, where it is told to be."""
  values = flags.FLAGS
  if "coordinator" not in values:
    return
  given = {
    "coordinator_address": values.coordinator,
    "num_processes": values.num_processes,
    "process_id": values.process_id,
  }
  cluster = distributed.detect(os.environ, given)
  distributed.initialize(cluster, values.heartbeat_seconds)


def _end(error: BaseException) -> None:
  """Ends the process with a line on the error and the code for it."""
  if isinstance(error, SystemExit):
    raise error
  code, told = exit_code(error), None
  if isinstance(error, Preempted):
    told = str(error)
  elif isinstance(error, KeyboardInterrupt):
    told = "\ninterrupted; the same command goes on."
  elif isinstance(error, ERRORS):
    told = f"{type(error).__name__}: {error}\n(--traceback shows where.)"
  if told is None or (
    flags.FLAGS.traceback and not isinstance(error, Preempted)
  ):
    if distributed.alone():
      raise error
    logging.exception("this process ends")
  elif not isinstance(error, Preempted) or jax.process_index() == 0:
    print(told, file=sys.stderr)
  if distributed.alone():
    sys.exit(code)
  # The interpreter would wait for processes that do not end as it does.
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _parse(argv):
  """As absl does; a key that a config has not is told in a line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (Refused, AttributeError, KeyError, TypeError, ValueError) as error:
    error = error.__cause__ if isinstance(error, Refused) else error
    if any(word.startswith("--traceback") for word in argv):
      raise error
    # ml_collections hands on the representation of another error.
    text = str(error).replace("\\n", " ").replace("\\'", "'").strip("\"'")
    sys.exit(f"{type(error).__name__}: {text}\n(--traceback shows where.)")
