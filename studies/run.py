"""Runs the cells of a study, and keeps what came of them in one table.

    python -m studies.run --study scenes --workdir runs/study/scenes
    python -m studies.run --study signdigits --workdir runs/study/signdigits \\
        --data ../shared/data --questions a,b --seeds 3
    python -m studies.run --study scenes --workdir runs/study/scenes \\
        --questions e --cpu_devices 4

Killed and started again, it goes on in the middle of the cell it was in. A cell
that several questions ask for is run once. `table.csv` has a row for each cell,
`curves.csv` its evaluations, and `study.html` shows both, as `python -m
studies.plot` does again.
"""

import argparse
import datetime
import json
import pathlib
import signal
import sys
from collections.abc import Sequence

import jax
from absl import logging

from aced import config as config_lib
from aced.cache import write_cache
from aced.data.sources import open_source
from aced.data.tokenizers import train_sentencepiece
from aced.files import write_json
from aced.train import train
from aced.training.preemption import Preempted
from aced.training.tracker import METRICS_FILE, read_jsonl
from aced.training.watch import Diverged
from studies import data, plot, questions, table
from studies.sets import STUDIES
from studies.study import (
  DATA,
  REFERENCES,
  TOKENIZER,
  Cell,
  Study,
  cache_folder,
  config_hash,
  configure,
  configure_reference,
  pool,
  set_keys,
)

ROW, STUDY = "row.json", "study.json"


class Runner:
  """Runs cells of one study in one folder.

  Args:
    study: the study.
    workdir: for its runs and tables.
    real: the folder of the real sets; only studies of files read it.
    changes: dotted keys set in every config, such as fewer steps to try it out.

  Attributes:
    diverged: cells whose loss did, for which there is no row.
  """

  def __init__(
    self,
    study: Study,
    workdir: pathlib.Path,
    real: pathlib.Path | None = None,
    changes: dict | None = None,
  ):
    self.study, self.workdir = study, workdir.expanduser().resolve()
    self.changes, self._cached = changes or {}, set()
    self.diverged: list[Cell] = []
    self._claim()
    if study.files:
      self._split(real)
    self._tokenizer()
    write_json(self.workdir / STUDY, self._told)

  def run(self, cells: Sequence[Cell]) -> list[Cell]:
    """Runs cells in turn; returns those that ask for more devices."""
    left = [cell for cell in cells if cell.devices > jax.device_count()]
    ready = [cell for cell in cells if cell not in left]
    for size in REFERENCES:
      if any(c.reference == size and c.method != "iid" for c in ready):
        self.reference(size)
    for number, cell in enumerate(ready, start=1):
      say(f"{self.study.name}: cell {number} of {len(ready)}: {cell.name}")
      try:
        self.cell(cell)
      except Diverged as error:  # The others may not.
        self.diverged.append(cell)
        say(f"{cell.name} diverged, and has no row: {error}")
      table.write(self.workdir)
    return left

  def reference(self, size: str) -> dict:
    """Trains a reference, unless it is there; returns its row."""
    where = self.workdir / "references" / size
    config = configure_reference(self.study, size, self.workdir)
    set_keys(config, self.changes)
    about = {"method": "reference", "reference": size, "noise": 0.0}
    return self._train(config, where, about)

  def cell(self, cell: Cell) -> dict:
    """Runs a cell, unless it is there; returns its row."""
    config, where = self.config(cell), self.workdir / "cells" / cell.name
    is_done = (where / ROW).exists()
    if config.frozen.get("reference") and cell.cached and not is_done:
      self._cache(cell)
    about = {
      "method": cell.method,
      "variant": cell.variant,
      "noise": cell.noise,
      "reference": cell.reference,
    }
    return self._train(config, where, about)

  def config(self, cell: Cell):
    """The config of a cell, in this folder."""
    config = configure(self.study, cell, self.workdir)
    set_keys(config, self.changes)
    return config

  def _cache(self, cell):
    """Embeds what is missing; of a cache that is whole, nothing is."""
    folder = cache_folder(self.workdir, cell)
    if folder not in self._cached:
      config = configure(self.study, cell, self.workdir, cached=False)
      write_cache(config, "reference", folder)
      self._cached.add(folder)

  def _taught_by(self, config) -> str:
    """The hash of the config of the reference of a run; "" without any."""
    if "reference" not in config.frozen:
      return ""
    row = pathlib.Path(config.frozen.reference.init) / ROW
    return table.read_row(row)["config"] if row.exists() else ""

  def _claim(self):
    """Makes the folder this study's, or checks that it already is."""
    told = {"study": self.study.name, "files": self.study.files}
    told |= {"crops": self.study.crops, "changes": self.changes}
    told |= {"vocab_size": self.study.vocab_size}
    self._told, path = told, self.workdir / STUDY
    if not path.exists():
      return
    before = json.loads(path.read_text("utf-8"))
    differ = [
      f"{key} {before.get(key)} and now {value}"
      for key, value in told.items()
      if before.get(key) != value
    ]
    if differ:
      raise config_lib.ConfigError(
        f"{self.workdir} is of another study ({'; '.join(differ)}); give what"
        " it was begun with, or choose another --workdir."
      )

  def _split(self, real):
    """Copies and splits the set, unless that was done before."""
    target = self.workdir / DATA
    if real is None and not (target / data.DONE).exists():
      raise config_lib.ConfigError(
        f"the study {self.study.name!r} reads pictures from files; give the"
        " folder of the real sets by --data."
      )
    if real is not None:
      data.split(real / self.study.files, target, self.study.crops)

  def _tokenizer(self):
    """Pieces of the captions of the pool: words in the place of bytes."""
    path = self.workdir / TOKENIZER
    if not path.exists():
      source = open_source(pool(self.study, self.study.noise, self.workdir))
      captions = [source.fields(i)["text"] for i in range(len(source))][:2000]
      path.parent.mkdir(parents=True, exist_ok=True)
      size = self.study.vocab_size
      train_sentencepiece(captions, path, size, model_type="bpe")

  def _train(self, config, where, about):
    found = config_hash(config, self.workdir)
    taught = self._taught_by(config)
    done = where / ROW
    if done.exists():
      row = table.read_row(done)
      if row["config"] == found and row.get("taught_by", taught) == taught:
        return row
      raise config_lib.ConfigError(
        f"{where} was run with another config ({row['config']}, not {found}) or"
        " with another reference; move it away, or give another --workdir."
      )
    train(config, where)
    row = {
      "study": self.study.name,
      **about,
      "seed": config.seed,
      "config": found,
      "taught_by": taught,
      **table.costs(config),
      **table.outcome(read_jsonl(where / METRICS_FILE)),
      "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "date": datetime.date.today().isoformat(),
    }
    write_json(done, row)
    return row


