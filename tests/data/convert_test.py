import argparse
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2
from webdataset import tariterators

from aced.data import convert as command
from aced.data import shard_files
from aced.data.convert import ConvertError, convert
from aced.data.convert_workers import Job, write_shard
from aced.data.records import BadRecord, Source, SourceError
from aced.data.sources import open_source

FORMATS = tuple(shard_files.FORMATS)
SCENES = "synthetic:train?size=3000"


def picture(kind, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


@pytest.fixture
def pairs(tmp_path):
  """A set of 12 records, 9 of which are kept; returns its spec."""
  folder = tmp_path / "pairs"
  folder.mkdir()
  lines = []
  for k, kind in enumerate(("jpeg", "png", "webp") * 3):
    (folder / f"{k}.{kind}").write_bytes(picture(kind, k) + b"\0" * k)
    lines.append({"image": f"{k}.{kind}", "text": f"caption {k}", "n": k})
  lines[1] |= {"text": ["one", "zwei, 二", ""], "label": "cat"}
  lines[2] |= {"text": ["alone"], "tags": ["x"], "box": {"at": [1, 2.5]}}
  lines[3] |= {"text": " \n"}
  lines[4] |= {"score": 0.1, "big": 2**70, "none": None, "yes": True}
  lines[5] |= {"text": "half \ud800 of a pair\n"}
  (folder / "empty").write_bytes(b"")
  (folder / "junk").write_bytes(b"no picture at all")
  lines.insert(2, {"image": "gone.jpg", "text": "a"})
  lines.append({"image": "empty", "text": "a"})
  lines.append({"image": "junk", "text": "a"})
  path = folder / "pairs.jsonl"
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  return f"jsonl:{path}"


DROPPED = {"missing_image": 1, "empty_caption": 1, "empty_image": 1}


@pytest.fixture
def in_process(monkeypatch):
  """Shards are written here, one after the other, which is quicker."""

  def write_shards(job, numbers, workers, bar):
    source = open_source(job.spec)
    for number in numbers:
      yield write_shard(job, number, source, lambda: None)

  monkeypatch.setattr(command, "write_shards", write_shards)


def kept(spec):
  """`(index, record)` of what is to come out, found by other means."""
  source = open_source(spec)
  for index in range(len(source)):
    record = source[index]
    text = record["text"]
    texts = text if isinstance(text, list) else [text]
    bad = isinstance(record["image"], BadRecord) or not len(record["image"])
    if not bad and any(text.strip() for text in texts):
      yield index, record


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder):
  return sorted(p for p in folder.iterdir() if p.name.startswith("pairs-"))


def examples(path):
  """The features of each message in a file."""
  reader = ArrayRecordReader(str(path))
  for data in reader.read_all() if reader.num_records() else []:
    yield tf_example_pb2.Example.FromString(data).features.feature


def check_equal(spec, expected):
  """Every field and every byte of the pictures came back."""
  source = open_source(spec)
  assert len(source) == len(expected)
  for k, (_, record) in enumerate(expected):
    again = source[k]
    assert bytes(again.pop("image")) == bytes(record.pop("image"))
    assert again == record


def test_array_records_hold_the_same_bytes(pairs, tmp_path):
  folder = tmp_path / "out"
  found = convert(pairs, folder, shard_records=5, workers=2)
  assert (found.written, found.dropped) == (9, DROPPED)
  assert str(found) == (
    f"array_record:{folder}/*.array_record holds 9 records; 3 dropped:"
    " 1 empty_caption, 1 empty_image, 1 missing_image."
  )
  names = [f"pairs-0000{k}-of-00003.array_record" for k in range(3)]
  assert sorted(contents(folder)) == [command.FILE, command.LOG, *names]
  expected = list(kept(pairs))
  stored = [e for name in names for e in examples(folder / name)]
  for (_, record), features in zip(expected, stored, strict=True):
    assert list(features["image"].bytes_list.value) == [record["image"]]
    if "n" in record:
      assert list(features["n"].int64_list.value) == [record["n"]]
  several = [v.decode() for v in stored[1]["text"].bytes_list.value]
  assert several == ["one", "zwei, 二", ""]
  check_equal(found.spec, expected)


