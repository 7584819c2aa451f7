import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent import futures
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from aced.data.records import BadRecord, SourceError, captions
from aced.data.sources import open_source
from aced.data.sources.fields import Fields
from aced.data.sources.tfds import Tfds, parts

CAPTIONS = Fields(text="captions/text")
# TFDS with a newer protobuf than it was written for.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated")


def picture(seed, kind="jpeg"):
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue() + b"\0" * seed


class AcedTestPhotos(tfds.core.GeneratorBasedBuilder):
  """A data set as TFDS has them; what it needs no TensorFlow for."""

  VERSION = tfds.core.Version("1.2.0")
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name="large"),
    tfds.core.BuilderConfig(name="small"),
  ]
  code_path = None

  def _info(self):
    features = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      disable_shuffling=True,
      features=features.FeaturesDict(
        {
          "image": features.Image(),
          "image/filename": features.Text(),
          "mask": features.Image(shape=(None, None, 1)),
          "frames": features.Sequence(features.Image()),
          "captions": features.Sequence({"id": np.int64, "text": np.str_}),
          "box": features.Sequence(features.BBoxFeature()),
          "label": features.ClassLabel(names=["cat", "dog"]),
          "kinds": features.Sequence(features.ClassLabel(names=["a", "b"])),
          "fresh": np.bool_,
          "score": np.float32,
          "place": {
            "name": features.Text(),
            "at": features.Tensor(shape=(2, 2), dtype=np.int64),
          },
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(7), "test": iter(examples(3))}

  def _generate_examples(self, number):
    yield from examples(number)


def examples(number):
  for k in range(number):
    yield (
      k,
      {
        "image": picture(k, "webp" if k % 2 else "jpeg"),
        "image/filename": f"é{k}.jpg",
        "mask": picture(k, "png"),
        "frames": [picture(k)] * k,
        "captions": [{"id": j, "text": f"caption {k}.{j}"} for j in range(k)],
        "box": [tfds.features.BBox(0.0, 0.25, 0.5, 1.0)] * k,
        "label": "dog" if k % 2 else -1 if not k else "cat",
        "kinds": ["b", "a"][: k % 3],
        "fresh": k > 2,
        "score": k / 4,
        "place": {"name": "here", "at": [[k, 1], [2, 3]]},
      },
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A folder of data sets, in which one is prepared."""
  root = tmp_path_factory.mktemp("tfds")
  builder = AcedTestPhotos(data_dir=root, config="large")
  builder.download_and_prepare(
    file_format="array_record",
    download_config=tfds.download.DownloadConfig(num_shards=3),
  )
  return root


@pytest.fixture
def root(built, tmp_path):
  """A copy of it, for a test to change."""
  shutil.copytree(built, tmp_path / "tfds")
  return tmp_path / "tfds"


def folder(root, config="large", version="1.2.0"):
  return root / "aced_test_photos" / config / version


def shards(path, split="train"):
  return sorted(path.glob(f"*-{split}.array_record-*"))


def test_records_have_the_bytes_and_fields_that_were_stored(built):
  source = Tfds("aced_test_photos/large:train", str(built), CAPTIONS)
  assert len(source) == 7
  assert repr(source) == "tfds:aced_test_photos/large:train"
  assert source[4] == {
    "image": picture(4, "jpeg"),
    "image/filename": "é4.jpg",
    "captions/id": [0, 1, 2, 3],
    "captions/text": [f"caption 4.{k}" for k in range(4)],
    "text": [f"caption 4.{k}" for k in range(4)],
    "box": [[0.0, 0.25, 0.5, 1.0]] * 4,
    "label": "cat",
    "kinds": ["b"],
    "fresh": True,
    "score": 1.0,
    "place/name": "here",
    "place/at": [[4, 1], [2, 3]],
  }
  # Read by other means: the files themselves, one after the other.
  stored = [
    tf_example_pb2.Example.FromString(data).features.feature["image"]
    for path in shards(folder(built))
    for data in array_record_module.ArrayRecordReader(str(path)).read_all()
  ]
  for index, feature in enumerate(stored):
    record = source[index]
    assert [record["image"]] == list(feature.bytes_list.value)
    assert record["image"] == picture(index, "webp" if index % 2 else "jpeg")
    del record["image"]
    assert source.fields(index) == record
  assert source[1]["text"] == "caption 1.0"  # A lone one is a string.
  assert "label" not in source[0]  # Its class is not told.
  with pytest.raises(IndexError, match="record 7 of"):
    source[7]


def test_fields_can_be_chosen(built):
  where, root = "aced_test_photos/large:train", str(built)
  masks = Tfds(where, root, Fields("mask", "label", "place/name"))
  assert masks[3]["image"] == picture(3, "png")
  assert (masks[3]["text"], masks[3]["label"]) == ("dog", "here")
  assert "image" not in masks.fields(3)


@pytest.mark.parametrize(
  ("split", "indices"),
  [
    ("train", range(7)),
    ("test", range(3)),
    ("train[2:5]", range(2, 5)),
    ("train[-3:]", range(4, 7)),
    ("train[:30%]", range(2)),
    ("train[5:]+test", [5, 6, 0, 1, 2]),
  ],
)
def test_splits_are_those_of_tfds(built, split, indices):
  source = Tfds(f"{folder(built)}:{split}", "", CAPTIONS)
  names = [source[k]["image/filename"] for k in range(len(source))]
  assert names == [f"é{k}.jpg" for k in indices]


def test_where_a_record_is(built):
  source = Tfds(f"{folder(built)}:train[3:]", "", CAPTIONS)
  paths = shards(folder(built))
  counts = [
    array_record_module.ArrayRecordReader(str(p)).num_records() for p in paths
  ]
  assert sum(counts) == 7 and len(counts) == 3
  places = [(p, k) for p, n in zip(paths, counts) for k in range(n)]
  for index, (path, entry) in enumerate(places[3:]):
    assert source.where(index) == f"record {entry} of {path}"


def test_what_is_left_out_is_the_default(root, monkeypatch):
  shutil.copytree(folder(root), folder(root, version="1.10.0"))
  shutil.copytree(folder(root), folder(root, version="0.1.0"))
  default = Tfds("aced_test_photos", str(root), CAPTIONS)
  assert default.folder == str(folder(root, version="1.10.0"))
  assert len(default) == 7  # Of the split train.
  shutil.copytree(folder(root), folder(root, "small"))
  default = Tfds("aced_test_photos:test", str(root), CAPTIONS)
  assert default.folder == str(folder(root, version="1.10.0"))
  exact = Tfds("aced_test_photos/large/1.2.0:test", str(root), CAPTIONS)
  assert exact.folder == str(folder(root))
  monkeypatch.setenv("TFDS_DATA_DIR", str(root))
  assert len(Tfds("aced_test_photos/small:test", "", CAPTIONS)) == 3
  # Without configs, as most data sets are, and with code that TFDS has.
  shutil.copytree(folder(root), root / "mnist" / "3.0.1")
  assert len(Tfds("mnist:test", str(root), CAPTIONS)) == 3
  assert len(Tfds("mnist/3.0.1", str(root), CAPTIONS)) == 7


@pytest.mark.parametrize(
  ("where", "expected"),
  [
    ("a", ("a", "train")),
    ("a:test", ("a", "test")),
    ("a/b:train[:10%]", ("a/b", "train[:10%]")),
    ("/x/y:train[1:2]+test[:3]", ("/x/y", "train[1:2]+test[:3]")),
    ("gs://bucket/x", ("gs://bucket/x", "train")),
    ("gs://bucket/x:test", ("gs://bucket/x", "test")),
  ],
)
def test_parts_of_a_name(where, expected):
  assert parts(where) == expected


@pytest.mark.parametrize(
  ("where", "message"),
  [
    ("", "needs a data set, such as"),
    ("a/b/c/d", "must be name/config/version:split"),
    ("gs://bucket/x:train", "gs://bucket/x is not on a disk"),
    (
      "coco:train",
      r"coco is not prepared in .*, which holds aced_test_photos\. .*"
      "tfds build coco --file_format=array_record --data_dir=/",
    ),
    ("aced_pairs/mine", "python -m aced.data.tfds_builder --data_dir=/.*mine"),
    ("aced_test_photo", "Did you mean 'aced_test_photos'"),
    (
      "aced_test_photos/small",
      r"no config 'small' that is prepared; there are aced_test_photos/large\."
      r".*tfds build aced_test_photos/small --file_format=array_record",
    ),
    (
      "aced_test_photos/large/2.0.0",
      r"version 2\.0\.0 of aced_test_photos is not prepared in .*/large; there"
      r" are 1\.2\.0\.",
    ),
    (
      "aced_test_photos:val",
      r"split 'val' of aced_test_photos/large/1\.2\.0: .* There are train"
      r" \(7 records\), test \(3 records\)",
    ),
    ("aced_test_photos:train[:", r"split 'train\[:' .* There are train"),
    ("aced_test_photos:train[:0]", r"'train\[:0\]' .* holds no records"),
    ("aced_test_photos:1.2.0", "before: aced_test_photos/1.2.0"),
    ("./nowhere:train", "nowhere is not the folder of a prepared data set"),
  ],
)
def test_what_is_not_there_is_named(built, where, message):
  with pytest.raises(SourceError, match=message):
    Tfds(where, str(built), CAPTIONS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (Fields(), r"text=text: the records of .* have no such field; they have"),
    (Fields("pic", "label"), "image=pic: .* have no such field"),
    (Fields("label", "label"), "image=label: .* its pictures are image, mask"),
    (Fields("frames", "label"), "image=frames: that is no picture"),
    (Fields("mask", "label", "lab"), "label=lab: .* Did you mean 'label'"),
  ],
)
def test_features_that_are_not_there_are_named(built, fields, message):
  with pytest.raises(SourceError, match=message):
    Tfds("aced_test_photos", str(built), fields)


def test_a_folder_above_or_below_is_told(built):
  with pytest.raises(SourceError, match=f"below it there are {folder(built)}"):
    Tfds(f"{built}:train", "", CAPTIONS)
  with pytest.raises(SourceError, match=r"has no features\.json\. Name"):
    Tfds(f"{built}/aced_test_photos/.config", "", CAPTIONS)


def test_a_set_stored_as_tfrecord_is_refused(root):
  info = folder(root) / "dataset_info.json"
  text = info.read_text()
  assert '"fileFormat": "array_record"' in text
  info.write_text(text.replace('t": "array_record"', 't": "tfrecord"'))
  with pytest.raises(SourceError, match="is stored as tfrecord") as caught:
    Tfds("aced_test_photos", str(root), CAPTIONS)
  assert f"--dataset_version_dir={folder(root)}" in str(caught.value)
  assert (
    "tfds build aced_test_photos/large --file_format=array_record --data_dir="
    in str(caught.value)
  )
  # Where it is stored as both, it is read.
  info.write_text(
    text.replace(
      '"fileFormat": "array_record"',
      '"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]',
    )
  )
  assert len(Tfds("aced_test_photos", str(root), CAPTIONS)) == 7


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_told(root, name):
  (folder(root) / name).write_text("{")
  with pytest.raises(SourceError, match="is not a data set that tfds has"):
    Tfds("aced_test_photos", str(root), CAPTIONS)


def test_a_missing_file_is_told(root):
  path = shards(folder(root))[1]
  path.unlink()
  with pytest.raises(SourceError, match=f"there is no file {path}"):
    Tfds("aced_test_photos", str(root), CAPTIONS)


def rewrite(path, change):
  """Writes a file anew with other records; `change(index, data)`."""
  data = array_record_module.ArrayRecordReader(str(path)).read_all()
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for index, record in enumerate(data):
    writer.write(change(index, record))
  writer.close()


def check_damaged(source, index):
  record = source[index]
  assert isinstance(record["image"], BadRecord)
  assert record["image"].cause == "damaged_record"
  with pytest.raises(BadRecord, match="damaged_record"):
    captions(record)
  with pytest.raises(BadRecord, match="damaged_record"):
    captions(source.fields(index))
  return record["image"].detail


def test_damaged_records_are_masked(root):
  first, second, third = shards(folder(root))  # Of 2, 3 and 2 records.
  rewrite(first, lambda k, data: b"no message \xff" if k == 1 else data)

  def without_picture(k, data):
    example = tf_example_pb2.Example.FromString(data)
    if k == 0:
      del example.features.feature["image"]
    else:
      example.features.feature["score"].float_list.value.append(1.0)
    return example.SerializeToString()

  rewrite(third, without_picture)
  whole = second.read_bytes()
  # ArrayRecord's own reader says nothing of a file that is cut after 64 KB.
  for size, detail in ((2**16, f"record 0 of {second} is empty"), (70_000, "")):
    second.write_bytes(whole[:size])
    source = Tfds("aced_test_photos", str(root), CAPTIONS)
    assert source[0]["image"] == picture(0)
    assert "are no tf.train.Example" in check_damaged(source, 1)
    found = check_damaged(source, 2)
    assert found.startswith(detail or f"record 0 of {second}: ")
    assert source[5]["image"].cause == "missing_image"
    assert "the feature 'score' is no number" in check_damaged(source, 6)


def test_flipped_bytes_are_masked(root):
  path = shards(folder(root))[0]
  content = bytearray(path.read_bytes())
  # Records are compressed, in blocks: somewhere in the bytes of the first one.
  start = 100
  for k in range(start, start + 20):
    content[k] ^= 255
  path.write_bytes(content)
  source = Tfds("aced_test_photos", str(root), CAPTIONS)
  assert str(path) in check_damaged(source, 0)
  assert source[len(source) - 1]["image"] == picture(6)


def test_no_record_that_can_be_read(root):
  for path in shards(folder(root)):
    rewrite(path, lambda k, data: b"\xff")
  with pytest.raises(SourceError, match="first 7 records of .* cannot be read"):
    Tfds("aced_test_photos", str(root), CAPTIONS)


def read_all(source):
  return [source[k] for k in range(len(source))]


def test_pickled_and_in_other_processes(built):
  spec = "tfds:aced_test_photos:train[1:]?text=captions/text"
  source = open_source(f"{spec}&data_dir={built}")
  expected = read_all(source)
  again = pickle.loads(pickle.dumps(source))
  assert repr(again) == repr(source)
  assert read_all(again) == expected
  context = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    assert pool.submit(read_all, source).result() == expected


def test_read_from_threads(built):
  source = Tfds("aced_test_photos", str(built), CAPTIONS)
  expected = read_all(source)
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(source.__getitem__, list(range(7)) * 50))
  assert found == expected * 50


def test_tensorflow_is_never_imported(built):
  program = (
    "import sys\n"
    "from aced.data.sources import open_source\n"
    "assert 'tensorflow_datasets' not in sys.modules\n"
    f"s = open_source('tfds:{folder(built)}:train?text=captions/text')\n"
    "print(len([s[k] for k in range(len(s))]))\n"
    "assert 'tensorflow_datasets' in sys.modules\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_nothing_is_built_or_downloaded(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("it builds")

  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
  with pytest.raises(SourceError, match="Nothing is downloaded here"):
    Tfds("aced_test_photos/large", str(tmp_path), CAPTIONS)
  assert not os.listdir(tmp_path)
