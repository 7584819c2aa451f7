"""Fixtures of these tests."""

import json

import pytest

from aced.data.convert import command
from aced.data.convert.workers import write_shard
from aced.data.sources import open_source
from tests.data.convert.tools import picture


@pytest.fixture
def pairs(tmp_path):
  """A set of 12 records, 9 of which are kept; returns its spec."""
  folder = tmp_path / "pairs"
  folder.mkdir()
  lines = []
  for k, kind in enumerate(("jpeg", "png", "webp") * 3):
    (folder / f"{k}.{kind}").write_bytes(picture(kind, k) + b"\0" * k)
    lines.append({"image": f"{k}.{kind}", "text": f"caption {k}", "n": k})
  lines[1] |= {"text": ["one", "zwei, 二", ""], "label": "cat"}
  lines[2] |= {"text": ["alone"], "tags": ["x"], "box": {"at": [1, 2.5]}}
  lines[3] |= {"text": " \n"}
  lines[4] |= {"score": 0.1, "big": 2**70, "none": None, "yes": True}
  lines[5] |= {"text": "half \ud800 of a pair\n"}
  (folder / "empty").write_bytes(b"")
  (folder / "junk").write_bytes(b"no picture at all")
  lines.insert(2, {"image": "gone.jpg", "text": "a"})
  lines.append({"image": "empty", "text": "a"})
  lines.append({"image": "junk", "text": "a"})
  path = folder / "pairs.jsonl"
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  return f"jsonl:{path}"


@pytest.fixture
def in_process(monkeypatch):
  """Shards are written here, one after the other, which is quicker."""

  def write_shards(job, numbers, workers, bar):
    source = open_source(job.spec)
    for number in numbers:
      yield write_shard(job, number, source, lambda: None)

  monkeypatch.setattr(command, "write_shards", write_shards)
