"""What all tokenizers share: how rows of ids start, end, are cut and padded."""

import importlib
import os
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from types import ModuleType
from typing import Any

import numpy as np

from aced import contents
from aced.config import ConfigError


class Tokenizer(ABC):
  """Maps texts to `(n, length)` int32 ids, all by one rule.

  A row is `bos`, the ids of the text, `eos`, then `pad` up to `length`. A row
  that is too long is cut at `length`; if `sticky`, the text alone is cut and
  the end is kept.

  Attributes:
    spec: what `load_tokenizer` takes to make this tokenizer.
    length: ids of a row.
    vocab_size: ids lie in `[0, vocab_size)`.
    pad: the id that fills up short rows.
    eos: the id that ends every text; None where texts have no end.
    bos: the id that every row starts with; None where rows have no start.
    sticky: whether a text that is cut keeps its end.
    NEEDS: of a kind that has a path: what is to be found there.
  """

  spec: str
  length: int
  vocab_size: int
  pad: int
  eos: int | None
  bos: int | None = None
  sticky: bool = True

  NEEDS = ""

  def __call__(self, texts: Iterable[str]) -> np.ndarray:
    """Returns the ids of `n` texts, `(n, length)` int32.

    Args:
      texts: `n` of them, in a list, tuple, array or iterator.

    Raises:
      ConfigError: as `listed`.
    """
    texts = listed("texts", texts)
    ids = np.full((len(texts), self.length), self.pad, np.int32)
    first = int(self.bos is not None)
    if first:
      ids[:, 0] = self.bos
    kept = self.eos is not None and self.sticky
    for row, text in zip(ids, texts, strict=True):
      tokens = self._encode(utf8(text).decode("utf-8"))
      tokens = self._cut(tokens, self.length - first - kept)
      end = first + len(tokens)
      row[first:end] = tokens
      if self.eos is not None:
        row[end : end + 1] = self.eos  # Beyond the row where it was cut off.
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of one row of ids, without start, end and padding."""
    ids = [int(i) for i in ids]
    if self.bos is not None and ids[:1] == [self.bos]:
      ids = ids[1:]
    if self.eos in ids:
      ids = ids[: ids.index(self.eos)]
    while ids and ids[-1] == self.pad:
      ids.pop()
    return self._decode(ids)

  def count(self, text: str) -> int:
    """Returns how many ids a text has, uncut, without start and end."""
    return len(self._encode(utf8(text).decode("utf-8")))

  @property
  def reserved(self) -> int:
    """The ids of every row that cannot be the text's."""
    return (self.bos is not None) + (self.eos is not None and self.sticky)

  def __repr__(self):
    return (
      f"{type(self).__name__}({self.spec!r}, length={self.length},"
      f" vocab_size={self.vocab_size})"
    )

  def __getstate__(self):
    # What a library has built of a model cannot be pickled, or is slow to be.
    state = self.__dict__.copy()
    state.pop("_processor", None)
    return state

  def _cut(self, tokens, room):
    return tokens[:room]

  def _error(self, problem):
    return ConfigError(f"tokenizer {self.spec!r}: {problem}")

  def _package(self, name: str) -> ModuleType:
    """Imports a package that not every installation has."""
    try:
      return importlib.import_module(name)
    except ImportError as error:
      raise self._error(
        f"needs the package {name}: pip install -e '.[formats]'."
      ) from error

  def _read(self, path: str | os.PathLike, advice: str) -> bytes:
    """The bytes of a file; `advice` says where to get one."""
    try:
      return pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
      raise self._error(
        f"cannot read {path}: {error.strerror}; {advice}"
      ) from error

  def _wrong_file(self, path: Any, wanted: str, problem: Any) -> ConfigError:
    """The error for a file that is there and is not what is wanted."""
    path = pathlib.Path(path).expanduser()
    found = contents.describe(path) if path.is_file() else ""
    return self._error(
      f"{path} is not {wanted} but {found}."
      if found
      else f"{path} is not {wanted}: {problem}"
    )

  @property
  @abstractmethod
  def content(self) -> bytes:
    """What the ids depend on, beside the length."""

  @abstractmethod
  def _encode(self, text: str) -> Sequence[int]:
    """The ids of a text, without start, end or padding."""

  @abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """The text of ids without start, end or padding."""


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

  def _encode(self, text):
    return text.encode("utf-8")

  def _cut(self, tokens, room):
    if len(tokens) > room:
      # Bytes of a character that was cut in two decode to nothing.
      tokens = tokens[:room].decode("utf-8", "ignore").encode("utf-8")
    return np.frombuffer(tokens, np.uint8).astype(np.int32) + 2

  def _decode(self, ids):
    return bytes(i - 2 for i in ids if i >= 2).decode("utf-8", "replace")


def listed(name: str, texts: Iterable[str]) -> list[str]:
  """Returns texts as a list, and refuses what is surely not meant as one.

  Args:
    name: of the argument, for the message.
    texts: in a list, tuple, array, iterator and the like.

  Raises:
    ConfigError: it is one text, which would be read letter by letter, has no
      order, or holds something that is no text.
  """
  if isinstance(texts, str | bytes | bytearray):
    raise ConfigError(
      f"{name}={texts!r:.60} must be a list of them; for a single one write"
      f" [{texts!r:.60}]."
    )
  ordered = isinstance(texts, Iterable) and not isinstance(texts, Mapping | Set)
  if not ordered or getattr(texts, "ndim", 1) != 1:
    raise ConfigError(
      f"{name} is of type {type(texts).__name__}; expected a list of texts."
    )
  found = list(texts)
  for index, text in enumerate(found):
    if not isinstance(text, str):
      raise ConfigError(
        f"{name}[{index}]={text!r:.60} is of type {type(text).__name__}, not a"
        " text."
      )
  return found


def utf8(text: str) -> bytes:
  """UTF-8; half of a surrogate pair, which JSON can hold, becomes "?"."""
  return text.encode("utf-8", "replace")


def write_spec(kind: str, path: str | os.PathLike, **options: Any) -> str:
  """The text that `load_tokenizer` reads; options that are None are left out.

  Args:
    kind: of tokenizer.
    path: of its model.
    **options: its options; True is written as 1, False as 0.
  """
  given = [
    f"{name}={int(value) if isinstance(value, bool) else value}"
    for name, value in options.items()
    if value is not None
  ]
  return f"{kind}:{path}{'?' if given else ''}{'&'.join(given)}"
