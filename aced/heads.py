"""What a file is that is not what it was taken for, by its first bytes."""

import re

# Enough of a file for `name`.
SIZE = 512

_BLANK = rb"(?:\xef\xbb\xbf)?\s*"
# The first pattern that fits counts.
_HEADS = tuple(
  (re.compile(head, re.DOTALL | re.IGNORECASE), name)
  for head, name in (
    (rb"\Z", "empty (0 bytes)"),
    (rb"\0+\Z", "nothing but zeros, as a broken download leaves them"),
    (
      rb"version https://git-lfs",
      "a Git LFS pointer, which stands for the file: run `git lfs pull`",
    ),
    (
      _BLANK + rb"<(?:!doctype|html|head|\?xml)\b",
      "a page of a server (HTML), not the file: download it again",
    ),
    (rb"\x1f\x8b", "compressed (gzip); unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed (zstd); unpack it first"),
    (rb"BZh\d", "compressed (bzip2); unpack it first"),
    (rb"\xfd7zXZ\0", "compressed (xz); unpack it first"),
    (rb"PK\x03\x04", "a zip archive; unpack it first"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which is not loaded"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16; write it anew as UTF-8"),
    (rb"PAR1", "a Parquet file"),
    (_BLANK + rb"\[", "a JSON array; write one object a line"),
    (_BLANK + rb"[\w ]+(?:[,\t;][\w ]+)+\r?\n", "a table of text (CSV)"),
  )
)


def name(head: bytes) -> str:
  """Says what a file is, such as "compressed (gzip); unpack it first".

  Args:
    head: its first `SIZE` bytes, or all of it.

  Returns:
    "" where that is not known.
  """
  return next((text for start, text in _HEADS if start.match(head)), "")


def sentence(head: bytes) -> str:
  """Returns " The file is ...", to end a message with, or ""."""
  found = name(head)
  return f" The file is {found}." if found else ""
