"""What files are, told by their first bytes."""

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from aced import contents
from aced.contents import HEAD

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def archive(*names):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as made:
    for name in names:
      made.writestr(zipfile.ZipInfo(name), "x")
  return file.getvalue()


def arrays():
  file = io.BytesIO()
  np.savez(file, a=np.ones(3))
  return file.getvalue()


@pytest.mark.parametrize(
  ("content", "what"),
  [
    (b"", "an empty file: fetch it again"),
    (POINTER, "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"\n<!DOCTYPE HTML>\n<html>", "a web page, perhaps of an error"),
    (b"<html><body>", "a web page"),
    (b'<?xml version="1.0"?><Error/>', "an XML page"),
    (gzip.compress(b"x", mtime=0), "compressed by gzip: unpack it"),
    (pickle.dumps({"a": 1}), "a pickle, which can run code"),
    (pickle.dumps({"a": 1}, 2), "a pickle, which can run code"),
    (archive("archive/data.pkl", "archive/version"), "a pickle, which can run"),
    (archive("README"), "a zip archive: unpack it"),
    (arrays(), "an archive of numpy: name it .npz"),
    (arrays()[:50], "a zip archive that was cut short"),
    (b"pk,text\n1,a\n", "a table of text (CSV)"),
    (b"PK", "a zip archive that was cut short"),
    (b"Entry not found", "a text, 'Entry not found': fetch it again"),
    (b"\x89HDF\r\n\x1a\n", "HDF5, which is not read here"),
    (bytes(HEAD), "zeros from its start"),
    (b"PAR1", "Parquet"),
    ("text".encode("utf-16"), "UTF-16: write it anew"),
    (b"\xef\xbb\xbf [1]", "a JSON array"),
    (b"image,text\r\n", "a table of text (CSV)"),
    (b"image\ttext\n", "a table of text (CSV)"),
  ],
)
def test_describe(tmp_path, content, what):
  (tmp_path / "file").write_bytes(content)
  assert contents.describe(tmp_path / "file").startswith(what)


def test_says_nothing_of_what_it_does_not_know(tmp_path):
  path = tmp_path / "w.npz"
  for content in (arrays(), arrays()[:50], bytes(range(256)) * 4):
    path.write_bytes(content)
    assert contents.describe(path) == ""
  path.write_bytes((100).to_bytes(8, "little") + b'{"a": 1}' + bytes(600))
  assert contents.describe(path) == ""


def test_not_json(tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(POINTER)
  assert contents.not_json(path, "x").startswith("is a Git LFS pointer")
  for content in (b"{", json.dumps(list(range(900))).encode(), b"a,b\n"):
    path.write_bytes(content)
    assert contents.not_json(path, "cut") == "is not JSON: cut"


@pytest.mark.parametrize("head", [b'{"a": 1}', b"\xff\xd8\xff", b"a cat\n"])
def test_first_bytes_that_tell_nothing(head):
  assert contents.describe_head(head) == contents.sentence(head) == ""


def test_sentence():
  assert contents.sentence(POINTER).startswith(" The file is a Git LFS pointer")
