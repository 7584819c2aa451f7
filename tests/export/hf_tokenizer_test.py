import importlib.util
import json
import random
import sys
import unicodedata

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from aced.data.tokenizers.texts import prepare
from aced.export import hf_pieces, hf_tokenizer
from aced.export.hf_tokenizer import write_tokenizer
from tests.data.tokenizers import models

tokenizers = pytest.importorskip(
  "tokenizers", reason="writes what the package tokenizers reads"
)
ftfy_is_here = importlib.util.find_spec("ftfy") is not None
LENGTH = 24
# Name of a model, and options.
CASES = [
  ("bytes", ""),
  ("c4", ""),
  ("c4", "?lower=1"),
  ("c4", "?style=siglip"),
  ("c4", "?canonical=1"),
  ("c4", "?eos=none"),
  ("c4", "?eos=none&pad=5"),
  ("c4", "?pad=0"),
  ("unigram", ""),
  ("unigram", "?style=siglip&canonical=1"),
  ("unigram", "?pad=0"),
  ("fallback", ""),
  ("char", ""),
  ("gemma", ""),
  ("gemma", "?bos=1"),
  ("gemma", "?style=siglip2"),
  ("own", "?style=siglip2"),
  ("own", ""),
  ("own_unigram", ""),
  ("bert", ""),
  ("bert", "?special=0"),
  ("bert", "?bos=[CLS]&pad=[MASK]"),
  ("plain", ""),
  ("plain", "?special=1"),
  ("plain", "?lower=1"),
  ("plain", "?canonical=1&bos=<|endoftext|>"),
  pytest.param(
    "clip", "", marks=pytest.mark.skipif(not ftfy_is_here, reason="needs ftfy")
  ),
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)
# Characters of many scripts; marks stay with the letters that they are of.
PARTS = [
  *"abcdefghijklmnopqrstuvwxyz ABC XYZ  .,!?'\"-_<>/&;:()[]0123456789\t\n",
  *"éÉüÜßñçøÅœ ΑΒΓΣσς αβγ ЖДПри İı ﬁﬂ½²№™ \u2018\u2019“”\u2013—…\u00a0\u200b",
  *"\u3000漢字日本語カタカナ ｱｲ 한국어 عربى עברית ▁\x00\x01\x7f\uff21\uff42",
  *("e\u0301", "u\u0308\u0304", "か\u3099", "ไทย", "हिन्दी", "🙂", "👍🏽", "❤️"),
  *("👨\u200d👩\u200d👧", "🇩🇪", "1️⃣"),
]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("models")
  own = {"user_defined_symbols": ["▁▁", "\n", "<b>", "<B>"]}
  more = {
    "unigram": models.sentencepiece_model(model_type="unigram"),
    "fallback": models.sentencepiece_model(
      model_type="unigram", byte_fallback=True
    ),
    "char": models.sentencepiece_model(model_type="char"),
    "own": models.sentencepiece_model(
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      **own,
    ),
    "own_unigram": models.sentencepiece_model(
      model_type="unigram", user_defined_symbols=["▁<x1>", "▁<x2>"]
    ),
  }
  specs = models.write(folder)
  for name, model in more.items():
    (folder / f"{name}.model").write_bytes(model)
    specs[name] = f"sentencepiece:{folder}/{name}.model"
  return specs


def texts(count, seed=0):
  """Captions, odd texts and random characters of many scripts."""
  rng = random.Random(seed)
  # Half of a surrogate pair is no text for `tokenizers`.
  found = [t.replace("\udcff", "?") for t in models.mixed(count, seed)]
  for _ in range(count):
    found.append("".join(rng.choices(PARTS, k=rng.randint(0, 60))))
    found.append(rng.choice(["<b>", "<x1>", " <x2>", "</s>", "<eos>", "<unk>"]))
    found[-1] += rng.choice(["", " a", " <B>x", "\n\n b", "  <pad>"])
  return found


def read(folder):
  """The file as transformers has it, after `split_special_tokens`."""
  file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  file.encode_special_tokens = True
  return file


def differing(tokenizer, file, some):
  ids = tokenizer(some).tolist()
  return [
    t for t, row in zip(some, ids, strict=True) if file.encode(t).ids != row
  ]


