"""Which class a label means: names, numbers, and what is neither."""

import io
import tarfile

import numpy as np
import pytest

from aced.data import open_source, records
from aced.evaluation import labels as module

NAMES = ("cat", "dog", "bird")


class Source(list, records.Source):
  """Records in memory."""

  def __repr__(self):
    return "Source(tiny)"


def classes(found, names=None, label_names=None):
  source = Source({"text": "x", "label": label} for label in found)
  return module.classes(source, "label", names, label_names)


@pytest.mark.parametrize(
  "found",
  [
    [2, 0, 1, 0],
    ["2", "0", "1", "0"],
    [2.0, 0.0, 1.0, 0.0],
    ["2.0", " 0\n", "01", "0"],
    list(np.array([2, 0, 1, 0], np.int64)),
    list(np.array([2, 0, 1, 0], np.float32)),
    ["bird", "cat", "dog", "cat"],
    ["bird ", "Cat", "DOG", "cat"],
  ],
)
def test_names_and_their_numbers_mean_the_same(found):
  got = classes(found, NAMES)
  np.testing.assert_array_equal(got.labels, [2, 0, 1, 0])
  assert got.names == NAMES and not got.numbered


def test_names_are_those_of_the_records_where_none_are_given():
  got = classes(["dog ", "bird", "dog"])
  assert got.names == ("bird", "dog") and not got.notes
  np.testing.assert_array_equal(got.labels, [1, 0, 1])


@pytest.mark.parametrize(
  "found", [[0, 1, 2], ["0", "1", "2"], [0.0, 1.0, 2.0], [True, False, True]]
)
def test_numbers_without_names_are_told_of(found):
  got = classes(found)
  assert got.numbered
  (note,) = got.notes
  assert "the labels are numbers without names" in note
  assert repr(got.names[0]) in note and "class_names" in note


def test_numbers_that_are_named_as_numbers_are_no_matter():
  digits = [str(k) for k in range(10)]
  got = classes(range(10), digits)
  assert not got.numbered and not got.notes
  np.testing.assert_array_equal(got.labels, np.arange(10))


def test_a_number_that_is_a_name_is_that_name():
  got = classes([1, 2, 3], ["1", "2", "3"])
  np.testing.assert_array_equal(got.labels, [0, 1, 2])
  assert "are taken for the names: '1', '2', '3'" in got.notes[0]
  # Not all of these are names, so that all are numbers.
  got = classes([0, 1, 2], ["1", "2", "3"])
  np.testing.assert_array_equal(got.labels, [0, 1, 2])


@pytest.mark.parametrize("found", [[True, False], ["true", "false"]])
def test_truth_values_tell_two_classes_apart(found):
  got = classes(found, ["empty", "full"])
  np.testing.assert_array_equal(got.labels, [1, 0])
  with pytest.raises(ValueError, match="Truth values tell two classes apart"):
    classes(found, NAMES)


@pytest.mark.parametrize(
  ("found", "message"),
  [
    ([0, 1, 3, 5], r"'3', .*from 0 to 2, .*0 to 5\. 2 of 4 .*first record 2"),
    ([1, 2, 3], r"'3', .*first record 2 .*count from 1; give label_names"),
    ([0, -1, 2, -1], r"'-1', .* 2 of 4 .*first record 1 .*is not known"),
    (["-1"], r"below 0 often says that the class is not known"),
    (["cat", "3"], r"'3', which is not in class_names, 3 of .*first record 1"),
    (["cat", "1"], r"'1', which is not in class_names"),
    (["cat", "dgo"], r"'dgo', which is not in .*mean 'dog'"),
  ],
)
def test_what_is_no_class_is_refused_and_counted(found, message):
  with pytest.raises(ValueError, match=message):
    classes(found, NAMES)


@pytest.mark.parametrize("bad", [None, "", "  ", 0.5, float("nan"), [1], b"x"])
def test_records_without_a_label_are_counted_and_named(bad):
  for names in (None, NAMES):
    with pytest.raises(ValueError, match=r"2 of 4 .*") as caught:
      classes(["cat", bad, "dog", bad], names)
    assert "record 1 of Source(tiny)" in str(caught.value)


