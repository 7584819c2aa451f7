import gzip
import random
import sys
import unicodedata
import warnings

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from aced.data.tokenizers.texts import cleaned
from tests.data.tokenizers import models

ftfy = pytest.importorskip("ftfy", reason="clip: needs ftfy")

ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@pytest.fixture(scope="module")
def merges():
  return models.clip_merges()


@pytest.fixture(scope="module")
def spec(merges, tmp_path_factory):
  path = tmp_path_factory.mktemp("clip") / "small.txt.gz"
  path.write_bytes(models.clip_file(merges))
  return f"clip:{path}"


def words(text):
  """CLIP's words: endings, runs of letters, digits, runs of other marks."""
  start = 0
  while start < len(text):
    end = next((e for e in ENDINGS if text.startswith(e, start)), None)
    if end is None:
      kind = kind_of(text[start])
      stop = start + 1
      while kind != "N" and stop < len(text) and kind_of(text[stop]) == kind:
        stop += 1
      end = text[start:stop]
    if not end.isspace():
      yield end
    start += len(end)


def kind_of(character):
  first = unicodedata.category(character)[0]
  return "space" if character.isspace() else first if first in "LN" else "mark"


def plain_ids(text, merges):
  """Byte-pair encoding by the book: the earliest merge first, everywhere."""
  letters = models.byte_letters()
  alphabet = [*sorted(letters.values())]
  pieces = (
    alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges]
  )
  ids = {piece: i for i, piece in enumerate(pieces)}
  out = []
  for word in words(text):
    symbols = [letters[b] for b in word.encode()]
    symbols[-1] += "</w>"
    symbols = tuple(symbols)
    for pair in merges:
      symbols = models.join(symbols, pair)
    out += [ids[s] for s in symbols]
  return out


def test_same_ids_as_a_plain_encoding(spec, merges):
  tokenizer = load(spec, 400)
  start, end = 512 + len(merges), 513 + len(merges)
  assert tokenizer.vocab_size == end + 1
  texts = models.mixed(400) + ["it's '90s rock'n'roll we'll DON'T", "''s 's"]
  for text, ids in zip(texts, tokenizer(texts), strict=True):
    known = cleaned(text.replace("\udcff", "?"), "lower")
    want = [start, *plain_ids(known, merges)[:398], end]
    assert ids.tolist() == want + [0] * (400 - len(want)), text


def test_cut_rows_end(spec):
  tokenizer = load(spec, 6)
  long, short = tokenizer(["x" * 50, "a"]).tolist()
  assert long[0] == short[0] == tokenizer.bos == tokenizer.vocab_size - 2
  assert long[-1] == short[2] == tokenizer.eos == tokenizer.vocab_size - 1
  assert short[3:] == [0, 0, 0]
  # CLIP's text tower pools where the id is largest.
  assert np.argmax([long, short], axis=1).tolist() == [5, 2]
  with pytest.raises(ConfigError, match="text_length=2 must be 3 or above"):
    load(spec, 2)


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("  A Photo\n\tof \u3000x ", "a photo of x"),
    ("“Quoted” ﬁne \uff37ide", '"quoted" fine wide'),
    ("schÃ¶n itâ€™s", "schön it's"),
    ("a &amp;amp; b &lt;i&gt; &eacute;", "a & b <i> é"),
    ("&amp;amp;amp;amp; <", "&amp;amp; <"),
    ("\x1b[31mred\x00", "red"),
    ("", ""),
  ],
)
def test_clean(text, want):
  assert cleaned(text, "lower") == want


def test_plain_texts_need_no_mending():
  """`clean` leaves ftfy out for these, for it would change nothing."""
  rng = random.Random(0)
  printable = [chr(c) for c in range(32, 127) if c != ord("&")]
  for _ in range(2000):
    text = "".join(rng.choices(printable, k=rng.randint(0, 60)))
    assert ftfy.fix_text(text) == text


def test_decodes(spec):
  tokenizer = load(spec, 100)
  for text, want in (
    ("A red  circle, it's 漢字 🙂!", "a red circle , it 's 漢字 🙂!"),
    ("ÜNÏ", "ünï"),
    ("", ""),
  ):
    assert tokenizer.decode(tokenizer([text])[0]) == want
  assert "�" in load(spec, 4).decode(load(spec, 4)(["漢字"])[0])


def test_names_of_start_and_end_are_text(spec):
  tokenizer = load(spec, 200)
  text = "<|endoftext|> <|startoftext|> <end_of_text>"
  ids = tokenizer([text])[0].tolist()
  assert ids.count(tokenizer.eos) == ids.count(tokenizer.bos) == 1


def test_files(spec, merges, tmp_path):
  texts = models.mixed(20)
  want = load(spec, 40)
  plain = tmp_path / "small.txt"
  plain.write_bytes(models.clip_file(merges, packed=False))
  np.testing.assert_array_equal(load(f"clip:{plain}", 40)(texts), want(texts))
  assert load(f"clip:{plain}", 40).content == want.content
  windows = tmp_path / "windows.txt"
  windows.write_bytes(plain.read_bytes().replace(b"\n", b"\r\n"))
  assert load(f"clip:{windows}", 40).content == want.content
  fewer = tmp_path / "fewer.txt"
  fewer.write_bytes(models.clip_file(merges[:-1]))
  assert load(f"clip:{fewer}", 40).content != want.content


def test_only_as_many_merges_as_clip_has(tmp_path):
  letters = sorted(models.byte_letters().values())
  pairs = [(a, b) for a in letters for b in letters][:49_000]
  path = tmp_path / "long.txt.gz"
  path.write_bytes(models.clip_file(pairs))
  tokenizer = load(f"clip:{path}", 8)
  assert tokenizer.vocab_size == 49_408
  assert (tokenizer.bos, tokenizer.eos) == (49_406, 49_407)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"i n\nt h\n", "first line is 'i n', expected one with #ver"),
    (b"#version: 0.2\ni n x\n", "line 2 is 'i n x', expected two.*open_clip"),
    (b"#version: 0.2\ni n\nin g\nthe n\n", "line 4 is 'the n'"),
    (
      gzip.compress(b"#version: 0.2\ni n\n", mtime=0)[:-9],
      "cannot be unpacked",
    ),
    (b"\x1f\x8b", "cannot be unpacked"),
    (b"\xff\xfe", "cannot be unpacked"),
  ],
)
def test_refuses_other_files(data, message, tmp_path):
  path = tmp_path / "vocabulary"
  path.write_bytes(data)
  with pytest.raises(ConfigError, match=f"(?s){message}"):
    load(f"clip:{path}", 16)


@pytest.mark.parametrize("package", ["ftfy", "tokenizers"])
def test_needs_packages(spec, package, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ConfigError, match=rf"{package}: pip install -e '\.\[for"):
    load(spec, 16)


@pytest.mark.parametrize("length", [16, 77])
def test_same_ids_as_open_clip(length, shared_data):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip(
      "open_clip.tokenizer", reason="compares with open_clip_torch"
    )
  tokenizer = load(f"clip:{theirs.default_bpe()}", length)
  assert tokenizer.vocab_size == 49_408
  lines = (shared_data / "coco_cc" / "test.jsonl").read_text().splitlines()
  texts = [t for t in models.mixed(2000) if "<end_of_text>" not in t]
  texts = [t.replace("\udcff", "?") for t in texts] + lines
  want = theirs.SimpleTokenizer(context_length=length)(texts).numpy()
  np.testing.assert_array_equal(tokenizer(texts), want)
