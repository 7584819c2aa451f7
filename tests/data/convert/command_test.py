"""Converting: resumed, refused, interrupted."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from aced.data.convert import command, shard_files
from aced.data.convert.command import ConvertError, convert
from aced.data.convert.workers import Job, write_shard
from aced.data.records import Source, SourceError
from aced.data.sources import open_source
from tests.data.convert.tools import (
  DROPPED,
  FORMATS,
  SCENES,
  contents,
  picture,
  shards,
)


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_are_decoded_where_asked(pairs, tmp_path, in_process, format):
  folder = tmp_path / "out"
  found = convert(pairs, folder, format=format, shard_records=11, verify=True)
  assert found.written == 8
  assert found.dropped == DROPPED | {"not_an_image": 1}
  # The last shard is empty, and no hindrance to reading the others.
  assert len(shards(folder)) == 2
  assert len(open_source(found.spec)) == 8


class Failing(Source):
  """A source on a disk that gives way."""

  def __len__(self):
    return 3

  def __getitem__(self, index):
    if index < 2:
      return {"image": picture("png"), "text": "a"}
    raise OSError(errno.EIO, "Input/output error")


def test_a_source_that_fails_leaves_no_shard(tmp_path):
  job = Job("", tmp_path, "array_record", 3, 10, verify=False)
  with pytest.raises(ConvertError, match="record 2 of .* cannot be read"):
    write_shard(job, 0, Failing(), lambda: None)
  assert not list(tmp_path.iterdir())


def test_names_sort_as_numbers_do():
  names = [shard_files.shard_name("array_record", k, 123_456) for k in (9, 10)]
  assert names[0] == "pairs-000009-of-123456.array_record"
  assert names == sorted(names)


def run(*arguments, before="", **settings):
  """Starts the command in a process of its own, after another of the shell."""
  given = [sys.executable, "-m", "aced.data", "convert", *map(str, arguments)]
  return subprocess.Popen(
    ["bash", "-c", f'{before} exec "$@"', "bash", *given],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **settings,
  )


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_stopped_it_goes_on_to_the_same_bytes(tmp_path, in_process, name):
  folder, whole = tmp_path / "out", tmp_path / "whole"
  given = {"shard_records": 100}
  arguments = (SCENES, "--output", folder, "--shard_records=100", "--workers=2")
  process = run(*arguments, start_new_session=True)
  until = time.monotonic() + 60
  while time.monotonic() < until and process.poll() is None:
    if folder.exists() and len(shards(folder)) > 3:
      break
    time.sleep(0.01)
  os.kill(process.pid, getattr(signal, name))
  errors = process.communicate(timeout=60)[1]
  if name == "SIGINT":
    assert process.returncode == 130
    assert "Stopped. Shards that are whole stay" in errors
    assert "Traceback" not in errors
  wait_for_end(process.pid)
  first = {p.name: p.stat().st_mtime_ns for p in shards(folder)}
  assert 3 < len(first) < 30
  # As if it had been stopped within a shard, and within a line of the log.
  (folder / ".pairs-00029-of-00030.array_record.part-7").write_bytes(b"half")
  with open(folder / command.LOG, "a") as log:
    log.write('{"number": 9, "wri')
  logged = (folder / command.LOG).read_text().count("written")

  found = convert(SCENES, folder, **given)
  assert found.written == 3000
  convert(SCENES, whole, **given)
  assert contents(folder) == contents(whole)
  again = {p.name: p.stat().st_mtime_ns for p in shards(folder)}
  assert sum(again[n] == first[n] for n in first) == logged
  # And once it is whole, nothing is written any more.
  assert convert(SCENES, folder, **given) == found
  assert again == {p.name: p.stat().st_mtime_ns for p in shards(folder)}


def wait_for_end(session):
  """Waits until no process of a session is left; they end by themselves."""
  until = time.monotonic() + 30
  while time.monotonic() < until:
    sessions = subprocess.run(
      ["ps", "-eo", "sess=,stat="], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    left = [s.split() for s in sessions if s.split()[:1] == [str(session)]]
    if all(state.startswith("Z") for _, state in left):
      return
    time.sleep(0.05)
  pytest.fail(f"processes of session {session} are left: {left}")


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_told_and_whole_shards_stay(tmp_path, format):
  spec, folder = "synthetic:train?size=300&image_size=128", tmp_path / "out"
  given = {"format": format, "shard_records": 100, "workers": 1}
  process = run(
    *(spec, "--output", folder, *(f"--{k}={v}" for k, v in given.items())),
    before="ulimit -f 98;",  # Blocks of 1,024 bytes: less than a shard.
  )
  errors = process.communicate(timeout=60)[1]
  assert process.returncode == 2
  assert f"ConvertError: {folder}/pairs-0000" in errors
  assert "cannot be written: " in errors and "File too large" in errors
  assert sorted(contents(folder)) == [command.FILE, command.LOG]
  assert convert(spec, folder, **given).written == 300


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_that_was_lost_or_cut_is_written_again(
  pairs, tmp_path, in_process, format
):
  folder = tmp_path / "out"
  given = {"format": format, "shard_records": 3}
  convert(pairs, folder, **given)
  before = contents(folder)
  first, second, *_ = shards(folder)
  first.unlink()
  second.write_bytes(second.read_bytes()[:700])
  convert(pairs, folder, **given)
  assert contents(folder) == before


def test_a_folder_of_something_else_is_refused(pairs, tmp_path, in_process):
  folder = tmp_path / "out"
  folder.mkdir()
  (folder / "photo.jpg").write_bytes(b"mine")
  (folder / ".photo.part-1").write_bytes(b"mine too")
  with pytest.raises(
    ConvertError, match=r"files \(\.photo\.part-1, photo\.jpg\)"
  ):
    convert(pairs, folder)
  (folder / ".photo.part-1").unlink()
  (folder / "photo.jpg").rename(folder / command.FILE)
  with pytest.raises(ConvertError, match="is not what a conversion wrote"):
    convert(pairs, folder)
  (folder / command.FILE).unlink()
  # What is left of a conversion that was killed at once is not in the way.
  (folder / f".{command.FILE}.part-7").write_text("{")
  convert(pairs, folder, shard_records=5)
  before = contents(folder)
  for message, spec, given in (
    (r"shard_records: 5 -> 6", pairs, {"shard_records": 6}),
    (
      r"format: 'array_record' -> 'webdataset'",
      pairs,
      {"format": "webdataset"},
    ),
    (r"verify: False -> True", pairs, {"verify": True}),
    (r"source: '12 records, \w+' -> '5 ", f"{pairs}?limit=5", {}),
    (r"options: {} -> {'label': 'n'}", f"{pairs}?label=n", {}),
    (r"source: '12 records, \w+' -> '20 ", "synthetic:train?size=20", {}),
  ):
    with pytest.raises(ConvertError, match=message) as caught:
      convert(spec, folder, **{"shard_records": 5} | given)
    assert f"holds a conversion of {pairs}" in str(caught.value)
  assert contents(folder) == before


def test_two_at_once_are_refused(pairs, tmp_path, in_process, monkeypatch):
  folder = tmp_path / "out"

  def write_shards(job, *_):
    convert(pairs, folder)

  monkeypatch.setattr(command, "write_shards", write_shards)
  with pytest.raises(ConvertError, match="another process is converting to it"):
    convert(pairs, folder)


@pytest.mark.parametrize(
  ("output", "given", "message"),
  [
    ("out", {"format": "zip"}, "--format=zip is not known; it is one of array"),
    ("out", {"shard_records": 0}, "--shard_records=0 must be above 0"),
    ("out", {"workers": 0}, "--workers=0 must be above 0"),
    ("gs://bucket/out", {}, "must be a folder of a local disk"),
    ("a?b", {}, "must be a folder of a local disk"),
    ("a,b", {}, "must be a folder of a local disk"),
    ("/dev/null/x", {}, "cannot be made: Not a directory"),
  ],
)
def test_arguments_that_are_refused(pairs, output, given, message):
  with pytest.raises(ConvertError, match=message):
    convert(pairs, output, **given)


def test_no_source_and_no_use(tmp_path, in_process):
  with pytest.raises(SourceError, match="there is no file"):
    convert("jsonl:none.jsonl", tmp_path / "out")
  assert not (tmp_path / "out").exists()
  (tmp_path / "x.jsonl").write_text('{"photo": "x.jpg", "text": "a"}\n')
  with pytest.raises(ConvertError, match="can be used: 1 missing_image"):
    convert(f"jsonl:{tmp_path / 'x.jsonl'}", tmp_path / "out")


def test_the_command(pairs, tmp_path, in_process, capsys):
  parser = argparse.ArgumentParser()
  command.add_arguments(parser)
  folder = tmp_path / "out"
  options = parser.parse_args(
    [pairs, "--output", f"{folder}/", "--format=webdataset", "--workers=1"]
  )
  assert command.run(options) == 0
  line = capsys.readouterr().out
  assert line.startswith(f"webdataset:{folder}/*.tar?text=json.text holds 9 ")
  assert line.count("\n") == 1