@every_case
def test_same_ids(specs, name, options, tmp_path):
  tokenizer = load(specs[name] + options, LENGTH)
  write_tokenizer(tokenizer, tmp_path / "new")
  assert {p.name for p in (tmp_path / "new").iterdir()} == {
    "tokenizer.json",
    "tokenizer_config.json",
  }
  file = read(tmp_path / "new")
  some = texts(400)
  if name == "clip":
    some = [t for t in some if not garbled(t)]
    assert len(some) > 1000
  assert differing(tokenizer, file, some) == []
  # What is compared is of all kinds: cut, short, and with a special name in it.
  rows = tokenizer(some)
  assert len(np.unique(rows, axis=0)) > 500
  assert 100 < (rows[:, -2] != tokenizer.pad).sum() < len(some) - 100
  # And it is read back by our own loader.
  again = load(f"hf:{tmp_path}/new?special=1", LENGTH)
  np.testing.assert_array_equal(again(some), rows)


@every_case
def test_decodes(specs, name, options, tmp_path):
  tokenizer = load(specs[name] + options, 100)
  write_tokenizer(tokenizer, tmp_path)
  file = read(tmp_path)
  for text in models.captions()[:30]:
    (row,) = tokenizer([text])
    # A pad that is a piece as well is left out of a text, too.
    if options != "?eos=none&pad=5":
      assert file.decode(row.tolist()) == tokenizer.decode(row)


@every_case
@pytest.mark.parity
def test_same_ids_in_transformers(specs, name, options, tmp_path):
  transformers = pytest.importorskip(
    "transformers", reason="reads what is written; of the extra `parity`"
  )
  tokenizer = load(specs[name] + options, LENGTH)
  write_tokenizer(tokenizer, tmp_path)
  some = [t for t in texts(100, seed=1) if name != "clip" or not garbled(t)]
  rows = tokenizer(some).tolist()
  # Beside a model, whose own class of tokenizer must not take its place.
  for model in ({}, {"model_type": "siglip"}):
    (tmp_path / "config.json").write_text(json.dumps(model))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == LENGTH
    for more in ({}, {"max_length": LENGTH}):
      found = theirs(some, padding="max_length", truncation=True, **more)
      assert dict(found) == {"input_ids": rows}
  theirs.save_pretrained(tmp_path / "again")
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
  found = again(some, padding="max_length", truncation=True)
  assert dict(found) == {"input_ids": rows}


def known(first, last):
  """Characters that this Python knows; others are of a later Unicode."""
  letters = map(chr, range(first, last))
  return [c for c in letters if unicodedata.category(c) not in ("Cn", "Cs")]


def garbled(text):
  """Whether ftfy takes a text to be decoded wrongly, or an entity is rare."""
  import html

  import ftfy

  rest = text
  for entity, becomes in hf_tokenizer.ENTITIES * 2:
    rest = rest.replace(entity, becomes)
  return ftfy.fix_encoding(text) != text or html.unescape(rest) != rest


@pytest.mark.skipif(not ftfy_is_here, reason="needs ftfy")
def test_clip_differs_only_where_texts_are_mended(specs, tmp_path):
  from aced.data.tokenizers.texts import cleaned

  tokenizer = load(specs["clip"], LENGTH)
  write_tokenizer(tokenizer, tmp_path)
  file = read(tmp_path)
  mended = ["schÃ¶n", "itâ€™s", "&eacute;t&eacute;", "a &#8212; b"]
  assert differing(tokenizer, file, mended) == mended
  for text in [*mended, *texts(100)]:
    (row,) = tokenizer([text]).tolist()
    assert file.encode(cleaned(text, "lower")).ids == row
  kept = ["A &amp; B", "&quot;a&quot; &lt;b&gt; &#39;s&nbsp;x", "a &amp;lt; b"]
  assert differing(tokenizer, file, kept) == []
  # Every character that has no other beside it, but for such.
  letters = [f"a{c}b" for c in known(0, 0x3000) + known(0xF900, 0x10000)]
  assert differing(tokenizer, file, letters[::3]) == []


def test_characters_that_are_mapped(specs, tmp_path):
  """Of sentencepiece's map: only marks in rare places come out otherwise."""
  tokenizer = load(specs["gemma"].replace("gemma", "fallback"), 64)
  write_tokenizer(tokenizer, tmp_path)
  file = read(tmp_path)
  ranges = ((0, 0x3400), (0xAC00, 0xD800), (0xF900, 0x10000))
  letters = [c for ends in ranges for c in known(*ends)]
  assert differing(tokenizer, file, letters[::5]) == []
  # As file names of macOS have them; U+0344 is itself two marks.
  apart = [unicodedata.normalize("NFD", c) for c in letters]
  apart = [t for t, c in zip(apart, letters, strict=True) if t != c]
  assert len(apart) > 11_000
  assert differing(tokenizer, file, apart[::5]) == []
  corner = ["o\u0302\u0323", "①\u0301", "ｶ\uff9e"]
  assert differing(tokenizer, file, corner) == corner


