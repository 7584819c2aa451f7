"""Recall of 25,000 captions and 5,000 pictures against CLIP_benchmark's.

Claims, on two CPU cores at a width of 768: `aced.evaluation.retrieval` takes
less than 60 seconds and less than 2 GB, is no slower than `evaluate` of
CLIP_benchmark's `zeroshot_retrieval` on the same embeddings in the same run,
and counts the same hits but for those that rounding to float32 decides.

The peer is that function itself, with look-ups in the place of towers. It works
on as many queries at a time as its data loader has pictures in a batch, whose
one-hot vectors of what it found make most of its time and memory: hence 64, the
default of its command, and 4. Looking up and normalising are timed alone, as
ours has none of it.

Both run in turn in one process; memory is the peak of a process of its own for
each, with the embeddings and what the packages take.

    python -m benchmarks.retrieval     # needs the extra `parity`; minutes
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time

import numpy as np

from benchmarks import input_processes

KS = (1, 5, 10)
BARS = {"seconds": 60.0, "MB": 2000.0}


def embeddings(folder):
  """Pictures, captions and the picture of each caption."""
  names = ("zimg", "ztxt", "image_of_text")
  return [np.load(f"{folder}/{name}.npy", allow_pickle=False) for name in names]


def make(folder, images, captions, width, noise, seed=0):
  """Writes unit vectors; a caption is its picture with noise, and so on."""
  rng = np.random.default_rng(seed)
  concept = rng.standard_normal((images, width), np.float32)
  # Captions of a picture stand together, as the peer wants them.
  image_of_text = np.repeat(np.arange(images), captions)
  for name, rows in (("zimg", np.arange(images)), ("ztxt", image_of_text)):
    z = rng.standard_normal((len(rows), width), np.float32)
    z = concept[rows] + noise * z
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    np.save(f"{folder}/{name}.npy", z)
  np.save(f"{folder}/image_of_text.npy", image_of_text)


class Ours:
  """`aced.evaluation.retrieval`."""

  def __init__(self, zimg, ztxt, image_of_text):
    from aced.evaluation.retrieval import retrieval

    self.score = retrieval
    self.arguments = (zimg, ztxt, image_of_text, KS)

  def __call__(self):
    """Returns `{name: recall}`."""
    return self.score(*self.arguments)


class Theirs:
  """`evaluate` of CLIP_benchmark, in batches of some size."""

  def __init__(self, zimg, ztxt, image_of_text, batch):
    import torch
    from clip_benchmark.metrics import zeroshot_retrieval

    self.torch, self.evaluate = torch, zeroshot_retrieval.evaluate
    zimg, self.ztxt = map(self.torch.from_numpy, (zimg, ztxt))
    starts = np.searchsorted(image_of_text, np.arange(len(zimg) + 1)).tolist()
    texts = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
    self.batches = [
      (zimg[k : k + batch], texts[k : k + batch])
      for k in range(0, len(zimg), batch)
    ]

  def encode_image(self, image):
    """Pictures are their embeddings."""
    return image

  def encode_text(self, index):
    """Texts are numbers."""
    return self.ztxt[index]

  def towers(self):
    """What is no part of scoring: the look-ups and their normalisation."""
    normalize = self.torch.nn.functional.normalize
    for image, texts in self.batches:
      index = self.torch.tensor([k for one in texts for k in one])
      normalize(self.encode_image(image), dim=-1)
      normalize(self.encode_text(index), dim=-1)

  def __call__(self):
    """Returns `{our name: recall}`."""
    with contextlib.redirect_stderr(io.StringIO()):  # Its progress bar.
      found = self.evaluate(
        self, self.batches, self.torch.tensor, "cpu", False, list(KS)
      )
    names = {"image_to_text": "text", "text_to_image": "image"}
    return {
      f"{way}/R@{k}": found[f"{name}_retrieval_recall@{k}"]
      for way, name in names.items()
      for k in KS
    }


def seconds(function):
  """How long a call takes."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def speed(folder, batches, repeats):
  """What both find in a first call, and then their times in turn."""
  data, load = embeddings(folder), os.getloadavg()[0]
  runs = {"aced": Ours(*data)}
  runs |= {f"peer, {size}": Theirs(*data, size) for size in batches}
  found = {name: run() for name, run in runs.items()}
  times = {name: [] for name in runs}
  beside = {name: [] for name in runs if name != "aced"}
  for _ in range(repeats):
    for name, run in runs.items():
      times[name].append(seconds(run))
      if name in beside:
        beside[name].append(seconds(run.towers))
  queries = {"image_to_text": len(data[0]), "text_to_image": len(data[1])}
  return {
    "times": times,
    "look-ups": beside,
    "recall": found.pop("aced"),
    "queries": queries,
    "peers": found,
    "load": [round(x, 1) for x in (load, os.getloadavg()[0])],
    "threads": runs[f"peer, {batches[0]}"].torch.get_num_threads(),
  }


