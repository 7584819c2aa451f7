import dataclasses
import io
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from aced.data import open_source, pipeline
from aced.evaluation.labels import classes
from aced.evaluation.suites import Found, Missing, Task, find, find_training

# TFDS with a newer protobuf than it was written for.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated")

NAMES = ("cat", "dog", "owl")
TASK = Task(
  name="pets",
  title="Pets",
  group="",
  kind="zero_shot",
  sources=(
    "webdataset:{data_dir}/wds_pets/test/*.tar?text=cls&label=cls",
    "tfds:aced_suite_pets:test?data_dir={data_dir}/tfds&text=label&label=label",
  ),
  records=6,
  metric="accuracy",
  num_classes=3,
  classes=NAMES,
)


def picture(seed, kind="png"):
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


def shard(path, keys, kind="cls", text=lambda k: str(k % 3)):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as file:
    for k in keys:
      for name, data in (("png", picture(k)), (kind, text(k).encode())):
        member = tarfile.TarInfo(f"s{k:04}.{name}")
        member.size = len(data)
        file.addfile(member, io.BytesIO(data))


def write_lines(folder, lines):
  (folder / "a.png").write_bytes(picture(0))
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "own.jsonl").write_text(text)


@pytest.fixture
def folder(tmp_path):
  """Two shards of a data set, as CLIP_benchmark publishes them."""
  shard(tmp_path / "wds_pets/test/0.tar", range(4))
  shard(tmp_path / "wds_pets/test/1.tar", range(4, 6))
  shard(tmp_path / "wds_pets/train/0.tar", range(10, 17))
  return tmp_path


def test_shards_have_numbers_for_labels_and_a_training_split(folder):
  found = find(TASK, str(folder))
  assert isinstance(found, Found) and not found.note
  assert found.class_names == NAMES
  assert [found.source.fields(k)["label"] for k in range(6)] == list("012012")
  assert len(find_training(found, str(folder))) == 7
  shutil.rmtree(folder / "wds_pets/train")
  assert find_training(found, str(folder)) is None


def test_what_is_not_there_is_looked_for_everywhere(tmp_path):
  found = find(TASK, str(tmp_path))
  assert isinstance(found, Missing) and not found.refused
  for place in ("wds_pets/test/*.tar", "tfds:aced_suite_pets:test"):
    assert place in found.reason
  # Data sets beside it do not make it a damaged one.
  (tmp_path / "tfds" / "mnist").mkdir(parents=True)
  assert not find(TASK, str(tmp_path)).refused


def test_half_a_download_is_refused_and_counted(folder):
  (folder / "wds_pets/test/1.tar").unlink()
  found = find(TASK, str(folder))
  assert found.refused and "4 of 6 pictures are there" in found.reason
  taken = find(TASK, str(folder), partial=True)
  assert len(taken.source) == 4 and "4 of 6" in taken.note


def test_a_shard_that_was_cut_is_refused_and_named(folder):
  path = folder / "wds_pets/test/1.tar"
  # Within the label of the last record: its picture is whole.
  path.write_bytes(path.read_bytes()[: -10240 - 512 * 3])
  found = find(TASK, str(folder))
  assert found.refused and "1.tar" in found.reason
  taken = find(TASK, str(folder), partial=True)
  labels = [
    taken.source.fields(k).get("label") for k in range(len(taken.source))
  ]
  assert None not in labels and 4 <= len(labels) <= 5


def test_an_empty_folder_of_shards_is_missing(tmp_path):
  (tmp_path / "wds_pets/test").mkdir(parents=True)
  assert isinstance(find(TASK, str(tmp_path)), Missing)


def test_more_pictures_than_there_should_be_are_another_data_set(folder):
  shard(folder / "wds_pets/test/2.tar", range(6, 9))
  for partial in (False, True):
    found = find(TASK, str(folder), partial=partial)
    assert found.refused and "9 of 6 pictures" in found.reason


def test_class_names_beside_shards_go_before_ours(folder):
  path = folder / "wds_pets/classnames.txt"
  path.write_text("cat\npuppy\nowl\n")
  found = find(TASK, str(folder))
  assert found.class_names == ("cat", "puppy", "owl")
  assert found.note == "1 of the 3 class names are those of the data"
  path.write_text("cat\n\nowl\n")  # One published name is empty.
  assert find(TASK, str(folder)).class_names == ("cat", "", "owl")
  path.write_text("cat\ndog\n")
  found = find(TASK, str(folder))
  assert found.refused and "class count mismatch" in found.reason
  assert "names 2 classes, and Pets has 3" in found.reason


def test_class_names_may_come_with_the_data_alone(folder):
  task = dataclasses.replace(TASK, classes=None)
  found = find(task, str(folder))
  assert found.refused and "there is no classnames.txt" in found.reason
  path = folder / "wds_pets/classnames.txt"
  path.write_text("\ufeffa\nb\r\nc\n")
  found = find(task, str(folder))
  assert found.class_names == ("a", "b", "c")
  # What publishers number, is numbered.
  assert found.label_names == ("0", "1", "2")
  path.write_bytes("süß\nb\nc\n".encode("latin-1"))
  found = find(task, str(folder))
  assert found.refused and "classnames.txt is not UTF-8" in found.reason


OWN = dataclasses.replace(TASK, sources=TASK.sources[:1], get="")


def labels(found):
  """The class names of a task's data, and the class of every record."""
  got = classes(found.source, "label", found.class_names, found.label_names)
  return got.names, got.labels.tolist()


