"""The examples are run, and so is every Python block of docs/curation.md."""

import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from aced.curation import select_batch

ROWS = 96
# One process of the last block: `rank`, the block's file, the inputs, results.
PROCESS = """
import datetime, json, runpy, sys
import numpy as np, torch, torch.distributed as dist
rank, block, data, store, output = sys.argv[1:]
limit = datetime.timedelta(seconds=60)
dist.init_process_group(
  "gloo", f"file://{store}", limit, world_size=2, rank=int(rank)
)
half = slice(int(rank) * 48, int(rank) * 48 + 48)
arrays = np.load(data, allow_pickle=False)
models = {
  name: (*(torch.tensor(z[half]) for z in arrays[name]), 10.0, -10.0)
  for name in ("student", "reference")
}
found = runpy.run_path(block, init_globals=models | {"step": 3})
with open(output, "w") as f:
  json.dump([found["indices"].tolist(), found["mine"].tolist()], f)
dist.destroy_process_group()
"""


@pytest.fixture
def block(repository, tmp_path):
  """Writes the block of docs/curation.md that holds a text; its path."""

  def write(text):
    page = (repository / "docs" / "curation.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 4, "a block has no test"
    (found,) = (b for b in blocks if text in b)
    path = tmp_path / "block.py"
    path.write_text(found)
    return str(path)

  return write


@pytest.fixture
def models(make_embeddings):
  """Embeddings of a student and a reference, as numpy arrays."""
  return {
    name: tuple(np.array(z) for z in make_embeddings(k, n=ROWS)[:2])
    for k, name in enumerate(("student", "reference"))
  }


def test_numpy_in_the_docs(block, models):
  (zimg, ztxt), (zimg_ref, ztxt_ref) = models.values()
  zimg_ref[40:] = np.nan
  names = {
    "zimg": zimg,
    "ztxt": ztxt,
    "zimg_ref": zimg_ref,
    "ztxt_ref": ztxt_ref,
    "step": 3,
  }
  found = runpy.run_path(block("import numpy"), init_globals=names)
  assert sorted(found["kept"].tolist()) == list(range(40))


def test_jax_in_the_docs(block, models):
  both = {name: (*zs, 10.0, -10.0) for name, zs in models.items()}
  found = runpy.run_path(
    block("import jax"), init_globals=both | {"step": np.int32(3)}
  )
  want = select_batch(*both.values(), batch_size=64, seed=3)
  np.testing.assert_array_equal(found["rows"], want.indices)


@pytest.mark.parity
def test_torch_in_the_docs(block, models):
  torch = pytest.importorskip("torch", reason="the extra `parity` has torch")

  class Model(torch.nn.Module):
    """Gives the embeddings of rows, as a model of open_clip would."""

    def __init__(self, zimg, ztxt):
      super().__init__()
      self.zimg, self.ztxt = torch.tensor(zimg), torch.tensor(ztxt)

    def forward(self, images, texts):
      assert not torch.is_grad_enabled()
      scale = torch.tensor(10.0), torch.tensor([-10.0])
      return self.zimg[images], self.ztxt[texts], *scale

  names = {
    "torch": torch,
    "model": Model(*models["student"]),
    "reference": Model(*models["reference"]),
    "images": torch.arange(ROWS),
    "texts": torch.arange(ROWS),
    "step": 3,
  }
  found = runpy.run_path(block("model.eval()"), init_globals=names)
  both = [(*zs, 10.0, -10.0) for zs in models.values()]
  want = select_batch(*both, batch_size=64, seed=3).indices.tolist()
  assert found["images"].tolist() == found["texts"].tolist() == want
  assert names["model"].training


@pytest.mark.parity
def test_two_processes_in_the_docs(block, models, tmp_path):
  pytest.importorskip("torch", reason="the extra `parity` has torch")
  data, store = tmp_path / "data.npz", tmp_path / "store"
  np.savez(data, **{name: np.stack(zs) for name, zs in models.items()})
  path = block("import torch.distributed")
  outputs = [tmp_path / f"{rank}.json" for rank in (0, 1)]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(rank), path, data, store, output]
    )
    for rank, output in enumerate(outputs)
  ]
  try:
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
  (indices, mine), (others, theirs) = (
    json.loads(output.read_text()) for output in outputs
  )
  both = [(*zs, 10.0, -10.0) for zs in models.values()]
  want = select_batch(*both, batch_size=64, seed=3).indices.tolist()
  assert indices == others == want
  assert sorted([*mine, *(48 + k for k in theirs)]) == sorted(want)


def run(repository, *args):
  """The results of the example, run as its docstring says."""
  done = subprocess.run(
    [
      sys.executable,
      repository / "examples" / "torch_loop.py",
      "--json",
      *args,
    ],
    capture_output=True,
    text=True,
    cwd=repository,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parity
@pytest.mark.slow
def test_the_torch_loop_keeps_clean_pairs(repository):
  pytest.importorskip("torch", reason="the extra `parity` has torch")
  short = ("--steps", "40", "--reference_steps", "120", "--size", "2048")
  got = run(repository, *short)
  assert set(got) == {"reference", "joint", "uniform"}
  assert got["reference"]["clean"] == 1.0
  # Of 2,048 pairs 0.4 are clean, with a deviation of 0.011; of 2,560 uniform
  # draws as many, with one of 0.01. The joint draws kept 0.81.
  assert got["joint"]["pool"] == pytest.approx(0.4, abs=0.05)
  assert got["joint"]["pool"] == got["uniform"]["pool"]
  assert abs(got["uniform"]["clean"] - got["uniform"]["pool"]) < 0.05
  assert got["joint"]["clean"] > got["joint"]["pool"] + 0.25


@pytest.mark.parity
@pytest.mark.slow
def test_the_torch_loop_with_a_model_of_open_clip(repository, tmp_path):
  pytest.importorskip("open_clip", reason="the extra `parity` has open_clip")
  towers = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 24, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {
      "context_length": 24,
      "vocab_size": 49408,
      "width": 32,
      "heads": 1,
      "layers": 1,
    },
  }
  config = tmp_path / "tiny.json"
  config.write_text(json.dumps(towers))
  got = run(
    repository,
    *("--open_clip", str(config), "--steps", "3", "--reference_steps", "3"),
    *("--size", "256", "--method", "joint"),
  )
  # Three steps teach nothing: it runs, and shares and recall are shares.
  assert set(got) == {"reference", "joint"}
  assert 0 < got["joint"]["clean"] < 1 and 0 <= got["joint"]["recall"] <= 1
