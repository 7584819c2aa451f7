import os

import pytest

from aced.data.records import BadRecord
from aced.data.sources.picture_files import read_picture


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "set"
  (folder / "photos").mkdir(parents=True)
  (folder / "photos" / "1.jpg").write_bytes(b"one")
  (tmp_path / "outside.jpg").write_bytes(b"secret")
  return folder


def test_paths_below_the_folder_are_read(folder, tmp_path):
  (tmp_path / "link").symlink_to(folder)
  for name in (
    "photos/1.jpg",
    "./photos/1.jpg",
    "photos/../photos/1.jpg",
    "../set/photos/1.jpg",
    f"{folder}/photos/1.jpg",
    f"file://{folder}/photos/1.jpg",
  ):
    assert read_picture(str(folder), name) == b"one"
  # The folder by the name of a link, the path by its target, and both.
  for place in (folder, tmp_path / "link"):
    for below in (folder, tmp_path / "link"):
      assert read_picture(str(place), f"{below}/photos/1.jpg") == b"one"


@pytest.mark.parametrize(
  ("name", "cause", "message"),
  [
    ("../outside.jpg", "outside_folder", "is not below"),
    ("photos/../../outside.jpg", "outside_folder", "is not below"),
    ("{up}/outside.jpg", "outside_folder", "is not below"),
    ("{up}/settle/1.jpg", "outside_folder", "is not below"),
    ("https://example.com/1.jpg", "missing_image", r"\(https:\), and nothing"),
    ("gs://bucket/1.jpg", "missing_image", "is an address"),
    ("data:image/png;base64,iVBO", "missing_image", "picture in base64"),
    ("/9j/" + "4AAQ" * 40, "missing_image", "picture in base64; expected"),
    ("photos\\1.jpg", "missing_image", "No such file.*expected /"),
    ("photos/2.jpg", "missing_image", "photos/2.jpg: No such file or dir"),
    ("photos", "missing_image", "Is a directory"),
    ("", "missing_image", "Is a directory"),
    ("{up}/out/1.jpg", "outside_folder", "is not below"),
  ],
)
def test_what_is_not_read(folder, name, cause, message):
  found = read_picture(str(folder), name.format(up=folder.parent))
  assert isinstance(found, BadRecord) and found.cause == cause
  with pytest.raises(BadRecord, match=message):
    raise found


def test_a_failing_disk_is_no_fault_of_a_record(folder, monkeypatch):
  def fail(*_):
    raise OSError(5, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(os, "fstat", fail)
    with pytest.raises(OSError, match="Input/output"):
      read_picture(str(folder), "photos/1.jpg")
