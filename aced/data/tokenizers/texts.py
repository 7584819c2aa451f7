"""What is done to a text before it is cut into pieces."""

import html
import string
from typing import Literal

# Whether letters are turned to lower case: none; all; A to Z alone, as
# `tf.strings.lower` does, and with it big_vision.
Lower = Literal["0", "1", "ascii"]
# What open_clip does to texts first; its names.
Clean = Literal["whitespace", "whitespace_underscore", "lower", "canonicalize"]

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def prepare(
  text: str, lower: Lower, canonical: bool, clean: Clean | None = None
) -> str:
  """Returns a text as a tokenizer with these options reads it.

  Args:
    text: any.
    lower: see `Lower`.
    canonical: whether "_" becomes a space, the other 31 punctuation marks of
      ASCII go, all letters become lower case, white space becomes single
      spaces, and there is none at the ends: what big_vision's zero-shot
      evaluator does to prompts. (Transformers' SiglipTokenizer does the same,
      but for "_", which it takes out.)
    clean: what is done before these, see `cleaned`; None is nothing.
  """
  if clean:
    text = cleaned(text, clean)
  if canonical:
    return _canonical(text)
  if lower == "ascii":
    return text.translate(_ASCII_LOWER)
  return text.lower() if lower == "1" else text


def cleaned(text: str, how: Clean) -> str:
  """Returns a text as open_clip's tokenizers read it.

  `ftfy.fix_text` mends it first (wrongly decoded characters, curly quotes,
  ligatures, wide letters), then HTML entities are replaced, twice. In all four
  ways white space becomes single spaces.

  Args:
    text: any.
    how: "whitespace", no more than that; "whitespace_underscore", "_" becomes a
      space too; "lower", all letters become lower case; "canonicalize", the
      text is `canonical`, as of `prepare`.
  """
  # There is nothing to mend in other texts, and looking takes the most time.
  if not (text.isascii() and text.isprintable() and "&" not in text):
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
  if how == "canonicalize":
    return _canonical(text)
  if how == "whitespace_underscore":
    text = text.replace("_", " ")
  text = " ".join(text.split())
  return text.lower() if how == "lower" else text


def prefix(
  lower: Lower, canonical: bool, clean: Clean | None = None
) -> list[str]:
  """The words that tell the `content` of tokenizers with options apart."""
  words = {"0": [], "1": ["lower"], "ascii": ["lower=ascii"]}[lower]
  words = ["canonical"] if canonical else words
  return [f"clean={clean}", *words] if clean else words


def _canonical(text):
  return " ".join(text.translate(_NO_PUNCTUATION).lower().split())
