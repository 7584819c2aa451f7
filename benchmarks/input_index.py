"""Start-up on an index of a million records: seconds, and memory."""

import importlib
import json
import os
import pathlib
import random
import shutil
import sys
import tarfile
import time

from benchmarks import input_data, input_processes

SECONDS, MEGABYTES = 10, 200
READS = 1_000
PICTURE_BYTES = 1_024


def add_arguments(parser):
  parser.add_argument("--records", type=int, default=1_000_000)
  parser.add_argument("--shards", type=int, default=100)


def run(args):
  """Prints the table; returns whether time and memory meet their bars."""
  folder = pathlib.Path(args.folder) / f"index_{args.records}_{args.shards}"
  input_data.once(folder, lambda part: write_shards(part, args))
  size = sum(path.stat().st_size for path in folder.glob("*.tar"))
  shutil.rmtree(folder / "kept", ignore_errors=True)
  built = _start(folder)
  kept = [p for p in (folder / "kept").rglob("*") if p.is_file()]
  for path in kept:
    _forget(path)
  opened = _start(folder)
  assert built["records"] == opened["records"] == args.records, opened
  on_disk = sum(path.stat().st_size for path in kept)
  print(
    f"{args.records:,} records in {args.shards} tar shards,"
    f" {size / 1e9:.2f} GB; the index on disk: {on_disk / 1e6:.1f} MB, not in"
    " the page cache when it is opened\n"
  )
  print("| | bar | the index is built | it is there |")
  print("|---|---:|---:|---:|")
  print(
    f"| open_source, seconds | {SECONDS} (there) |"
    f" {built['seconds']:.2f} | {opened['seconds']:.3f} |"
  )
  for label, key in (
    ("resident once imported, MB", "imported"),
    ("after open_source, MB", "opened"),
    (f"after {READS:,} records at random, MB", "read"),
    ("of it, mapped files, MB", "files"),
  ):
    print(f"| {label} | | {built[key]:.1f} | {opened[key]:.1f} |")
  print(
    f"| most of the process ever, MB | {MEGABYTES} (there) |"
    f" {built['peak']:.1f} | {opened['peak']:.1f} |"
  )
  for label, key in (
    ("added by opening and reading, MB", "read"),
    ("added at most, MB", "peak"),
  ):
    added = (x[key] - x["imported"] for x in (built, opened))
    print(f"| {label} | | {next(added):.1f} | {next(added):.1f} |")
  print(
    f"| milliseconds a record read | | {built['milliseconds']:.3f} |"
    f" {opened['milliseconds']:.3f} |"
  )
  return opened["seconds"] < SECONDS and opened["peak"] < MEGABYTES


def write_shards(folder, args):
  """Shards of two members a record, headers written block by block."""
  body = bytes(range(256)) * (PICTURE_BYTES // 256)
  for shard in range(args.shards):
    first = shard * args.records // args.shards
    last = (shard + 1) * args.records // args.shards
    with open(folder / f"{shard:05}.tar", "wb") as file:
      for number in range(first, last):
        file.write(_member(f"{number:09}.jpg", body))
        file.write(_member(f"{number:09}.txt", b"caption %d" % number))
      file.write(bytes(2 * tarfile.BLOCKSIZE))


def _member(name, body):
  info = tarfile.TarInfo(name)
  info.size = len(body)
  padding = bytes(-len(body) % tarfile.BLOCKSIZE)
  return info.tobuf(tarfile.USTAR_FORMAT) + body + padding


def _start(folder):
  return input_processes.start(
    "benchmarks.input_index", {"folder": str(folder)}
  )


def _forget(path):
  """Takes a file out of the page cache."""
  descriptor = os.open(path, os.O_RDONLY)
  os.fsync(descriptor)  # What is not yet on the disk would stay.
  os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
  os.close(descriptor)


def measure(folder):
  """Opens the shards and reads some records, in a process of its own."""
  from aced.data.sources import open_source

  # It is imported when it is used; that is no part of what an index costs.
  importlib.import_module("aced.data.sources.webdataset")
  imported = input_processes.status()["VmRSS"]
  start = time.perf_counter()
  source = open_source(f"webdataset:{folder}/*.tar?index={folder}/kept")
  seconds = time.perf_counter() - start
  opened = input_processes.status()["VmRSS"]
  indices = random.Random(0).choices(range(len(source)), k=READS)
  start = time.perf_counter()
  for index in indices:
    record = source[index]
    assert record["text"] == f"caption {index}", (index, record)
    assert len(record["image"]) == PICTURE_BYTES, index
  reading = time.perf_counter() - start
  end = input_processes.status()
  return {
    "records": len(source),
    "seconds": seconds,
    "milliseconds": 1e3 * reading / READS,
    "imported": imported / 1e6,
    "opened": opened / 1e6,
    "read": end["VmRSS"] / 1e6,
    "files": end["RssFile"] / 1e6,
    "peak": end["VmHWM"] / 1e6,
  }


if __name__ == "__main__":
  print(json.dumps(measure(**json.loads(sys.argv[1]))))
