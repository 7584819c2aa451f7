"""Who the processes are, and that they were given the same."""

import json
import subprocess
import sys

import pytest

from aced.training import distributed
from aced.training.distributed import Cluster, detect
from tests.faults.harness import free_port

STEP = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "n[1-2]",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
  "SLURM_NODEID": "1",
  "SLURM_NTASKS": "2",
  "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
NAMED = {
  "JAX_COORDINATOR_ADDRESS": "h:1",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}
ARGUMENTS = {
  "coordinator_address": "h:1",
  "num_processes": 4,
  "process_id": 3,
}
SAID = {"cluster_detection_method": "deactivate"}
ALL_GPUS = {"local_device_ids": []}


@pytest.mark.parametrize(
  ("environ", "given", "want"),
  [
    ({}, {}, Cluster("", {})),
    ({"JAX_NUM_PROCESSES": "1"}, {}, Cluster("", {})),
    (NAMED, {}, Cluster("flags", ARGUMENTS | SAID)),
    (
      NAMED,
      {"process_id": 0},
      Cluster("flags", ARGUMENTS | SAID | {"process_id": 0}),
    ),
    (NAMED | STEP, {}, Cluster("flags", ARGUMENTS | SAID)),
    ({}, ARGUMENTS, Cluster("flags", ARGUMENTS | SAID)),
    # One process needs no others, whatever it is called by.
    (NAMED, {"num_processes": 1, "process_id": 0}, Cluster("", {})),
    (STEP, {}, Cluster("slurm", ALL_GPUS)),
    (STEP | {"CUDA_VISIBLE_DEVICES": "0,1"}, {}, Cluster("slurm", ALL_GPUS)),
    # Two processes on this node, each of which sees a GPU of its own.
    (
      STEP
      | {"CUDA_VISIBLE_DEVICES": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
      {},
      Cluster("slurm", ALL_GPUS),
    ),
    # And which see both: each takes the one of its number, as JAX has it.
    (
      STEP
      | {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
      },
      {},
      Cluster("slurm", {}),
    ),
    (
      STEP | {"JAX_COORDINATOR_ADDRESS": "n1:9"},
      {},
      Cluster("slurm", {"coordinator_address": "n1:9"} | ALL_GPUS),
    ),
    # A batch script, outside of any step, and a step of one task.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, {}, Cluster("", {})),
    (STEP | {"SLURM_NTASKS": "1"}, {}, Cluster("", {})),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, Cluster("mpi", {})),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, {}, Cluster("", {})),
  ],
)
def test_detects(environ, given, want):
  assert detect(environ, given, on_tpu=False) == want


def test_a_tpu_comes_last():
  assert detect({}, {}, on_tpu=True) == Cluster("tpu", {})
  assert detect(NAMED, {}, on_tpu=True).kind == "flags"


@pytest.mark.parametrize(
  ("environ", "message"),
  [
    (
      {"JAX_PROCESS_ID": "1"},
      "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is missing and"
      " JAX_PROCESS_ID is set",
    ),
    (NAMED | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
  ],
)
def test_refuses(environ, message):
  with pytest.raises(ValueError, match=message):
    detect(environ, on_tpu=False)


def test_one_process_agrees_with_itself():
  distributed.agree("config", {"a": "1"})
  assert distributed.from_first([1]) == [1]
  assert distributed.on_all("anything", 0.0)


PROGRAM = """
import json, os, sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
from aced.training import distributed, workdir
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.initialize(distributed.Cluster("flags", dict(
  coordinator_address=f"localhost:{port}", num_processes=3,
  process_id=process)))
workdir.SEEN_SECONDS = 1.0
found = {"first": distributed.from_first(process + 10)}
distributed.agree("config", {"seed": "0", "name": "x"})
for what, mine, seconds in (
  ("config", {"seed": str(process // 2), "only": process} if process else
   {"seed": "0"}, 30),
):
  try:
    distributed.agree(what, mine, seconds)
  except Exception as error:
    found["differs"] = f"{type(error).__name__}: {error}"
found["made"] = distributed.by_first(lambda: process + 20)
def refuse():
  raise ValueError("not that folder")
try:
  distributed.by_first(refuse)
except Exception as error:
  found["refused"] = f"{type(error).__name__}: {error}"
found["all"] = distributed.on_all("a", 30)
found["some"] = distributed.on_all("b", 1) if process < 2 else None
try:
  workdir.check_shared(folder + ("/other" if process == 1 else "/shared"))
except Exception as error:
  found["shared"] = f"{type(error).__name__}: {error}"
distributed.agree("end", {})
print(json.dumps(found))
jax.distributed.shutdown()
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """What each of three processes found."""
  folder, port = str(tmp_path_factory.mktemp("three")), str(free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(k), port, folder],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for k in range(3)
  ]
  done = [process.communicate(timeout=120) for process in processes]
  assert all(p.returncode == 0 for p in processes), done
  return [json.loads(out.splitlines()[-1]) for out, _ in done]


def test_the_first_tells_the_others(three):
  assert [found["first"] for found in three] == [10, 10, 10]


def test_what_the_first_does_or_refuses_holds_for_all(three):
  assert [found["made"] for found in three] == [20, 20, 20]
  first, *others = (found["refused"] for found in three)
  assert first == "ValueError: not that folder"
  for text in others:
    assert text.startswith("FailedOnFirst: on ") and first in text


def test_what_differs_is_named_on_every_process(three):
  for found in three:
    text = found["differs"]
    assert text.startswith("HostsDiffer: processes of one run")
    assert "config seed: 0 on " in text and "1 on " in text
    assert "(process 2)" in text
    assert "config only: None on" in text


def test_what_some_processes_do_is_not_what_all_do(three):
  assert [found["all"] for found in three] == [True] * 3
  assert [found["some"] for found in three] == [False, False, None]


def test_a_workdir_of_its_own_is_found(three):
  for found in three:
    assert "HostsDiffer" in found["shared"]
    assert "a folder of its own on" in found["shared"]
    assert "(process 1)" in found["shared"]
