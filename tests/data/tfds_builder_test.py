import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from aced.data.convert import shard_files
from aced.data.records import BadRecord, Source, SourceError
from aced.data.sources import open_source
from aced.data.tfds_builder import AcedPairs, PairsConfig, builder, reading
from aced.data.tfds_builder.__main__ import check_config
from aced.data.tfds_builder.builder import BuildError

# TFDS with a newer protobuf than it was written for.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated")
# What Beam runs here itself: its DirectRunner first tries to download another.
LOCAL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
TFDS_NEEDS = ("tensorflow", "apache_beam", "mlcroissant", "importlib_resources")


def picture(kind, seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue() + b"\0" * seed


LINES = [
  {"text": "plain", "n": 1},
  {"text": ["two", "captions é"], "label": "cat", "more": {"x": [1, None]}},
  {"text": ["alone"], "json": "a field of this name"},
  {"text": ["  ", "words", 7], "score": 0.1},
  {"text": "half \ud800 of a pair"},
  {"text": ""},
  {"text": "no picture", "image": "gone.jpg"},
  {"text": "junk", "image": "junk"},
]
DROPPED = {"empty_caption": 1, "missing_image": 1}


@pytest.fixture
def pairs(tmp_path):
  """A set of 24 records, 18 of which are kept; returns its spec."""
  folder = tmp_path / "pairs"
  folder.mkdir()
  (folder / "junk").write_bytes(b"no picture at all")
  lines = []
  for k, kind in enumerate(("jpeg", "png", "webp")):
    for line in LINES:
      name = f"{len(lines)}.{kind}"
      (folder / name).write_bytes(picture(kind, 8 * k))
      lines.append({"image": name} | line)
  path = folder / "pairs.jsonl"
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  return f"jsonl:{path}"


def kept(spec):
  """The records that are to come out, found by other means."""
  source = open_source(spec)
  for index in range(len(source)):
    record = source[index]
    if not isinstance(record["image"], BadRecord) and record["text"]:
      yield record


def check_equal(found, spec):
  expected = list(kept(spec))
  assert len(found) == len(expected)
  for index, record in enumerate(expected):
    again = found[index]
    assert again.pop("image") == record.pop("image")
    assert again == record


def run(*arguments, module="aced.data.tfds_builder", **settings):
  command = [sys.executable, "-m", module] if module else ["tfds", "build"]
  return subprocess.run(
    [*command, *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=300,
    **settings,
  )


def build(root, given=None, **config):
  """Builds in this process; returns the builder."""
  found = AcedPairs(
    data_dir=root,
    config=PairsConfig(**{"name": "mine"} | config),
    file_format="array_record",
  )
  found.download_and_prepare(download_config=given)
  return found


def metadata(root, name="mine"):
  path = root / "aced_pairs" / name / "1.0.0" / "metadata.json"
  return json.loads(path.read_text())["splits"]


def test_the_command(pairs, tmp_path):
  config = {
    "name": "mine",
    "splits": {"train": pairs, "test": f"{pairs}?start=8&limit=8"},
    "shard_records": 10,
  }
  arguments = (f"--data_dir={tmp_path}", f"--config={json.dumps(config)}")
  # Were TensorFlow there, it must not be used.
  (tmp_path / "tensorflow.py").write_text("raise ImportError('not for this')")
  done = run(*arguments, env={"PYTHONPATH": str(tmp_path)})
  assert done.returncode == 0, done.stderr
  assert "full_name='aced_pairs/mine/1.0.0'" in done.stdout
  for split, spec in config["splits"].items():
    source = open_source(f"tfds:aced_pairs/mine:{split}?data_dir={tmp_path}")
    check_equal(source, spec)
  found = metadata(tmp_path)
  assert found["train"]["dropped"] == {k: 3 * n for k, n in DROPPED.items()}
  assert found["test"]["dropped"] == DROPPED
  assert found["test"]["spec"] == config["splits"]["test"]
  files = (tmp_path / "aced_pairs" / "mine" / "1.0.0").glob("*-train.*")
  assert len(list(files)) == 3


def test_tfds_reads_it_too(pairs, tmp_path):
  build(tmp_path, source=pairs)
  found = tfds.builder("aced_pairs/mine", data_dir=tmp_path)
  assert found.info.splits["train"].num_examples == 18
  skip = {"image": tfds.decode.SkipDecoding()}
  stored = found.as_data_source("train", decoders=skip)
  for example, record in zip(stored, kept(pairs), strict=True):
    assert example["image"] == record["image"]
    assert isinstance(json.loads(example["json"]), dict)
  assert [t.decode() for t in stored[1]["text"]] == ["two", "captions é"]
  pixels = found.as_data_source("train")[0]["image"]
  assert pixels.shape == (9, 7, 3)


def test_other_sources_and_no_bytes(pairs, tmp_path):
  # Arrays become PNG; tar shards are a source like any other.
  from aced.data.convert.workers import Job, write_shard

  tar = Job(pairs, tmp_path, "webdataset", 24, 24, verify=False)
  write_shard(tar, 0, open_source(pairs), lambda: None)
  web = f"webdataset:{tmp_path}/*.tar?text=json.text"
  scenes = "synthetic:train?size=12"
  build(tmp_path, splits={"web": web, "scenes": scenes})
  root = f"?data_dir={tmp_path}"
  check_equal(open_source(f"tfds:aced_pairs/mine:web{root}"), pairs)
  source = open_source(f"tfds:aced_pairs/mine:scenes{root}")
  for index, record in enumerate(kept(scenes)):
    again = source[index]
    pixels = shard_files.decode(again.pop("image"))
    np.testing.assert_array_equal(pixels, record.pop("image"), strict=True)
    assert again == record


def test_real_pictures(shared_data, tmp_path):
  splits = {
    name: f"jsonl:{shared_data / name / 'train.jsonl'}?limit=30"
    for name in ("emoji", "grocery")
  }
  build(tmp_path, splits=splits, verify=True)
  for split, spec in splits.items():
    check_equal(
      open_source(f"tfds:aced_pairs/mine:{split}?data_dir={tmp_path}"), spec
    )


def test_pictures_are_decoded_where_asked(pairs, tmp_path):
  build(tmp_path, source=pairs, verify=True)
  assert metadata(tmp_path)["train"]["dropped"] == {
    "empty_caption": 3,
    "missing_image": 3,
    "not_an_image": 3,
  }


def test_some_records_alone(pairs, tmp_path):
  given = tfds.download.DownloadConfig(max_examples_per_split=7)
  found = build(tmp_path, given, source=pairs)
  assert found.info.splits["train"].num_examples == 5


def test_what_is_there_is_not_taken_for_something_else(pairs, tmp_path):
  build(tmp_path, source=pairs)
  assert build(tmp_path, source=pairs).info.splits["train"].num_examples == 18
  with pytest.raises(BuildError, match=r"1\.0\.0 was built from .*limit=9"):
    build(tmp_path, source=f"{pairs}?limit=9")
  given = tfds.download.DownloadConfig(
    download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS
  )
  found = build(tmp_path, given, source=f"{pairs}?limit=9")
  assert found.info.splits["train"].num_examples == 7


def test_what_cannot_be_built(pairs, tmp_path):
  with pytest.raises(SourceError, match="there is no file"):
    build(tmp_path, source="jsonl:none.jsonl")
  with pytest.raises(
    BuildError, match="no record of .* can be used: {'dropped/e"
  ):
    build(tmp_path, source=f"{pairs}?start=5&limit=1")
  assert not (tmp_path / "aced_pairs" / "mine" / "1.0.0").exists()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "x"}, "'x' must have a source, such as"),
    ({"name": "x", "source": "a", "splits": {"b": "c"}}, "and not both"),
    ({"name": "x/y", "source": "a"}, "name='x/y' must be of letters"),
    ({"name": "1.0.0", "source": "a"}, "must be of letters"),
    ({"name": "x", "splits": {"all": "a"}}, "split 'all' must be"),
    ({"name": "x", "splits": {"a b": "a"}}, "split 'a b' must be"),
    ({"name": "x", "splits": {"a": 3}}, "split a: 3 is no source"),
    ({"name": "x", "source": "a", "shard_records": 0}, "must be above 0"),
  ],
)
def test_configs_that_are_refused(config, message):
  with pytest.raises(BuildError, match=message):
    PairsConfig(**config)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", '--config=\'{"name": "mine"'),
    ('{"name": ', "is no JSON"),
    ('{"name": "x", "sources": "a"}', "Did you mean 'source'"),
    ('{"source": "a"}', "has no name"),
  ],
)
def test_configs_of_the_command_that_are_refused(text, message):
  with pytest.raises(BuildError, match=message):
    check_config(text)


