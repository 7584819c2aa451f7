"""Weights recognised by what is there: .npz files, runs of ours, neither."""

import json
import logging as python_logging
import zipfile

import jax
import numpy as np
import pytest

from aced.models import build, params
from aced.models.formats import read
from aced.models.params import ParamsError
from aced.train import train
from tests.models.two_towers_test import draw, shapes, tiny
from tests.train_test import smoke


def save(path, seed=0, image_size=8, text_length=5, **fields):
  """Saves a tiny pair's random parameters; returns `(config, params)`."""
  config = tiny(**fields)
  tree = draw(shapes(config, image_size, text_length), seed)
  params.save_npz(path, tree)
  return config, tree


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"image__scan": True, "text__scan": True},
    {"image__depth": 3, "text__num_heads": 1, "out_dim": (16, 16)},
    {"image__pool_type": "tok", "image__pre_norm": True, "bias_init": None},
    {"image__pool_type": "gap", "text__pool_type": "map"},
  ],
)
def test_an_npz_file_tells_its_model(tmp_path, fields):
  config, tree = save(tmp_path / "w.npz", **fields)
  weights = read(tmp_path / "w.npz")
  assert (weights.image_size, weights.text_length) == (8, 5)
  pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  ids = np.random.default_rng(1).integers(0, 9, (3, 5))
  found, wanted = (
    build(c).apply({"params": p}, pixels, ids)
    for c, p in ((weights.config, weights.params), (config, tree))
  )
  for ours, theirs in zip(found[:2], wanted[:2]):
    np.testing.assert_array_equal(ours, theirs)
  assert ("b" in found[2]) == ("b" in wanted[2])


def test_other_trees_are_no_towers(tmp_path):
  _, tree = save(tmp_path / "w.npz")
  params.save_npz(tmp_path / "img.npz", tree["img"])
  with pytest.raises(ParamsError, match=r"img\.npz: .* of two towers: img/"):
    read(tmp_path / "img.npz")
  positions = tree["img"]["pos_embedding"]
  tree["img"]["pos_embedding"] = np.repeat(positions, 2, axis=1)[:, :3]
  params.save_npz(tmp_path / "odd.npz", tree)
  with pytest.raises(ParamsError, match="no square picture"):
    read(tmp_path / "odd.npz")


def test_pictures_of_another_size_resample_what_depends_on_it(
  tmp_path, caplog, monkeypatch
):
  from absl import logging

  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  caplog.set_level(python_logging.WARNING)
  _, tree = save(tmp_path / "w.npz", image_size=16)
  wanted = tiny(image__patch_size=(2, 2))
  like = shapes(wanted, 8, 5)
  found = params.load(tmp_path / "w.npz", like)
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, like)
  said = caplog.text
  assert "patches of 4x4 pixels became 2x2" in said
  # The grid is 4 x 4 before and after: positions are left alone.
  assert "positions" not in said
  np.testing.assert_array_equal(
    found["img"]["pos_embedding"], tree["img"]["pos_embedding"]
  )
  found = params.load(tmp_path / "w.npz", shapes(tiny(), 24, 5))
  assert found["img"]["pos_embedding"].shape == (1, 36, 8)
  assert "positions of 4x4 patches became 6x6" in caplog.text
  with pytest.raises(ParamsError, match=r"another shape(.|\n)*txt/pos_emb"):
    params.load(tmp_path / "w.npz", shapes(tiny(), 16, 7))


def test_a_run_of_ours_says_what_its_student_sees(repository, tmp_path):
  train(smoke(repository, "iid", total_steps=3), tmp_path / "run")
  weights = read(tmp_path / "run")
  assert weights.kind == "a run of ours, at step 3"
  assert (weights.image_size, weights.text_length) == (32, 80)
  assert (weights.resize, weights.tokenizer) == ("bilinear", "bytes")
  assert weights.config["text"]["vocab_size"] == 258
  assert weights.config["out_dim"] == (None, 32)
  (tmp_path / "run" / "config.json").write_text(json.dumps({"a": 1}))
  with pytest.raises(ParamsError, match="does not say of which model"):
    read(tmp_path / "run")


def test_files_of_another_form_are_refused_in_words(tmp_path):
  _, tree = save(tmp_path / "w.npz")
  flat = params.flatten(tree)
  whole = {k: (100 * v).astype(np.int8) for k, v in flat.items()}
  np.savez(tmp_path / "int8.npz", **whole)
  with pytest.raises(ParamsError, match=r"no floats, such as .* int8"):
    read(tmp_path / "int8.npz")
  with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
    archive.writestr("README", "no array")
  with pytest.raises(ParamsError, match="holds a file that is no array"):
    read(tmp_path / "text.npz")
  np.savez(tmp_path / "both.npz", **flat, img=np.zeros(2))
  with pytest.raises(ParamsError, match="both an array and a folder"):
    read(tmp_path / "both.npz")


def test_a_run_of_ours_must_compute_what_the_model_does(repository, tmp_path):
  config = smoke(repository, "iid", total_steps=3)
  config["student"]["text"]["pool_type"] = "gap"
  train(config, tmp_path / "run")
  other = read(tmp_path / "run").config
  other["text"] = {**other["text"], "pool_type": "last"}
  with pytest.raises(ParamsError, match=r"text\.pool_type: 'gap' of the wei"):
    params.load(tmp_path / "run", model=build(other))


def test_there_is_nothing(tmp_path):
  with pytest.raises(FileNotFoundError, match="a folder of Hugging Face"):
    read(tmp_path)


@pytest.mark.parametrize(
  ("content", "what"),
  [
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    (b"", "an empty file"),
    (b"<!DOCTYPE html>", "a web page"),
  ],
)
def test_a_file_that_is_no_safetensors_is_told(tmp_path, content, what):
  (tmp_path / "model.safetensors").write_bytes(content)
  with pytest.raises(ParamsError, match=rf"model\.safetensors is {what}"):
    read(tmp_path / "model.safetensors")
