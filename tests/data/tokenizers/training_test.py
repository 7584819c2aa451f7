"""Models trained on captions: nothing is left out unsaid."""

import logging as python_logging
import random

import numpy as np
import pytest
import sentencepiece
from absl import logging

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.data.tokenizers import load, train_sentencepiece
from tests.data.tokenizers import models

END = 1
WORDS = ["zebra", "quokka", "ibis"]


@pytest.fixture
def log(caplog, monkeypatch):
  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  caplog.set_level(python_logging.WARNING)
  return caplog


def train(tmp_path, captions, vocab_size=60, **options):
  """The pieces of a model, by id."""
  path = tmp_path / "x.model"
  count = train_sentencepiece(captions, path, vocab_size, **options)
  model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  assert count == model.get_piece_size()
  return [model.id_to_piece(i) for i in range(count)]


def sentence(bytes_at_least, seed=0):
  rng, text = random.Random(seed), ""
  while len(text.encode()) < bytes_at_least:
    text += f"{rng.choice(WORDS)} "
  return text


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_long_captions_are_learnt_from(tmp_path, model_type):
  short = ["a cat"] * 20
  pieces = train(tmp_path, [*short, sentence(9_000)], model_type=model_type)
  assert {f"\u2581{word}" for word in WORDS} <= {*pieces}
  # Long ones alone, at and about the limit of a line.
  for size in (4_192, 4_193, 100_000):
    pieces = train(tmp_path, [sentence(size)], model_type=model_type)
    assert {f"\u2581{word}" for word in WORDS} <= {*pieces}


def test_a_long_caption_gives_the_pieces_of_its_words(tmp_path):
  words = sentence(9_000).split()
  wanted = train(tmp_path, words, model_type="bpe")
  # A line's end is white space like any other.
  for blank in (" ", "\r\n\t"):
    assert train(tmp_path, [blank.join(words)], model_type="bpe") == wanted


def test_a_long_word_is_learnt_from(tmp_path):
  for model_type in ("unigram", "bpe"):
    pieces = train(tmp_path, ["\u6f22\u5b57" * 50_000], model_type=model_type)
    assert "\u6f22\u5b57" in {p.strip("\u2581")[:2] for p in pieces}


def test_a_character_that_is_reserved_costs_no_caption(tmp_path, log):
  pieces = train(tmp_path, ["a cat"] * 9 + ["bars \u2585\u2581 zebra"] * 9)
  assert {"z", "b"} <= set("".join(pieces))
  assert "9 captions have '\u2585' (U+2585), which sentencepiece" in log.text


def test_rare_characters_are_told_of(tmp_path, log):
  rng, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyz"
  texts = [
    " ".join("".join(rng.choices(letters, k=6)) for _ in range(20))
    for _ in range(100)
  ]
  train(tmp_path, [*texts, "\u00e9t\u00e9 \u6f22"], 1_000)
  assert "2 of 29 characters are too rare for a piece, and become '<unk>'" in (
    log.text
  )
  assert "\u00e9 \u6f22" in log.text
  log.clear()
  train(tmp_path, [*texts, "\u00e9t\u00e9 \u6f22 e\u0301"], 999)
  assert log.text == ""


def test_odd_texts_are_learnt_from(tmp_path):
  odd = ["\udcff ibis", "zeb\x00ra", "</s> <pad> quokka", "", " ", "\u200b"]
  letters = set("".join(train(tmp_path, odd * 9)))
  assert set("ibiszebraquokka") <= letters


def broken():
  yield from ["a cat"] * 20
  raise OSError("the disk is gone")


@pytest.mark.parametrize(
  ("captions", "size", "error", "message"),
  [
    (["a few words"] * 9, 5, ConfigError, r"=5 does not fit.* set it to 12 or"),
    (["a few words"] * 9, 0, ConfigError, "vocab_size=0 must lie in 1 to 2,1"),
    (["a few words"] * 9, 2**31, ConfigError, "vocab_size=2147483648 must lie"),
    ([], 5, ConfigError, "there is no caption to learn pieces from"),
    (["", " ", "\u200b"], 60, ConfigError, "there is no caption to learn"),
    (["a", 5], 60, ConfigError, "captions holds 5 of type int, not a text"),
    (["a", b"b"], 60, ConfigError, "captions holds b'b' of type bytes"),
    ("a few words", 60, ConfigError, "='a few words' is one text"),
    (broken(), 60, OSError, "^the disk is gone$"),
  ],
)
def test_refuses_what_it_cannot_learn(tmp_path, captions, size, error, message):
  with pytest.raises(error, match=message):
    train_sentencepiece(captions, tmp_path / "x", size)
  assert not (tmp_path / "x").exists()


def test_trains_a_model_that_fits_its_captions(tmp_path):
  path = tmp_path / "a" / "scenes.model"
  pieces = train_sentencepiece(models.captions(), path, 200, model_type="bpe")
  tokenizer = load(f"sentencepiece:{path}", 16)
  assert 100 <= tokenizer.vocab_size == pieces <= 200
  source = open_source("synthetic:val?size=200")
  texts = [source.fields(i)["text"] for i in range(200)]
  ids = tokenizer(texts)
  # SigLIP's padding: whatever the length, the last id is the end.
  assert (ids[:, -1] == tokenizer.eos).all() and tokenizer.eos == END
  # The captions of the built-in set fit the sixteen ids of its configs.
  assert np.mean((ids == END).sum(axis=1) == 1) < 0.1
  again = tmp_path / "b" / "again.model"
  train_sentencepiece(iter(models.captions()), again, 200, model_type="bpe")
  assert again.read_bytes() == path.read_bytes()
  assert [p.name for p in again.parent.iterdir()] == ["again.model"]