def memory(folder, batch):
  """Peak MB of this process: before scoring, and after."""
  data = embeddings(folder)
  run = Theirs(*data, batch) if batch else Ours(*data)
  # VmHWM starts anew with a program; ru_maxrss would start at its parent's.
  before = input_processes.status()["VmHWM"]
  run()
  peak = input_processes.status()["VmHWM"]
  return {"before": before / 1e6, "peak": peak / 1e6}


def differing(found):
  """How many hits of the peer are not ours, at most over its runs and ks."""
  queries = found["queries"]
  return max(
    abs(round((theirs[name] - found["recall"][name]) * queries[way]))
    for theirs in found["peers"].values()
    for name in theirs
    for way in [name.split("/")[0]]
  )


def summary(args, found, peaks):
  """Medians, ratios and bars."""
  median = {k: statistics.median(v) for k, v in found["times"].items()}
  ratios, without = {}, {}
  for size in args.batches:
    spent = np.array(found["times"][f"peer, {size}"])
    ours = np.array(found["times"]["aced"])
    ratio = spent / ours
    ratios[size] = [round(float(f(ratio)), 2) for f in (np.median, min, max)]
    scoring = spent - found["look-ups"][f"peer, {size}"]
    without[size] = round(float(np.median(scoring / ours)), 2)
  return {
    "captions, pictures, width": [
      args.images * args.captions,
      args.images,
      args.width,
    ],
    "median seconds": {k: round(v, 2) for k, v in median.items()},
    "times faster, by batch size of the peer: median, least, most": ratios,
    "the same without its look-ups, median": without,
    "peak MB, before scoring and in all": {
      name: [round(x["before"]), round(x["peak"])] for name, x in peaks.items()
    },
    "recall": found["recall"],
    "hits that differ, at most": differing(found),
    "threads of torch": found["threads"],
    "load of the machine, start and end": found["load"],
    "below 60 s, below 2 GB, no slower": [
      median["aced"] < BARS["seconds"],
      peaks["aced"]["peak"] < BARS["MB"],
      min(ratio[0] for ratio in ratios.values()) >= 1.0,
    ],
  }


def compare(args, folder):
  """Starts a process for the data, for the times and for each memory."""
  module, base = "benchmarks.retrieval", {"folder": folder}
  sizes = {k: getattr(args, k) for k in ("images", "captions", "width")}
  input_processes.start(
    module, base | sizes | {"do": "make", "noise": args.noise}
  )
  peaks = {"aced": None} | {f"peer, {size}": size for size in args.batches}
  peaks = {
    name: input_processes.start(module, base | {"do": "memory", "batch": size})
    for name, size in peaks.items()
  }
  timed = {"do": "speed", "batches": args.batches, "repeats": args.repeats}
  return summary(args, input_processes.start(module, base | timed), peaks)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--images", type=int, default=5_000)
  parser.add_argument("--captions", type=int, default=5)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--noise", type=float, default=3.0)
  parser.add_argument("--batches", type=int, nargs="+", default=[64, 4])
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  for name in ("torch", "clip_benchmark"):
    if importlib.util.find_spec(name) is None:
      print(f"skipped: {name} is not installed; it is of the extra `parity`.")
      return
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(compare(args, folder), indent=2))


def part(spec):
  """What a process of its own does."""
  spec = json.loads(spec)
  steps = {"make": make, "memory": memory, "speed": speed}
  return steps[spec.pop("do")](**spec)


if __name__ == "__main__":
  if sys.argv[1:] and sys.argv[1].startswith("{"):
    print(json.dumps(part(sys.argv[1])))
  else:
    main()
