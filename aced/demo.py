"""The demo: `launch/demo.sh`, or `python -m aced.demo --workdir runs/demo`.

Trains a reference on clean scenes, then students on noisy ones, IID and
curated and distilled, at equal trained examples and equal batch size; compares
them on held-out scenes in one table, and draws what happened.
"""

import argparse
import importlib.util
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.data.sources import open_source
from aced.data.tokenizers import train_sentencepiece
from aced.files import write_json
from aced.train import train
from aced.training import platforms
from aced.training.blueprint import step_costs
from aced.training.tracker import METRICS_FILE, read_jsonl
from aced.training.watch import Diverged

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


class Method(NamedTuple):
  """One row of the table: a name, and the config it runs."""

  label: str
  file: str
  variant: str = ""


METHODS = {
  "iid": Method("IID", "iid"),
  "softmax_kd": Method("Softmax-KD", "kd", "softmax"),
  "h_acid": Method("H-ACID", "acid"),
  "aced": Method("ACED", "aced"),
}
REFERENCE = Method("reference", "reference")
COLUMNS = {
  "zero-shot": "eval/zero_shot/accuracy",
  "i2t R@1": "eval/retrieval/image_to_text/R@1",
  "t2i R@1": "eval/retrieval/text_to_image/R@1",
  "mean R@1": "eval/retrieval/mean/R@1",
}


def run(workdir: str | pathlib.Path, *, size: str, seeds: int) -> list[dict]:
  """Trains everything, and returns one row for each method and seed.

  Args:
    workdir: for the runs, `results.json` and the plots. What is there and
      finished is not trained again.
    size: of the configs, "demo" or "smoke".
    seeds: how many students of each method.
  """
  workdir = pathlib.Path(workdir)
  tokenizer = _tokenizer(workdir)
  reference = workdir / "reference"

  def configure(method, seed):
    config = load_config(method, size)
    config.seed = seed
    config.log.report = False
    # Words in the place of bytes: a caption is five times shorter.
    config.input.update(tokenizer=tokenizer, text_length=16)
    if "reference" in config.frozen:
      config.frozen.reference.init = str(reference)
    return config

  config = configure(REFERENCE, seed=1_000)
  _announce("reference, on clean pairs")
  rows = [_row(REFERENCE, 1_000, config, reference)]
  for seed in range(seeds):
    for name, method in METHODS.items():
      _announce(f"{method.label}, seed {seed}, on noisy pairs")
      config = configure(method, seed)
      rows.append(_row(method, seed, config, workdir / name / f"seed_{seed}"))
      write_json(workdir / "results.json", rows)
  return rows


