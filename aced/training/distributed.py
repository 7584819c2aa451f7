"""Several processes as one run: who they are, and that they are at one.

Each process is told how many there are, which of them it is, and where the
first one listens, by flags, by variables of the environment, or by SLURM, Open
MPI or a TPU VM. From then on JAX computes over the devices of all of them.
"""

import importlib.util
import itertools
import json
import pathlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

VARIABLES = {
  "coordinator_address": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}
# Seconds after which a process that is silent is taken for dead, as in JAX.
HEARTBEAT_SECONDS = 100
# How long the others are waited for at the start: they may still be reading.
AGREE_SECONDS = 900
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")
_calls = itertools.count()


class HostsDiffer(ValueError):
  """Processes of one run that were not given the same."""


class FailedOnFirst(RuntimeError):
  """What the first process was to do for all of them, it could not."""


class Cluster(NamedTuple):
  """How processes find each other.

  Attributes:
    kind: "flags", "slurm", "mpi", "tpu", or "" for one process alone.
    arguments: of `jax.distributed.initialize`.
  """

  kind: str
  arguments: dict[str, Any]


def detect(
  environ: Mapping[str, str],
  given: Mapping[str, Any] | None = None,
  *,
  on_tpu: bool | None = None,
) -> Cluster:
  """Decides from flags and the environment whether processes are several.

  Args:
    environ: variables of the environment.
    given: flags, by the names in `VARIABLES`; None where one is not set. They
      win over the environment.
    on_tpu: whether this machine has TPUs; found out if None.

  Raises:
    ValueError: some of the three are set and others not, or are no numbers.
  """
  named = _named(environ, given or {})
  if set(named) == set(VARIABLES):
    alone = named["num_processes"] == 1
    # Said by all three: nothing is left to find out, nor which GPUs to take.
    all_said = named | {"cluster_detection_method": "deactivate"}
    return Cluster("", {}) if alone else Cluster("flags", all_said)
  tasks = int(environ.get("SLURM_NTASKS", "1"))
  in_step = "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ
  only_address = set(named) <= {"coordinator_address"}
  if only_address and in_step and tasks > 1:
    return Cluster("slurm", named | _slurm_devices(environ))
  if only_address and int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return Cluster("mpi", named)
  if named and named != {"num_processes": 1}:
    missing = [VARIABLES[name] for name in VARIABLES if name not in named]
    raise ValueError(
      f"of the three that tell processes of each other, {', '.join(missing)} is"
      f" missing and {', '.join(VARIABLES[name] for name in named)} is set; set"
      " all, as --coordinator, --num_processes and --process_id or as variables"
      " of the environment, or none."
    )
  if _has_tpu(environ) if on_tpu is None else on_tpu:
    return Cluster("tpu", {})
  return Cluster("", {})


def initialize(
  cluster: Cluster, heartbeat_seconds: int = HEARTBEAT_SECONDS
) -> None:
  """Joins the processes of a run; returns once all of them are there.

  Call it before anything is computed. For one process nothing is done.

  Raises:
    RuntimeError: the others do not come, or JAX is in use already.
  """
  if not cluster.kind:
    return
  # The signals of a preemption are dealt with in `aced.training.preemption`.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    **cluster.arguments, heartbeat_timeout_seconds=heartbeat_seconds
  )
  if jax.process_count() > 1:
    put(f"host/{jax.process_index()}", socket.gethostname())


def alone() -> bool:
  """Whether no other process has been joined; asks no device."""
  return not jax.distributed.is_initialized()


def coordinator_host() -> str | None:
  """Name or address at which the others reach the first process."""
  from jax._src import distributed

  address = distributed.global_state.coordinator_address
  return address and address.rsplit(":", 1)[0]


def put(key: str, value: str) -> None:
  """Tells the other processes something, under a name that is new."""
  _client().key_value_set(f"aced/{key}", value)


def get(key: str, seconds: float) -> str:
  """Waits for what another process tells under a name.

  Raises:
    TimeoutError: it does not within so many seconds.
  """
  try:
    return _client().blocking_key_value_get(f"aced/{key}", int(seconds * 1000))
  except jax.errors.JaxRuntimeError as error:
    if "DEADLINE_EXCEEDED" not in str(error):
      raise
    raise TimeoutError(f"nothing came under {key} in {seconds:g} s") from error


def told(prefix: str) -> dict[str, str]:
  """What has been told so far under names that begin alike; does not wait."""
  found = _client().key_value_dir_get(f"aced/{prefix}/")
  return {key.rsplit("/", 1)[1]: value for key, value in found}


