import random

import pytest

from aced.config import ConfigError
from aced.data.tokenizers import load
from aced.export import hf_pieces
from aced.export.hf_tokenizer import write_tokenizer
from tests.data.tokenizers import models
from tests.export.hf_tokenizer_test import differing, read

pytest.importorskip("tokenizers", reason="writes what tokenizers reads")


def test_equally_likely_divisions(tmp_path):
  """Sums of float32 and of float64 may break a tie differently, and only so."""
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(
    models.sentencepiece_model(model_type="unigram")
  )
  rng = random.Random(0)
  for piece in model.pieces:
    if piece.type == hf_pieces.NORMAL:  # Of few scores, so that many tie.
      piece.score = rng.choice([-3.3, -4.1, -2.6])
  tokenizer = load_model(model, tmp_path)
  write_tokenizer(tokenizer, tmp_path / "new")
  file = read(tmp_path / "new")
  some = ["".join(rng.choices("acdein rst", k=60)) for _ in range(4000)]
  differ = differing(tokenizer, file, some)
  assert 0 < len(differ) < 400
  for text in differ:
    ours, theirs = tokenizer([text])[0], file.encode(text).ids
    likelihoods = [
      sum(model.pieces[i].score for i in row) for row in (ours, theirs)
    ]
    # Sixty sums of up to 250, rounded to 24 bits: 60 * 250 * 2**-24.
    assert abs(likelihoods[0] - likelihoods[1]) < 1e-3


@pytest.mark.parametrize("missing", [(), (7,), (4, 11)])
def test_runs_that_score_alike(tmp_path, missing):
  """As released models have them: spaces, and lines, in pieces of their own."""
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(models.gemma_model())
  model.pieces.add(piece="\n", score=-1e6)
  for length in sorted({*range(2, 17)} - {*missing}, key=lambda n: n * 7 % 17):
    model.pieces.add(piece="▁" * length, score=-1e9)
    model.pieces.add(piece="\n" * length, score=-1e9)
  tokenizer = load_model(model, tmp_path)
  write_tokenizer(tokenizer, tmp_path / "new")
  some = [f"a{' ' * k}b{chr(10) * (k * 5 % 41)}c" for k in range(60)]
  some += [" " * k for k in range(60)]
  assert differing(tokenizer, read(tmp_path / "new"), some) == []
  assert len({*tokenizer(some).flatten().tolist()}) > 30


def load_model(model, folder):
  path = folder / "changed.model"
  path.write_bytes(model.SerializeToString())
  return load(f"sentencepiece:{path}", 64)


def changed(kind=2, **fields):
  """A model with other settings."""
  from sentencepiece import sentencepiece_model_pb2

  names = {1: "unigram", 2: "bpe"}
  model = sentencepiece_model_pb2.ModelProto.FromString(
    models.sentencepiece_model(model_type=names[kind])
  )
  for name, value in fields.items():
    where, _, field = name.partition("__")
    setattr(getattr(model, where), field, value)
  return model


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (changed(trainer_spec__model_type=3), "is of the type word"),
    (
      changed(trainer_spec__treat_whitespace_as_suffix=True),
      "puts spaces behind words",
    ),
    (changed(normalizer_spec__escape_whitespaces=False), "keeps spaces"),
    (
      changed(normalizer_spec__name="mine"),
      "maps characters by the rule",
    ),
  ],
)
def test_refuses_what_a_file_cannot_say(model, message, tmp_path):
  tokenizer = load_model(model, tmp_path)
  with pytest.raises(ConfigError, match=f"changed.model': the model {message}"):
    write_tokenizer(tokenizer, tmp_path / "new")
  assert not (tmp_path / "new").exists()


def test_refuses_pieces_that_a_file_cannot_say(tmp_path):
  def message(model):
    tokenizer = load_model(model, tmp_path)
    with pytest.raises(ConfigError, match="cannot say exactly") as error:
      write_tokenizer(tokenizer, tmp_path / "new")
    return str(error.value)

  model = changed()
  long = [p for p in model.pieces if len(p.piece) > 1 and p.type == 1]
  long[3].score = long[2].score
  assert "pieces with equal scores" in message(model)
  model = changed()
  model.pieces[60].type = hf_pieces.UNUSED
  assert "unused pieces" in message(model)
  model = changed()
  model.pieces[60].type = hf_pieces.USER_DEFINED
  assert "user-defined pieces and add_dummy_prefix" in message(model)
  model = changed()
  letter = next(p for p in model.pieces if p.piece == "e")
  letter.piece = "~"
  assert "pieces with 'e' in them" in message(model)
  model = changed(kind=1)
  for index, piece in ((20, "~one"), (21, "e~~")):
    model.pieces[index].piece = piece
    model.pieces[index].type = hf_pieces.USER_DEFINED
  assert "user-defined pieces that overlap" in message(model)
