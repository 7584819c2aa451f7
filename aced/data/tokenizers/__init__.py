"""Captions to token ids: bytes, or pieces of a model, chosen by a short text.

`load_tokenizer` takes `kind:path?option=value&option=value`; `KINDS` holds the
kinds, and the keyword arguments of each are its options.

`python -m aced.data.tokenizers train SOURCE --output X.model` makes a model.
"""

from aced.data.tokenizers.base import Tokenizer
from aced.data.tokenizers.loading import KINDS, load_tokenizer
from aced.data.tokenizers.training import train_sentencepiece

load = load_tokenizer

__all__ = [
  "KINDS",
  "Tokenizer",
  "load",
  "load_tokenizer",
  "train_sentencepiece",
]