def host(process: int) -> str:
  """The name of the host of a process, as messages give it."""
  if jax.process_count() == 1:
    return socket.gethostname()
  return f"{get(f'host/{process}', 60)} (process {process})"


def from_first(value: Any) -> Any:
  """What the first process has, on every process.

  Args:
    value: what JSON can hold; that of the other processes does not matter.
  """
  if jax.process_count() == 1:
    return value
  key = f"first/{next(_calls)}"
  if jax.process_index() == 0:
    put(key, json.dumps(value))
    return value
  return json.loads(get(key, AGREE_SECONDS))


def by_first(function: Callable[[], Any]) -> Any:
  """What a function returns on the first process, on every process.

  Args:
    function: called there alone; what it returns, JSON can hold.

  Raises:
    FailedOnFirst: it raised a ValueError or an OSError there; that error
      itself on the first process.
  """
  if jax.process_count() == 1:
    return function()
  found = {}
  if jax.process_index() == 0:
    try:
      found = {"value": function()}
    except (ValueError, OSError) as error:
      from_first({"error": f"{type(error).__name__}: {error}"})
      raise
  found = from_first(found)
  if "error" in found:
    raise FailedOnFirst(f"on {host(0)}: {found['error']}")
  return found["value"]


def agree(what: str, mine: Mapping[str, str], seconds: float | None = None):
  """Checks that every process has the same.

  Args:
    what: it is, in a word, such as "config".
    mine: name -> value of this process.
    seconds: how long the others are waited for.

  Raises:
    HostsDiffer: naming what differs, between which hosts; on every process.
    TimeoutError: naming a host that does not come.
  """
  if jax.process_count() == 1:
    return
  number, seconds = next(_calls), seconds or AGREE_SECONDS
  put(f"agree/{number}/{jax.process_index()}", json.dumps(dict(mine)))
  if jax.process_index() == 0:
    verdict = _compared(number, what, mine, seconds)
    put(f"agreed/{number}", verdict)
  else:
    verdict = get(f"agreed/{number}", 2 * seconds)
  if verdict:
    raise HostsDiffer(verdict)


def on_all(what: str, seconds: float) -> bool:
  """Whether every process calls this with the same word, within a time."""
  if jax.process_count() == 1:
    return True
  put(f"on_all/{what}/{jax.process_index()}", "1")
  try:
    for process in range(jax.process_count()):
      get(f"on_all/{what}/{process}", seconds)
  except TimeoutError:
    return False
  return True


def _compared(number, what, mine, seconds) -> str:
  """What the first process says of all; nothing if they agree."""
  lines = []
  for process in range(1, jax.process_count()):
    try:
      theirs = json.loads(get(f"agree/{number}/{process}", seconds))
    except TimeoutError:
      return (
        f"{host(process)} has not come to compare its {what} in"
        f" {seconds:g} s; see its log."
      )
    for name in sorted({*mine, *theirs}):
      a, b = mine.get(name), theirs.get(name)
      if a != b:
        lines.append(
          f"  {what} {name}: {a} on {host(0)}, {b} on {host(process)}"
        )
  if not lines:
    return ""
  return (
    "processes of one run must be given the same, and these differ:\n"
    + "\n".join(lines)
    + "\nStart all of them with the same code, command and data."
  )


def _named(environ, given):
  """The three, as far as they are set; flags before the environment."""
  named = {}
  for name, variable in VARIABLES.items():
    value = given.get(name)
    value = environ.get(variable) if value is None else value
    if value in (None, ""):
      continue
    if name != "coordinator_address":
      try:
        value = int(value)
      except ValueError:
        raise ValueError(f"{variable}={value!r} must be a number.") from None
    named[name] = value
  return named


def _slurm_devices(environ) -> dict[str, Any]:
  """All GPUs for a process that is alone on its node, or sees but one.

  JAX would take the one of its local number; of several that see all, it does.
  """
  here = environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")
  node = int(environ.get("SLURM_NODEID", "0"))
  alone = _expanded(here)[node : node + 1] in ([1], [])
  one = len(environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
  return {"local_device_ids": []} if alone or one else {}


def _expanded(counts):
  """SLURM's "2(x3)", "1" as [2, 2, 2, 1]."""
  found = []
  for count in filter(None, counts):
    number, _, times = count.partition("(x")
    found += [int(number)] * int(times.rstrip(")") or 1)
  return found


def _has_tpu(environ) -> bool:
  """Whether JAX will run on TPUs of this machine."""
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  if importlib.util.find_spec("libtpu") is None:
    return False
  return any(pathlib.Path(file).exists() for file in _TPU_FILES)


def _client():
  # JAX has no public name for the store that its processes share.
  from jax._src import distributed

  return distributed.global_state.client
