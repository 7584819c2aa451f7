"""`tfds build` of `aced_pairs`, without TensorFlow; see `builder`."""

import dataclasses
import json
import sys

from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils

from aced.config import ConfigError, did_you_mean
from aced.data.tfds_builder import AcedPairs, builder

_KEYS = [field.name for field in dataclasses.fields(builder.PairsConfig)]
_parse = cli_utils.make_flags_parser(build.Args, description=builder.__doc__)


def main(args: build.Args) -> None:
  """Runs the command."""
  generation = args.generation
  try:
    if args.positional_datasets or args.datasets:
      raise builder.BuildError(
        f"{[*args.positional_datasets, *args.datasets]}: only {AcedPairs.name}"
        " is built here; say of what with --config, and leave this out."
      )
    check_config(generation.config or "")
    if generation.beam_pipeline_options:
      builder.check_beam()
    args = dataclasses.replace(
      args,
      positional_datasets=[AcedPairs.name],
      generation=dataclasses.replace(
        generation,
        # The builder is registered, and not to be looked for in files.
        imports=builder.__package__,
        file_format=generation.file_format or "array_record",
      ),
    )
    args.execute()
  except ConfigError as error:
    sys.exit(f"{type(error).__name__}: {error}")


def check_config(text: str) -> None:
  """Refuses a config that is not one, by what is wrong with it.

  Args:
    text: JSON, or the name of a config that the builder has.

  Raises:
    BuildError: naming what is wrong.
  """
  if not text:
    raise builder.BuildError(
      '--config=\'{"name": "mine", "source": "jsonl:pairs/train.jsonl"}\' says'
      " what is built; give it."
    )
  if not text.startswith("{"):
    return
  try:
    config = json.loads(text)
  except ValueError as error:
    raise builder.BuildError(f"--config={text} is no JSON: {error}") from error
  for key in config:
    if key not in _KEYS:
      raise builder.BuildError(
        f"--config: {key!r} is not known; the keys are {', '.join(_KEYS)}."
        f"{did_you_mean(key, _KEYS)}"
      )
  if "name" not in config:
    raise builder.BuildError(f"--config={text} has no name; add one.")


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)
