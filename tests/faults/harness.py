"""Runs of the real command that can be killed, and what is left of them."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from aced.models import params as params_lib
from aced.models import saved as saved_lib
from aced.training.tracker import METRICS_FILE, read_jsonl
from tests import xla

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "tests/faults/tiny.py"
DEADLINE = 240.0  # Seconds that a run of some steps may take, on busy cores.


class Trainer:
  """One process or several that train; a context manager that ends them.

  Args:
    workdir: of the run.
    *flags: of the command, such as "--config.total_steps=6".
    processes: how many.
    devices: CPU devices of each.
    each: more flags of each process.
    folders: in which each is started.
    program: Python that runs the command, in its place.
    env: more variables of the environment.
  """

  def __init__(
    self,
    workdir,
    *flags,
    processes=1,
    devices=1,
    each=None,
    folders=None,
    program="",
    env=None,
  ):
    self.workdir = pathlib.Path(workdir)
    self._logs = contextlib.ExitStack()
    port = free_port()
    self.processes = [
      self._start(
        k,
        processes,
        devices,
        port,
        (*flags, *(each[k] if each else ())),
        folders[k] if folders else REPOSITORY,
        ("-c", program) if program else ("-m", "aced.train"),
        env or {},
      )
      for k in range(processes)
    ]

  def _start(self, k, processes, devices, port, flags, folder, run, env):
    log = self._logs.enter_context(log_path(self.workdir, k).open("ab"))
    together = (
      f"--coordinator=localhost:{port}",
      f"--num_processes={processes}",
      f"--process_id={k}",
    )
    # Compiled programs are kept for the next start, of this run or another.
    cache = self.workdir.parent.parent / "compiled"
    variables = {
      "XLA_FLAGS": xla.QUICK,
      "JAX_NUM_CPU_DEVICES": str(devices),
      "PYTHONPATH": str(REPOSITORY),
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
      **env,
    }
    return subprocess.Popen(
      [
        *(sys.executable, *run),
        *(f"--workdir={self.workdir}", f"--config={REPOSITORY / CONFIG}"),
        *(together if processes > 1 else ()),
        *flags,
      ],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      cwd=folder,
      env=os.environ | variables,
    )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.processes:
      process.kill()
      process.wait()
    self._logs.close()

  def log(self, k=0):
    return log_path(self.workdir, k).read_text(errors="replace")

  def send(self, number, k=0):
    self.processes[k].send_signal(number)

  def kill(self, k=0):
    self.send(signal.SIGKILL, k)

  def wait(self, seconds=DEADLINE):
    """The exit codes, once all have ended."""
    end = time.monotonic() + seconds
    for k, process in enumerate(self.processes):
      try:
        process.wait(max(0.1, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        raise AssertionError(
          f"process {k} still runs after {seconds} s: {self.log(k)[-3000:]}"
        ) from None
    return [process.returncode for process in self.processes]

  def until(self, condition, seconds=DEADLINE):
    """Waits for something that a run does; fails where it ends before."""
    end = time.monotonic() + seconds
    while not condition():
      codes = [p.poll() for p in self.processes]
      assert codes == [None] * len(codes), f"{codes}: {self.log()[-3000:]}"
      assert time.monotonic() < end, self.log()[-3000:]
      time.sleep(0.002)


def train(workdir, *flags, **options):
  """Trains to the end; returns the exit codes."""
  with Trainer(workdir, *flags, **options) as trainer:
    codes = trainer.wait()
    assert codes == [0] * len(codes), trainer.log()[-3000:]
    return codes


def log_path(workdir, k=0):
  """Where what process `k` prints is kept, of all starts in a workdir."""
  workdir.parent.mkdir(parents=True, exist_ok=True)
  return workdir.with_name(f"{workdir.name}.{k}.log")


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def lines(workdir):
  """The lines of metrics so far."""
  path = pathlib.Path(workdir, METRICS_FILE)
  return read_jsonl(path) if path.exists() else []


def steps_taken(workdir):
  """The last step of which there are metrics."""
  return max((line["step"] for line in lines(workdir)), default=0)


def saved(workdir):
  """The steps whose checkpoints are whole."""
  return saved_lib.saved_steps(pathlib.Path(workdir, saved_lib.CHECKPOINTS))


def curve(workdir, *, timeless=True):
  """Step -> its metrics, without those that measure time."""
  found = {}
  for line in lines(workdir):
    kept = {
      k: v
      for k, v in line.items()
      if not (timeless and k.startswith(("time/", "data/reader")))
    }
    found.setdefault(line["step"], {}).update(kept)
  return found


def assert_same_run(a, b):
  """Two runs came to the same parameters and metrics, bit for bit."""
  first, second = (params_lib.flatten(params_lib.load(w)) for w in (a, b))
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)
  assert curve(a) == curve(b)


def assert_close_run(a, b, tolerance=1e-5):
  """Two runs came to the same losses, but for roundings."""
  first, second = curve(a), curve(b)
  assert first.keys() == second.keys()
  for step in first:
    np.testing.assert_allclose(
      first[step]["loss"], second[step]["loss"], rtol=tolerance, err_msg=step
    )


def metadata(workdir, step):
  path = pathlib.Path(workdir, "checkpoints", str(step), "metadata/metadata")
  return json.loads(path.read_text())