def test_the_command_tells_what_is_wrong(tmp_path):
  done = run(f"--data_dir={tmp_path}", "--config={}", "mnist")
  assert done.returncode == 1
  assert done.stderr.startswith("BuildError: ['mnist']: only aced_pairs is")


def test_buckets_are_written_through_a_file_here(tmp_path, monkeypatch):
  monkeypatch.setattr(builder, "is_remote", lambda path: True)
  build(tmp_path, source="synthetic:train?size=3")
  found = open_source(f"tfds:aced_pairs/mine?data_dir={tmp_path}")
  assert len(found) == 3
  assert not list(tmp_path.rglob("incomplete*"))


class Odd(Source):
  """Records of which one has a field that JSON has no word for."""

  def __len__(self):
    return 3

  def __getitem__(self, index):
    record = {"image": picture("png", 0), "text": "a", "n": index}
    return record | ({} if index else {"raw": b"\xff"})


def test_fields_that_json_cannot_express(tmp_path, monkeypatch):
  monkeypatch.setattr(builder, "open_source", lambda spec: Odd())
  build(tmp_path, source="odd")
  assert metadata(tmp_path)["train"]["left_out"] == {"raw": 1}
  found = open_source(f"tfds:aced_pairs/mine?data_dir={tmp_path}")
  assert found.fields(0) == {"text": "a", "n": 0}


