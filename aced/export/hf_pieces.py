"""A sentencepiece model as a `tokenizers.Tokenizer` that encodes like it."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

SPACE = "▁"  # What sentencepiece writes in place of a space.
# The maps of characters that normalise to NFKC, and so to NFC too. The package
# tokenizers follows such a map a character at a time: without NFC before, it
# would not compose what is written as a letter and its marks.
NFKC = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
UNIGRAM, WORD, CHAR = 1, 3, 4  # Of `trainer_spec.model_type`; BPE is 2.
NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # Of the type of a piece.


def build(
  model: bytes, before: Sequence[Any], error: Callable[[str], Exception]
) -> Any:
  """Converts a model.

  Args:
    model: the content of the model file.
    before: normalizers of `tokenizers`, applied before the model's own.
    error: makes an exception of what is wrong.

  Returns:
    A `tokenizers.Tokenizer`, which adds no tokens to a text. Pieces keep their
    ids, and their names, but for a unigram model's special tokens, which get a
    space in front: no normalised text has one, so they are never found in it.

  Raises:
    Exception: as `error` makes it; the model does something that tokenizer.json
      cannot say.
  """
  import tokenizers
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  problem = next(_problems(proto), None)
  if problem:
    raise error(
      f"the model {problem}, which tokenizer.json cannot say exactly."
    )
  unigram = proto.trainer_spec.model_type == UNIGRAM
  file = tokenizers.Tokenizer(_unigram(proto) if unigram else _bpe(proto))
  steps = [*before, *_normalizers(proto)]
  file.normalizer = tokenizers.normalizers.Sequence(steps)
  file.decoder = tokenizers.decoders.Sequence(_decoders(proto))
  own = _named(proto, USER_DEFINED)
  if own and unigram:
    longest = sorted(own, key=len, reverse=True)
    pattern = tokenizers.Regex("|".join(map(re.escape, longest)))
    file.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
  elif own:
    # They are looked for in normalised texts. Those that are changed by it are
    # not in one.
    stay = [p for p in own if file.normalizer.normalize_str(p) == p]
    file.add_tokens([tokenizers.AddedToken(p, normalized=True) for p in stay])
  return file


def _problems(proto):
  """Yields what a model does that cannot be said, as "has ..."."""
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  own = _named(proto, USER_DEFINED)
  if trainer.model_type == WORD:
    yield "is of the type word"
  if trainer.treat_whitespace_as_suffix:
    yield "puts spaces behind words (treat_whitespace_as_suffix)"
  if not normalizer.escape_whitespaces:
    yield "keeps spaces as they are (escape_whitespaces=false)"
  if normalizer.precompiled_charsmap and normalizer.name not in NFKC:
    yield (
      f"maps characters by the rule {normalizer.name!r} (expected one of"
      f" {', '.join(NFKC)})"
    )
  if trainer.model_type == UNIGRAM:
    if any(_overlap(a, b) for a, b in itertools.permutations(own, 2)):
      yield "has user-defined pieces that overlap"
    return
  if own and normalizer.add_dummy_prefix:
    yield "has both user-defined pieces and add_dummy_prefix"
  if _named(proto, UNUSED):
    yield "has unused pieces"
  made = [p for p in proto.pieces if p.type == NORMAL and len(p.piece) > 1]
  # Of pieces that score alike, sentencepiece makes the first in the text. Runs
  # of one character, as models have of spaces, come out so: see `_bpe`.
  runs = {p.score for p in made if len({*p.piece}) == 1}
  scores = [*runs, *(p.score for p in made if len({*p.piece}) > 1)]
  if len({*scores}) < len(scores):
    yield "has pieces with equal scores, and merges the first in the text"
  missing = {c for p in made for c in p.piece} - {*_named(proto, NORMAL)}
  if missing:
    yield f"has pieces with {min(missing)!r} in them, and none of it alone"


def _overlap(first, second):
  """Whether the end of a text is the start of another, or it is inside."""
  return first in second or any(
    first.endswith(second[:k]) for k in range(1, len(second))
  )


def _named(proto, kind):
  return [p.piece for p in proto.pieces if p.type == kind]


def _unigram(proto):
  import tokenizers

  def name(piece):
    ordinary = piece.type in (NORMAL, USER_DEFINED, BYTE)
    return piece.piece if ordinary else f" {piece.piece}"

  return tokenizers.models.Unigram(
    [(name(piece), piece.score) for piece in proto.pieces],
    unk_id=proto.trainer_spec.unk_id,
    byte_fallback=proto.trainer_spec.byte_fallback,
  )


def _bpe(proto):
  """The model with the best piece first: any two parts of it are merged."""
  import tokenizers

  normal = {p.piece: p.score for p in proto.pieces if p.type == NORMAL}
  merges = [
    (piece[:k], piece[k:])
    for piece in (normal if proto.trainer_spec.model_type != CHAR else ())
    for k in range(1, len(piece))
    if piece[:k] in normal and piece[k:] in normal
  ]
  # With the longest left part first, a run grows from its start on.
  merges.sort(key=lambda pair: (-normal["".join(pair)], -len(pair[0])))
  return tokenizers.models.BPE(
    {piece.piece: index for index, piece in enumerate(proto.pieces)},
    merges,
    unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
    fuse_unk=True,
    byte_fallback=proto.trainer_spec.byte_fallback,
  )


def _normalizers(proto):
  import tokenizers

  library, spec = tokenizers.normalizers, proto.normalizer_spec

  def replace(pattern, text):
    return library.Replace(tokenizers.Regex(pattern), text)

  start = [library.Prepend(" ")] if spec.add_dummy_prefix else []
  steps = []
  if spec.precompiled_charsmap:
    charsmap = library.Precompiled(spec.precompiled_charsmap)
    steps = [library.NFC(), charsmap]
  if not spec.remove_extra_whitespaces:
    return [*start, *steps, library.Replace(" ", SPACE)]
  return [
    *steps,
    replace(r"\A +", ""),
    replace(" {2,}", " "),
    *start,
    library.Replace(" ", SPACE),
    replace(f"{SPACE}+\\z", ""),
  ]


def _decoders(proto):
  import tokenizers

  library, steps = tokenizers.decoders, []
  if proto.trainer_spec.byte_fallback:
    steps.append(library.ByteFallback())
  steps += [library.Fuse(), library.Replace(SPACE, " ")]
  if proto.normalizer_spec.add_dummy_prefix:
    steps.append(library.Strip(" ", left=1))
  return steps