def say(text: str) -> None:
  """Prints a line on which another begins."""
  print(f"\n\033[1m{text}\033[0m", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m studies.run", description=__doc__.split("\n\n")[0]
  )
  parser.add_argument("--study", choices=STUDIES, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--data", type=pathlib.Path, help="of the real sets")
  parser.add_argument(
    "--questions",
    default=",".join(questions.ALL),
    help=f"of {', '.join(questions.ALL)}, joined by commas; all by default",
  )
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--total_steps", type=int, help="to try it out")
  parser.add_argument(
    "--cpu_devices", type=int, default=1, help="virtual ones, for question e"
  )
  parser.add_argument(
    "--list", action="store_true", help="the cells, without running them"
  )
  args = parser.parse_args(arguments)
  args.questions = tuple(name.strip() for name in args.questions.split(","))
  for name in args.questions:
    if name not in questions.QUESTIONS:
      parser.error(
        f"--questions names {name!r}; it is one of {', '.join(questions.ALL)}."
      )
  if args.total_steps is not None and args.total_steps < 1:
    parser.error(f"--total_steps={args.total_steps} must be 1 or more.")
  if args.seeds < 1:
    parser.error(f"--seeds={args.seeds} must be 1 or more.")
  return args


def main() -> None:
  """Runs the command."""
  args = parse()
  study = STUDIES[args.study]
  cells = questions.cells(study, args.questions, args.seeds)
  if args.list:
    print("\n".join(cell.name for cell in cells))
    return
  logging.set_verbosity(logging.WARNING)
  if args.cpu_devices > 1:
    jax.config.update("jax_num_cpu_devices", args.cpu_devices)
  # Cells differ in little: what one has compiled, others need not.
  cache = args.workdir.expanduser().resolve() / "compiled"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  changes = {}
  if args.total_steps is not None:
    often = max(1, args.total_steps // 20)
    changes = {
      "total_steps": args.total_steps,
      "optimizer.warmup_steps": 0,
      "log.every_steps": often,
      "eval.every_steps": often,
    }
  try:
    # Virtual devices share a processor: none but cells that need them are to
    # be timed so.
    own = [c for c in cells if args.cpu_devices == 1 or c.devices > 1]
    runner = Runner(study, args.workdir, args.data, changes)
    left = runner.run(own)
    if (runner.workdir / table.TABLE).exists():
      plot.draw(runner.workdir)
      say(f"the table and its page are in {args.workdir}: study.html")
  except Preempted as stop:
    say(str(stop))
    sys.exit(stop.code)
  except KeyboardInterrupt:
    say("stopped; the same command goes on from what is there")
    sys.exit(128 + signal.SIGINT)
  except (ValueError, FileNotFoundError, Diverged) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  if left:
    devices = ", ".join(str(n) for n in sorted({c.devices for c in left}))
    say(
      f"{len(left)} cells are for {devices} devices and were not run; on a CPU,"
      " --cpu_devices gives as many"
    )
  if len(own) < len(cells):
    say(
      f"{len(cells) - len(own)} cells are for one device and were left to a run"
      " without --cpu_devices"
    )
  if runner.diverged:
    names = ", ".join(cell.name for cell in runner.diverged)
    sys.exit(f"{len(runner.diverged)} cells diverged: {names}")


if __name__ == "__main__":
  main()
