"""Writes any source anew as ArrayRecord files or as tar shards.

    python -m aced.data convert jsonl:pairs/train.jsonl --output pairs/records

    python -m aced.train --config configs/acid.py:demo --workdir runs/acid \\
        --config.input.source="array_record:pairs/records/*.array_record"

Encoded pictures are copied as they are. Records without a picture or a caption
are dropped, and counted by cause. Killed and started again, it goes on with the
shards that are missing, and what it writes is the same to the byte.
"""

import argparse
import collections
import contextlib
import fcntl
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tqdm import tqdm

from aced.config import did_you_mean
from aced.data import identity
from aced.data.convert import shard_files
from aced.data.convert.workers import ConvertError, Job, Shard, write_shards
from aced.data.sources import open_source, parse
from aced.files import whole

FILE = "convert.json"  # What the folder holds.
LOG = "convert.shards.jsonl"  # The shards that are whole, one a line.
_PART = re.compile(r"\.(convert|pairs)\b.*\.part-\d+")  # A file not yet whole.
# A path with these would not be read as it was written.
_SPECIAL = "?*[]{},&"


class Summary(NamedTuple):
  """What a conversion came to.

  Attributes:
    spec: opens the result.
    written: records of it.
    dropped: cause -> records that could not be used.
    left_out: field that JSON cannot express -> records that had it.
  """

  spec: str
  written: int
  dropped: Mapping[str, int]
  left_out: Mapping[str, int]

  def __str__(self):
    text = f"{self.spec} holds {self.written:,} records"
    if self.dropped:
      total = sum(self.dropped.values())
      text += f"; {total:,} dropped: {_counted(self.dropped)}"
    if self.left_out:
      text += (
        "; fields left out, as JSON cannot express them:"
        f" {_counted(self.left_out)}"
      )
    return f"{text}."


def convert(
  spec: str,
  output: str | pathlib.Path,
  *,
  format: str = "array_record",
  shard_records: int = 10_000,
  workers: int | None = None,
  verify: bool = False,
) -> Summary:
  """Writes a source as shards; goes on where it was stopped.

  Args:
    spec: as `open_source` takes it.
    output: the folder, made if it is not there.
    format: a key of `shard_files.FORMATS`.
    shard_records: records of the source that go into a shard.
    workers: processes; None is as many as there are processors.
    verify: whether each picture is decoded, and dropped if it cannot be.

  Raises:
    ConvertError: an argument that is wrong, a folder that holds something else,
      or a file that cannot be written; the shards that are whole stay.
    SourceError: the source cannot be opened.
  """
  folder = _check(output, format, shard_records, workers)
  source = open_source(spec)
  job = Job(spec, folder, format, len(source), shard_records, verify)
  contents = {
    "format": format,
    "options": _options(spec),
    "shard_records": shard_records,
    "source": identity.of_source(source),
    "verify": verify,
  }
  with _claimed(folder, contents, spec):
    shards = _read_log(job)
    missing = [k for k in range(job.shards) if k not in shards]
    with (
      open(folder / LOG, "a", encoding="utf-8") as log,
      tqdm(
        total=job.records,
        initial=job.records - sum(len(job.rows(k)) for k in missing),
        unit=" records",
        desc=f"converting to {format}",
        disable=None,  # Where nobody looks at it.
      ) as bar,
    ):
      for shard in write_shards(
        job, missing, workers or os.cpu_count() or 1, bar
      ):
        shards[shard.number] = shard
        log.write(_line(shard))
        log.flush()
    # In order, so that the folder does not tell how it came about.
    _replace(folder / LOG, "".join(_line(shards[k]) for k in sorted(shards)))
  return _summary(job, output, shards.values())


def _check(output, format, shard_records, workers) -> pathlib.Path:
  """Refuses arguments that are wrong; returns the folder."""
  if format not in shard_files.FORMATS:
    raise ConvertError(
      f"--format={format} is not known; it is one of"
      f" {', '.join(shard_files.FORMATS)}."
      f"{did_you_mean(format, shard_files.FORMATS)}"
    )
  for name, value in (("shard_records", shard_records), ("workers", workers)):
    if value is not None and value < 1:
      raise ConvertError(f"--{name}={value} must be above 0.")
  found = [letter for letter in _SPECIAL if letter in str(output)]
  if "://" in str(output) or found:
    raise ConvertError(
      f"--output={output} must be a folder of a local disk, without"
      f" {' '.join(_SPECIAL)}, which mean something in the name of a source;"
      " copy the files to a bucket afterwards."
    )
  return pathlib.Path(output).expanduser().absolute()


def _options(spec) -> dict[str, str]:
  """What of a spec, beside its path, says what the records are."""
  kind, where, options = parse(spec)
  return {"mixture": where} if kind == "mixture" else options


