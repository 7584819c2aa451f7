"""Share of its time that the demo's training step waits for data."""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

BAR = 0.05
CORES = 2
KEY = "time/waiting"
# The clock of the metric runs on while a model is evaluated or saved, which
# would make the share look smaller.
NO_EVALUATION = (
  "evals.zero_shot.source=",
  "evals.retrieval.source=",
  "checkpoint.best=",
)
ROOT = pathlib.Path(__file__).parents[1]


def add_arguments(parser):
  parser.add_argument("--steps", type=int, default=150)
  parser.add_argument("--reference_steps", type=int, default=60)


def run(args):
  """Prints the series; returns whether the share is within the bar."""
  folder = pathlib.Path(args.folder) / "waiting"
  reference = folder / f"reference_{args.reference_steps}"
  if not (reference / "finished").exists():
    train("reference", reference, f"total_steps={args.reference_steps}")
    (reference / "finished").touch()
  student = folder / "aced"
  command = train(
    "aced",
    student,
    f"total_steps={args.steps}",
    f"frozen.reference.init={reference}",
    "log.every_steps=10",
  )
  lines = (student / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  series = [(x["step"], x[KEY]) for x in found if KEY in x]
  # The first stretch holds the compilation, in which nothing waits.
  shares = [share for _, share in series[1:]]
  mean = statistics.mean(shares)
  print(f"{command}\non {_cores()} cores\n")
  print("| up to step | share of the time spent waiting |\n|---:|---:|")
  for step, share in series:
    print(f"| {step} | {100 * share:.3f}% |")
  print(
    f"\nmean {100 * mean:.3f}%, median"
    f" {100 * statistics.median(shares):.3f}%, most {100 * max(shares):.3f}%,"
    f" the first stretch left out; bar: a mean of at most {100 * BAR:.0f}%"
  )
  return mean <= BAR


def train(config, workdir, *settings):
  """Trains a demo config from the start; returns the command in words."""
  shutil.rmtree(workdir, ignore_errors=True)
  words = ["-m", "aced.train", "--config", f"configs/{config}.py:demo"]
  words += [
    "--workdir",
    str(workdir),
    *(f"--config.{s}" for s in (*settings, *NO_EVALUATION)),
  ]
  done = subprocess.run(
    [sys.executable, *words],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    preexec_fn=lambda: os.sched_setaffinity(0, _cores()),
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"{words} failed:\n{done.stderr[-3000:]}")
  return f"python {' '.join(words)}"


def _cores():
  return sorted(os.sched_getaffinity(0))[-CORES:]
