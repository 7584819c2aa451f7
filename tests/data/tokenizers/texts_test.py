"""How texts are cleaned: what open_clip's tokenizers do, by a plain rule."""

import html
import re
import string

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from aced.data.tokenizers.texts import cleaned
from tests.data.tokenizers import models

ftfy = pytest.importorskip("ftfy", reason="cleaning needs ftfy")

HOW = ("whitespace", "whitespace_underscore", "lower", "canonicalize")
TEXTS = {
  "A Dog!": ("A Dog!", "A Dog!", "a dog!", "a dog"),
  " a_b\n\tC ": ("a_b C", "a b C", "a_b c", "a b c"),
  "Tom &amp;amp; J&eacute;r": (
    "Tom & Jér",
    "Tom & Jér",
    "tom & jér",
    "tom jér",
  ),
  "sch\u00c3\u00b6n \u201cx\u201d": (
    'schön "x"',
    'schön "x"',
    'schön "x"',
    "schön x",
  ),
  "\uff37\uff29\uff24\uff25 \ufb01t": (
    "WIDE fit",
    "WIDE fit",
    "wide fit",
    "wide fit",
  ),
  "": ("", "", "", ""),
}


def plain(text, how):
  """The same without a short cut, a step at a time."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  if how in ("canonicalize", "whitespace_underscore"):
    text = text.replace("_", " ")
  if how == "canonicalize":
    text = "".join(c for c in text if c not in string.punctuation)
  if how in ("canonicalize", "lower"):
    text = text.lower()
  return re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize("how", HOW)
def test_cleaned(how):
  for text, wanted in TEXTS.items():
    assert cleaned(text, how) == wanted[HOW.index(how)]
  for text in models.mixed(300):
    text = text.replace("\udcff", "?")
    assert cleaned(text, how) == plain(text, how), text


@pytest.mark.parametrize("name", ["plain", "c4"])
@pytest.mark.parametrize("how", HOW)
def test_tokenizers_clean_first(tmp_path, name, how):
  specs = models.write(tmp_path)
  bare = load(specs[name], 32)
  tokenizer = load(f"{specs[name]}?clean={how}", 32)
  assert tokenizer.spec == f"{specs[name]}?clean={how}"
  assert tokenizer.content != bare.content
  texts = [text for text in models.mixed(60) if "\udcff" not in text]
  cleaned_before = bare([plain(text, how) for text in texts])
  np.testing.assert_array_equal(tokenizer(texts), cleaned_before)


def test_ways_are_named(tmp_path):
  specs = models.write(tmp_path)
  with pytest.raises(ConfigError, match="clean=upper must be one of whitespa"):
    load(specs["c4"] + "?clean=upper", 8)


@pytest.mark.parity
@pytest.mark.parametrize("how", HOW)
def test_texts_are_cleaned_as_in_open_clip(how):
  their = pytest.importorskip(
    "open_clip.tokenizer", reason="cleans texts; of the extra `parity`"
  )
  names = {"whitespace_underscore": "_clean_whitespace_underscore"}
  if not hasattr(their, names.get(how, "get_clean_fn")):
    pytest.skip(f"this open_clip is older than {how}")
  clean = their.get_clean_fn(how)
  for text in [*TEXTS, *models.mixed(300)]:
    text = text.replace("\udcff", "?")
    assert cleaned(text, how) == clean(text), text
