"""Loads a tokenizer by a short text: `kind:path?option=value&option=value`."""

import functools
import inspect
import numbers
import types
import typing
from typing import Any

from absl import logging

from aced.config import ConfigError, did_you_mean
from aced.data.specs import options_of
from aced.data.tokenizers.base import Bytes, Tokenizer
from aced.data.tokenizers.clip import Clip
from aced.data.tokenizers.hf import HuggingFace
from aced.data.tokenizers.sentencepieces import SentencePiece

# Kind -> its class. The keyword arguments are the options of a kind, and their
# annotations the values.
KINDS: dict[str, type[Tokenizer]] = {
  "bytes": Bytes,
  "clip": Clip,
  "hf": HuggingFace,
  "sentencepiece": SentencePiece,
}
SHORT = "a photo of a dog"  # As short as captions are.


def load_tokenizer(spec: str, length: int) -> Tokenizer:
  """Loads a tokenizer.

  Args:
    spec: one of
      "bytes";
      "sentencepiece:path/to.model", with options such as "?style=siglip2";
      "hf:path/tokenizer.json";
      "clip:path/bpe_simple_vocab_16e6.txt.gz".
      The class of a kind (`KINDS`) says how it pads and truncates, and which
      options it has: `?option=value&option=value` after the path.
    length: ids of a text; 1 or more must be left beside start and end.

  A length that does not hold half of a caption as short as `SHORT` is warned
  of, once: it cuts nearly every caption to next to nothing.

  Raises:
    ConfigError: an unknown kind, option or value, a length that is too short,
      or a model that cannot be read.
  """
  if not isinstance(spec, str) or type(length) is bool:
    raise ConfigError(f"tokenizer {spec!r} must be a text, such as 'bytes'.")
  if not isinstance(length, numbers.Integral):
    raise ConfigError(f"text_length={length!r} must be a whole number.")
  kind, path, options = _parse(spec)
  make = KINDS[kind]
  hints = _options(make)
  for name in options:
    if name not in hints:
      known = f"it is one of {', '.join(hints)}" if hints else "it has none"
      raise ConfigError(
        f"tokenizer {spec!r}: {name!r} is not an option of {kind}; {known}."
        f"{did_you_mean(name, hints)}"
      )
  values = {
    name: _convert(spec, name, text, hints[name])
    for name, text in options.items()
  }
  where = (path,) if make.NEEDS else ()
  tokenizer = make(*where, length, **values)
  if length <= tokenizer.reserved:
    raise ConfigError(
      f"text_length={length} must be {tokenizer.reserved + 1} or above:"
      f" tokenizer {spec!r} gives {tokenizer.reserved} of the ids to the start"
      " or end of a text."
    )
  _warn_if_short(tokenizer)
  return tokenizer


def is_short(tokenizer: Tokenizer) -> bool:
  """Whether rows have no room for half of a caption as short as `SHORT`."""
  room = tokenizer.length - tokenizer.reserved
  # Few texts have more ids than letters.
  return room < len(SHORT) and 2 * room < tokenizer.count(SHORT)


def _warn_if_short(tokenizer):
  if is_short(tokenizer):
    room = tokenizer.length - tokenizer.reserved
    count = tokenizer.count(SHORT)
    _warn_once(
      f"text_length={tokenizer.length} is surely not meant: tokenizer"
      f" {tokenizer.spec!r} keeps {room} of the {count} ids of {SHORT!r}, and"
      " cuts all captions so. `python -m aced.data check` tells how many ids"
      " captions have."
    )


@functools.cache
def _warn_once(message):
  logging.warning("%s", message)


def _parse(spec: str) -> tuple[str, str, dict[str, str]]:
  """Splits a spec into its kind, path and options."""
  head, _, query = spec.partition("?")
  kind, _, path = head.partition(":")
  if kind not in KINDS:
    raise ConfigError(
      f"tokenizer {spec!r}: {kind!r} is not known; expected"
      f" kind:path?option=value, kind one of {', '.join(KINDS)}."
      f"{did_you_mean(kind, KINDS)}"
    )
  needs = KINDS[kind].NEEDS
  if needs and not path:
    raise ConfigError(f"tokenizer {spec!r}: {kind} needs {needs}")
  if path and not needs:
    raise ConfigError(
      f"tokenizer {spec!r}: {kind} has no path; write {kind!r} alone."
    )
  return kind, path, options_of(query, f"tokenizer {spec!r}")


def _options(make: type[Tokenizer]) -> dict[str, Any]:
  """The options of a kind and what their values are, None left out."""
  hints = typing.get_type_hints(make.__init__)
  options = {}
  for parameter in inspect.signature(make).parameters.values():
    if parameter.kind is parameter.KEYWORD_ONLY:
      hint = hints[parameter.name]
      if isinstance(hint, types.UnionType) or (
        typing.get_origin(hint) is typing.Union
      ):
        (hint,) = (t for t in typing.get_args(hint) if t is not types.NoneType)
      options[parameter.name] = hint
  return options


def _convert(spec, name, text, hint):
  """The value that a text of an option stands for."""
  if hint is str:
    return text
  if hint is int:
    if text.isascii() and text.isdigit():
      return int(text)
    expected = "a whole number, 0 or above"
  else:
    choices = {"0": False, "1": True}
    if hint is not bool:
      choices = {value: value for value in typing.get_args(hint)}
    if text in choices:
      return choices[text]
    expected = f"one of {', '.join(choices)}"
    expected += did_you_mean(text, choices).removesuffix(".")
  raise ConfigError(f"tokenizer {spec!r}: {name}={text} must be {expected}.")
