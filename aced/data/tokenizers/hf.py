"""Tokenizers of Hugging Face, stored as `tokenizer.json`."""

import functools
import os
import pathlib

from aced.config import did_you_mean
from aced.data.tokenizers.base import Tokenizer, write_spec
from aced.data.tokenizers.texts import Clean, Lower, prefix, prepare

# Looked for in this order where no option names one.
ENDS = ("</s>", "<|endoftext|>", "<eos>", "[SEP]")
PADS = ("<pad>", "[PAD]")


class HuggingFace(Tokenizer):
  """A `tokenizer.json`, read by the package `tokenizers`.

  Many files say themselves which tokens are put around a text: BERT's [CLS] and
  [SEP], CLIP's start and end, the end of SigLIP 2's. Such a file is followed:
  its tokens are added, and kept when a text is cut, as in transformers with
  `padding="max_length", truncation=True`. A text of any other file gets an end,
  which is kept when the text is cut; so does one of a file that is told
  `end=`, `bos=` or `special=0`, and then has no other tokens than these.

  Rows are cut and filled up at the right, whatever the file says. A special
  token that is written out in a caption is text: no caption ends itself.

  Args:
    path: the file, or a folder with a `tokenizer.json`.
    length: ids of a row.
    lower: which letters are turned to lower case first: none ("0"), all ("1"),
      or A to Z ("ascii"). The file may have more of that itself.
    canonical: whether punctuation is taken out too, as `texts.prepare` says.
    clean: what open_clip does to a text before all this, see `texts.cleaned`;
      nothing by default.
    special: whether the file's own tokens are put around a text, and nothing
      else. By default, if it has some and neither `bos` nor `end` is given.
    bos: the token that every row starts with; none by default.
    end: the token that ends a text. By default the first of </s>,
      <|endoftext|>, <eos> and [SEP] that the file has.
    pad: the token that fills up short rows. By default the one that the file
      pads with, else <pad> or [PAD], else the end.

  Raises:
    ConfigError: no such file, one that is no tokenizer, a token that it does
      not have, or `tokenizers` is not installed.
  """

  NEEDS = "the file, hf:path/tokenizer.json"

  def __init__(
    self,
    path: str | os.PathLike,
    length: int,
    *,
    lower: Lower = "0",
    canonical: bool = False,
    clean: Clean | None = None,
    special: bool | None = None,
    bos: str | None = None,
    end: str | None = None,
    pad: str | None = None,
  ):
    self.spec = write_spec(
      "hf",
      path,
      lower=None if lower == "0" else lower,
      canonical=canonical or None,
      clean=clean,
      special=special,
      bos=bos,
      end=end,
      pad=pad,
    )
    self.length, self.lower, self.canonical = length, lower, canonical
    self.clean = clean
    if clean:
      self._package("ftfy")
    if special and (bos or end):
      raise self._error(
        "special=1 puts the file's own tokens around a text, bos= and end= put"
        " others; give one or the other."
      )
    file = pathlib.Path(path).expanduser()
    self._path = file / "tokenizer.json" if file.is_dir() else file
    self._file = self._read(
      self._path,
      "it is the tokenizer.json that comes with a model of Hugging Face.",
    )
    self._set_tokens(special, bos, end, pad)

  def _set_tokens(self, special, bos, end, pad):
    """Settles which tokens go around a text, and which fill up rows."""
    file = self._load()
    own = file.num_special_tokens_to_add(is_pair=False)
    self.special = (
      bool(own and not (bos or end)) if special is None else special
    )
    self._own = own if self.special else 0
    # An id may lie above the number of tokens where some are left out.
    self.vocab_size = max(file.get_vocab(True).values()) + 1
    ends = self._id(file, end) if end else _first(file, ENDS)
    if ends is None and not self.special:
      raise self._error(
        f"the file has none of {', '.join(ENDS)}, which end a text; name its"
        " token with end=."
      )
    self.bos = self._id(file, bos) if bos else None
    self.eos = None if self.special else ends
    stated = [file.padding["pad_token"]] if file.padding else []
    self.pad = self._id(file, pad) if pad else _first(file, [*stated, *PADS])
    if self.pad is None:
      self.pad = ends
    if self.pad is None:
      raise self._error(
        f"the file has none of {', '.join(PADS + ENDS)}, which fill up rows;"
        " name its token with pad=."
      )

  def _id(self, file, token):
    found = file.token_to_id(token)
    if found is None:
      known = [str(t.content) for t in file.get_added_tokens_decoder().values()]
      raise self._error(
        f"{token!r} is not a token of the file.{did_you_mean(token, known)}"
      )
    return found

  def count(self, text):
    """Returns how many ids a text has, uncut, without start and end."""
    file = self._load()
    file.no_truncation()
    text = prepare(text, self.lower, self.canonical, self.clean)
    return len(file.encode(text, add_special_tokens=False).ids)

  @property
  def reserved(self):
    """The ids of every row that cannot be the text's."""
    return self._own if self.special else super().reserved

  @property
  def content(self):
    """The file, and what is done beside it."""
    words = ["hf", *prefix(self.lower, self.canonical, self.clean)]
    # Without an end of ours, the file's own tokens are added.
    words += [f"bos={self.bos}", f"eos={self.eos}", f"pad={self.pad}"]
    return " ".join(words).encode() + b" " + self._file

  def _load(self):
    library = self._package("tokenizers")
    try:
      return library.Tokenizer.from_buffer(self._file)
    except ValueError as error:
      raise self._wrong_file(
        self._path,
        "a tokenizer.json that the package tokenizers reads",
        error,
      ) from error

  @functools.cached_property
  def _processor(self):
    file = self._load()
    file.no_padding()
    file.no_truncation()
    if self.special:
      # Only the file knows which tokens must outlast the cut, and where.
      file.enable_truncation(self.length)
    file.encode_special_tokens = True
    return file

  def _encode(self, text):
    # One text a call: `encode_batch` starts threads, and is as fast without.
    text = prepare(text, self.lower, self.canonical, self.clean)
    return self._processor.encode(text, add_special_tokens=self.special).ids

  def _decode(self, ids):
    return self._processor.decode(ids, skip_special_tokens=True)


def _first(file, tokens):
  """The id of the first of some tokens that a file has, or None."""
  ids = map(file.token_to_id, tokens)
  return next((i for i in ids if i is not None), None)