def test_bytes_are_cut_between_characters(tmp_path):
  some = [p + "é漢🙂" * 8 for p in ("", "a", "ab", "abc", "abcd")]
  for length in range(2, 30):
    tokenizer = load("bytes", length)
    write_tokenizer(tokenizer, tmp_path)
    assert differing(tokenizer, read(tmp_path), some) == []
  # Only a shorter row than the tokenizer's is cut inside of one.
  file = read(tmp_path)
  file.enable_truncation(5)
  file.enable_padding(length=5, pad_id=0, pad_token="<pad>")
  short = load("bytes", 5)
  assert differing(short, file, some) == [some[0], some[1], some[3]]
  assert differing(short, file, ["abcd" * 9, "a", "éé漢", "漢"]) == []
  for text in some:
    got = [i - 2 for i in file.encode(text).ids if i >= 2]
    assert text.encode().startswith(bytes(got)) and len(got) == 4


def test_lower_case_is_pythons():
  """The final sigma included, which depends on what is around it."""
  steps = tokenizers.normalizers.Sequence(hf_tokenizer._lower())
  rng = random.Random(0)
  around = "ΣΣΣabω.'-\u0301\u00ad 1_\u2019^漢İǅªʰ\u0345ⓐ\n"
  some = [
    "".join(rng.choices(around, k=rng.randint(1, 7))) for _ in range(9999)
  ]
  for text in some + known(0, 0x20000):
    assert steps.normalize_str(text) == text.lower()


@pytest.mark.parametrize(
  ("lower", "canonical"), [("1", True), ("ascii", False), ("0", True)]
)
def test_texts_are_prepared_alike(specs, lower, canonical):
  options = f"?lower={lower}&canonical={int(canonical)}"
  tokenizer = load(specs["c4"] + options, 8)
  steps = tokenizers.normalizers.Sequence(hf_tokenizer._prepared(tokenizer))
  spaces = [f"a{c}b{c}" for c in known(0, 0x3001)]
  for text in [*texts(200), *spaces]:
    assert steps.normalize_str(text) == prepare(text, lower, canonical)


def test_special_names_in_a_text_are_text(specs, tmp_path):
  for name in ("unigram", "own", "gemma", "bytes"):
    tokenizer = load(specs[name], 64)
    write_tokenizer(tokenizer, tmp_path)
    for text in ("</s>", "<eos>", "<pad> a </s>", "a</s></s>b <unk>"):
      ids = read(tmp_path).encode(text).ids
      assert ids.count(tokenizer.eos) == tokenizer([text])[0].tolist().count(
        tokenizer.eos
      )
      assert ids[0] not in (tokenizer.eos, tokenizer.pad)


def test_refuses_by_name(specs, tmp_path, monkeypatch):
  for options in ("?eos=yes", "?style=siglip&eos=yes"):
    with pytest.raises(ConfigError, match="eos=yes cuts the end off"):
      write_tokenizer(load(specs["c4"] + options, 8), tmp_path)
  file = models.hugging_face("plain")
  file.add_tokens(["Ab"])
  file.save(str(tmp_path / "added.json"))
  with pytest.raises(ConfigError, match="added tokens, which it looks for"):
    write_tokenizer(load(f"hf:{tmp_path}/added.json?lower=1", 8), tmp_path)
  tokenizer = load("bytes", 8)

  class Other(type(tokenizer)):
    pass

  with pytest.raises(ConfigError, match="Other is not a kind that"):
    write_tokenizer(Other(8), tmp_path)
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ConfigError, match=r'pip install -e "\.\[hf\]"'):
    write_tokenizer(tokenizer, tmp_path)


def test_a_file_with_other_ids_is_not_kept(specs, tmp_path, monkeypatch):
  tokenizer = load(specs["c4"], 16)
  write_tokenizer(tokenizer, tmp_path)
  before = (tmp_path / "tokenizer.json").read_bytes()
  monkeypatch.setattr(hf_pieces, "_normalizers", lambda proto: [])
  with pytest.raises(ConfigError, match="other ids for the text 'a photo of"):
    write_tokenizer(tokenizer, tmp_path)
  assert (tmp_path / "tokenizer.json").read_bytes() == before
  assert not list(tmp_path.glob(".*"))
