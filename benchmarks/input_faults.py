"""One epoch over shards that are cut short and records that are damaged.

What is wrong with each record is known from how it was made: from the place of
every member, as the standard library's tarfile tells it before shards are cut,
and from what was written in the place of a JPEG.
"""

import collections
import contextlib
import json
import logging as standard_logging
import pathlib
import tarfile

import numpy as np
from absl import logging

from benchmarks import input_data

CUT_SHARDS = 2
DAMAGED = 0.01
SEED = 0
LENGTH = 40  # Of a caption as bytes; all are shorter.
# How a JPEG is damaged, and the cause that must be counted for it.
DAMAGES = {
  "random bytes": "not_an_image",
  "zeros": "not_an_image",
  "HTML": "not_an_image",
  "the first half alone": "damaged_image",
  "random after the header": "damaged_image",
  "nothing": "empty_image",
}


def add_arguments(parser):
  parser.add_argument("--records", type=int, default=10_000)
  parser.add_argument("--shards", type=int, default=100)
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--workers", type=int, default=2)


def run(args):
  """Prints the counts; returns whether they are the truth."""
  name = f"faults_{args.records}_{args.shards}_{args.size}"
  folder = input_data.once(
    pathlib.Path(args.folder) / name, lambda part: write(part, args)
  )
  truth = [tuple(x) for x in json.loads((folder / "truth.json").read_text())]
  with quiet():
    found, restarts = read(folder, args)
  expected = collections.Counter(cause for _, cause in truth)
  counted = collections.Counter(cause for _, _, cause in found)
  print(
    f"{args.records:,} records were written to {args.shards} shards;"
    f" {DAMAGED:.0%} of their JPEGs were damaged, then {CUT_SHARDS} shards cut"
    f" short, in which {args.records - len(truth)} records were lost; one"
    f" epoch, shuffled, batches of {args.batch}, {args.workers} processes\n"
  )
  print("| cause | in truth | counted |\n|---|---:|---:|")
  for cause in sorted(expected | counted):
    label = "none: the record is read" if cause == "none" else cause
    print(f"| {label} | {expected[cause]:,} | {counted[cause]:,} |")
  print(f"| all | {len(truth):,} | {len(found):,} |\n")
  if len(truth) != len(found):
    return False
  checks = {
    "counts are exact": expected == counted,
    "every record is read exactly once": sorted(i for i, _, _ in found)
    == list(range(len(truth))),
    "each record has its own cause": all(
      truth[i][1] == cause for i, _, cause in found
    ),
    "each usable record has its own caption": all(
      truth[i][0] in text for i, text, cause in found if cause == "none"
    ),
    "no process was started anew": not restarts,
  }
  for check, holds in checks.items():
    print(f"- {check}: {'yes' if holds else 'NO'}")
  return all(checks.values())


def write(folder, args):
  """Writes the shards, and `truth.json`: `[key, cause]` of each record."""
  rng = np.random.default_rng(SEED)
  count = round(DAMAGED * args.records)
  damaged = rng.choice(args.records, count, replace=False)
  damages = dict(zip(damaged.tolist(), list(DAMAGES) * count))
  cut = rng.choice(args.shards, min(CUT_SHARDS, args.shards), replace=False)
  truth = []
  for shard, numbers in enumerate(
    np.array_split(np.arange(args.records), args.shards)
  ):
    path = folder / f"{shard:04}.tar"
    write_shard(path, numbers.tolist(), damages, args.size)
    places = members(path)
    end = path.stat().st_size
    if shard in cut:
      end = int(rng.integers(1, places[-1][2] + 1))
      with open(path, "r+b") as file:
        file.truncate(end)
    truth += causes(numbers.tolist(), places, damages, end)
  (folder / "truth.json").write_text(json.dumps(truth))


def write_shard(path, numbers, damages, size):
  """Writes the records of some numbers, damaged where that is said."""
  import webdataset

  with webdataset.TarWriter(str(path)) as writer:
    for number in numbers:
      picture = input_data.small_picture(SEED, number, size)
      picture = spoiled(picture, damages.get(number), number)
      text = f"picture {key(number)}"
      writer.write({"__key__": key(number), "jpg": picture, "txt": text})


def key(number):
  """The name of a record."""
  return f"{number:08}"


def spoiled(picture, damage, number):
  """A JPEG that surely cannot be decoded any more."""
  noise = np.random.default_rng((SEED, 2, number)).bytes(len(picture))
  page = b"<!doctype html><html><body><h1>404 Not Found</h1></body></html>\n"
  return {
    None: picture,
    "random bytes": noise,
    "zeros": bytes(len(picture)),
    "HTML": page,
    "the first half alone": picture[: len(picture) // 2],
    # Garbage in the place of the tables without which nothing is decoded.
    "random after the header": headed(picture, noise),
    "nothing": b"",
  }[damage]


def headed(picture, noise):
  """A JPEG that says its size, and then has noise for tables and pixels."""
  frame = picture.index(b"\xff\xc0")  # Its size, and which tables it needs.
  after = frame + 2 + int.from_bytes(picture[frame + 2 : frame + 4], "big")
  # No markers in it: what follows is passed over up to the end.
  return picture[:after] + noise[after:].replace(b"\xff", b"\x00")


def members(path):
  """`(name, first byte of its data, one after its last)` of each member."""
  with tarfile.open(path) as shard:
    return [(m.name, m.offset_data, m.offset_data + m.size) for m in shard]


def causes(numbers, places, damages, end):
  """`(key, cause)` of each record of which a shard of `end` bytes has a part.

  A member is there if all of its header is; a record is cut short if one of its
  members is not there with all of its data.
  """
  there, whole = set(), set(map(key, numbers))
  for name, start, stop in places:
    record = name.split(".")[0]
    if start <= end:
      there.add(record)
    if stop > end:
      whole.discard(record)
  for number in numbers:
    if key(number) in there:
      cause = DAMAGES.get(damages.get(number), "none")
      yield key(number), cause if key(number) in whole else "cut_short"


def read(folder, args):
  """`(index, caption, cause)` of each row of an epoch, and restarts."""
  from aced.data import pipeline
  from aced.data.records import CAUSE_NAMES
  from aced.data.sources import open_source
  from aced.data.tokenizers import load_tokenizer
  from aced.data.transforms import Transform

  source = open_source(f"webdataset:{folder}/*.tar")
  tokenizer = load_tokenizer("bytes", LENGTH)
  batch = min(args.batch, len(source))
  rows = []
  with pipeline.superbatches(
    source,
    tokenizer,
    Transform(args.size),
    batch_size=batch,
    seed=SEED,
    num_steps=-(-len(source) // batch),
    num_workers=args.workers,
  ) as batches:
    for arrays in batches:
      errors = [CAUSE_NAMES[int(code)] for code in arrays["error"]]
      texts = map(tokenizer.decode, arrays["labels"])
      rows += zip(arrays["index"].tolist(), texts, errors)
      usable = [error == "none" for error in errors]
      assert usable == arrays["_mask"].tolist(), "masked without a cause"
    restarts = batches.metrics()["data/reader_restarts"]
  # The last batch goes on into the next epoch.
  return rows[: len(source)], restarts


@contextlib.contextmanager
def quiet():
  """Keeps warnings of damage, which are meant here, off the screen."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  standard_logging.captureWarnings(True)
  try:
    yield
  finally:
    standard_logging.captureWarnings(False)
    logging.set_verbosity(before)
