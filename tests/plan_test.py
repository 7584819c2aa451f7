"""Plans: of the devices at hand, of a pod, and of what would fit."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from aced import config as config_lib
from aced import plan
from aced.config import ConfigError
from aced.training import chips, planning
from tests.train_test import command, smoke

needs_tpu_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason='the TPU compiler is not installed: pip install -e ".[tpu]"',
)


@pytest.fixture(scope="module")
def local(repository):
  return plan.make_plan(smoke(repository, "aced"), "local", examples=1e6)


def test_a_local_plan_has_every_part(local):
  assert (local["topology"], local["chips"], local["chip"]) == (
    "local",
    8,
    "cpu",
  )
  memory = local["memory"]
  assert memory["fits"] and memory["needed"] == sum(memory["use"].values())
  assert memory["use"]["arguments"] > 80 * 32 * 32 * 3 // 8
  # Two more super-batches wait on the devices.
  assert memory["use"]["prefetched"] > 2 * 80 * 32 * 32 * 3 // 8
  sizes = local["sizes"]
  assert (sizes["super_batch"], sizes["super_batch_per_device"]) == (80, 10)
  assert sizes["filter_ratio"] == pytest.approx(0.8)
  assert "suggestions" not in local
  json.dumps(local)


def test_the_ledger_and_the_program_agree(local):
  """On paper a backward pass is two forward ones; pictures need no gradient."""
  paper = sum(local["ledger"]["flops"].values())
  program = local["program"]["flops_per_device"] * local["devices"]
  assert program == pytest.approx(paper, rel=0.05)


def test_collectives_are_counted(local):
  moved = local["program"]["collectives"]
  # Gradients of 75,000 parameters are reduced over all devices.
  assert moved["all-reduce"]["bytes"] > 4 * 70_000
  assert moved["all-to-all"]["count"] >= 1


def test_split_parameters_are_gathered_and_activations_stay(repository):
  """Left alone, XLA sends 115 MB of activations here, for 0.9 MB of weights."""
  config = smoke(repository, "iid", batch_size=512, mesh__fsdp=8)
  for tower in ("image", "text"):
    config["student"][tower] |= {"width": 64, "mlp_dim": 256}
  config["student"]["out_dim"] = (None, 64)
  drawn_up = planning.draw_up(config_lib.resolve(config), "local")
  params = drawn_up.shapes()[0].params
  size = sum(4 * x.size for x in jax.tree.leaves(params))
  moved = planning.compile_step(drawn_up).collectives
  # Gathered forwards and backwards, and gradients reduced once.
  assert sum(kind.bytes for kind in moved.values()) < 4 * size


def test_the_price_of_a_run_by_hand(repository, monkeypatch):
  chip = chips.Chip("fast", 2**34, 1e12)
  monkeypatch.setattr(chips, "chip_of", lambda device: chip)
  found = plan.make_plan(
    smoke(repository), "local", examples=1.6e6, mfu=0.5, price=2.0
  )
  run, step = found["run"], sum(found["ledger"]["flops"].values())
  assert run["steps"] == 1e5
  assert run["examples_read"] == pytest.approx(8e6)
  hours = step * 1e5 / 0.5e12 / 3600
  assert run["chip_hours"] == pytest.approx(hours)
  assert run["price"] == pytest.approx(2 * hours)
  assert run["wall_hours"] == pytest.approx(hours / 8)
  relative = found["ledger"]["relative_to_iid"]
  assert run["iid_chip_hours"] == pytest.approx(hours / relative)


@pytest.mark.slow
def test_what_would_make_it_fit_is_compiled(repository, monkeypatch):
  # In blocks and recomputed already, so that fewer changes are tried.
  config = smoke(repository, batch_size=64, total_steps=9)
  for tower in ("image", "text"):
    config["student"][tower] |= {"remat": "full"}
  config["input"]["source"] = "synthetic:train?size=400"
  whole = plan.make_plan(config, "local")["memory"]["needed"]
  chip = chips.Chip("small", int(0.9 * whole), 0.0)
  monkeypatch.setattr(chips, "chip_of", lambda device: chip)
  found = plan.make_plan(config, "local")
  assert not found["memory"]["fits"]
  changes = {s["change"]: s for s in found["suggestions"]}
  for part in (
    "--config.scoring.microbatch=64",
    "--config.mesh.data=-1 --config.mesh.fsdp=8",
    "--config.accumulation.microbatch=16",
    "--config.frozen.reference.cache=FOLDER",
  ):
    assert part in changes
  # Sizes are those of the compiled steps, and differ.
  sizes = {s["bytes"] for s in found["suggestions"] if s["bytes"]}
  assert len(sizes) >= 3
  fits = [s for s in found["suggestions"] if s["fits"]]
  assert fits and all(s["bytes"] <= 0.98 * chip.memory for s in fits)
  text = plan.render(found)
  assert "DOES NOT FIT" in text and "what would make it fit" in text


def test_memory_that_the_compiler_lacked_is_read_off_its_message():
  for message in (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in"
    " memory space hbm. Used 31.50G of 15.75G hbm. Exceeded hbm capacity",
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
    " for HLO temporaries (31.50G) exceeds available HBM (15.75G).",
  ):
    assert planning._needed(message) == int(31.5 * 2**30)
    assert planning._OUT_OF_MEMORY.search(message)
  message = "RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes."
  assert planning._needed(message) == 12_345
  assert planning._needed("RESOURCE_EXHAUSTED: of vmem") is None
  assert not planning._OUT_OF_MEMORY.search("INTERNAL: something else")


def test_a_change_that_cannot_be_compiled_loses_nothing(
  repository, monkeypatch
):
  chip = chips.Chip("small", 10_000, 0.0)
  monkeypatch.setattr(chips, "chip_of", lambda device: chip)
  compile_step, calls = planning.compile_step, []

  def compile_once(drawn_up):
    calls.append(drawn_up)
    if len(calls) > 1:
      raise jax.errors.JaxRuntimeError("INTERNAL: a fault\nand its trace")
    return compile_step(drawn_up)

  monkeypatch.setattr(planning, "compile_step", compile_once)
  found = plan.make_plan(smoke(repository), "local")
  assert not found["memory"]["fits"] and len(found["suggestions"]) >= 3
  assert {s["problem"] for s in found["suggestions"]} == {"INTERNAL: a fault"}
  assert "does not fit: INTERNAL: a fault" in plan.render(found)


def test_a_size_that_is_not_told_does_not_fit():
  unknown = planning.Compiled(None, None, 5, 0.0, {})
  assert not unknown.fits


def test_cached_models_cost_nothing(repository):
  config = smoke(repository)
  config["frozen"]["reference"]["cache"] = "not/yet/made"
  found = plan.make_plan(config, "local")
  assert "reference scoring" not in found["ledger"]["flops"]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"examples": -1.0}, "--examples=-1.0 must be above 0"),
    ({"mfu": 40.0}, "--mfu=40.0 is a share"),
    ({"topology": "v9:2x2"}, "topology 'v9:2x2' is not known"),
  ],
)
def test_wrong_arguments_are_refused(repository, changes, message):
  arguments = {"topology": "local"} | changes
  with pytest.raises(ConfigError, match=message):
    plan.make_plan(smoke(repository), arguments.pop("topology"), **arguments)


def test_a_batch_that_the_mesh_cannot_carry_is_refused(repository):
  with pytest.raises(ValueError, match="batch_size=12 does not divide over"):
    plan.make_plan(smoke(repository, batch_size=12), "local")


def test_the_command(repository, tmp_path):
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    f"--output={tmp_path / 'plan.json'}",
    module="aced.plan",
  )
  assert code == 0, text
  found = json.loads((tmp_path / "plan.json").read_text())
  assert found["chips"] == 1 and found["memory"]["fits"]
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    "--topology=v5e:3x3",
    module="aced.plan",
  )
  assert code == 1 and "topology 'v5e:3x3' is not known" in text
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    f"--output={tmp_path / 'none' / 'plan.json'}",
    module="aced.plan",
  )
  assert code == 1 and "there is no folder" in text


def compiled_for(repository, topology, *flags):
  """The plan of a command that compiles for a TPU."""
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  environment.pop("JAX_PLATFORMS")
  done = subprocess.run(
    [
      *(sys.executable, "-m", "aced.plan", "--json"),
      f"--topology={topology}",
      *flags,
    ],
    cwd=repository,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.tpu
@needs_tpu_compiler
def test_a_plan_for_a_pod(repository):
  found = compiled_for(
    repository, "v5e:2x4", "--config=configs/aced.py:smoke", "--examples=1e9"
  )
  assert (found["chips"], found["chip"]) == (8, "v5e")
  assert found["memory"]["fits"] and found["memory"]["device"] == 16 * 2**30
  assert found["program"]["collectives"]["all-reduce"]["bytes"] > 0
  assert found["run"]["chip_hours"] > 0


@pytest.mark.tpu
@needs_tpu_compiler
def test_what_does_not_fit_a_chip_is_told(repository):
  found = compiled_for(
    repository,
    "v5e:1x1",
    "--config=configs/iid.py:demo",
    "--config.batch_size=65536",
    "--config.loss_form=dense",
    "--nosuggest",
  )
  assert not found["memory"]["fits"]
  assert found["memory"]["needed"] > 16 * 2**30
