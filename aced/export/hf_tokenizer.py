"""Tokenizers as the files that transformers reads: any kind, with our ids."""

import json
import os
import pathlib
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aced.config import ConfigError
from aced.data.tokenizers.base import Bytes, Tokenizer
from aced.data.tokenizers.clip import Clip
from aced.data.tokenizers.hf import HuggingFace
from aced.data.tokenizers.sentencepieces import SentencePiece
from aced.export import hf_pieces
from aced.files import whole, write_json

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
# Texts on which a file is compared with the tokenizer before it is kept.
PROBES = (
  "a photo of a cat",
  "",
  " ",
  "  Two  spaces,\ttabs\nand lines.\r\n ",
  "A Red CIRCLE above the GREEN square; 12,345.67% of them!",
  "it's don't we'll I'VE rock'n'roll '90s",
  "a_b-c & d (e) [f] {g} <h> #i @j $k ^l ~m `n` \\o/ |p| =q +r *s?",
  "“Curly” \u2018quotes\u2019 \u2013 dashes — dots…",
  "Ünïcödé ÉTÉ Straße ﬁne \uff37\uff49\uff44\uff45 ½ № ™",
  "cafe\u0301 u\u0308ber か\u3099 \u1112\u1161\u11ab",
  "ΟΔΥΣΣΕΥΣ ΣΑΣ İstanbul Привет МИР",
  "漢字とカナ 한국어 ภาษาไทย हिन्दी العربية עברית",
  "🙂👍🏽 ❤️ 👨‍👩‍👧 🇩🇪",
  "zero\u200bwidth no\u00a0break wide\u3000space \ufeffmark",
  "\x00\x01\x1f\x7f",
  "▁a ▁ ▁▁b",
  "</s> <s> <pad> <eos> <bos> <unk> [SEP] [CLS] [PAD] <|endoftext|>",
  "<|startoftext|> <start_of_text> <end_of_text> !",
  "antidisestablishmentarianism" * 12,
  "a dog and a cat " * 40,
  "漢字🙂é" * 80,
  "a" + "🙂" * 100,
  "ab" + "🙂" * 100,
  "abc" + "🙂" * 100,
)
# The entities of HTML that captions have; the ampersand last, as it makes more.
ENTITIES = (
  ("&lt;", "<"),
  ("&gt;", ">"),
  ("&quot;", '"'),
  ("&#39;", "'"),
  ("&nbsp;", " "),
  ("&amp;", "&"),
)


def write_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
  """Writes `tokenizer.json` and `tokenizer_config.json`, checked.

  With them

      AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True)["input_ids"]

  are the ids of `tokenizer(texts)`, and so they are with `max_length` set to
  the tokenizer's length. A special token that is written out in a text is text,
  as here. A folder whose `config.json` is of the model type "siglip2" is not
  for them: transformers 5 reads it with a class of its own, which does not
  follow the file.

  Where the ids can differ:
    any kind: half of a surrogate pair, here "?", is an error of `tokenizers`.
      All letters in lower case (`lower=1`, `canonical=1`, clip): a letter that
      is newer than Python's Unicode, and older than that of `tokenizers`.
    bytes: with a `max_length` below the tokenizer's, a text may be cut inside
      of a character; longer rows than the tokenizer's are not to be had.
    clip, clean=: of HTML entities only `ENTITIES` are mended, and of wrongly
      decoded characters none; of what `texts.cleaned` returns the ids are the
      same.
    sentencepiece: where the model maps characters to NFKC, combining marks that
      are out of order, or on a character that is itself mapped (a fraction, a
      half-width kana). Where it is unigram, divisions of a word whose
      likelihoods are the same but for rounding to float32; and the name of a
      byte, such as <0x41>, written out.
    hf: the name of a token that is added and not special in the file, written
      out, where it is the start, the end or the padding.

  The names of a unigram model's special tokens get a space in front, " </s>":
  such a model would find them in a text otherwise.

  Args:
    tokenizer: of any kind.
    folder: is made if it is not there.

  Raises:
    ConfigError: the tokenizer does something that the files cannot say, or they
      have other ids for one of `PROBES`; or `tokenizers` is not installed.
    OSError: a file cannot be written.
  """
  library = _library()
  folder = pathlib.Path(folder)
  content, config = describe(tokenizer)
  with whole(folder / FILE) as part:
    part.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    check(tokenizer, library.Tokenizer.from_file(str(part)), PROBES)
  write_json(folder / CONFIG, config)


