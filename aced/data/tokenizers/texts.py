"""What is done to a text before it is cut into pieces."""

import string
from typing import Literal

# Whether letters are turned to lower case: none; all; A to Z alone, as
# `tf.strings.lower` does, and with it big_vision.
Lower = Literal["0", "1", "ascii"]

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def prepare(text: str, lower: Lower, canonical: bool) -> str:
  """Returns a text as a tokenizer with these options reads it.

  Args:
    text: any.
    lower: see `Lower`.
    canonical: whether "_" becomes a space, the other 31 punctuation marks of
      ASCII go, all letters become lower case, white space becomes single
      spaces, and there is none at the ends: what big_vision's zero-shot
      evaluator does to prompts. (Transformers' SiglipTokenizer does the same,
      but for "_", which it takes out.)
  """
  if canonical:
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())
  if lower == "ascii":
    return text.translate(_ASCII_LOWER)
  return text.lower() if lower == "1" else text


def prefix(lower: Lower, canonical: bool) -> list[str]:
  """The words that tell the `content` of tokenizers with options apart."""
  words = {"0": [], "1": ["lower"], "ascii": ["lower=ascii"]}[lower]
  return ["canonical"] if canonical else words
