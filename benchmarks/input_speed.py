"""Images a second and core, against tf.data and against webdataset with Pillow.

All read the same JPEGs and make pictures of one size with one antialiased
kernel, each in a process that is bound to the same cores, in turn. The bar is
of images a second and core. Those a CPU second are what is left of it where
other work takes a share of the cores: where the two differ, either something
else ran, or a pipeline did not keep its cores busy.
"""

import io
import os
import sys

import numpy as np
from PIL import Image

from benchmarks import input_data, input_processes

BAR = 1.5
KERNELS = ("bilinear", "bicubic")
# Label -> what its contender is told beside what all are told.
OURS = {
  "aced, threads": {"kind": "aced", "workers": False, "shrink": True},
  "aced, workers": {"kind": "aced", "workers": True, "shrink": True},
  "aced, threads, no shrink": {
    "kind": "aced",
    "workers": False,
    "shrink": False,
  },
  "aced, workers, no shrink": {
    "kind": "aced",
    "workers": True,
    "shrink": False,
  },
}
PEERS = {
  "webdataset + Pillow": {"kind": "webdataset"},
  "tf.data": {"kind": "tensorflow", "antialias": True},
}
# What big_vision does where its config does not say antialias: less work, and
# another picture. It is no peer.
CHEAPER = {
  "tf.data, antialias=False (other output)": {
    "kind": "tensorflow",
    "antialias": False,
  }
}


def add_arguments(parser):
  parser.add_argument("--records", type=int, default=2_000)
  parser.add_argument("--shards", type=int, default=4)
  parser.add_argument("--width", type=int, default=640, help="of the JPEGs")
  parser.add_argument("--height", type=int, default=480)
  parser.add_argument("--size", type=int, default=256, help="of the outputs")
  parser.add_argument("--length", type=int, default=64, help="tokens of a text")
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=6.0, help="of a round")
  parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
  parser.add_argument("--kernels", nargs="+", default=KERNELS, choices=KERNELS)
  parser.add_argument(
    "--tensorflow", default="", help="a Python that has TensorFlow"
  )


def run(args):
  """Prints the tables; returns whether every ratio meets the bar."""
  folder = input_data.photo_set(
    args.folder,
    records=args.records,
    shards=args.shards,
    width=args.width,
    height=args.height,
  )
  shared = _shared(args, folder)
  if args.tensorflow:
    written = _start(shared | {"kind": "tensorflow_write"}, args.tensorflow)
    print(f"TensorFlow {written['version']} in {args.tensorflow}\n")
  else:
    print("tf.data was not run: no --tensorflow PYTHON was given.\n")
  _print_data(args, folder)
  met = []
  for kernel in args.kernels:
    for cores in args.cores:
      if cores > len(os.sched_getaffinity(0)):
        print(f"{cores} cores: not run, as there are not so many.\n")
        continue
      spec = shared | {"resize": kernel, "cores": _cores(cores)}
      met += _print_rates(kernel, cores, rates(args, spec, kernel))
  if args.tensorflow:
    _print_closeness(args, folder, shared)
  print(f"bar: at least {BAR} times the better peer in every row of ours")
  return bool(met) and all(met)


def rates(args, spec, kernel):
  """Label -> `(rounds, 2)`: images a second and core, and a CPU second."""
  contenders = OURS | PEERS | (CHEAPER if kernel == "bilinear" else {})
  if not args.tensorflow:
    contenders = {
      k: v for k, v in contenders.items() if v["kind"] != "tensorflow"
    }
  found = {label: [] for label in contenders}
  shape = [spec["batch"], spec["size"], spec["size"], 3]
  for number in range(args.rounds):
    for label in list(contenders)[:: -1 if number % 2 else 1]:
      own = contenders[label]
      tensorflow = own["kind"] == "tensorflow"
      result = _start(
        spec | own, args.tensorflow if tensorflow else sys.executable
      )
      assert result["shapes"][0] == shape, result
      rate = result["images"] / result["seconds"] / len(spec["cores"])
      found[label].append((rate, result["images"] / result["cpu_seconds"]))
      print(f"round {number}, {label}: {rate:.1f} images/s", file=sys.stderr)
  return {label: np.array(values) for label, values in found.items()}


def _start(spec, python=sys.executable):
  return input_processes.start("benchmarks.input_contenders", spec, python)


def _shared(args, folder):
  """What every contender is told."""
  return {
    "folder": str(folder),
    "tokenizer": _tokenizer(folder),
    "length": args.length,
    "size": args.size,
    "batch": min(args.batch, args.records),
    "seconds": args.seconds,
    "cores": sorted(os.sched_getaffinity(0)),
  }