def describe(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what `tokenizer.json` and `tokenizer_config.json` are to hold.

  Args:
    tokenizer: of any kind.

  Raises:
    ConfigError: the files cannot say what it does.
  """
  makers = {
    Bytes: _bytes,
    Clip: _clip,
    HuggingFace: _hugging_face,
    SentencePiece: _sentencepiece,
  }
  if type(tokenizer) not in makers:
    raise _error(
      tokenizer,
      f"{type(tokenizer).__name__} is not a kind that tokenizer.json can hold;"
      f" expected one of {', '.join(c.__name__ for c in makers)}.",
    )
  if tokenizer.eos is not None and not tokenizer.sticky:
    raise _error(
      tokenizer,
      "eos=yes cuts the end off with the text, and tokenizer.json always keeps"
      " it.",
    )
  file = makers[type(tokenizer)](tokenizer)
  ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
  names = {k: file.id_to_token(i) for k, i in ids.items() if i is not None}
  # transformers makes them special when it loads the file.
  file.add_special_tokens(
    [_library().AddedToken(name, normalized=False) for name in names.values()]
  )
  content = json.loads(file.to_str())
  if not getattr(tokenizer, "special", False):
    content["post_processor"] = _around(
      *((names.get(k), ids[k]) for k in ("bos", "eos"))
    )
  content["truncation"] = {
    "direction": "Right",
    "max_length": tokenizer.length,
    "strategy": "LongestFirst",
    "stride": 0,
  }
  content["padding"] = {
    "strategy": {"Fixed": tokenizer.length},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": tokenizer.pad,
    "pad_type_id": 0,
    "pad_token": names["pad"],
  }
  return content, {
    # The class, under the name that transformers 4 and 5 both know, which
    # follows the file and adds nothing.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": tokenizer.length,
    # What a processor does to texts where its caller says nothing.
    "padding": "max_length",
    "truncation": True,
    "padding_side": "right",
    "truncation_side": "right",
    # The text tower has no mask: it sees the padding, as in training.
    "model_input_names": ["input_ids"],
    "split_special_tokens": True,
    "clean_up_tokenization_spaces": False,
    **{f"{k}_token": name for k, name in names.items()},
  }


def check(tokenizer: Tokenizer, file: Any, texts: Sequence[str]) -> None:
  """Refuses a file that gives other ids than a tokenizer.

  Args:
    tokenizer: of any kind.
    file: a `tokenizers.Tokenizer`, which cuts and fills up rows.
    texts: to be compared.

  Raises:
    ConfigError: naming the text and both rows.
  """
  file.encode_special_tokens = True
  rows = [file.encode(text).ids for text in texts]
  for text, ours, theirs in zip(texts, tokenizer(texts), rows, strict=True):
    if not np.array_equal(ours, theirs):
      at = next(
        (k for k, (a, b) in enumerate(zip(ours, theirs)) if a != b),
        min(len(ours), len(theirs)),
      )
      raise _error(
        tokenizer,
        f"{FILE} has other ids for the text {text[:80]!r}: from id {at} on"
        f" {list(theirs[at : at + 8])}, expected"
        f" {ours[at : at + 8].tolist()}. Such a file is not written.",
      )


def _bytes(tokenizer):
  library = _library()
  letters = _letters()
  vocab = {"<pad>": tokenizer.pad, "</s>": tokenizer.eos}
  vocab |= {letter: byte + 2 for byte, letter in letters.items()}
  file = library.Tokenizer(library.models.BPE(vocab, []))
  file.normalizer = library.normalizers.Sequence(
    [
      library.normalizers.ByteLevel(),
      _replace(_beyond(letters, tokenizer.length - 1), ""),
    ]
  )
  file.decoder = library.decoders.ByteLevel()
  return file


def _letters():
  """Byte -> the character that stands for it, as in GPT-2's files."""
  # Sorted by what they stand for: printable bytes stand for themselves, the
  # others follow in their order.
  letters = sorted(_library().pre_tokenizers.ByteLevel.alphabet())
  plain = {ord(letter): letter for letter in letters if ord(letter) < 256}
  others = (byte for byte in range(256) if byte not in plain)
  return plain | dict(zip(others, letters[len(plain) :], strict=True))


def _beyond(letters, room):
  """Matches letters from the first character on that ends beyond `room`."""

  def any_of(first, last):
    inside = "".join(rf"\x{{{ord(letters[b]):x}}}" for b in range(first, last))
    return f"[{inside}]"

  # At `room` itself no byte may stand that goes on with a character; before
  # it, the first byte of one of two, three or four bytes may.
  ways = [rf"(?<=\A.{{{room}}})(?!{any_of(0x80, 0xC0)})."]
  for back, least in ((1, 0xC0), (2, 0xE0), (3, 0xF0)):
    if back <= room:
      ways.append(rf"(?<=\A.{{{room - back}}}){any_of(least, 0xF8)}")
  return f"(?:{'|'.join(ways)}).*"


def _clip(tokenizer):
  library = _library()
  file = library.Tokenizer.from_str(tokenizer._processor.to_str())
  file.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
  file.decoder = library.decoders.Sequence(
    [
      library.decoders.ByteLevel(),
      library.decoders.Replace("</w>", " "),
      library.decoders.Strip(" ", right=1),
    ]
  )
  file.normalizer = library.normalizers.Sequence(_cleaned("lower"))
  return file


def _cleaned(how):
  """The steps of `texts.cleaned`, but for encodings and rare entities."""
  mended = [
    _replace(r"\x1b\[[\d;]*[a-zA-Z]", ""),  # Colours of terminals.
    *_mended(),
    # What was escaped twice is found so too.
    *(_replace(*entity) for entity in 2 * ENTITIES),
    _library().normalizers.NFC(),
  ]
  if how == "canonicalize":
    return [*mended, *_canonical()]
  underscore = [_replace("_", " ")] if how == "whitespace_underscore" else []
  lower = _lower() if how == "lower" else []
  return [*mended, *underscore, *_single_spaces(), *lower]


def _canonical():
  """What `canonical=1` does."""
  punctuation = _class(string.punctuation.replace("_", ""))
  steps = [_replace("_", " "), _replace(punctuation, "")]
  return [*steps, *_lower(), *_single_spaces()]


def _mended():
  """What ftfy does to single characters: quotes, ligatures, widths, control."""
  from ftfy import fixes

  becomes = {}
  # Halves of surrogate pairs are no characters.
  for letter in map(chr, (*range(0xD800), *range(0xE000, 0x10000))):
    mended = fixes.fix_latin_ligatures(fixes.fix_c1_controls(letter))
    mended = fixes.uncurl_quotes(fixes.fix_character_width(mended))
    mended = fixes.remove_control_chars(mended)
    if mended != letter:
      becomes.setdefault(mended, []).append(letter)
  return [_replace(_class(found), text) for text, found in becomes.items()]


def _hugging_face(tokenizer):
  library = _library()
  file = library.Tokenizer.from_buffer(tokenizer._file)
  added = file.get_added_tokens_decoder().values()
  ours = _prepared(tokenizer)
  if ours and not all(token.special for token in added):
    raise _error(
      tokenizer,
      "the file has added tokens, which it looks for before lower= and"
      " canonical= would be done; leave those out.",
    )
  if ours:
    theirs = [file.normalizer] if file.normalizer else []
    file.normalizer = library.normalizers.Sequence([*ours, *theirs])
  return file


def _sentencepiece(tokenizer):
  return hf_pieces.build(
    tokenizer._model,
    _prepared(tokenizer),
    lambda problem: _error(tokenizer, problem),
  )


def _prepared(tokenizer):
  """The steps of `texts.prepare`, with a tokenizer's options."""
  first = _cleaned(tokenizer.clean) if tokenizer.clean else []
  if tokenizer.canonical:
    return [*first, *_canonical()]
  if tokenizer.lower == "ascii":
    cases = zip(string.ascii_uppercase, string.ascii_lowercase, strict=True)
    return [*first, *(_replace(upper, lower) for upper, lower in cases)]
  return [*first, *_lower()] if tokenizer.lower == "1" else first


def _lower():
  """`str.lower`: letter by letter, but for the sigma that ends a word."""
  cased = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
  before, after = (
    rf"(?<={cased}\p{{Case_Ignorable}}*)",
    rf"(?!\p{{Case_Ignorable}}*{cased})",
  )
  return [
    _replace(f"{before}Σ{after}", "ς"),
    _library().normalizers.Lowercase(),
  ]


def _single_spaces():
  """`" ".join(text.split())`."""
  spaces = _class(c for c in map(chr, range(0x10000)) if c.isspace())
  return [_replace(f"{spaces}+", " "), _replace(r"\A +| +\z", "")]


def _class(letters: Iterable[str]) -> str:
  """A regular expression for any one of some characters."""
  return "[" + "".join(rf"\x{{{ord(letter):x}}}" for letter in letters) + "]"


def _replace(pattern, text):
  library = _library()
  return library.normalizers.Replace(library.Regex(pattern), text)


def _around(start, end):
  """The post-processor that puts start and end around texts.

  Args:
    start: the name and the id; the name is None where there is none.
    end: the same.
  """

  def special(name, kind):
    return [{"SpecialToken": {"id": name, "type_id": kind}}] if name else []

  def row(part, kind):
    text = {"Sequence": {"id": part, "type_id": kind}}
    return [*special(start[0], kind), text, *special(end[0], kind)]

  return {
    "type": "TemplateProcessing",
    "single": row("A", 0),
    "pair": [*row("A", 0), *row("B", 1)],
    "special_tokens": {
      name: {"id": name, "ids": [index], "tokens": [name]}
      for name, index in (start, end)
      if name
    },
  }


def _library():
  try:
    import tokenizers
  except ImportError as error:
    raise ConfigError(
      "writing a tokenizer.json needs the package tokenizers: pip install"
      ' -e ".[hf]".'
    ) from error
  return tokenizers


def _error(tokenizer, problem):
  return ConfigError(f"tokenizer {tokenizer.spec!r}: {problem}")
