"""Trains a sentencepiece model on the texts of a source.

python -m aced.data.tokenizers train SOURCE --output X.model --vocab_size N
"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterable, Sequence

from aced.config import ConfigError
from aced.data.records import BadRecord, captions
from aced.data.sources import open_source
from aced.data.tokenizers.sentencepieces import train_sentencepiece


def texts_of(spec: str) -> Iterable[str]:
  """Yields every usable caption of a source, and what is asked and answered.

  Args:
    spec: as `open_source` takes it.
  """
  source = open_source(spec)
  for index in range(len(source)):
    record = source.fields(index)
    # Without a caption there may still be a question to learn words from.
    with contextlib.suppress(BadRecord):
      yield from captions(record)
    for pair in record.get("questions") or ():
      yield str(pair["question"])
      yield from map(str, pair["answers"])


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m aced.data.tokenizers")
  commands = parser.add_subparsers(dest="command", required=True)
  train = commands.add_parser("train", help="train a sentencepiece model")
  train.add_argument("source", help="such as jsonl:pairs/train.jsonl")
  train.add_argument("--output", required=True, help="the model to write")
  train.add_argument("--vocab_size", type=int, default=32_000)
  train.add_argument(
    "--overwrite", action="store_true", help="replace the model if it is there"
  )
  options = parser.parse_args(argv)
  try:
    _train(options)
  except ConfigError as error:
    sys.exit(f"{type(error).__name__}: {error}")
  print(f"--config.input.tokenizer=sentencepiece:{options.output}")


def _train(options):
  if pathlib.Path(options.output).exists() and not options.overwrite:
    raise ConfigError(
      f"--output={options.output} is there already; runs may need it. Choose"
      " another path, or add --overwrite to replace it."
    )
  pieces = train_sentencepiece(
    texts_of(options.source), options.output, options.vocab_size
  )
  fewer = ", which is all that these captions give"
  note = fewer if pieces < options.vocab_size else ""
  print(f"{pieces:,} pieces{note}", file=sys.stderr)


if __name__ == "__main__":
  main()
