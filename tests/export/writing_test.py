"""Exports as a whole: every format checked, refused by option, or nothing."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

import aced
from aced.config import ConfigError
from aced.export import writing
from aced.export.__main__ import main
from aced.models import params
from aced.models.formats import read
from aced.models.params import flatten
from aced.train import train
from tests.conftest import REPOSITORY
from tests.models.formats.reading_test import save
from tests.train_test import smoke


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with a reference that is a teacher as well, and an evaluation."""
  folder = tmp_path_factory.mktemp("export") / "run"
  config = smoke(REPOSITORY, "aced", total_steps=3, batch_size=8)
  config["evals"] = {
    "retrieval": {"type": "retrieval", "source": "synthetic:val?size=16"}
  }
  config["student"]["text"]["dtype_mm"] = "bfloat16"
  train(config, folder)
  return folder


def npz_student(path, **fields):
  """A tiny student with random weights, as `aced.load` gives it."""
  save(path, text__vocab_size=258, text_length=8, **fields)
  return aced.load(path, tokenizer="bytes")


def test_a_run_goes_out_and_comes_back_exactly(run, tmp_path, capsys):
  output = tmp_path / "out"
  assert main([str(run), "--output", str(output), "--formats", "npz,hf"]) == 0
  told = capsys.readouterr()
  assert "the student alone is written, without reference" in told.err
  assert [p.name for p in sorted(output.iterdir())] == [
    "README.md",
    "aced.json",
    "big_vision.npz",
    "hf",
  ]
  wanted = flatten(read(run).params)
  assert not any("projections" in name for name in wanted)
  for where in (output / "hf", output / "big_vision.npz"):
    weights = read(where)
    found = flatten(
      aced.models.params.stack_layers(weights.params)
      if where.name == "hf"
      else weights.params
    )
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
      np.testing.assert_array_equal(found[name], value, err_msg=name)
  assert (output / "hf" / "model.safetensors").stat().st_mode & 0o044
  again = aced.load(output / "hf")
  assert again.transform == aced.load(run).transform
  texts = ["a red square", "two cats", "", "x" * 200]
  np.testing.assert_array_equal(
    again.tokens(texts), aced.load(run).tokens(texts)
  )


def test_the_card_tells_what_the_student_is(run, tmp_path):
  writing.export(aced.load(run), tmp_path / "out", ["stablehlo"], int8=True)
  card = (tmp_path / "out" / "README.md").read_text()
  for text in (
    "# aced",
    "the frozen models that it learnt from (reference) are not part of it",
    "joint selection by learnability, 80% of each super-batch discarded;"
    " softmax distillation on the same batch",
    "| batch | 8, from 40 loaded |",
    "| trained examples | 24 |",
    "| retrieval/mean/R@1 |",
    "GMACs |",
    "| `stablehlo` |",
    "| int8 |",
  ):
    assert text in card, text
  assert "library_name" not in card


