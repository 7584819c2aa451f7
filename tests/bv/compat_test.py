"""What is put back into JAX, and what is said where big_vision is not there."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from aced.bv import compat
from tests.imports_test import HEAVY

# As if it could not be found, which it may.
ABSENT = "import runpy, sys; sys.modules['big_vision'] = None;"


@pytest.fixture
def bare_jax(monkeypatch):
  """JAX as it is; what is mended in it is taken out again."""
  for name in compat.TREE:
    monkeypatch.setattr(jax, f"tree_{name}", None, raising=False)
    monkeypatch.delattr(jax, f"tree_{name}")
  monkeypatch.setattr(jax.sharding, "PositionalSharding", None, raising=False)
  monkeypatch.delattr(jax.sharding, "PositionalSharding")
  initialize = jax.distributed.initialize
  initialize = getattr(initialize, "__wrapped__", initialize)
  monkeypatch.setattr(jax.distributed, "initialize", initialize)


def test_what_is_gone_is_put_back_and_only_once(bare_jax):
  compat.apply()
  before = [jax.tree_map, jax.tree_leaves, jax.distributed.initialize]
  tree = {"a": 1, "b": (2, 3)}
  assert jax.tree_map(lambda x: 2 * x, tree) == {"a": 2, "b": (4, 6)}
  assert jax.tree_leaves(tree) == [1, 2, 3]
  compat.apply()
  assert before == [jax.tree_map, jax.tree_leaves, jax.distributed.initialize]


def test_what_is_there_is_left_alone(bare_jax, monkeypatch):
  monkeypatch.setattr(jax, "tree_map", len, raising=False)
  compat.apply()
  assert jax.tree_map is len


def test_an_array_is_split_as_by_positional_sharding(bare_jax):
  compat.apply()
  where = jax.sharding.PositionalSharding(jax.devices())
  x = jax.device_put(np.arange(16.0), where)
  shards = {shard.device: shard.data for shard in x.addressable_shards}
  for k, device in enumerate(jax.devices()):
    np.testing.assert_array_equal(shards[device], [2 * k, 2 * k + 1])


def test_one_process_alone_has_no_coordinator_to_join(bare_jax, monkeypatch):
  called = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda **given: called.append(given)
  )
  for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  compat.apply()
  jax.distributed.initialize()
  assert called == []
  jax.distributed.initialize(process_id=1)
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  jax.distributed.initialize()
  first, second = called
  assert first == {"process_id": 1}
  assert second["coordinator_address"] == "host:1"
  assert second["num_processes"] == 2


def test_what_is_missing_is_told_with_how_to_get_it(monkeypatch):
  monkeypatch.setattr(compat, "importable", lambda name: name == "clu")
  with pytest.raises(ModuleNotFoundError) as caught:
    compat.find()
  text = str(caught.value)
  assert text.startswith("big_vision, tensorflow, einops cannot be imported")
  assert "git clone https://github.com/google-research/big_vision" in text
  assert "PYTHONPATH" in text
  assert 'pip install -e ".[big-vision]"' in text


def run(*command):
  return subprocess.run(
    [sys.executable, *command], capture_output=True, text=True
  )


def test_importing_the_extension_loads_nothing_heavy(repository):
  names = sorted(p.stem for p in (repository / "aced" / "bv").glob("*.py"))
  names = [f"aced.bv.{name}" for name in names if name != "__init__"]
  done = run(
    "-c",
    f"import sys, aced.bv, {', '.join(names)};"
    f"print([m for m in {HEAVY!r} if m in sys.modules])",
  )
  assert done.stdout.strip() == "[]", done.stderr


def test_the_trainer_ends_in_a_line_where_big_vision_is_not(tmp_path):
  config = tmp_path / "config.py"
  config.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config():\n  return ConfigDict()\n"
  )
  done = run(
    "-c",
    f"{ABSENT} sys.argv = ['trainer', '--config={config}'];"
    "runpy.run_module('aced.bv.trainer', run_name='__main__')",
  )
  assert done.returncode == 1
  (line, _) = done.stderr.strip().splitlines()[-2:]
  assert line.startswith("ModuleNotFoundError: big_vision")
  assert "git clone" in line


def test_a_model_of_big_vision_is_refused_where_it_is_not(monkeypatch):
  from aced.models.build import build

  monkeypatch.setattr(compat, "importable", lambda name: False)
  with pytest.raises(ModuleNotFoundError, match="git clone"):
    build({"model": "big_vision:proj.image_text.two_towers"})