def test_another_spelling_is_taken_and_told_of():
  got = classes(["sea_lion", "Sea  Lion", "dog"], ["sea lion", "dog"])
  np.testing.assert_array_equal(got.labels, [0, 0, 1])
  assert "the labels of 2 records are spelled otherwise" in got.notes[0]
  assert "'sea_lion' is taken for 'sea lion'" in got.notes[0]
  # As file systems spell it.
  np.testing.assert_array_equal(
    classes(["cafe\u0301", "bar"], ["bar", "caf\u00e9"]).labels, [1, 0]
  )
  # Letters of a hand are classes of their own.
  got = classes(["a", "A"], ["A", "a"])
  np.testing.assert_array_equal(got.labels, [1, 0])
  assert not got.notes
  # It could be either.
  with pytest.raises(ValueError, match="'DOG', which is not in"):
    classes(["DOG"], ["Dog", "dog"])


def test_classes_of_a_source_that_look_alike_are_told_of():
  got = classes(["Dog", "dog", "sea_lion"])
  assert got.names == ("Dog", "dog", "sea_lion")
  alike, lined = got.notes
  assert "count as several: 'Dog', 'dog'" in alike
  assert "1 of the 3 class names have underscores" in lined
  (note,) = classes(["dog", "dog"]).notes
  assert "all records are of one class, 'dog'" in note


def test_classes_without_a_picture_are_told_of():
  (note,) = classes([0, 0], NAMES).notes
  assert note == "2 of the 3 classes have no picture: 'dog', 'bird'"


def test_a_name_of_two_classes_needs_numbers():
  names = ["red", "blue", "red"]
  got = classes([0, 2, 1], names)
  np.testing.assert_array_equal(got.labels, [0, 2, 1])
  module.check_names(names, None, "2")
  for label in ("red", "blue"):
    with pytest.raises(ValueError, match="'red' is the name of more than one"):
      module.check_names(names, None, label)
  with pytest.raises(ValueError, match="'red' is the name of more than one"):
    classes(["red", "blue"], names)


@pytest.mark.parametrize("names", ["cat", [], [0, 1], ["cat", None]])
def test_names_must_be_texts(names):
  with pytest.raises(ValueError, match="must be a list of names"):
    module.check_names(names, None, "cat")


def test_names_of_records_may_be_numbers():
  got = classes([10, "20"], ["cat", "dog"], [20, 10])
  np.testing.assert_array_equal(got.labels, [1, 0])
  with pytest.raises(ValueError, match="'0', which is not in label_names"):
    classes([0, 10], ["cat", "dog"], [20, 10])


@pytest.mark.parametrize("limit", ["", "&limit=2"])
def test_names_beside_shards_are_those_of_numbers(tmp_path, limit):
  source = open_source(shards(tmp_path, ["2", "0", "1"]) + limit)
  assert module.classes(source, "label").numbered
  file = tmp_path / "classnames.txt"
  file.write_text("cat\ndog\nbird\n")
  got = module.classes(source, "label")
  assert got.names == NAMES and not got.numbered
  assert got.labels.tolist() == [2, 0, 1][: len(source)]
  # Names are their own, and of the config they go first.
  got = module.classes(source, "label", ["a", "b", "c"])
  assert got.names == ("a", "b", "c")
  file.write_text("cat\n")
  with pytest.raises(ValueError, match="count them from 0 to 0"):
    module.classes(source, "label")


def test_names_beside_shards_are_not_those_of_names(tmp_path):
  source = open_source(shards(tmp_path, ["dog", "cat", "dog"]))
  (tmp_path / "classnames.txt").write_text("Katze\nHund\n")
  assert module.classes(source, "label").names == ("cat", "dog")


def shards(folder, labels):
  """The spec of a shard as publishers lay them."""
  (folder / "test").mkdir()
  with tarfile.open(folder / "test/0.tar", "w") as file:
    for k, label in enumerate(labels):
      for kind in ("jpg", "cls"):
        member = tarfile.TarInfo(f"{k:04}.{kind}")
        member.size = len(label)
        file.addfile(member, io.BytesIO(label.encode()))
  return f"webdataset:{folder}/test/*.tar?text=cls&label=cls"
