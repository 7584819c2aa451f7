"""The lists of names and prompts against those other packages carry."""

import ast
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from aced.evaluation import suites

DATACOMP = {task.name: task for task in suites.DATACOMP38}


def tfds_folder():
  """Where the label lists of TensorFlow Datasets are; it is not imported."""
  spec = importlib.util.find_spec("tensorflow_datasets")
  if spec is None:
    pytest.skip("tensorflow_datasets, whose label lists are read, is not here")
  return pathlib.Path(spec.origin).parent


def constant(path, name):
  """A list that a data set's code holds."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == name:
      return ast.literal_eval(node.value)
  raise AssertionError(f"no {name} in {path}")


def tfds_labels(data):
  """The labels of a data set of TFDS; None where they come with its data."""
  folder = tfds_folder()
  sets, images = folder / "datasets", folder / "image_classification"
  lists = {
    "dtd": images / "dtd_key_attributes.txt",
    "imagenet2012": sets / "imagenet2012" / "labels.txt",
  }
  lists |= dict.fromkeys(
    ("imagenet_v2", "imagenet_sketch"), lists["imagenet2012"]
  )
  constants = {
    "cars196": (images / "cars196.py", "_NAMES"),
    "eurosat": (images / "eurosat.py", "_LABELS"),
    **{
      name: (sets / name / f"{name}_dataset_builder.py", variable)
      for name, variable in (
        ("oxford_flowers102", "_NAMES"),
        ("oxford_iiit_pet", "_LABEL_CLASSES"),
        ("resisc45", "_LABELS"),
      )
    },
  }
  numbers = {"mnist": 10, "svhn_cropped": 10, "patch_camelyon": 2}
  path = lists.get(data) or constants.get(data, (folder,))[0]
  if not path.exists():
    pytest.skip(f"this tensorflow_datasets has no {path}")
  if data in lists:
    return path.read_text().split()
  if data in constants:
    return constant(*constants[data])
  if data in numbers:
    return [str(k) for k in range(numbers[data])]
  return None


def tfds_sets():
  """`(task, data set)` of each source of TFDS."""
  for task in suites.DATACOMP38:
    for spec in task.sources:
      if spec.startswith("tfds:") and task.kind == "zero_shot":
        yield task, spec.removeprefix("tfds:").split(":")[0].split("/")[0]


def plain(name):
  return name.lower().replace("_", " ")


@pytest.mark.parametrize(
  ("task", "data"), [pytest.param(*pair, id=pair[1]) for pair in tfds_sets()]
)
def test_labels_of_tfds_are_the_classes_in_order(task, data):
  labels = tfds_labels(data)
  if labels is None:
    # CIFAR-10, CIFAR-100 and STL-10 have their lists in the archives.
    assert data in ("cifar10", "cifar100", "stl10")
    return
  assert len(labels) == task.num_classes
  if labels[0].startswith("n0"):  # WordNet numbers, see the test of lemmas.
    assert labels == sorted(labels) and labels[0] == "n01440764"
  elif data == "patch_camelyon":
    assert task.class_names[1].endswith("containing metastatic tumor tissue")
  elif data == "eurosat":
    first = [name.split()[0] for name in task.class_names]
    # "HerbaceousVegetation" and "SeaLake" are called otherwise.
    assert first == [
      *("annual", "forest", "brushland", "highway", "industrial"),
      *("pasture", "permanent", "residential", "river", "lake"),
    ]
    words = ["".join(c if c.islower() else f" {c}" for c in x) for x in labels]
    for name, word in zip(first, words, strict=True):
      same = name == word.split()[0].lower()
      assert same or name in ("brushland", "lake")
  else:
    assert list(map(plain, labels)) == list(map(plain, task.class_names))


def test_lists_of_tfds_that_are_not_named_are_of_another_order():
  images = tfds_folder() / "image_classification"
  files = {
    "food101": images / "food-101_classes.txt",
    "sun397": images / "sun397_labels.txt",
  }
  for path in files.values():
    if not path.exists():
      pytest.skip(f"this tensorflow_datasets has no {path}")
  food = files["food101"].read_text().split()
  # The pictures' folders, sorted: an underscore comes before a letter.
  assert sorted(food) != food
  names = DATACOMP["food101"].class_names
  assert list(names) == [plain(name) for name in sorted(food)]
  assert not any("tfds:" in spec for spec in DATACOMP["food101"].sources)
  sun = [line[3:] for line in files["sun397"].read_text().split()]
  assert list(DATACOMP["sun397"].class_names) == [
    plain(name).replace("/", " ") for name in sun
  ]


def clip_benchmark():
  """The folder of CLIP_benchmark's data sets; it is not imported."""
  spec = importlib.util.find_spec("clip_benchmark")
  if spec is None:
    pytest.skip("clip_benchmark, whose lists are read, is not installed")
  return pathlib.Path(spec.origin).parent / "datasets"


