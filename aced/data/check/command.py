"""Says whether a data set is fit to train on, and what training would need.

    python -m aced.data check jsonl:my/train.jsonl --output sheet.html

It looks at up to 10,000 records, evenly spread over the source, and prints what
cannot be read and why, sizes, lengths of captions, duplicates, and how fast
this machine reads. The exit status is 0 where the source is fit, 1 where it is
not, and 2 where it cannot be opened.
"""

import argparse
import dataclasses
import json
import os
import pathlib

from aced.config import ConfigError
from aced.data.check.facts import long_tokenizer
from aced.data.check.findings import Report, findings
from aced.data.check.needs import Settings, rate_of
from aced.data.check.survey import cores, measure, spread, survey
from aced.data.check.text import text
from aced.data.records import Source
from aced.data.sources import open_source
from aced.data.tokenizers import load_tokenizer
from aced.data.transforms import Transform
from aced.files import whole

# Records that the rate is measured on.
TIMED = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  run = Settings()
  add = parser.add_argument
  add("source", help="such as jsonl:pairs/train.jsonl")
  add(
    "--records",
    type=_count,
    default=10_000,
    help="at most so many are read, evenly spread; 0 is all (%(default)s)",
  )
  add(
    "--workers",
    type=_count,
    default=cores(),
    help="processes that read; 0 is this one (%(default)s)",
  )
  add("--output", help="write a sheet of samples to this HTML file")
  add("--json", help="write the report to this JSON file")
  add(
    "--max_bad",
    type=float,
    default=run.max_bad,
    help="largest share of unusable records that is still fit (%(default)s)",
  )
  settings = parser.add_argument_group("settings of the run")
  for name, kind, about in (
    ("tokenizer", str, "such as bytes or sentencepiece:path/to.model"),
    ("text_length", int, "tokens of a caption"),
    ("image_size", int, "pixels along a side"),
    ("batch_size", _count, "pairs trained on in each step"),
    ("filter_ratio", float, "share of each super-batch that is discarded"),
    ("train_examples", _count, "pairs trained on in all"),
    ("step_seconds", float, "how long a step takes, where that is known"),
  ):
    default = getattr(run, name)
    note = "" if default is None else " (%(default)s)"
    settings.add_argument(
      f"--{name}", type=kind, default=default, help=about + note
    )


def run(options: argparse.Namespace) -> int:
  """Runs the command.

  Returns:
    The exit status: 0 where the source is fit to train on, 1 where it is not.

  Raises:
    ConfigError: an option is wrong, or the source cannot be opened.
  """
  fields = dataclasses.fields(Settings)
  settings = Settings(**{f.name: getattr(options, f.name) for f in fields})
  files = {
    name: _writable(name, getattr(options, name))
    for name in ("output", "json")
    if getattr(options, name)
  }
  source = open_source(options.source)
  report = check(source, settings, options.records, options.workers)
  print(text(report))
  if "json" in files:
    content = dataclasses.asdict(report) | {"fit": report.fit}
    write(files["json"], json.dumps(content, indent=2) + "\n")
  if "output" in files:
    # Only here: a check without a sheet has no use for it.
    from aced.data.check import sheet

    write(files["output"], sheet.sheet(source, report, text(report)))
    print(f"  the sheet is {files['output']}")
  return 0 if report.fit else 1


def check(
  source: Source, settings: Settings, records: int = 0, workers: int = 0
) -> Report:
  """Looks at a source.

  Args:
    source: of records.
    settings: of the run that is meant.
    records: at most so many are read, evenly spread; 0 is all of them.
    workers: processes that read; 0 and 1 are this one.

  Raises:
    ConfigError: settings that are wrong.
  """
  # Refused now and not after the pass.
  transform, _ = Transform(settings.image_size), settings.super_batch
  tokenizer = load_tokenizer(settings.tokenizer, settings.text_length)
  facts = survey(
    source,
    long_tokenizer(settings.tokenizer, settings.text_length),
    spread(len(source), records),
    workers,
  )
  usable = facts.pictures["index"]
  rate = None
  if len(usable):
    timed = usable[spread(len(usable), TIMED)]
    rate = rate_of(measure(source, tokenizer, transform, timed), cores())
  return findings(source, facts, settings, rate)


def write(path: pathlib.Path, content: str) -> None:
  """Writes a file whole or not at all."""
  with whole(path) as part:
    # Captions can hold half of a surrogate pair, which is no character.
    part.write_text(content, encoding="utf-8", errors="replace")


def _count(word: str) -> int:
  """A number that may be written as 5e6."""
  value = float(word)
  if not value.is_integer() or value < 0:
    raise argparse.ArgumentTypeError(f"{word} is not a whole number from 0 on")
  return int(value)


def _writable(name, where) -> pathlib.Path:
  """Refuses, before the pass, a file that could not be written after it."""
  path = pathlib.Path(where).expanduser().absolute()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(
      f"--{name}={where}: its folder cannot be made: {error.strerror}; name a"
      " file that can be written."
    ) from error
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise ConfigError(
      f"--{name}={where} is a folder, or lies in one that cannot be written;"
      " name a file."
    )
  return path
