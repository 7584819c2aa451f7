"""Model cards: what they advertise works, and they tell nothing of a machine.

Of a card's code every block is run as it stands, in the folder of the card.
"""

import dataclasses
import re
import sys

import numpy as np
import pytest
from PIL import Image

import aced
from aced import files
from aced.export import writing
from tests.conftest import REPOSITORY
from tests.data.tokenizers import models
from tests.models.formats import released
from tests.models.formats.reading_test import save
from tests.models.formats.released import assert_close

TEXTS = ["a photo of a cat", "a photo of a dog"]
NEEDS = {
  "hf": ("torch", "transformers"),
  "npz": (),
  "stablehlo": ("tokenizers",),
  "onnx": ("onnx", "onnxruntime", "tokenizers"),
}


def student_of(folder, length, spec="bytes"):
  size = aced.data.tokenizers.load(spec, length).vocab_size
  save(folder / "w.npz", text__vocab_size=size, text_length=length)
  return aced.load(folder / "w.npz", tokenizer=spec, resize="bicubic")


def blocks(text):
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code, names):
  with released.quiet():
    exec(code, names)
  return names


@pytest.mark.parametrize(
  ("name", "spec", "length"),
  [
    pytest.param("hf", "c4", 8, marks=pytest.mark.parity),
    pytest.param("hf", "bytes", 64, marks=pytest.mark.parity),
    ("npz", "c4", 8),
    ("stablehlo", "bytes", 24),
    ("stablehlo", "c4?eos=yes", 8),
    pytest.param("onnx", "bytes", 24, marks=pytest.mark.parity),
    pytest.param("onnx", "c4?eos=yes", 8, marks=pytest.mark.parity),
  ],
)
def test_the_code_of_a_card_runs(tmp_path, monkeypatch, name, spec, length):
  released.needs(*NEEDS[name])
  kind, mark, options = spec.partition("?")
  student = student_of(
    tmp_path, length, models.write(tmp_path)[kind] + mark + options
  )
  writing.export(student, tmp_path / "out", [name])
  monkeypatch.chdir(tmp_path / "out")
  monkeypatch.setattr(sys, "path", [*sys.path])
  # Of another folder of that name.
  monkeypatch.delitem(sys.modules, "loader", raising=False)
  monkeypatch.delitem(sys.path_importer_cache, "stablehlo", raising=False)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
  picture = Image.fromarray(pixels[0])
  picture.save("cat.jpg", quality=95)
  code = blocks((tmp_path / "out" / "README.md").read_text())
  found = run(code[0], {"picture": picture, "pixels": pixels})
  if name == "npz":
    assert found["model"].tokenizer.content == student.tokenizer.content
    assert found["model"].transform == student.transform
  else:
    logits = np.asarray(found["logits"].tolist())
    assert_close(logits, student.logits(list(pixels), TEXTS))
  # The pipeline is shown where it is right.
  assert len(code) == 1 + (name == "hf" and length == 64)
  if len(code) > 1:
    given = "classify(picture, "
    found = run(
      code[1].replace(given, f"scores = {given}"), {"picture": picture}
    )
    assert {one["label"] for one in found["scores"]} == {"cat", "dog"}


@pytest.mark.parametrize("length", [8, 63, 64, 65, 80])
def test_a_card_advertises_no_pipeline_that_is_wrong(tmp_path, length):
  pytest.importorskip("safetensors", reason="writes the folder")
  student, said = student_of(tmp_path, length), []
  writing.export(student, tmp_path / "out", ["hf"], say=said.append)
  text = (tmp_path / "out" / "README.md").read_text()
  right = length == 64
  assert ("pipeline_tag: zero-shot-image-classification" in text) == right
  assert ("pipeline(" in text) == right
  warned = [t for t in said if "pads texts to 64 tokens" in t]
  assert len(warned) == (not right)
  if not right:
    outcome = "would fail" if length < 64 else "would give wrong scores"
    for told in (warned[0], text):
      assert f"this model takes {length}: it {outcome}" in told
      assert "Students trained with input.text_length=64 work" in told


def test_no_file_tells_where_anything_lies(tmp_path, monkeypatch):
  """Neither of the card, nor of the metadata of any format."""
  formats = ["npz", "stablehlo"]
  for name, package in (("hf", "safetensors"), ("onnx", "onnx")):
    try:
      __import__(package)
    except ImportError:
      continue
    formats.append(name)
  home = tmp_path / "home" / "bob"
  home.mkdir(parents=True)
  monkeypatch.setenv("HOME", str(home))
  spec = models.write(home)["c4"] + "?eos=sticky"
  student = student_of(home, 8, spec)
  # As of a run: what its config says goes into the card.
  config = {
    "name": "",
    "batch_size": 8,
    "loss": "sigmoid",
    "input.source": f"mixture:2*jsonl:{home}/a.jsonl;webdataset:~/b/*.tar",
    "input.tokenizer": spec,
    "curation.method": "joint",
    "curation.score": "learnability",
    "curation.filter_ratio": 0.5,
    "distillation.weight": 0.0,
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
    "frozen.reference.init": f"{home}/runs/reference@best",
    "frozen.reference.cache": f"{home}/caches/of_reference",
  }
  files.write_json(home / "run" / "config.json", config)
  weights = dataclasses.replace(student.weights, where=home / "run", step=3)
  student = dataclasses.replace(student, weights=weights)
  writing.export(student, tmp_path / "out", formats)
  text = (tmp_path / "out" / "README.md").read_text()
  for shown in (
    "# run\n",
    "| `mixture:2*jsonl:a.jsonl;webdataset:*.tar` |",
    "| `sentencepiece:c4.model?eos=sticky` |",
    "| `reference@best` |",
  ):
    assert shown in text, shown
  written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
  assert len(written) > 8
  for path in written:
    content = path.read_bytes()
    for secret in (str(tmp_path), "bob/", "~/", str(REPOSITORY)):
      assert secret.encode() not in content, (path, secret)
