import io
import pathlib

import numpy as np
import pytest
import sentencepiece

from aced.config import ConfigError
from aced.data.tokenizers import load
from tests.data.tokenizers import models

PAD, END, START = 0, 1, 2


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
  return models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
  """A model whose pieces are the letters."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["abcdefghij"] * 9),
    model_writer=model,
    model_type="char",
    vocab_size=13,
    pad_id=PAD,
    eos_id=END,
    unk_id=2,
    bos_id=-1,
    add_dummy_prefix=False,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp("letters") / "letters.model"
  path.write_bytes(model.getvalue())
  return f"sentencepiece:{path}"


@pytest.mark.parametrize(
  ("options", "want"),
  [
    # big_vision's four cases; "a" is written 9.
    ("?eos=none&pad=0", ["900", "990", "999"]),
    ("?eos=none", ["900", "990", "999"]),
    ("?eos=yes&pad=0", ["910", "991", "999"]),
    ("?eos=sticky&pad=0", ["910", "991", "991"]),
    ("?eos=sticky&pad=1", ["911", "991", "991"]),
    ("", ["911", "991", "991"]),
    ("?style=siglip", ["911", "991", "991"]),
    ("?style=siglip2", ["910", "991", "991"]),
    ("?style=siglip2&eos=yes&pad=1", ["911", "991", "999"]),
  ],
)
def test_ends_and_padding(letters, options, want):
  tokenizer = load(letters + options, 3)
  (nine,) = tokenizer._encode("a")
  ids = tokenizer(["a", "aa", "aaa"])
  assert ids.tolist() == [
    [nine if c == "9" else int(c) for c in row] for row in want
  ]
  assert [tokenizer.decode(row) for row in ids] == [
    "a" * row.count("9") for row in want
  ]


def test_start(specs):
  plain, started = load(specs["gemma"], 8), load(specs["gemma"] + "?bos=1", 9)
  texts = models.mixed(50)
  ids = started(texts)
  assert (ids[:, 0] == START).all()
  np.testing.assert_array_equal(ids[:, 1:], plain(texts))
  whole = load(specs["gemma"] + "?bos=1", 500)
  assert whole.decode(whole(["a red circle"])[0]) == "a red circle"


def test_gemma_like_model(specs):
  tokenizer = load(specs["gemma"] + "?style=siglip2", 64)
  assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (PAD, END, None)
  texts = ["漢字 🙂", "Ünïcödé", "a   b", "\x00", "<eos> </s> <bos>"]
  ids = tokenizer(texts)
  # Bytes stand in for what the model has no piece of, so nothing is unknown,
  # and a special token written out is text.
  assert not (ids == 3).any() and not (ids == START).any()
  assert ((ids == END).sum(axis=1) == 1).all()
  lowered = ["漢字 🙂", "Ünïcödé", "a   b", "\x00", "<eos> </s> <bos>"]
  assert [tokenizer.decode(row) for row in ids] == lowered


def test_vocabulary_as_large_as_gemmas(tmp_path):
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto()
  model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
  ids = {"pad": PAD, "eos": END, "bos": START, "unk": 3}
  for name, index in ids.items():
    setattr(model.trainer_spec, f"{name}_id", index)
    setattr(model.trainer_spec, f"{name}_piece", f"<{name}>")
  control = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
  unknown = sentencepiece_model_pb2.ModelProto.SentencePiece.UNKNOWN
  for index in range(256_000):
    piece = f"▁{chr(0x4E00 + index % 512)}{chr(0x4E00 + index // 512)}"
    if index in ids.values():
      name = list(ids)[index]
      kind = unknown if name == "unk" else control
      model.pieces.add(piece=f"<{name}>", score=0, type=kind)
    else:
      model.pieces.add(piece=piece, score=-1)
  path = tmp_path / "large.model"
  path.write_bytes(model.SerializeToString())
  tokenizer = load(f"sentencepiece:{path}?style=siglip2", 4)
  assert tokenizer.vocab_size == 256_000
  text = f"{chr(0x4E00 + 255_999 % 512)}{chr(0x4E00 + 255_999 // 512)}"
  assert tokenizer([text]).tolist() == [[255_999, END, PAD, PAD]]
  assert tokenizer.decode([255_999, END, PAD, PAD]) == text


@pytest.mark.parametrize(
  ("options", "text", "same"),
  [
    ("?lower=1", "A Red ÉTÉ", "a red été"),
    ("?lower=ascii", "A Red ÉTÉ", "a red ÉtÉ"),
    ("?style=siglip", "A Red ÉTÉ", "a red ÉtÉ"),
    ("?style=siglip&lower=1", "A Red ÉTÉ", "a red été"),
    ("?style=siglip2&lower=0", "A Red ÉTÉ", "A Red ÉTÉ"),
    ("?canonical=1", " A_red, (É)\n!circle's ", "a red é circles"),
    ("?canonical=1&lower=ascii", "Am É—“x”…", "am é—“x”…"),
  ],
)
def test_letters_and_punctuation(specs, options, text, same):
  # Bytes and all: two texts have the same ids only if they are the same.
  neutral = "?pad=0" if "siglip2" in options else ""
  want = load(specs["gemma"] + neutral, 64)([same])
  np.testing.assert_array_equal(
    load(specs["gemma"] + options, 64)([text]), want
  )


def test_default_is_what_it_was(specs):
  """Caches name a tokenizer by its `content`: that of old ones must stay."""
  model = pathlib.Path(specs["c4"].partition(":")[2]).read_bytes()
  assert load(specs["c4"], 8).content == model
  assert load(specs["c4"] + "?lower=0", 8).content == model
  assert load(specs["c4"] + "?lower=1", 8).content == b"lower " + model


def test_refuses_by_name(specs, letters, tmp_path):
  with pytest.raises(ConfigError, match="is not a sentencepiece model"):
    load(f"sentencepiece:{__file__}", 16)
  with pytest.raises(ConfigError, match="pad=999 is not an id.*has 13"):
    load(letters + "?pad=999", 16)
  with pytest.raises(ConfigError, match=r"no id that starts a text \(bos_id\)"):
    load(letters + "?bos=1", 16)
  with pytest.raises(ConfigError, match="text_length=2 must be 3 or above"):
    load(specs["gemma"] + "?bos=1", 2)
  assert load(specs["gemma"] + "?bos=1&eos=yes", 2)(["a"]).shape == (1, 2)
  bare = tmp_path / "bare.model"
  bare.write_bytes(models.sentencepiece_model(eos_id=-1, pad_id=-1))
  with pytest.raises(ConfigError, match=r"no id that ends a text \(eos_id\)"):
    load(f"sentencepiece:{bare}", 16)
  with pytest.raises(ConfigError, match=r"no id that fills up a text \(pad_id"):
    load(f"sentencepiece:{bare}?eos=none", 16)
  assert load(f"sentencepiece:{bare}?eos=none&pad=3", 16).eos is None
