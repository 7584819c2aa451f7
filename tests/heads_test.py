import gzip

import pytest

from aced import heads


@pytest.mark.parametrize(
  ("head", "found"),
  [
    (b"", "empty (0 bytes)"),
    (bytes(512), "nothing but zeros"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    (b"\n <!DOCTYPE html>", "a page of a server"),
    (b"\xef\xbb\xbf<html>", "a page of a server"),
    (gzip.compress(b"x"), "compressed (gzip)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x80\x04\x95", "a Python pickle"),
    ("text".encode("utf-16"), "UTF-16"),
    (b"PAR1", "a Parquet file"),
    (b" [1]", "a JSON array"),
    (b"image,text\r\n", "a table of text (CSV)"),
    (b"image\ttext\n", "a table of text (CSV)"),
  ],
)
def test_names_what_is_met(head, found):
  assert heads.name(head).startswith(found)
  assert heads.sentence(head) == f" The file is {heads.name(head)}."


@pytest.mark.parametrize("head", [b'{"a": 1}', b"\xff\xd8\xff", b"a cat\n"])
def test_says_nothing_of_the_rest(head):
  assert heads.name(head) == heads.sentence(head) == ""