def constants_of(path):
  """Lists and sets of strings that any part of a file's code assigns."""
  found = {}
  for node in ast.walk(ast.parse(path.read_text())):
    if (
      isinstance(node, ast.Assign)
      and isinstance(node.targets[0], ast.Name)
      and isinstance(node.value, ast.List | ast.Set)
    ):
      try:
        found[node.targets[0].id] = ast.literal_eval(node.value)
      except ValueError:  # It is computed.
        continue
  return found


@pytest.mark.parity
def test_names_equal_those_of_clip_benchmark():
  theirs = json.loads((clip_benchmark() / "en_classnames.json").read_text())
  for name, key in {
    "caltech101": "caltech101_vtab",
    "clevr_counts": "clevr_count_all",
    "clevr_distance": "clevr_closest_object_distance",
    "country211": "country211",
    "eurosat": "eurosat",
    "gtsrb": "gtsrb",
    "imagenet1k": "imagenet1k",
    "kitti_distance": "kitti_closest_vehicle_distance",
    "mnist": "mnist",
    "pcam": "pcam",
    "pets": "pets",
  }.items():
    assert list(DATACOMP[name].class_names) == theirs[key], name
  voc = constants_of(clip_benchmark() / "voc2007.py")["object_categories"]
  assert list(DATACOMP["voc2007"].class_names) == voc


@pytest.mark.parity
def test_names_of_imagenet_shifts_are_those_of_their_classes():
  names = DATACOMP["imagenet1k"].class_names
  lists = constants_of(clip_benchmark() / "builder.py")
  numbers = lists["all_imagenet_wordnet_ids"]
  assert numbers == tfds_labels("imagenet2012")
  for letter in "aro":
    wanted = set(lists[f"imagenet_{letter}_wnids"])
    assert list(DATACOMP[f"imagenet_{letter}"].class_names) == [
      name
      for name, number in zip(names, numbers, strict=True)
      if number in wanted
    ]


@pytest.mark.parity
def test_templates_equal_those_of_clip_benchmark():
  path = clip_benchmark() / "en_zeroshot_classification_templates.json"
  theirs = json.loads(path.read_text())
  keys = {
    "clevr_counts": "clevr_count_all",
    "clevr_distance": "clevr_closest_object_distance",
    "flowers102": "flowers",
    "kitti_distance": "kitti_closest_vehicle_distance",
    "rendered_sst2": "renderedsst2",
    # DataComp's own, of MNIST and of PatchCamelyon.
    "svhn": "mnist",
    "camelyon17": "pcam",
  }
  for name, task in DATACOMP.items():
    if task.kind != "zero_shot" or name in ("iwildcam", "fmow"):
      continue
    # Theirs without prompts of its own is asked with those of ImageNet.
    want = theirs.get(keys.get(name, name), theirs["imagenet1k"])
    assert list(task.prompts) == [t.replace("{c}", "{}") for t in want], name
    own = keys.get(name, name) in theirs
    assert own == (task.templates != "imagenet1k" or name == "imagenet1k")


@pytest.mark.parity
def test_names_of_imagenet_are_words_for_their_wordnet_numbers():
  spec = importlib.util.find_spec("timm")
  if spec is None:
    pytest.skip("timm, whose list of WordNet's words is read, is not installed")
  path = pathlib.Path(spec.origin).parent / "data" / "_info"
  lines = (path / "imagenet_synset_to_lemma.txt").read_text().splitlines()
  words = dict(line.split("\t") for line in lines)
  numbers, names = tfds_labels("imagenet2012"), DATACOMP["imagenet1k"]
  same = [
    name.lower() in words[number].lower().split(", ")
    for number, name in zip(numbers, names.class_names, strict=True)
  ]
  # The names were made plainer than WordNet's; but one place off, hardly one of
  # them would be right.
  assert np.mean(same) > 0.7
