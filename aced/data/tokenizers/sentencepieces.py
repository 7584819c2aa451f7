"""Pieces of a sentencepiece model."""

import functools
import os
from typing import Literal

from aced.data.tokenizers.base import Tokenizer, write_spec
from aced.data.tokenizers.texts import Clean, Lower, prefix, prepare

# Style -> what its models were trained on. None is the default: case counts.
#
# siglip: c4_en (32,000 pieces), or mc4 (250,000) for the i18n models; the end
# is 1 in both. big_vision's configs/proj/image_text/SigLIP_demo.ipynb has
# `tokenize(max_len=..., eos="sticky", pad_value=1)`, and pp/ops_text.py lowers
# by default, with `tf.strings.lower`: A to Z alone. Lengths are 64, and 16 for
# So400m/14 at 224 px. Transformers' SiglipTokenizer takes out punctuation too;
# big_vision does that to prompts of zero-shot classification (`canonical=1`).
#
# siglip2: Gemma's (256,000 pieces; pad 0, end 1, start 2). big_vision's
# SigLIP2_demo.ipynb has `lower|tok(length=64, model="gemma", bos="no",
# eos="sticky")`: `lower` is as above, and `tok` pads with the model's own pad,
# so that the last id is the end only of a text that fills its row. Training had
# lower-cased texts (SigLIP 2, arXiv 2502.14786, section 2.1); whether A to Z
# alone, as in the demo, or all letters, as in Siglip2's tokenizer of
# transformers (`lower=1`), is open *(unverified)*.
STYLES = {
  None: {"lower": "0", "eos": "sticky", "bos": False, "pad": "end"},
  "siglip": {"lower": "ascii", "eos": "sticky", "bos": False, "pad": "end"},
  "siglip2": {"lower": "ascii", "eos": "sticky", "bos": False, "pad": "model"},
}


class SentencePiece(Tokenizer):
  """Pieces of a sentencepiece model, by default with case and as in SigLIP.

  That is, the end is kept when a text is cut, and fills up short texts too: the
  last id, which the text tower pools, is the end whatever the text's length.

  Args:
    path: the model file.
    length: ids of a row.
    style: the convention of released models, "siglip" (SigLIP 1, c4_en) or
      "siglip2" (Gemma); `STYLES` has what each stands for. The options below
      go before it.
    lower: which letters are turned to lower case first: none ("0"), all ("1"),
      or A to Z ("ascii").
    canonical: whether punctuation is taken out too, as `texts.prepare` says.
    clean: what open_clip does to a text before all this, see `texts.cleaned`;
      nothing by default.
    eos: "sticky", the end is kept when a text is cut; "yes", the end is cut off
      with the text; "none", texts have no end.
    bos: whether rows start with the model's start.
    pad: the id that fills up short rows. By default the end; for siglip2, and
      for texts without an end, the padding of the model.

  Raises:
    ConfigError: no such file, one that is no model, or a model without the end,
      start or padding that is asked for.
  """

  NEEDS = "the model, sentencepiece:path/to.model"

  def __init__(
    self,
    path: str | os.PathLike,
    length: int,
    *,
    style: Literal["siglip", "siglip2"] | None = None,
    lower: Lower | None = None,
    canonical: bool | None = None,
    clean: Clean | None = None,
    eos: Literal["sticky", "yes", "none"] | None = None,
    bos: bool | None = None,
    pad: int | None = None,
  ):
    given = {"lower": lower, "eos": eos, "bos": bos, "pad": pad}
    self.spec = write_spec(
      "sentencepiece",
      path,
      style=style,
      canonical=canonical,
      clean=clean,
      **given,
    )
    self.length = length
    self._model = self._read(
      path, "train one with `python -m aced.data.tokenizers train`."
    )
    try:
      self.vocab_size = self._processor.get_piece_size()
    except RuntimeError as error:
      raise self._wrong_file(path, "a sentencepiece model", error) from error
    rule = STYLES[style] | {k: v for k, v in given.items() if v is not None}
    self.lower, self.canonical = rule["lower"], bool(canonical)
    self.clean = clean
    if clean:
      self._package("ftfy")
    self.sticky = rule["eos"] == "sticky"
    self.eos = None if rule["eos"] == "none" else self._special("eos", "ends")
    self.bos = self._special("bos", "starts") if rule["bos"] else None
    self.pad = self._padding(rule["pad"])

  @property
  def content(self):
    """The model, and each option that is not the default."""
    words = prefix(self.lower, self.canonical, self.clean)
    if not self.sticky:
      words.append(f"eos={'none' if self.eos is None else 'yes'}")
    if self.bos is not None:
      words.append("bos")
    if self.pad != self.eos:
      words.append(f"pad={self.pad}")
    return "".join(f"{w} " for w in words).encode() + self._model

  @functools.cached_property
  def _processor(self):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=self._model)

  def _special(self, name, does):
    found = getattr(self._processor, f"{name}_id")()
    if found < 0:
      raise self._error(
        f"the model has no id that {does} a text ({name}_id); take one that"
        f" was trained with it, or another {name}=."
      )
    return found

  def _padding(self, pad):
    if pad == "end" and self.eos is not None:
      return self.eos
    if isinstance(pad, str):
      return self._special("pad", "fills up")
    if not 0 <= pad < self.vocab_size:
      raise self._error(
        f"pad={pad} is not an id of the model, which has {self.vocab_size:,}."
      )
    return pad

  def _encode(self, text):
    # One text a call: a list starts threads, which costs more than it saves.
    text = prepare(text, self.lower, self.canonical, self.clean)
    return self._processor.encode(text)

  def _decode(self, ids):
    return self._processor.decode(ids)
