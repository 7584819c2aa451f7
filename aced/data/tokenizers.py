"""Captions to token ids: bytes, or pieces of a sentencepiece model.

python -m aced.data.tokenizers train SOURCE --output X.model --vocab_size N
"""

import argparse
import functools
import io
import os
import pathlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from aced.config import ConfigError, did_you_mean
from aced.data.records import BadRecord, captions
from aced.data.sources import open_source

KINDS = ("bytes", "sentencepiece")


class Tokenizer(ABC):
  """Maps texts to `(n, length)` int32 ids, always ended and padded.

  Attributes:
    spec: what `load_tokenizer` takes to make this tokenizer.
    length: ids of a text.
    vocab_size: ids lie in `[0, vocab_size)`.
    pad: the id that fills up short texts.
    eos: the id that ends every text; one that is too long is cut before it.
  """

  spec: str
  length: int
  vocab_size: int
  pad: int
  eos: int

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the ids of `n` texts, `(n, length)` int32."""
    ids = np.full((len(texts), self.length), self.pad, np.int32)
    for row, tokens in zip(ids, self._encode(texts), strict=True):
      tokens = self._cut(tokens)
      row[: len(tokens)] = tokens
      row[len(tokens)] = self.eos
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of one row of ids, up to where it ends."""
    ids = [int(i) for i in ids]
    return self._decode(ids[: ids.index(self.eos)] if self.eos in ids else ids)

  def __repr__(self):
    return (
      f"{type(self).__name__}({self.spec!r}, length={self.length},"
      f" vocab_size={self.vocab_size})"
    )

  def _cut(self, tokens):
    return tokens[: self.length - 1]

  @property
  @abstractmethod
  def content(self) -> bytes:
    """What the ids hang on, beside the length."""

  @abstractmethod
  def _encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
    """The ids of each text, without end or padding."""

  @abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """The text of ids without end or padding."""


class Bytes(Tokenizer):
  """UTF-8 bytes: pad is 0, end is 1, byte `k` is `k + 2`.

  A text that is too long is cut before the last character that does not fit,
  never inside one.
  """

  vocab_size, pad, eos = 258, 0, 1

  def __init__(self, length: int):
    self.spec, self.length = "bytes", length

  @property
  def content(self):
    """The name of the code: bytes have no model."""
    return b"bytes"

  def _encode(self, texts):
    return [_utf8(text) for text in texts]

  def _cut(self, tokens):
    if len(tokens) >= self.length:
      # Bytes of a character that was cut in two decode to nothing.
      text = tokens[: self.length - 1].decode("utf-8", "ignore")
      tokens = text.encode("utf-8")
    return np.frombuffer(tokens, np.uint8).astype(np.int32) + 2

  def _decode(self, ids):
    return bytes(i - 2 for i in ids if i >= 2).decode("utf-8", "replace")


class SentencePiece(Tokenizer):
  """Pieces of a sentencepiece model, as SigLIP uses them.

  The end is kept when a text is cut, and fills up short texts too (big_vision's
  `eos="sticky", pad_value=1`): the last id, which the text tower pools, is the
  end whatever the length of the text.

  Args:
    path: the model file.
    length: ids of a text.
    lower: whether texts are turned to lower case first.

  Raises:
    ConfigError: no such file, one that is no model, or a model without an end.
  """

  def __init__(self, path: str | os.PathLike, length: int, lower: bool = False):
    self.spec = f"sentencepiece:{path}{'?lower=1' if lower else ''}"
    self.length, self.lower = length, lower
    try:
      self._model = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
      raise ConfigError(
        f"tokenizer {self.spec!r}: cannot read {path}: {error.strerror}; train"
        " one with `python -m aced.data.tokenizers train`."
      ) from error
    try:
      self.vocab_size = self._processor.get_piece_size()
    except RuntimeError as error:
      raise ConfigError(
        f"tokenizer {self.spec!r}: {path} is not a sentencepiece model: {error}"
      ) from error
    self.eos = self.pad = self._processor.eos_id()
    if self.eos < 0:
      raise ConfigError(
        f"tokenizer {self.spec!r}: the model has no id that ends a text; train"
        " it with one (eos_id)."
      )

  @property
  def content(self):
    """The model, and whether case counts."""
    return (b"lower " if self.lower else b"") + self._model

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "_processor"}

  @functools.cached_property
  def _processor(self):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=self._model)

  def _encode(self, texts):
    texts = [_utf8(text).decode("utf-8") for text in texts]
    return self._processor.encode(
      [t.lower() if self.lower else t for t in texts]
    )

  def _decode(self, ids):
    return self._processor.decode(ids)