@contextlib.contextmanager
def _claimed(folder, contents, spec) -> Iterator[None]:
  """Makes a folder this conversion's alone while it runs.

  Raises:
    ConvertError: it cannot be made, holds something else, or another process
      writes to it.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
  except OSError as error:
    raise ConvertError(
      f"--output={folder}: the folder cannot be made: {error.strerror}; name"
      " one that can be written."
    ) from error
  try:
    _lock(descriptor, folder)
    _check_contents(folder, contents, spec)
    for path in folder.iterdir():
      if _PART.fullmatch(path.name):  # Of a process that was killed.
        path.unlink(missing_ok=True)
    yield
  finally:
    os.close(descriptor)


def _lock(descriptor, folder):
  """Locks a folder until its descriptor is closed, also by being killed."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise ConvertError(
      f"--output={folder}: another process is converting to it; wait for it to"
      " end, or name another folder."
    ) from error
  except OSError:
    # Some network file systems have no locks. Two processes would then write
    # the same shards twice, to the same bytes.
    return


def _check_contents(folder, contents, spec):
  """Refuses a folder that holds something else; says what it is to hold."""
  path = folder / FILE
  if not path.exists():
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if not _PART.fullmatch(name)]
    if others:
      raise ConvertError(
        f"--output={folder} holds other files ({', '.join(others[:5])}); name"
        " an empty or a new folder."
      )
    text = json.dumps(contents | {"spec": spec}, indent=2, sort_keys=True)
    _replace(path, f"{text}\n")
    return
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    began = found["spec"]
  except (ValueError, KeyError, TypeError) as error:
    raise ConvertError(
      f"{path} is not what a conversion wrote: {error}; name another folder."
    ) from error
  differences = [
    f"{key}: {found.get(key)!r} -> {value!r}"
    for key, value in contents.items()
    if found.get(key) != value
  ]
  if differences:
    raise ConvertError(
      f"--output={folder} holds a conversion of {began}, and this one differs:"
      f" {'; '.join(differences)}. Name another folder, or give the same"
      " arguments to go on with it."
    )


def _read_log(job: Job) -> dict[int, Shard]:
  """The shards that are whole, by number."""
  path, shards = job.folder / LOG, {}
  lines = path.read_text(encoding="utf-8") if path.exists() else ""
  for line in lines.splitlines():
    try:
      shard = Shard(**json.loads(line))
    except (ValueError, TypeError):
      continue  # It was killed within a line; the shard is written again.
    file = job.path(shard.number)
    if file.exists() and file.stat().st_size == shard.size:
      shards[shard.number] = shard
  if lines and not lines.endswith("\n"):
    _replace(path, "".join(map(_line, shards.values())))
  return shards


def _line(shard: Shard) -> str:
  return json.dumps(shard._asdict(), sort_keys=True) + "\n"


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  try:
    with whole(path) as part:
      part.write_text(text, encoding="utf-8")
  except OSError as error:
    raise ConvertError(
      f"{path} cannot be written: {error.strerror}. Whole shards stay; make"
      " room, and run the same command again."
    ) from error


def _summary(job: Job, output, shards) -> Summary:
  """Adds up shards.

  Raises:
    ConvertError: they are all empty.
  """
  dropped, left_out = collections.Counter(), collections.Counter()
  for shard in shards:
    dropped.update(shard.dropped)
    left_out.update(shard.left_out)
  written = sum(shard.written for shard in shards)
  if not written:
    raise ConvertError(
      f"no record of {job.spec} can be used: {_counted(dropped)}. Look at its"
      " first records, and name the fields of picture and caption."
    )
  spec = shard_files.SPECS[job.format].format(folder=str(output).rstrip("/"))
  return Summary(spec, written, dict(dropped), dict(left_out))


def _counted(counts: Mapping[str, int]) -> str:
  """Such as "7 missing_image, 3 empty_caption", the most frequent first."""
  ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return ", ".join(f"{number:,} {name}" for name, number in ordered)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command to a parser."""
  parser.add_argument("source", help="such as jsonl:pairs/train.jsonl")
  parser.add_argument(
    "--output", required=True, help="folder of the shards; run again to go on"
  )
  parser.add_argument(
    "--format", choices=tuple(shard_files.FORMATS), default="array_record"
  )
  parser.add_argument(
    "--shard_records",
    type=int,
    default=10_000,
    help="records of the source per shard: what is lost at most when killed",
  )
  parser.add_argument(
    "--workers", type=int, help="processes; by default one per processor"
  )
  parser.add_argument(
    "--verify",
    action="store_true",
    help="decode each picture, and drop what cannot be decoded",
  )


def run(options: Any) -> int:
  """Runs the command with parsed options; returns its exit status.

  Raises:
    ConfigError: see `convert`.
  """
  try:
    summary = convert(
      options.source,
      options.output,
      format=options.format,
      shard_records=options.shard_records,
      workers=options.workers,
      verify=options.verify,
    )
  except KeyboardInterrupt:
    print(
      "Stopped. Shards that are whole stay; the same command goes on.",
      file=sys.stderr,
    )
    return 130
  print(summary)
  return 0
