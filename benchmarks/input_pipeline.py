"""Claims of the input pipeline, each measured against its bar.

    python -m benchmarks.input_pipeline speed --tensorflow PYTHON
    python -m benchmarks.input_pipeline index
    python -m benchmarks.input_pipeline faults
    python -m benchmarks.input_pipeline memory
    python -m benchmarks.input_pipeline waiting
    python -m benchmarks.input_pipeline all --tensorflow PYTHON

speed: at least 1.5 times the images a second and core of the better of a
tf.data pipeline with big_vision's ops and of webdataset with Pillow, in the
same run. `PYTHON` has TensorFlow, which needs nothing else; without it tf.data
is not run. index: a data set of 1,000,000 records opens in under 10 seconds and
under 200 MB. faults: 2 of 100 shards cut short and 1% of the records damaged;
every record is read exactly once, and counted by its cause. memory: grows by
less than 5% from batch 1,000 to batch 10,000. waiting: the demo's step waits
for data at most 5% of the time on two cores.

All data is made, in `--folder`, and used again where it is there. `all --small`
checks in minutes that everything runs; its figures mean nothing.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from benchmarks import (
  input_faults,
  input_index,
  input_memory,
  input_speed,
  input_waiting,
)

PARTS = {
  "speed": input_speed,
  "index": input_index,
  "faults": input_faults,
  "memory": input_memory,
  "waiting": input_waiting,
}
SMALL = {
  "speed": "--records 200 --rounds 1 --seconds 1",
  "index": "--records 20000",
  "faults": "--records 1000",
  "memory": "--batches 300",
  "waiting": "--steps 50 --reference_steps 40",
}
PACKAGES = (
  "grain",
  "jax",
  "numpy",
  "pillow",
  "pyvips-binary",
  "sentencepiece",
  "simplejpeg",
  "webdataset",
)


def header():
  """What was run, on what."""
  git = ["git", "-C", pathlib.Path(__file__).parent]
  commit, changes = (
    subprocess.run([*git, *words], capture_output=True, text=True).stdout
    for words in (
      ("rev-parse", "--short", "HEAD"),
      ("status", "--porcelain", "--", "../aced"),
    )
  )
  versions = ", ".join(f"{p} {_version(p)}" for p in PACKAGES)
  return (
    f"python -m benchmarks.input_pipeline {' '.join(sys.argv[1:])}\n"
    f"{datetime.date.today()}, aced {commit.strip() or 'unknown'}"
    f"{' with changes' if changes else ''}, Python"
    f" {platform.python_version()}, {versions}\n"
    f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, load"
    f" {os.getloadavg()[0]:.1f} at the start\n"
  )


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "missing"


def _cpu():
  lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  fields = dict(
    (part.strip() for part in line.split(":", 1)) for line in lines if line
  )
  family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
  return f"{fields.get('model name', 'unknown CPU')} ({family})"


def parse():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  commands = parser.add_subparsers(dest="part", required=True)
  shared = argparse.ArgumentParser(add_help=False)
  shared.add_argument("--folder", help="of the data; else a temporary one")
  for name, part in PARTS.items():
    command = commands.add_parser(
      name, parents=[shared], help=part.__doc__.split("\n")[0]
    )
    part.add_arguments(command)
  everything = commands.add_parser("all", parents=[shared])
  everything.add_argument("--tensorflow", default="")
  everything.add_argument("--small", action="store_true")
  return parser, parser.parse_args()


def several(parser, args):
  """The arguments of each part, where all are asked for."""
  if args.part != "all":
    return {args.part: args}
  found = {}
  for name in PARTS:
    words = [name, "--folder", args.folder]
    words += SMALL[name].split() if args.small else []
    if name == "speed" and args.tensorflow:
      words += ["--tensorflow", args.tensorflow]
    found[name] = parser.parse_args(words)
  return found


def main():
  parser, args = parse()
  with tempfile.TemporaryDirectory(prefix="input_pipeline.") as temporary:
    args.folder = os.path.abspath(args.folder or temporary)
    print(header())
    verdicts = {}
    for name, own in several(parser, args).items():
      print(f"## {name}\n", flush=True)
      start = time.perf_counter()
      verdicts[name] = PARTS[name].run(own)
      seconds = time.perf_counter() - start
      print(
        f"\n{name}: {'met' if verdicts[name] else 'MISSED'}"
        f" ({seconds:.0f} seconds)\n",
        flush=True,
      )
    if len(verdicts) > 1:
      print("| part | bar |\n|---|---|")
      for name, met in verdicts.items():
        print(f"| {name} | {'met' if met else 'MISSED'} |")


if __name__ == "__main__":
  main()
