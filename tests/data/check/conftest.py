"""Fixtures of these tests."""

import json

import pytest

from tests.data.check.tools import (
  EVIL,
  encode,
  scene,
)


@pytest.fixture
def write(tmp_path):
  """Writes `(bytes or name, text)` as a set; returns its spec."""

  def write_set(pairs, name="set"):
    lines = []
    for k, (image, caption) in enumerate(pairs):
      if isinstance(image, bytes):
        (tmp_path / f"{name}{k}").write_bytes(image)
        image = f"{name}{k}"
      lines.append(json.dumps({"image": image, "text": caption}))
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return f"jsonl:{path}"

  return write_set


@pytest.fixture
def messy(write):
  """Four usable records of eleven."""
  return write(
    [
      (encode(scene(0)), "a hill"),
      (encode(scene(1, 40, 90), "PNG"), [" A Hill", "", "two\nhills"]),
      (encode(scene(2, 20, 30), "WEBP"), EVIL),
      (encode(scene(0))[:500], "cut short"),
      (b"<html>no picture</html>", "a page"),
      (b"", "nothing"),
      ("none.jpg", "a hill"),
      ("none.jpg", "  "),  # At fault twice.
      (encode(scene(3)), ""),
      (encode(scene(4)), [None, 7]),
      (encode(scene(5, 30, 20), "BMP"), "x" * 100),
    ]
  )
