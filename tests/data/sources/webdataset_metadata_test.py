"""The option `metadata` of tar shards: numbers of a record, as of a group."""

import io
import os
import pickle

import numpy as np
import pytest

from aced.data.records import SourceError
from aced.data.sources import open_source
from aced.data.sources.webdataset import WebDataset
from tests.data.sources.tar_test import archive


def npy(value, **options):
  file = io.BytesIO()
  np.save(file, value, **options)
  return file.getvalue()


def write(folder, metadata):
  """A shard of a record for each member, None being none."""
  members = []
  for k, data in enumerate(metadata):
    members += [(f"{k}.webp", b"picture"), (f"{k}.cls", str(k).encode())]
    members += [] if data is None else [(f"{k}.npy", data)]
  (folder / "0.tar").write_bytes(archive(members))
  return f"webdataset:{folder}/*.tar?text=cls&label=cls&metadata=npy"


def test_metadata_is_a_list_of_plain_numbers(tmp_path):
  values = [
    np.array([3, 14, 40, 0]),
    np.array([1, 0], np.uint8),
    np.array([0.5, -2], np.float32),
    np.array([True]),
    np.int16(7),
  ]
  source = open_source(write(tmp_path, map(npy, values)))
  want = [[3, 14, 40, 0], [1, 0], [0.5, -2.0], [True], [7]]
  for again in (source, pickle.loads(pickle.dumps(source))):
    for k, numbers in enumerate(want):
      label = {"text": str(k), "label": str(k), "metadata": numbers}
      assert again.fields(k) == label
      assert again[k] == label | {"image": b"picture"}
      types = {type(number) for number in again[k]["metadata"]}
      assert types <= {int, float, bool}


def test_without_the_option_there_is_no_such_field(tmp_path):
  spec = write(tmp_path, [npy(np.arange(3))])
  source = open_source(spec.removesuffix("&metadata=npy"))
  assert set(source[0]) == {"image", "text", "label"}


class Hostile:
  def __reduce__(self):
    return os.mkdir, ("unpickled",)


HUGE = npy(np.arange(3)).replace(b"(3,)", b"(9999999999999,)", 1)


@pytest.mark.parametrize(
  ("data", "detail"),
  [
    (b"", "cannot be read"),
    (b"no array at all", "cannot be read"),
    (npy(np.arange(4))[:-3], "cannot be read"),
    (HUGE, "cannot be read"),
    (npy(np.array([Hostile()]), allow_pickle=True), "cannot be read"),
    (npy(np.ones((2, 2))), r"float64 of shape \(2, 2\), not numbers in a row"),
    (npy(np.array(["a"])), "not numbers in a row"),
    (None, "it has no member .npy"),
  ],
)
def test_a_member_that_cannot_be_read_masks_its_record(
  tmp_path, monkeypatch, data, detail
):
  monkeypatch.chdir(tmp_path)
  good = npy(np.arange(3))
  source = open_source(write(tmp_path, [good, data, good]))
  bad = source[1]["image"]
  assert bad.cause == "bad_line"
  with pytest.raises(ValueError, match=detail):
    raise bad
  assert source.fields(1).get("metadata") is None
  assert [source[k]["metadata"] for k in (0, 2)] == [[0, 1, 2]] * 2
  assert not os.path.exists("unpickled")


@pytest.mark.parametrize("at", [-512, 0, 20])  # Header, data, amid the data.
def test_a_shard_that_ends_before_the_member_is_cut_short(tmp_path, at):
  spec = write(tmp_path, [npy(np.arange(3))] * 2)
  offset = int(open_source(spec)._index.members["offset"][-1])
  os.truncate(tmp_path / "0.tar", offset + at)
  source = open_source(spec)
  assert source[1]["image"].cause == "cut_short"
  assert source[0]["metadata"] == [0, 1, 2]


@pytest.mark.parametrize("name", ["np", "json.npy"])
def test_a_kind_that_no_record_has_is_refused(tmp_path, name):
  write(tmp_path, [npy(np.arange(3))])
  with pytest.raises(SourceError, match=f"metadata={name}: no record") as told:
    WebDataset(f"{tmp_path}/*.tar", text="cls", metadata=name)
  assert "json.FIELD" not in str(told.value)
  assert "they have cls, npy, webp" in str(told.value)