def test_a_loader_runs_without_this_package(run, tmp_path):
  student = aced.load(run)
  writing.export(student, tmp_path / "out", ["stablehlo"])
  pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  np.save(tmp_path / "x.npy", pixels)
  program = (
    "import sys, numpy as np; sys.path.insert(0, 'out/stablehlo');"
    "import loader; x = np.load('x.npy', allow_pickle=False);"
    "np.save('z.npy', loader.embed_images(x));"
    "print(loader.scale, loader.bias, [m for m in sys.modules if"
    " m.split('.')[0] in ('aced', 'flax', 'orbax')])"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  scale, bias, modules = done.stdout.split(" ", 2)
  assert modules.strip() == "[]"
  assert float(scale) == pytest.approx(student.scale, rel=1e-6)
  assert float(bias) == pytest.approx(student.bias, rel=1e-6)
  z = np.load(tmp_path / "z.npy", allow_pickle=False)
  # Another program of the same products: roundings of float32.
  np.testing.assert_allclose(z, student.embed_images(pixels), atol=1e-5)


@pytest.mark.parametrize(
  "fields, name, option",
  [
    ({"image__pool_type": "gap"}, "hf", "image.pool_type='gap'; it has 'map'"),
    ({"out_dim": (None, None)}, "hf", "out_dim: no head of the text tower"),
    ({"text__causal": True}, "hf", "text.causal=True; it has False"),
    ({"text__pool_type": "gap"}, "npz", "text.pool_type='gap'; it has 'last'"),
    ({"text__activation": "gelu"}, "npz", "text.activation='gelu'; it has"),
    ({"image__norm_eps": 1e-5}, "npz", "image.norm_eps=1e-05; it has 1e-06"),
  ],
)
def test_what_a_format_cannot_express_is_named(tmp_path, fields, name, option):
  student = npz_student(tmp_path / "w.npz", **fields)
  # What shapes do not tell is set by hand.
  towers = {"image": {**student.model.image}, "text": {**student.model.text}}
  for key, value in fields.items():
    tower, _, field = key.partition("__")
    if field:
      towers[tower][field] = value
  object.__setattr__(student, "model", student.model.clone(**towers))
  with pytest.raises(ConfigError, match="cannot express this") as error:
    writing.export(student, tmp_path / "out", ["stablehlo", name])
  assert option in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_nothing_is_left_of_what_fails(tmp_path, monkeypatch):
  student = npz_student(tmp_path / "w.npz")

  def break_off(*_):
    raise OSError("no space left")

  broken = writing.FORMATS["hf"]._replace(write=break_off)
  monkeypatch.setitem(writing.FORMATS, "hf", broken)
  with pytest.raises(OSError, match="no space"):
    writing.export(student, tmp_path / "out", ["npz", "hf"])
  assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_files_that_compute_something_else_are_found_out(tmp_path, monkeypatch):
  student = npz_student(tmp_path / "w.npz")

  def write_wrong(student, folder, int8):
    wrong = jax.tree.map(lambda x: x + 0.1, student.params)
    writing.save_npz(folder / writing.NPZ, wrong)
    return ()

  wrong = writing.FORMATS["npz"]._replace(write=write_wrong)
  monkeypatch.setitem(writing.FORMATS, "npz", wrong)
  with pytest.raises(RuntimeError, match="the npz files do not compute"):
    writing.export(student, tmp_path / "out", ["npz"])
  assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_what_is_not_a_number_is_no_match(tmp_path):
  _, tree = save(tmp_path / "w.npz", text__vocab_size=258)
  tree["txt"]["head"]["bias"][:] = np.nan
  params.save_npz(tmp_path / "nan.npz", tree)
  with pytest.raises(RuntimeError, match="differ by nan"):
    writing.export(aced.load(tmp_path / "nan.npz"), tmp_path / "out", ["npz"])


def test_wrong_requests_are_refused_by_name(tmp_path, capsys):
  path, out = str(tmp_path / "w.npz"), str(tmp_path / "out")
  npz_student(tmp_path / "w.npz")
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "file").write_text("mine")
  for arguments, message in (
    ([path, "--output", out, "--formats", "onx"], "'onx' is not known"),
    ([path, "--output", out, "--formats", ""], "must be one or more"),
    ([path, "--output", out, "--formats", "npz,npz"], "each once"),
    (
      [path, "--output", out, "--formats", "npz,hf", "--int8"],
      "--int8 changes none of --formats=npz,hf; those that can be in eight bits"
      " are stablehlo and onnx.",
    ),
    ([path, "--output", out, "--formats", "hf"], "which tokenizer"),
    ([path, "--output", str(tmp_path / "taken")], "is there already"),
    ([path, "--output", f"{path}/inside", "--formats", "npz"], "Error"),
    ([str(tmp_path / "none"), "--output", out], "no weights at"),
  ):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
  assert sorted(p.name for p in tmp_path.iterdir()) == ["taken", "w.npz"]
  assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_int8_says_which_formats_it_changes(tmp_path, capsys):
  path = str(tmp_path / "w.npz")
  npz_student(tmp_path / "w.npz")
  given = [path, "--tokenizer", "bytes", "--int8", "--formats"]
  out = str(tmp_path / "both")
  assert main([*given, "npz,stablehlo", "--output", out]) == 0
  told = capsys.readouterr()
  assert "--int8 rounds stablehlo; it does not change npz" in told.err
  weights = {line.split()[0]: line.split()[3] for line in _formats(told.out)}
  assert weights == {"npz": "float32", "stablehlo": "int8"}
  assert main([*given, "stablehlo", "--output", str(tmp_path / "one")]) == 0
  assert "does not change" not in capsys.readouterr().err


def _formats(told):
  """The lines of a command's table."""
  return [line for line in told.splitlines() if "embeddings differ" in line]


def test_a_text_decoder_is_refused(tmp_path, capsys):
  from tests.training.decoders import decoded

  train(decoded(), tmp_path / "run")
  given = [str(tmp_path / "run"), "--output", str(tmp_path / "out")]
  assert main(given) == 2
  told = capsys.readouterr().err
  assert "is a text decoder's run: it has no text tower" in told
  assert "no format of aced.export holds one" in told
  assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_before_anything_is_written(
  tmp_path, monkeypatch, capsys
):
  npz_student(tmp_path / "w.npz")
  there = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *a: None if name == "onnx" else there(name, *a),
  )
  given = [str(tmp_path / "w.npz"), "--tokenizer", "bytes"]
  assert main([*given, "--output", str(tmp_path / "out")]) == 2
  assert 'needs the package onnx: pip install -e ".[onnx]"' in (
    capsys.readouterr().err
  )
  assert not (tmp_path / "out").exists()


def test_the_command_shows_its_help(capsys):
  with pytest.raises(SystemExit) as done:
    main(["--help"])
  assert done.value.code == 0
  assert "a loader; it needs jax, flatbuffers" in capsys.readouterr().out
