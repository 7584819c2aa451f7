import pickle
import subprocess
import sys

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data import tokenizers
from aced.data.sources import open_source
from aced.data.tokenizers import load, train_sentencepiece

TEXTS = ["a small red circle", "", "Ünïcödé 🙂 and 漢字", "x" * 100]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  source = open_source("synthetic:train?size=1000")
  path = tmp_path_factory.mktemp("tokenizer") / "scenes.model"
  train_sentencepiece(
    [source.fields(i)["text"] for i in range(1000)],
    path,
    vocab_size=200,
    model_type="bpe",
  )
  return path


def test_bytes():
  tokenizer = load("bytes", 16)
  ids = tokenizer(["ab", "", "z" * 16, "z" * 15])
  assert ids.dtype == np.int32 and ids.shape == (4, 16)
  assert ids[0].tolist() == [99, 100, 1] + [0] * 13
  assert ids[1].tolist() == [1] + [0] * 15
  for row in ids[2:]:
    assert row.tolist() == [124] * 15 + [1]
  assert tokenizer(["\udcff\x00"]).max() < tokenizer.vocab_size == 258
  assert tokenizer([]).shape == (0, 16)


@pytest.mark.parametrize("text", TEXTS)
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


def test_sentencepiece(model):
  tokenizer = load(f"sentencepiece:{model}", 16)
  assert 100 <= tokenizer.vocab_size <= 200
  source = open_source("synthetic:val?size=200")
  texts = [source.fields(i)["text"] for i in range(200)]
  ids = tokenizer(texts)
  assert ids.shape == (200, 16) and ids.dtype == np.int32
  # SigLIP's padding: whatever the length, the last id is the end.
  assert (ids[:, -1] == tokenizer.eos).all() and tokenizer.eos == 1
  whole = load(f"sentencepiece:{model}", 64)
  assert [whole.decode(row) for row in whole(texts)] == texts
  # The captions of the built-in set fit the sixteen ids of its configs.
  assert np.mean((ids == 1).sum(axis=1) == 1) < 0.1
  assert tokenizer([TEXTS[3], "", "\udcff"]).shape == (3, 16)


def test_lower(model):
  upper, lower = "A Red CIRCLE", "a red circle"
  plain = load(f"sentencepiece:{model}", 16)
  folded = load(f"sentencepiece:{model}?lower=1", 16)
  want = plain([lower])
  np.testing.assert_array_equal(folded([upper]), want)
  assert not np.array_equal(plain([upper]), want)


def test_same_model_from_same_captions(model, tmp_path):
  source = open_source("synthetic:train?size=1000")
  again = tmp_path / "a" / "again.model"
  train_sentencepiece(
    (source.fields(i)["text"] for i in range(1000)),
    again,
    vocab_size=200,
    model_type="bpe",
  )
  assert again.read_bytes() == model.read_bytes()
  assert [p.name for p in again.parent.iterdir()] == ["again.model"]


def test_pickles_and_says_what_it_is(model):
  for spec in (
    "bytes",
    f"sentencepiece:{model}",
    f"sentencepiece:{model}?lower=1",
  ):
    tokenizer = load(spec, 12)
    tokenizer(TEXTS)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.spec == spec and spec in repr(again)
    np.testing.assert_array_equal(again(TEXTS), tokenizer(TEXTS))
    np.testing.assert_array_equal(load(again.spec, 12)(TEXTS), again(TEXTS))


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("byte", "'byte' is not known.*mean 'bytes'"),
    ("bytes:x", "not known"),
    ("sentencepeice:x", "mean 'sentencepiece'"),
    ("sentencepiece:", "not known"),
    ("sentencepiece:none.model", "cannot read none.model"),
    (f"sentencepiece:{__file__}", "is not a sentencepiece model"),
    ("sentencepiece:x?upper=1", "'upper=1' is not an option"),
  ],
)
def test_refuses_by_name(spec, message):
  with pytest.raises(ConfigError, match=message):
    load(spec, 16)


def test_refuses_sizes(tmp_path):
  with pytest.raises(ConfigError, match="text_length=1"):
    load("bytes", 1)
  for captions, size in ((["a few words"] * 9, 5), ([], 50)):
    with pytest.raises(ConfigError, match=f"vocab_size={size} does not fit"):
      train_sentencepiece(captions, tmp_path / "x", size)
  assert not (tmp_path / "x").exists()


def test_command(tmp_path):
  path = tmp_path / "x.model"
  command = [sys.executable, "-W", "error::RuntimeWarning", "-m"]
  command += ["aced.data.tokenizers", "train", "synthetic:train?size=300"]
  command += ["--output", str(path), "--vocab_size", "100"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  spec = done.stdout.strip().removeprefix("--config.input.tokenizer=")
  assert load(spec, 16).vocab_size <= 100
  with pytest.raises(SystemExit, match=r"SourceError: .*cannot open"):
    tokenizers.main(["train", "none.jsonl", "--output", str(path)])
