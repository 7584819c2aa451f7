"""Training a sentencepiece model on captions, none of them left out."""

import dataclasses
import io
import os
import pathlib
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator

from absl import logging

from aced.config import ConfigError
from aced.data.tokenizers.base import utf8
from aced.files import whole

# Lines with more bytes are dropped by sentencepiece, and so are those with the
# character that it marks unknown ones by. It warns of the first alone, on a log
# that is otherwise of no use.
LONGEST = 4_192
RESERVED = "\u2585"
_MOST_BYTES = 4  # Of a character.
_MOST_PIECES = 2**31 - 1
# Of what sentencepiece says when no line is left.
_NOTHING = ("sentences_.empty()", "all_chars_count")
_SHOWN = 10


def train_sentencepiece(
  captions: Iterable[str],
  path: str | os.PathLike,
  vocab_size: int,
  model_type: str = "unigram",
) -> int:
  """Trains a sentencepiece model: pad 0, end 1, unknown 2.

  All of every caption is learnt from. One that is longer than a line of
  sentencepiece may be is divided at white space, which no piece spans, and a
  word of more than 1,048 characters where it reaches that. From 1,000 pieces
  on, the rarest characters, one in 2,000, get no piece; a warning names them.

  Args:
    captions: at least one text.
    path: where the model is written, whole or not at all.
    vocab_size: the most pieces of the model; it has fewer where the captions
      do not give as many.
    model_type: "unigram", or "bpe", which makes whole words of the few that a
      small set of captions has.

  Returns:
    How many pieces the model has.

  Raises:
    ConfigError: there are no captions, one is no text, or there are fewer
      pieces than characters.
  """
  import sentencepiece

  if isinstance(captions, str | bytes):
    raise ConfigError(
      f"captions={captions!r:.60} is one text, and each letter of it would be"
      " a caption; give a list of texts."
    )
  if not 0 < vocab_size <= _MOST_PIECES:
    raise ConfigError(
      f"vocab_size={vocab_size} must lie in 1 to {_MOST_PIECES:,}."
    )
  model, lines = io.BytesIO(), _Lines(captions)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      character_coverage=1.0 if vocab_size < 1000 else 0.9995,
      max_sentence_length=LONGEST,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      hard_vocab_limit=False,
      num_threads=4,  # Fixed: pieces may depend on it.
      minloglevel=2,
    )
  except RuntimeError as error:
    raise (lines.error or _explain(error, vocab_size, lines)) from error
  with whole(pathlib.Path(path)) as part:
    part.write_bytes(model.getvalue())
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  _tell(processor, lines)
  return processor.get_piece_size()


@dataclasses.dataclass
class _Lines:
  """Captions as lines that sentencepiece takes.

  Attributes:
    captions: the texts.
    count: of those that were read and hold more than blanks.
    reserved: of those that had `RESERVED` in them.
    letters: the characters of all.
    error: what ended the captions, which sentencepiece hides.
  """

  captions: Iterable[str]
  count: int = 0
  reserved: int = 0
  letters: set[str] = dataclasses.field(default_factory=set)
  error: Exception | None = None

  def __iter__(self) -> Iterator[str]:
    try:
      for caption in self.captions:
        yield from self._divide(caption)
    except Exception as error:
      self.error = error
      raise

  def _divide(self, text):
    if not isinstance(text, str):
      raise ConfigError(
        f"captions holds {text!r:.60} of type {type(text).__name__}, not a"
        " text."
      )
    data = utf8(text)
    text = data.decode("utf-8")  # Halves of surrogate pairs are "?" by now.
    self.count += bool(text.strip())
    if RESERVED in text:
      self.reserved += 1
      text = text.replace(RESERVED, " ")
    self.letters.update(text)
    if len(data) <= LONGEST:
      return [text]
    width = LONGEST // _MOST_BYTES
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _explain(error, vocab_size, lines):
  """What sentencepiece refuses, in words."""
  if any(sign in str(error) for sign in _NOTHING):
    return ConfigError(
      "there is no caption to learn pieces from"
      f" ({lines.count} texts that are not empty); look at the first records of"
      " the source, and name the field of the caption, such as ?text=NAME."
    )
  problem = str(error)
  if found := re.search(r"\d+ vs (\d+)", problem):
    problem = (
      f"every character and special id takes one piece; set it to {found[1]}"
      " or above"
    )
  return ConfigError(
    f"vocab_size={vocab_size} does not fit these captions: {problem}."
  )


def _tell(processor, lines):
  """Warns of characters that no piece stands for."""
  if lines.reserved:
    logging.warning(
      "%d captions have %r (U+%04X), which sentencepiece keeps for itself; they"
      " were learnt from with a space in its place.",
      lines.reserved,
      RESERVED,
      ord(RESERVED),
    )
  unknown = sorted(
    letter
    for letter in lines.letters - {RESERVED}
    # A mark on a letter becomes one character with it.
    if not unicodedata.combining(letter)
    and processor.unk_id() in processor.encode(letter)
  )
  if unknown:
    logging.warning(
      "%d of %d characters are too rare for a piece, and become %r: %s%s",
      len(unknown),
      len(lines.letters),
      processor.id_to_piece(processor.unk_id()),
      " ".join(unknown[:_SHOWN]),
      " ..." if len(unknown) > _SHOWN else "",
    )
