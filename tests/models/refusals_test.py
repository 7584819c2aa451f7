"""What is said where weights are looked for and something else is there."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest

import aced
from aced.models import params
from aced.models.params import ParamsError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CLIP = '{"model_type": "clip"}'
OPEN_CLIP = '{"model_cfg": {"vision_cfg": {}, "text_cfg": {}, "embed_dim": 8}}'


def torch_file():
  """What `torch.save` writes: a pickle in an archive."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle.dumps({}))
  return file.getvalue()


def fill(folder, files):
  for name, content in files.items():
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(data)


CONVERT = r".*python -c 'import torch, safetensors.torch.*torch.load\("
SHARDS = json.dumps(
  {"weight_map": {f"w{k}": f"model-{k}.safetensors" for k in range(4)}}
)


@pytest.mark.parametrize(
  ("files", "error", "message"),
  [
    (
      {"open_clip_config.json": OPEN_CLIP, "open_clip_pytorch_model.bin": "PK"},
      FileNotFoundError,
      f"there is open_clip_pytorch_model.bin: a pickle, which can{CONVERT}",
    ),
    (
      {"config.json": CLIP, "pytorch_model.bin": torch_file()},
      FileNotFoundError,
      rf"there is pytorch_model.bin: a pickle.*{CONVERT}.*model\.safetensors",
    ),
    (
      {"config.json": CLIP, "flax_model.msgpack": b"\x81"},
      FileNotFoundError,
      "there is flax_model.msgpack, which is not read here; fetch its safetens",
    ),
    (
      {"open_clip_config.json": OPEN_CLIP, "model.safetensors": "x"},
      FileNotFoundError,
      "there is model.safetensors: rename it if that is the same model",
    ),
    (
      {"config.json": CLIP},
      FileNotFoundError,
      "model.safetensors; check the p",
    ),
    (
      {"config.json": CLIP, "model.safetensors": POINTER},
      ParamsError,
      "model.safetensors is not a whole safetensors file: it is a Git LFS poin",
    ),
    (
      {"config.json": CLIP, "model.safetensors": "<html>404</html>"},
      ParamsError,
      "model.safetensors is not a whole safetensors file: it is a web page",
    ),
    (
      {"config.json": CLIP, "model.safetensors": torch_file()},
      ParamsError,
      f"not a whole safetensors file: it is a pickle, which can run{CONVERT}",
    ),
    (
      {"config.json": CLIP, "model.safetensors": b"\xff\0\0\0\0\0\0\0{}"},
      ParamsError,
      "is not a whole safetensors file: .*; fetch it again",
    ),
    (
      {"config.json": CLIP, "model.safetensors.index.json": SHARDS},
      FileNotFoundError,
      r"4 shards that its index names are not in .*: model-0.*-2.safetens",
    ),
    (
      {"config.json": CLIP, "model.safetensors.index.json": POINTER},
      ParamsError,
      "is no index of safetensors: it is a Git LFS pointer",
    ),
    ({"config.json": POINTER}, ParamsError, "model: it is a Git LFS pointer"),
    ({"config.json": ""}, ParamsError, "a model: it is an empty file"),
    ({"open_clip_config.json": "<html>"}, ParamsError, "json is a web page"),
    (
      {"model.safetensors": "x"},
      ParamsError,
      "holds model.safetensors without the config.json",
    ),
    (
      {"config.json": '{"total_steps": 1}', "checkpoint.bv-LAST": "7"},
      ParamsError,
      "holds a checkpoint of big_vision's.*load_checkpoint_ts",
    ),
    ({"checkpoint.bv-LAST": "7"}, ParamsError, "a checkpoint of big_vision's"),
    (
      {"config.json": '{"student.model": "two_towers"}'},
      FileNotFoundError,
      "the workdir of a run that has no checkpoints yet",
    ),
    (
      {"config.json": '{"model_type": "bert"}'},
      ParamsError,
      "='bert' cannot be",
    ),
  ],
)
def test_folders(tmp_path, files, error, message):
  fill(tmp_path, files)
  for load in (aced.load, params.load):
    with pytest.raises(error, match=message):
      load(tmp_path)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("pytorch_model.bin", torch_file(), f"bin is a pickle, which can{CONVERT}"),
    ("model.pt", pickle.dumps(1), r".*, \".*model\.safetensors\"\)'$"),
    ("epoch_32.pt", POINTER, "epoch_32.pt is a Git LFS pointer"),
    ("last.ckpt", b"PK", "last.ckpt is a zip archive that was cut"),
    (
      "flax_model.msgpack",
      b"\x81\0",
      "of a format that is not read here; expe",
    ),
    ("model.zip", torch_file(), "model.zip is a pickle"),
    (
      "w.npz",
      pickle.dumps({"a": 1}),
      "w.npz is not a whole .npz.* a pickle, wh",
    ),
    ("w.npz", torch_file(), r"w.npz is not a whole .npz file: it is a pickle"),
    ("w.npz", "", "w.npz is not a whole .npz file: it is an empty file"),
    ("w.npz", POINTER, "w.npz is not a whole .npz file: it is a Git LFS point"),
    ("w.npz", "<!doctype html>", "w.npz is not a whole .npz.* a web page"),
    ("w.npz", b"PK\x03\x04\0\0", "w.npz is not a whole .npz.*: no zip archive"),
    ("checkpoint.bv-000000010", "", "is a checkpoint of big_vision's"),
  ],
)
def test_files(tmp_path, name, content, message):
  fill(tmp_path, {name: content})
  for load in (aced.load, params.load):
    with pytest.raises(ParamsError, match=message):
      load(tmp_path / name)


def test_pickled_arrays(tmp_path):
  np.savez(tmp_path / "w.npz", a=np.array([{}], object))
  with pytest.raises(ParamsError, match="holds pickled objects, which are nev"):
    aced.load(tmp_path / "w.npz")


def test_inside_of_a_run(tmp_path):
  step = tmp_path / "run" / "checkpoints" / "30"
  step.mkdir(parents=True)
  (tmp_path / "run" / "config.json").write_text("{}")
  for where, named in ((step, "run@30$"), (step.parent, "run$")):
    message = f"holds checkpoints of a run; name its workdir, .*{named[:-1]}"
    with pytest.raises(ParamsError, match=message):
      aced.load(where)


@pytest.mark.parametrize(
  ("where", "message"),
  [
    (
      "google/siglip-base-patch16-224",
      "on a hub: nothing is fetched here.*hf download google/siglip-base-patch",
    ),
    ("hf-hub:timm/ViT-B-16-SigLIP", "nothing is fetched here"),
    ("https://hub.example/a/b", "nothing is fetched here"),
    ("gs://bucket/w", "nothing is fetched here"),
    ("local-dir:/some/folder", "name the folder alone, '/some/folder'"),
    ("/nowhere/at/all", "no weights at '/nowhere/at/all': expected an .npz"),
    ("nothing", "no weights at 'nothing': expected an .npz file"),
  ],
)
def test_what_is_not_here(tmp_path, monkeypatch, where, message):
  monkeypatch.chdir(tmp_path)
  for load in (aced.load, params.load):
    with pytest.raises(FileNotFoundError, match=message):
      load(where)
  # A name with two parts may be a run's, whose folder has others.
  (tmp_path / "google").mkdir()
  with pytest.raises(FileNotFoundError, match="expected an .npz file"):
    aced.load("google/run")
