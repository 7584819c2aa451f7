"""Processes that a benchmark starts to be measured alone, and their memory."""

import json
import os
import pathlib
import subprocess
import sys

TIMEOUT = 3_600  # Seconds; nothing here takes as long.
ROOT = pathlib.Path(__file__).parents[1]


def start(module, spec, python=sys.executable):
  """Runs `python -m MODULE SPEC`; returns the JSON of its last line."""
  # Nothing here is for an accelerator, which JAX would look for.
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [python, "-m", module, json.dumps(spec)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
  )
  if done.returncode:
    raise RuntimeError(f"{module} {spec} failed:\n{done.stderr[-3000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def status(pid="self"):
  """Name -> bytes: memory of a process, as `/proc/PID/status` has it."""
  lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
  words = [line.split() for line in lines]
  return {w[0][:-1]: 1024 * int(w[1]) for w in words if w[-1] == "kB"}


def tree(pid):
  """The processes that descend from one, and that one, which is the first."""
  children = {}
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      # A name in parentheses, which may hold anything, then state and parent.
      parent = int(path.read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
      continue  # It has ended.
    children.setdefault(parent, []).append(int(path.parent.name))
  found = [pid]
  for one in found:
    found += children.get(one, [])
  return found


def tree_seconds(pid):
  """Seconds of CPU time that a process and its descendants have used."""
  ticks = 0
  for one in tree(pid):
    try:
      text = pathlib.Path(f"/proc/{one}/stat").read_text()
    except OSError:
      continue
    ticks += sum(map(int, text.rpartition(")")[2].split()[11:13]))
  return ticks / os.sysconf("SC_CLK_TCK")


def tree_memory(pid):
  """Bytes that a process and its descendants hold, shared memory once.

  All shared memory is that of the first: it has read what the others wrote.
  """
  total = 0
  for number, one in enumerate(tree(pid)):
    try:
      memory = status(one)
    except OSError:
      continue
    total += memory.get("RssAnon", 0) + memory.get("RssFile", 0)
    total += 0 if number else memory.get("RssShmem", 0)
  return total
