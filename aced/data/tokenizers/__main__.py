"""Trains a sentencepiece model on the texts of a source.

python -m aced.data.tokenizers train SOURCE --output X.model --vocab_size N
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

from aced.config import ConfigError
from aced.data.prompts import count_unread, questions_of
from aced.data.records import BadRecord, captions
from aced.data.sources import open_source
from aced.data.tokenizers.training import train_sentencepiece


class Texts(Iterable[str]):
  """Every usable caption of a source, and what is asked and answered.

  Attributes:
    source: that is read.
    passed: what no text was taken from -> how often, and where first.
  """

  def __init__(self, spec: str):
    self.source = open_source(spec)
    self.passed: dict[str, tuple[int, str]] = {}

  def __iter__(self) -> Iterator[str]:
    self.passed = {}
    for index in range(len(self.source)):
      record = self.source.fields(index)
      asked, unread = questions_of(record), count_unread(record)
      try:
        yield from captions(record)
      except BadRecord as error:
        # Without a caption there may still be a question to learn words from.
        if not asked:
          self._pass("records without a caption that is text", 1, index, error)
      for question, answers in asked:
        yield question
        yield from answers
      if unread:
        form = f"{record.get('questions', record.get('question'))!r:.80}"
        what = "questions without an answer, or of an unknown form"
        self._pass(what, unread, index, form)

  def report(self) -> list[str]:
    """Lines that say what no text was taken from."""
    told = [
      f"passed over: {count:,} {what}; the first: {first}"
      for what, (count, first) in self.passed.items()
    ]
    return [*told, *(f"damaged: {line}" for line in self.source.damage())]

  def _pass(self, what, count, index, why):
    first = f"{self.source.where(index)}: {why}"
    before, first = self.passed.get(what, (0, first))
    self.passed[what] = before + count, first


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
  try:
    pathlib.Path(options.output).expanduser().parent.mkdir(
      parents=True, exist_ok=True
    )
  except OSError as error:
    raise ConfigError(
      f"--output={options.output}: its folder cannot be made: {error}."
    ) from error
  texts = Texts(options.source)
  try:
    pieces = train_sentencepiece(texts, options.output, options.vocab_size)
  finally:
    for line in texts.report():
      print(line, file=sys.stderr)
  fewer = ", which is all that these captions give"
  note = fewer if pieces < options.vocab_size else ""
  print(f"{pieces:,} pieces{note}", file=sys.stderr)


if __name__ == "__main__":
  main()