def test_spans():
  assert reading.spans(2, 9, 3) == [(2, 5), (5, 8), (8, 9)]
  assert reading.spans(2, 2, 3) == []


def test_beam_that_is_not_installed(pairs, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(BuildError, match=r"pip install -e '\.\[beam\]'"):
    build(tmp_path, source=pairs, beam=True)


needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None,
  reason="Apache Beam is not installed: launch/test.sh --beam",
)


@pytest.mark.beam
@needs_beam
@pytest.mark.parametrize(
  ("config", "options"),
  [({}, [f"--beam_pipeline_options=runner={LOCAL}"]), ({"beam": True}, [])],
)
def test_beam_gives_the_same(pairs, tmp_path, config, options):
  splits = {"train": pairs, "scenes": "synthetic:train?size=2500"}
  config |= {"name": "mine", "splits": splits}
  done = run(
    f"--data_dir={tmp_path / 'beam'}",
    f"--config={json.dumps(config)}",
    *options,
  )
  assert done.returncode == 0, done.stderr
  assert "using BeamWriter" in done.stderr
  assert "Downloading prism" not in done.stderr
  build(tmp_path / "one", splits=splits)
  assert metadata(tmp_path / "beam") == metadata(tmp_path / "one")
  for split in splits:
    sources = [
      open_source(f"tfds:aced_pairs/mine:{split}?data_dir={tmp_path / where}")
      for where in ("beam", "one")
    ]
    assert len(sources[0]) == len(sources[1])
    for index in range(len(sources[0])):
      assert sources[0][index] == sources[1][index]
  check_equal(
    open_source(f"tfds:aced_pairs/mine:train?data_dir={tmp_path / 'beam'}"),
    pairs,
  )


@pytest.mark.beam
@needs_beam
def test_each_process_opens_the_source_once(pairs, monkeypatch):
  import apache_beam as beam
  from apache_beam.testing import util

  opened = []

  def open_once(spec):
    opened.append(spec)
    return open_source(spec)

  monkeypatch.setattr(reading, "open_source", open_once)
  monkeypatch.setattr(reading, "_SPAN", 5)
  monkeypatch.setattr(reading, "_OPEN", {})
  indices = [k for k in range(24) if k % 8 not in (5, 6)]
  with beam.Pipeline(runner=LOCAL) as pipeline:
    found = pipeline | reading.beam_examples(pairs, "train", 24, False)
    util.assert_that(found | beam.Keys(), util.equal_to(indices))
  assert opened == [pairs]


@pytest.mark.beam
@pytest.mark.skipif(
  any(importlib.util.find_spec(name) is None for name in TFDS_NEEDS),
  reason=f"the command of TFDS needs {', '.join(TFDS_NEEDS)}",
)
def test_the_command_of_tfds(pairs, tmp_path):
  config = {"name": "mine", "source": pairs}
  done = run(
    "build",
    AcedPairs.name,
    "--imports=aced.data.tfds_builder",
    "--file_format=array_record",
    f"--data_dir={tmp_path}",
    f"--config={json.dumps(config)}",
    module="tensorflow_datasets.scripts.cli.main",
  )
  assert done.returncode == 0, done.stderr
  check_equal(open_source(f"tfds:aced_pairs/mine?data_dir={tmp_path}"), pairs)
