"""Memory of the process and its readers, over thousands of super-batches."""

import json
import os
import statistics
import sys
import time

from benchmarks import input_data, input_processes

BAR = 0.05
WORKERS = (0, 2)
SAMPLES = 200  # Over the run; windows hold a twentieth of them.


def add_arguments(parser):
  parser.add_argument("--batches", type=int, default=10_000)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--records", type=int, default=2_000)
  parser.add_argument("--size", type=int, default=32)


def run(args):
  """Prints the series; returns whether no growth passes the bar."""
  folder = input_data.small_set(
    args.folder, records=args.records, shards=4, size=args.size
  )
  found = {}
  for workers in WORKERS:
    spec = {"folder": str(folder), "workers": workers}
    spec |= {k: getattr(args, k) for k in ("batches", "batch", "size")}
    found[f"{workers} workers" if workers else "2 threads"] = (
      input_processes.start("benchmarks.input_memory", spec)
    )
  print(
    f"{args.batches:,} super-batches of {args.batch}, {args.records:,} records"
    f" of {args.size} px; MB of all processes, shared memory once\n"
  )
  growths = _print_series(args, found)
  print(
    f"\ngrowth: median of a window of {args.batches // 20:,} batches, the last"
    f" against that from batch {args.batches // 10:,} on; bar: under"
    f" {100 * BAR:.0f}%"
  )
  return all(growth < BAR for growth in growths)


def _print_series(args, found):
  print(f"| after batch | {' | '.join(found)} |")
  print(f"|---|{'---:|' * len(found)}")
  for part in range(11):
    least = part * args.batches // 10
    values = [
      next(x for n, x in one["series"] if n >= min(least, one["series"][-1][0]))
      for one in found.values()
    ]
    print(f"| {least:,} | {' | '.join(f'{x:.1f}' for x in values)} |")
  growths = [growth(one["series"], args.batches) for one in found.values()]
  rates = [f"{one['rate']:.0f}" for one in found.values()]
  print(f"| growth | {' | '.join(f'{100 * g:+.2f}%' for g in growths)} |")
  print(f"| pairs/s | {' | '.join(rates)} |")
  return growths


def growth(series, batches):
  """How much more the last window holds than that after a tenth of the run."""
  first, width = batches // 10, batches // 20

  def window(start):
    inside = [x for n, x in series if start <= n <= start + width]
    return statistics.median(inside)

  return window(batches - width) / window(first) - 1


def measure(folder, workers, batches, batch, size):
  """Reads batches in a process of its own; MB after some of them."""
  from aced.data import pipeline
  from aced.data.sources import open_source
  from aced.data.tokenizers import load_tokenizer
  from aced.data.transforms import Transform

  series, every = [], max(1, batches // SAMPLES)
  with pipeline.superbatches(
    open_source(f"webdataset:{folder}/*.tar"),
    load_tokenizer("bytes", 64),
    Transform(size),
    batch_size=batch,
    seed=0,
    num_steps=batches,
    num_threads=2,
    num_workers=workers,
  ) as stream:
    start = time.perf_counter()
    for number, _ in enumerate(stream, start=1):
      if number == 1 or number % every == 0:
        memory = input_processes.tree_memory(os.getpid())
        series.append((number, memory / 1e6))
  rate = batches * batch / (time.perf_counter() - start)
  return {"series": series, "rate": rate}


if __name__ == "__main__":
  print(json.dumps(measure(**json.loads(sys.argv[1]))))
