"""What holds of every tokenizer; `tokenizers/` has a file for each kind."""

import concurrent.futures
import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from tests.data.tokenizers import models

needs_ftfy = pytest.mark.skipif(
  importlib.util.find_spec("ftfy") is None, reason="clip: needs ftfy"
)
# Name of a model, and options.
CASES = [
  ("bytes", ""),
  ("c4", ""),
  ("c4", "?lower=1"),
  ("c4", "?lower=ascii"),
  ("c4", "?canonical=1"),
  ("c4", "?eos=yes"),
  ("c4", "?eos=none"),
  ("c4", "?eos=none&pad=5"),
  ("c4", "?pad=0"),
  ("gemma", ""),
  ("gemma", "?bos=1"),
  ("gemma", "?style=siglip2"),
  ("gemma", "?style=siglip2&eos=yes&bos=1"),
  ("bert", ""),
  ("bert", "?special=0"),
  ("bert", "?pad=[MASK]"),
  ("bert", "?bos=[CLS]&pad=[MASK]"),
  ("bert", "?end=[MASK]"),
  ("plain", ""),
  ("plain", "?special=1"),
  ("plain", "?lower=1"),
  ("plain", "?bos=<|endoftext|>"),
  pytest.param("clip", "", marks=needs_ftfy),
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
  return models.write(tmp_path_factory.mktemp("models"))


@every_case
def test_rows_have_their_length_and_end_as_stated(specs, name, options):
  texts = models.mixed(200, seed=len(options))
  whole = load(specs[name] + options, 2000)
  full = whole(texts)
  for length in (3, 7, 24):
    tokenizer = load(specs[name] + options, length)
    ids = tokenizer(texts)
    assert ids.shape == (200, length) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    cut = full[:, length] != whole.pad
    if whole.pad == whole.eos:
      cut = full[:, length - 1] != whole.eos
    assert cut.any() and (length < 24 or not cut.all())
    np.testing.assert_array_equal(ids[~cut], full[~cut, :length])
    if name == "bytes":
      continue  # Cuts between characters, as its own test says.
    if name == "bert" and tokenizer.special:
      assert (ids[cut, -1] == 3).all()  # [SEP], by the file itself.
      full_start = full[:, : length - 1]
    elif tokenizer.sticky and tokenizer.eos is not None:
      assert (ids[cut, -1] == tokenizer.eos).all()
      full_start = full[:, : length - 1]
    else:
      full_start = full[:, :length]
    start = ids[:, : full_start.shape[1]]
    np.testing.assert_array_equal(start[cut], full_start[cut])
    if tokenizer.bos is not None:
      assert (ids[:, 0] == tokenizer.bos).all()


@every_case
def test_pickles_and_says_what_it_is(specs, name, options):
  spec = specs[name] + options
  tokenizer = load(spec, 12)
  texts = models.mixed(50)
  ids = tokenizer(texts)
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again.spec == spec and spec in repr(again)
  assert again.content == tokenizer.content
  np.testing.assert_array_equal(again(texts), ids)
  np.testing.assert_array_equal(load(again.spec, 12)(texts), ids)
  assert tokenizer([]).shape == (0, 12)


@every_case
def test_threads_do_not_disturb_one_another(specs, name, options):
  tokenizer = load(specs[name] + options, 16)
  parts = [models.mixed(40, seed) for seed in range(16)]
  want = [tokenizer(part) for part in parts]
  # One that has not been used: what it builds lazily is built by them all.
  fresh = pickle.loads(pickle.dumps(tokenizer))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for got, expected in zip(pool.map(fresh, parts), want, strict=True):
      np.testing.assert_array_equal(got, expected)


@every_case
def test_decodes_captions(specs, name, options):
  tokenizer = load(specs[name] + options, 100)
  texts = models.captions()[:50]
  got = [tokenizer.decode(row) for row in tokenizer(texts)]
  if name == "clip":
    assert got == [" ".join(text.split()) for text in texts]
  elif name == "bert" or "lower" in options or "canonical" in options:
    assert got == [text.lower() for text in texts]
  else:
    assert got == texts


def test_content_tells_apart_what_gives_other_ids(specs):
  seen = {}
  for case in CASES[:-1]:
    content = load(specs[case[0]] + case[1], 8).content
    assert content not in seen, (case, seen[content])
    seen[content] = case
  # And not what does not: a style is the options that it stands for.
  for one, other in (
    ("c4", "?style=siglip"),
    ("gemma", "?style=siglip2"),
  ):
    spelt = "?lower=ascii&eos=sticky&bos=0&pad=" + ("1" if one == "c4" else "0")
    assert (
      load(specs[one] + other, 8).content == load(specs[one] + spelt, 8).content
    )


def test_bytes():
  tokenizer = load("bytes", 16)
  ids = tokenizer(["ab", "", "z" * 16, "z" * 15])
  assert ids.dtype == np.int32 and ids.shape == (4, 16)
  assert ids[0].tolist() == [99, 100, 1] + [0] * 13
  assert ids[1].tolist() == [1] + [0] * 15
  for row in ids[2:]:
    assert row.tolist() == [124] * 15 + [1]
  assert tokenizer(["\udcff\x00"]).max() < tokenizer.vocab_size == 258
  assert tokenizer.content == b"bytes"


@pytest.mark.parametrize(
  "text", ["a small red circle", "", "Ünïcödé 🙂 and 漢字", "x" * 100]
)
def test_bytes_round_trip_and_whole_characters(text):
  assert load("bytes", 128).decode(load("bytes", 128)([text])[0]) == text
  for length in range(2, 40):
    tokenizer = load("bytes", length)
    row = tokenizer([text])[0]
    got = tokenizer.decode(row)
    assert text.startswith(got)
    kept = len(got.encode())
    assert row[kept] == tokenizer.eos
    # Nothing more would have fitted.
    following = text[len(got) : len(got) + 1].encode()
    assert not following or kept + len(following) > length - 1


@every_case
def test_texts_come_in_any_order_that_holds_them(specs, name, options):
  tokenizer, texts = load(specs[name] + options, 12), ["a dog", "two cats"]
  wanted = tokenizer(texts)
  for same in (tuple(texts), iter(texts), np.array(texts), (t for t in texts)):
    np.testing.assert_array_equal(tokenizer(same), wanted)
  objects = np.array(texts, object)
  np.testing.assert_array_equal(tokenizer(objects), wanted)
  for wrong, message in (
    ("a dog", r"texts='a dog' must be a list .* write \['a dog'\]"),
    (b"a dog", r"texts=b'a dog' must be a list"),
    (None, "texts is of type NoneType; expected a list"),
    (np.array("a dog"), "texts is of type ndarray"),
    (np.array([["a dog"]]), "texts is of type ndarray"),
    ({"a dog"}, "texts is of type set"),
    ({"a dog": 1}, "texts is of type dict"),
    (["a", None], r"texts\[1\]=None is of type NoneType, not a text"),
    ([b"a"], r"texts\[0\]=b'a' is of type bytes"),
    ([["a"]], r"texts\[0\]=\['a'\] is of type list"),
    ([3], r"texts\[0\]=3 is of type int"),
  ):
    with pytest.raises(ConfigError, match=message):
      tokenizer(wrong)


def test_importing_loads_no_tokenizer():
  program = (
    "import sys, aced.data.tokenizers;"
    "print([m for m in ('tokenizers', 'sentencepiece', 'ftfy', 'grain',"
    " 'transformers') if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"