def test_tar_shards_are_read_by_others(pairs, tmp_path, in_process):
  folder = tmp_path / "out"
  found = convert(pairs, folder, format="webdataset", shard_records=5)
  assert (found.written, found.dropped) == (9, DROPPED)
  assert [p.name for p in shards(folder)] == [
    f"pairs-0000{k}.tar" for k in range(3)
  ]
  expected, samples = list(kept(pairs)), []
  for path in shards(folder):
    assert path.read_bytes()[257:263] == b"ustar\0"
    with tarfile.open(path, "r:") as tar:
      for member in tar:
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
    with open(path, "rb") as file:
      stream = {"url": str(path), "stream": file}
      members = tariterators.tar_file_expander([stream])
      samples += list(tariterators.group_by_keys(members))
  for (index, record), sample in zip(expected, samples, strict=True):
    assert sample["__key__"] == f"{index:09}"
    (kind,) = {"jpg", "png", "webp", "img"} & set(sample)
    assert sample[kind] == record["image"]
    assert kind == shard_files.picture_kind(record["image"])
    text = record["text"]
    first = text if isinstance(text, str) else text[0]
    assert sample["txt"] == first.encode("utf-8", "replace")
    del record["image"]
    assert json.loads(sample["json"]) == record
  check_equal(found.spec, list(kept(pairs)))


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("jpeg", "jpg"),
    ("png", "png"),
    ("webp", "webp"),
    ("gif", "gif"),
    ("bmp", "bmp"),
    ("tiff", "tif"),
    ("ppm", "img"),
  ],
)
def test_kinds_of_pictures(kind, name):
  assert shard_files.picture_kind(picture(kind)) == name


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["emoji", "grocery"])
def test_real_pictures(shared_data, tmp_path, in_process, name, format):
  spec = f"jsonl:{shared_data / name / 'train.jsonl'}?limit=40"
  found = convert(spec, tmp_path / "out", format=format, verify=True)
  assert (found.written, found.dropped) == (40, {})
  check_equal(found.spec, list(kept(spec)))


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_become_png(tmp_path, in_process, format):
  spec = "synthetic:train?size=20"
  found = convert(spec, tmp_path / "out", format=format)
  again, source = open_source(found.spec), open_source(spec)
  for k in range(20):
    read, record = again[k], source[k]
    assert read["image"].startswith(b"\x89PNG")
    pixels = np.asarray(Image.open(io.BytesIO(read.pop("image"))))
    np.testing.assert_array_equal(pixels, record.pop("image"), strict=True)
    assert read == record


@pytest.mark.parametrize(
  ("image", "cause"),
  [
    (None, "missing_image"),
    (b"", "empty_image"),
    (bytearray(), "empty_image"),
    (7, "not_an_image"),
    ("a path", "not_an_image"),
    (np.zeros((8, 8, 3)), "not_an_image"),
    (np.zeros((8, 8, 2), np.uint8), "not_an_image"),
    (np.zeros((8, 2, 3), np.uint8), "too_small"),
    (BadRecord("cut_short", "here"), "cut_short"),
  ],
)
def test_pictures_that_are_none(image, cause):
  with pytest.raises(BadRecord) as caught:
    shard_files.usable({"image": image, "text": "a"})
  assert caught.value.cause == cause


def test_grey_and_transparent_arrays_keep_their_look():
  rng = np.random.default_rng(0)
  for shape in ((8, 9), (8, 9, 1), (8, 9, 4)):
    image = rng.integers(0, 256, shape, np.uint8)
    record = shard_files.usable({"image": image, "text": "a"})
    np.testing.assert_array_equal(
      shard_files.decode(record["image"]), shard_files.decode(image)
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


class Odd(Source):
  """Records with fields that JSON has no word for."""

  def __len__(self):
    return 3

  def __getitem__(self, index):
    record = {"image": picture("png"), "text": "a", "n": index}
    return record | ({} if index else {"raw": b"\xff", "more": {"x": {1}}})


@pytest.mark.parametrize("format", FORMATS)
def test_fields_that_json_cannot_express(tmp_path, format):
  job = Job("", tmp_path, format, 3, 10, verify=False)
  shard = write_shard(job, 0, Odd(), lambda: None)
  assert (shard.written, shard.left_out) == (3, {"raw": 1, "more": 1})
  spec = shard_files.SPECS[format].format(folder=tmp_path)
  assert open_source(spec)[0]["n"] == 0
  text = str(command.Summary("x:y", 3, {}, shard.left_out))
  assert text.endswith("cannot express them: 1 more, 1 raw.")


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


def run(*arguments, **settings):
  """Starts the command in a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", "aced.data", "convert", *map(str, arguments)],
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
  def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

  spec, folder = "synthetic:train?size=300&image_size=128", tmp_path / "out"
  given = {"format": format, "shard_records": 100, "workers": 1}
  process = run(
    *(spec, "--output", folder, *(f"--{k}={v}" for k, v in given.items())),
    preexec_fn=small_files,
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
  with pytest.raises(SourceError, match="cannot open"):
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
