"""Tokenizers that go with a student, wherever it goes."""

import functools
import json

import jax
import numpy as np
import pytest

import aced
from aced.config import ConfigError
from aced.data.tokenizers import load
from aced.data.tokenizers.clip import Clip
from aced.export import carried, stablehlo, writing
from tests.data.tokenizers import models
from tests.export import stablehlo_test
from tests.models.formats.reading_test import save

LENGTH = 12
CASES = [
  ("bytes", ""),
  ("c4", "?style=siglip&canonical=1"),
  ("c4", "?eos=yes"),
  ("gemma", "?style=siglip2&bos=1"),
  ("bert", ""),
  ("plain", "?lower=1&end=<|endoftext|>"),
  ("clip", ""),
]
TEXTS = ["a red circle", "", "Ünïcödé ÉTÉ, 漢字 🙂!", "</s> of a " * 9, "İt's"]


@pytest.fixture(params=CASES, ids="".join)
def student(request, tmp_path_factory):
  """A student whose tokenizer's own file is gone."""
  name, options = request.param
  if name in ("bert", "plain", "clip"):
    pytest.importorskip("tokenizers", reason="reads these tokenizers")
  if name == "clip":
    pytest.importorskip("ftfy", reason="mends texts for this tokenizer")
  folder = tmp_path_factory.mktemp("student")
  spec = models.write(folder)[name] + options
  size = max(load(spec, LENGTH).vocab_size, load("bytes", LENGTH).vocab_size)
  save(folder / "w.npz", text__vocab_size=size, text_length=LENGTH)
  found = aced.load(folder / "w.npz", tokenizer=spec, resize="bicubic")
  found.tokens(TEXTS)
  for path in folder.iterdir():
    path.unlink()
  return found


def test_aced_load_finds_the_tokenizer_and_the_resizing(student, tmp_path):
  writing.export(student, tmp_path / "out", ["npz"])
  (tmp_path / "out").rename(tmp_path / "moved")
  found = aced.load(tmp_path / "moved" / writing.NPZ)
  assert found.transform == student.transform
  assert found.tokenizer.content == student.tokenizer.content
  np.testing.assert_array_equal(found.tokens(TEXTS), student.tokens(TEXTS))
  # What a caller gives goes before what lies there.
  given = aced.load(
    tmp_path / "moved" / writing.NPZ, tokenizer="bytes", resize="bilinear"
  )
  assert given.transform.resize == "bilinear"
  assert given.tokenizer.spec == "bytes"


def test_what_the_loader_has_for_texts_makes_the_same_ids(student, tmp_path):
  pytest.importorskip("tokenizers", reason="reads tokenizer.json")
  carried.carry(student, tmp_path)
  problem = carried.carry_file(student, tmp_path)
  # The one that tokenizer.json cannot hold is made by this package.
  exact = "eos=yes" not in student.tokenizer.spec
  assert exact == (not problem) == (tmp_path / "tokenizer.json").exists()
  loader = {"functools": functools, "jax": jax, "HERE": tmp_path}
  code = stablehlo.TOKENIZE["tokenizers" if exact else "aced"]
  exec(code.format(length=LENGTH), loader)
  np.testing.assert_array_equal(
    loader["tokenize"](TEXTS), student.tokens(TEXTS)
  )
  assert loader["tokenize"]([]).shape == (0, LENGTH)


def test_what_tokenizer_json_cannot_hold_is_said(tmp_path):
  pytest.importorskip("tokenizers", reason="would write tokenizer.json")
  spec = models.write(tmp_path)["c4"] + "?eos=yes"
  size = load(spec, LENGTH).vocab_size
  save(tmp_path / "w.npz", text__vocab_size=size, text_length=LENGTH)
  student, said = aced.load(tmp_path / "w.npz", tokenizer=spec), []
  writing.export(student, tmp_path / "out", ["stablehlo"], say=said.append)
  (note,) = [text for text in said if "no tokenizer.json" in text]
  assert "its texts need aced: tokenizer 'sentencepiece:tokenizer.model" in note
  card = (tmp_path / "out" / "README.md").read_text()
  assert note.removeprefix("stablehlo: ") in card
  loader = stablehlo_test.load(tmp_path / "out" / "stablehlo")
  np.testing.assert_array_equal(loader.tokenize(TEXTS), student.tokens(TEXTS))
  with pytest.raises(ConfigError, match="Leave 'hf' out of --formats"):
    writing.export(student, tmp_path / "hf", ["hf"])


def test_the_loader_needs_the_package_tokenizers_alone(tmp_path):
  pytest.importorskip("tokenizers", reason="reads tokenizer.json")
  (tmp_path / "models").mkdir()
  spec = models.write(tmp_path / "models")["c4"] + "?style=siglip"
  size = load(spec, LENGTH).vocab_size
  save(tmp_path / "w.npz", text__vocab_size=size, text_length=LENGTH)
  student = aced.load(tmp_path / "w.npz", tokenizer=spec)
  writing.export(student, tmp_path / "out", ["stablehlo"])
  program = stablehlo_test.ALONE.partition("given =")[0] + (
    "print(json.dumps([list(map(int, row)) for row in"
    " loader.tokenize(json.loads(sys.argv[2]))]))"
  )
  done = stablehlo_test.alone(
    program, tmp_path / "out" / "stablehlo", json.dumps(TEXTS)
  )
  assert json.loads(done) == student.tokens(TEXTS).tolist()


def test_without_the_package_tokenizers_the_loader_asks_for_aced(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(carried.importlib.util, "find_spec", lambda name: None)
  save(tmp_path / "w.npz", text__vocab_size=258, text_length=LENGTH)
  student = aced.load(tmp_path / "w.npz", tokenizer="bytes")
  assert "is not installed" in carried.carry_file(student, tmp_path)
  assert not (tmp_path / "tokenizer.json").exists()


def test_a_student_without_a_tokenizer_says_so(tmp_path):
  save(tmp_path / "w.npz", text_length=LENGTH)
  said = []
  student = aced.load(tmp_path / "w.npz", resize="bicubic")
  writing.export(
    student, tmp_path / "out", ["npz", "stablehlo"], say=said.append
  )
  assert any("carries no tokenizer, as the student's is not" in t for t in said)
  found = aced.load(tmp_path / "out" / writing.NPZ)
  assert found.tokenizer is None and found.transform.resize == "bicubic"
  with pytest.raises(ConfigError, match="which tokenizer its texts want"):
    found.tokens(["a"])
  loader = stablehlo_test.load(tmp_path / "out" / "stablehlo")
  assert not hasattr(loader, "tokenize")


def test_a_copy_with_other_ids_is_found_out(tmp_path, monkeypatch):
  pytest.importorskip("ftfy", reason="mends texts for this tokenizer")
  tokenizer = load(models.write(tmp_path)["clip"], LENGTH)
  assert type(tokenizer) is Clip
  save(
    tmp_path / "w.npz",
    text__vocab_size=tokenizer.vocab_size,
    text_length=LENGTH,
  )
  student = aced.load(tmp_path / "w.npz", tokenizer=tokenizer.spec)
  model = carried._model(tokenizer)
  shorter = model[: model.rindex(b"\n")]
  monkeypatch.setattr(carried, "_model", lambda _: shorter)
  with pytest.raises(ConfigError, match="a copy that gives other ids"):
    writing.export(student, tmp_path / "out", ["npz"])
  assert not (tmp_path / "out").exists()