def load_config(method: Method, size: str) -> ConfigDict:
  """Loads the config file of a method, in a size."""
  spec = importlib.util.spec_from_file_location(
    f"aced_config_{method.file}", CONFIGS / f"{method.file}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  words = [method.variant, size] if method.variant else [size]
  return module.get_config(",".join(words))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The results as one table in Markdown, means over seeds where several."""
  labels = list(dict.fromkeys(row["method"] for row in rows))
  seeds = max(sum(row["method"] == label for row in rows) for label in labels)
  head = ["method", "clean pairs", "cost", *COLUMNS]
  lines = [head, ["---", *["---:"] * (len(head) - 1)]]
  for label in labels:
    same = [row for row in rows if row["method"] == label]
    mean = {k: np.mean([row[k] for row in same]) for k in COLUMNS}
    clean = np.mean([row["clean"] for row in same])
    cells = [f"{100 * value:.1f}" for value in mean.values()]
    lines.append([label, f"{clean:.2f}", f"{same[0]['cost']:.2f}", *cells])
  widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
  text = "\n".join(
    "| "
    + " | ".join(
      _pad(c, w, k) for k, (c, w) in enumerate(zip(line, widths, strict=True))
    )
    + " |"
    for line in lines
  )
  if seeds > 1:
    text += f"\n\nMeans over {seeds} seeds; mean R@1 by seed:\n"
    for label in labels:
      values = [row["mean R@1"] for row in rows if row["method"] == label]
      text += f"\n  {label:12}" + "".join(f"{100 * v:7.1f}" for v in values)
  return text


def plot(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Draws retrieval and the share of clean pairs over training."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
  panels = (
    (COLUMNS["mean R@1"], "mean retrieval R@1 on held-out scenes (%)"),
    ("data/clean_kept", "clean pairs among those trained on (%)"),
  )
  for axis, (key, title) in zip(axes, panels, strict=True):
    for color, (name, method) in enumerate(METHODS.items()):
      steps, mean, least, most = _curve(workdir / name, key)
      # IID and Softmax-KD read the same pairs: dashes let both be seen.
      style = "--" if name == "softmax_kd" else "-"
      axis.plot(steps, mean, style, color=f"C{color}", label=method.label)
      axis.fill_between(steps, least, most, color=f"C{color}", alpha=0.15, lw=0)
    axis.set(title=title, xlabel="step", ylim=(0, None))
    axis.title.set_size(10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
  axes[0].legend(frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _row(method, seed, config, workdir):
  """Trains one run and returns its row of the table."""
  start = time.perf_counter()
  scores = train(config, workdir)
  lines = read_jsonl(workdir / METRICS_FILE)
  clean = [x["data/clean_kept"] for x in lines if "data/clean_kept" in x]
  resolved = config_lib.resolve(config)
  costs = step_costs(resolved)
  return {
    "method": method.label,
    "seed": seed,
    "clean": float(np.mean(clean)),
    "cost": costs.relative,
    "trained pairs": costs.trained * config.total_steps,
    "scored pairs": costs.scored * config.total_steps,
    "seconds": round(time.perf_counter() - start, 1),
    **{name: scores[key] for name, key in COLUMNS.items()},
  }


def _tokenizer(workdir):
  """A sentencepiece model of the scenes' captions, made once."""
  path = workdir / "tokenizer.model"
  if not path.exists():
    source = open_source("synthetic:train?size=2000&noise=0")
    captions = [source.fields(i)["text"] for i in range(len(source))]
    workdir.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(captions, path, 200, model_type="bpe")
  return f"sentencepiece:{path}"


def _curve(folder, key):
  """Steps, and mean, least and most over seeds of a metric, in percent."""
  runs = [
    {x["step"]: 100 * x[key] for x in read_jsonl(path) if key in x}
    for path in sorted(folder.glob(f"seed_*/{METRICS_FILE}"))
  ]
  steps = sorted(set.intersection(*map(set, runs)))
  values = np.array([[r[s] for s in steps] for r in runs])
  return steps, values.mean(0), values.min(0), values.max(0)


def _pad(cell, width, column):
  if set(cell) <= {"-", ":"}:
    return "-" * width if column == 0 else "-" * (width - 1) + ":"
  return cell.ljust(width) if column == 0 else cell.rjust(width)


def _announce(what):
  print(f"\n\033[1m{what}\033[0m", flush=True)


def main() -> None:
  """Runs the demo and prints its table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
  parser.add_argument("--workdir", default="runs/demo")
  parser.add_argument("--seeds", type=int, default=1, help="students of each")
  parser.add_argument("--size", choices=("demo", "smoke"), default="demo")
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  start = time.perf_counter()
  workdir = pathlib.Path(args.workdir)
  try:
    platforms.check()
    rows = run(workdir, size=args.size, seeds=args.seeds)
  except (ValueError, FileNotFoundError, Diverged) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  plot(workdir, workdir / "plot.png")
  text = table(rows)
  (workdir / "table.md").write_text(text + "\n")
  minutes = (time.perf_counter() - start) / 60
  print(
    f"\n{text}\n\n"
    "clean pairs: share of clean pairs among those trained on; cost: FLOPs of"
    " a step\nrelative to IID, scoring included; scores in percent, on held-out"
    " scenes.\n"
    f"{minutes:.1f} minutes. Plots, metrics and checkpoints are in {workdir}/."
  )


if __name__ == "__main__":
  main()