def _cores(count):
  """The last cores: the first one serves most interrupts."""
  return sorted(os.sched_getaffinity(0))[-count:]


def _tokenizer(folder):
  from aced.data.tokenizers import train_sentencepiece

  path = folder / "tokenizer.model"
  if not path.exists():
    captions = (folder / "captions.txt").read_text().splitlines()
    train_sentencepiece(captions, path, 1_000)
  return f"sentencepiece:{path}"


def _print_data(args, folder):
  sizes = [path.stat().st_size for path in folder.glob("*.tar")]
  print(
    f"{args.records:,} records in {len(sizes)} tar shards,"
    f" {sum(sizes) / args.records / 1e3:.0f} KB a record; JPEGs of"
    f" {args.width}x{args.height} to {args.size}x{args.size}, batches of"
    f" {min(args.batch, args.records)}, {args.length} tokens (tf.data: none)\n"
  )


def _print_rates(kernel, cores, found):
  """Prints a table of rates; returns whether ours meet the bar, each."""
  median = {k: float(np.median(x[:, 0])) for k, x in found.items()}
  peer = max((label for label in PEERS if label in found), key=median.get)
  words = "1 core" if cores == 1 else f"{cores} cores"
  rounds = len(found[peer])
  print(f"{kernel}, antialiased, {words}, rounds: {rounds}; over {peer}:\n")
  print(
    "| pipeline | images/s a core | times as many | images a CPU second |"
    " times as many |"
  )
  print("|---|---:|---:|---:|---:|")
  for label, values in found.items():
    cells = [spread(values[:, 0], 1), "", spread(values[:, 1], 1), ""]
    if label in OURS:
      cells[1::2] = (spread(x, 2) for x in (values / found[peer]).T)
    print(f"| {label} | {' | '.join(cells)} |")
  met = []
  for words, only in (("shrink", True), ("no shrink", False)):
    own = [label for label in OURS if OURS[label]["shrink"] is only]
    best = max(own, key=median.get)
    ratio = np.median(found[best][:, 0] / found[peer][:, 0])
    met.append(bool(ratio >= BAR))
    print(
      f"\n{words}: {best.split(', ')[1]} are the better; {ratio:.2f} times"
      f" {peer}: {'met' if met[-1] else 'MISSED'}"
    )
  print()
  return met


def spread(values, digits):
  """The median, and the least and the most."""
  low, middle, high = (
    f"{f(values):.{digits}f}" for f in (np.min, np.median, np.max)
  )
  return f"{middle} ({low} to {high})"


def _print_closeness(args, folder, shared):
  """How far our pictures, and Pillow's, are from TensorFlow's."""
  count = min(64, args.records // args.shards)
  print(
    f"levels (of 255) from tf.image.resize(antialias=True), {count} JPEGs\n"
  )
  print("| kernel | pictures | mean | 99.9% | max | mean, tf rounded down |")
  print("|---|---|---:|---:|---:|---:|")
  for kernel in args.kernels:
    output = folder / f"resized_{kernel}_{args.size}_{count}.npy"
    spec = shared | {"kind": "tensorflow_resize", "records": count}
    spec |= {"resize": kernel, "antialias": True, "output": str(output)}
    _start(spec, args.tensorflow)
    exact = np.clip(np.load(output, allow_pickle=False), 0, 255)
    for label, images in _ours(args, folder, kernel, count).items():
      away = np.abs(images - np.rint(exact))
      truncated = np.abs(
        images - np.trunc(exact)
      )  # What big_vision's cast does.
      print(
        f"| {kernel} | {label} | {away.mean():.3f} |"
        f" {np.quantile(away, 0.999):.0f} | {away.max():.0f} |"
        f" {truncated.mean():.3f} |"
      )
  print()


def _ours(args, folder, kernel, count):
  """Name -> the first pictures as float32."""
  from aced.data.sources import open_source
  from aced.data.transforms import Transform

  source = open_source(f"webdataset:{folder}/*.tar")
  records = [source[k] for k in range(count)]
  method = Image.Resampling[kernel.upper()]

  def pillow(record):
    image = Image.open(io.BytesIO(record["image"])).convert("RGB")
    return np.asarray(image.resize((args.size, args.size), method))

  makers = {
    "aced": Transform(args.size, kernel),
    "aced, no shrink": Transform(args.size, kernel, shrink=False),
    "webdataset + Pillow": pillow,
  }
  return {
    label: np.stack([make(r) for r in records]).astype(np.float32)
    for label, make in makers.items()
  }
