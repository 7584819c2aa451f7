"""CLIP's byte-pair encoding, from the vocabulary file of OpenAI."""

import functools
import gzip
import os
import zlib

from aced.data.tokenizers.base import Tokenizer, write_spec
from aced.data.tokenizers.texts import cleaned

# CLIP's embedding has 49,408 ids: bytes, bytes that end a word, merges (the
# file has more than fit), start and end.
_BYTES, _SPECIAL, _MOST = 256, 2, 49_408
_MERGES = _MOST - 2 * _BYTES - _SPECIAL
_WORD_END = "</w>"
# A few endings of English, a run of letters, one digit, a run of other marks.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_ADVICE = (
  "CLIP's vocabulary is bpe_simple_vocab_16e6.txt.gz, which the package"
  " open_clip_torch has in its folder open_clip."
)


class Clip(Tokenizer):
  """CLIP's tokens, with the ids that OpenAI's models and open_clip's have.

  A text is mended and put in lower case, as `texts.cleaned` does for "lower".
  A row is start (49,406), the
  text, end (49,407), then zeros; a text that is cut keeps its end, and the end
  is the largest id of its row, so that text towers pool it by "argmax".

  The names of start and end are text when a caption has them; open_clip makes
  its two, "<start_of_text>" and "<end_of_text>", the ids.

  Args:
    path: the vocabulary, a merge a line after a line with its version; of a
      longer file the first 48,894 merges count, as for CLIP. It may be gzipped.
    length: ids of a row; 77 for CLIP.

  Raises:
    ConfigError: no such file, one that is no such vocabulary, or `tokenizers`
      or `ftfy` is not installed.
  """

  NEEDS = f"a file, clip:path/file.txt.gz; {_ADVICE}"

  pad = 0

  def __init__(self, path: str | os.PathLike, length: int):
    self.spec, self.length = write_spec("clip", path), length
    data = self._read(path, _ADVICE)
    for package in ("tokenizers", "ftfy"):
      self._package(package)
    self._merges = self._read_merges(path, data)
    self.vocab_size = 2 * _BYTES + len(self._merges) + _SPECIAL
    self.bos, self.eos = self.vocab_size - 2, self.vocab_size - 1

  def _read_merges(self, path, data):
    try:
      data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
      version, *lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
      problem = f"{path} cannot be unpacked: {error}; {_ADVICE}"
      raise self._error(problem) from error
    if "#version" not in version:
      raise self._error(
        f"{path} is not a vocabulary of CLIP: its first line is"
        f" {version[:60]!r}, expected one with #version; {_ADVICE}"
      )
    merges, known = [], set(self._byte_pieces())
    for number, line in enumerate(lines[:_MERGES], start=2):
      pair = tuple(line.split())
      if pair and (len(pair) != 2 or not known.issuperset(pair)):
        raise self._error(
          f"{path} is not a vocabulary of CLIP: line {number} is"
          f" {line[:60]!r}, expected two pieces that lines above it made, or"
          f" bytes; {_ADVICE}"
        )
      if pair:
        merges.append(pair)
        known.add("".join(pair))
    return merges

  def _byte_pieces(self):
    """The pieces of one byte, in the order of their ids."""
    # Sorted, the characters that stand for the bytes have that order.
    level = self._package("tokenizers").pre_tokenizers.ByteLevel
    letters = sorted(level.alphabet())
    return [*letters, *(letter + _WORD_END for letter in letters)]

  @property
  def content(self):
    """The merges."""
    return b"clip " + "\n".join(map(" ".join, self._merges)).encode()

  @functools.cached_property
  def _processor(self):
    library = self._package("tokenizers")
    pieces = [*self._byte_pieces(), *map("".join, self._merges)]
    model = library.models.BPE(
      {piece: index for index, piece in enumerate(pieces)},
      self._merges,
      end_of_word_suffix=_WORD_END,
    )
    processor = library.Tokenizer(model)
    split = library.pre_tokenizers.Split(
      library.Regex(_WORDS), behavior="removed", invert=True
    )
    to_bytes = library.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False
    )
    processor.pre_tokenizer = library.pre_tokenizers.Sequence([split, to_bytes])
    processor.decoder = library.decoders.ByteLevel()
    return processor

  def _encode(self, text):
    # One text a call: `encode_batch` starts threads, and is as fast without.
    return self._processor.encode(cleaned(text, "lower")).ids

  def _decode(self, ids):
    pieces = map(self._processor.id_to_token, ids)
    # Joined first: a word's end, not a piece's, may complete a character.
    text = self._processor.decoder.decode(["".join(p for p in pieces if p)])
    return text.replace(_WORD_END, " ").strip()