@pytest.mark.parametrize("written", [str.strip, str.upper, "{} ".format])
@pytest.mark.parametrize("beside", [False, True])
def test_shards_of_ones_own_have_names_or_numbers(tmp_path, written, beside):
  order = NAMES[1], NAMES[2], NAMES[0]
  path = tmp_path / "wds_pets"
  shard(path / "test/0.tar", range(6), text=lambda k: written(order[k % 3]))
  if beside:
    (path / "classnames.txt").write_text("".join(f"{n}\n" for n in NAMES))
  want = NAMES, [1, 2, 0, 1, 2, 0]
  assert labels(find(OWN, str(tmp_path))) == want
  left_out = dataclasses.replace(OWN, classes=(), num_classes=0)
  names, numbers = labels(find(left_out, str(tmp_path)))
  if not beside:
    assert [name.lower().strip() for name in names] == sorted(NAMES)
    numbers = [NAMES.index(names[k].lower().strip()) for k in numbers]
  assert numbers == want[1]
  shard(path / "test/0.tar", range(6))
  assert labels(find(OWN, str(tmp_path))) == (NAMES, [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("name", ["[2024] set", "a set", "[a-b]", "x[0]"])
def test_a_folder_may_have_brackets_in_its_name(tmp_path, name):
  path = tmp_path / name / "wds_pets/test/0.tar"
  shard(path, range(6))
  assert labels(find(TASK, str(tmp_path / name)))[0] == NAMES
  # What is wrong there is told, and not that nothing is.
  path.write_bytes(b"no tar")
  found = find(TASK, str(tmp_path / name))
  assert found.refused and "no records" in found.reason


def test_of_one_place_alone_it_says_why_it_was_not_found(tmp_path):
  task = dataclasses.replace(OWN, sources=("jsonl:{data_dir}/tets.jsonl",))
  (tmp_path / "test.jsonl").write_text("")
  found = find(task, str(tmp_path))
  assert not found.refused and "Did you mean 'test.jsonl'" in found.reason
  far = dataclasses.replace(OWN, sources=("webdataset:nowhere://x/*.tar",))
  assert "cannot be reached" in find(far, str(tmp_path)).reason


def test_part_of_a_set_says_which_records_have_no_label(tmp_path):
  lines = [{"image": "a.png", "text": "x", "label": n} for n in "pqpq"]
  del lines[2]["label"]
  write_lines(tmp_path, lines)
  task = dataclasses.replace(
    OWN,
    sources=("jsonl:{data_dir}/own.jsonl",),
    classes=(),
    num_classes=0,
  )
  whole = find(dataclasses.replace(task, records=4), str(tmp_path))
  with pytest.raises(ValueError, match="record 2 .* has None, 1 of 4 have"):
    labels(whole)
  part = find(task, str(tmp_path), partial=True)
  assert "1 of them have no label and are left out, first" in part.note
  assert re.search("(line 3|record 2) of", part.note)
  assert labels(part) == (("p", "q"), [0, 1, 1])


class AcedSuitePets(tfds.core.GeneratorBasedBuilder):
  """The same as TFDS has it, with other names in the same order."""

  VERSION = tfds.core.Version("1.0.0")
  NAMES = ("n01", "n02", "n03")
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "label": tfds.features.ClassLabel(names=list(self.NAMES)),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"test": self._generate_examples()}

  def _generate_examples(self):
    for k in range(6):
      yield k, {"image": picture(k), "label": self.NAMES[k % 3]}


def test_tfds_may_call_the_classes_otherwise(tmp_path):
  AcedSuitePets(data_dir=tmp_path / "tfds").download_and_prepare(
    file_format="array_record"
  )
  found = find(TASK, str(tmp_path))
  assert found.class_names == NAMES
  assert found.label_names == AcedSuitePets.NAMES
  assert found.source.fields(1)["label"] == "n02"
  four = dataclasses.replace(TASK, classes=(*NAMES, "emu"), num_classes=4)
  assert "class count mismatch" in find(four, str(tmp_path)).reason
  assert find(four, str(tmp_path)).refused


def test_captions_of_shards_are_lines(tmp_path):
  texts = "a cat\nthe cat\n\n a tabby \n"
  path = tmp_path / "wds_coco/test/0.tar"
  shard(path, range(3), "txt", lambda k: texts)
  task = Task(
    name="coco",
    title="COCO",
    group="",
    kind="retrieval",
    sources=("webdataset:{data_dir}/wds_coco/test/*.tar?text=txt",),
    records=3,
    metric="mean/R@1",
  )
  found = find(task, str(tmp_path))
  assert found.spec.endswith("?text=txt&lines=1")
  assert found.source.fields(0)["text"] == ["a cat", "the cat", "a tabby"]
  assert found.source[1]["text"] == found.source.fields(1)["text"]
  # The evaluators of a run open the same spec, and have the same captions.
  texts, index = pipeline.eval_captions(open_source(found.spec))
  assert len(texts) == 9 and index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  for spec, count in (("", 9), ("?lines=1", 9), ("?lines=0", 3)):
    own = dataclasses.replace(
      task, sources=(f"webdataset:{{data_dir}}/wds_coco/test/*.tar{spec}",)
    )
    source = find(own, str(tmp_path)).source
    assert len(pipeline.eval_captions(source)[0]) == count


def test_a_source_of_ones_own_names_its_classes(tmp_path):
  lines = [{"image": "a.png", "text": "x", "label": n} for n in ("p", "q")]
  write_lines(tmp_path, lines)
  task = dataclasses.replace(
    TASK,
    sources=("jsonl:{data_dir}/own.jsonl?label=label",),
    records=2,
    classes=(),
    num_classes=0,
  )
  found = find(task, str(tmp_path))
  assert found.class_names is None and found.label_names is None