def load_tokenizer(spec: str, length: int) -> Tokenizer:
  """Loads a tokenizer.

  Args:
    spec: "bytes", or "sentencepiece:path/to.model", with "?lower=1" after the
      path for texts in lower case.
    length: ids of a text, 2 or above.

  Raises:
    ConfigError: an unknown tokenizer or option, or a model that cannot be read.
  """
  if length < 2:
    raise ConfigError(
      f"text_length={length} must be 2 or above: one id is that of the end."
    )
  kind, _, rest = spec.partition(":")
  if spec == "bytes":
    return Bytes(length)
  path, _, option = rest.partition("?")
  if kind != "sentencepiece" or not path:
    raise ConfigError(
      f"tokenizer {spec!r} is not known; expected 'bytes' or"
      f" 'sentencepiece:path/to.model'.{did_you_mean(kind, KINDS)}"
    )
  if option not in ("", "lower=0", "lower=1"):
    raise ConfigError(
      f"tokenizer {spec!r}: {option!r} is not an option; it is lower=1."
    )
  return SentencePiece(path, length, lower=option == "lower=1")


load = load_tokenizer


def train_sentencepiece(
  captions: Iterable[str],
  path: str | os.PathLike,
  vocab_size: int,
  model_type: str = "unigram",
) -> None:
  """Trains a sentencepiece model: pad 0, end 1, unknown 2.

  Args:
    captions: at least one text.
    path: where the model is written, whole or not at all.
    vocab_size: the most pieces of the model; it has fewer where the captions
      do not give as many. The tokenizer says how many there are.
    model_type: "unigram", or "bpe", which makes whole words of the few that a
      small set of captions has.

  Raises:
    ConfigError: there are no captions, or fewer pieces than they have
      characters.
  """
  import sentencepiece

  model, path = io.BytesIO(), pathlib.Path(path)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(captions),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      character_coverage=1.0 if vocab_size < 1000 else 0.9995,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      hard_vocab_limit=False,
      num_threads=4,  # Fixed: pieces may depend on it.
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ConfigError(
      f"vocab_size={vocab_size} does not fit these captions: {error}"
    ) from error
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  partial.write_bytes(model.getvalue())
  partial.replace(path)


def texts_of(spec: str) -> Iterable[str]:
  """Yields every usable caption of a source, as `open_source` takes it."""
  source = open_source(spec)
  for index in range(len(source)):
    try:
      yield from captions(source.fields(index))
    except BadRecord:
      # Without a caption there is nothing to learn words from.
      continue


def _utf8(text: str) -> bytes:
  """UTF-8; half of a surrogate pair, which JSON can hold, becomes "?"."""
  return text.encode("utf-8", "replace")


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m aced.data.tokenizers")
  commands = parser.add_subparsers(dest="command", required=True)
  train = commands.add_parser("train", help="train a sentencepiece model")
  train.add_argument("source", help="such as jsonl:pairs/train.jsonl")
  train.add_argument("--output", required=True, help="the model to write")
  train.add_argument("--vocab_size", type=int, default=32_000)
  options = parser.parse_args(argv)
  try:
    train_sentencepiece(
      texts_of(options.source), options.output, options.vocab_size
    )
  except ConfigError as error:
    sys.exit(f"{type(error).__name__}: {error}")
  print(f"--config.input.tokenizer=sentencepiece:{options.output}")


if __name__ == "__main__":
  main()
