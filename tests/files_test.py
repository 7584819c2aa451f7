"""Files whole or not there, and folders that tell of damage."""

import json
import os

import numpy as np
import pytest

from aced import files


@pytest.fixture
def sealed(tmp_path):
  folder = tmp_path / "folder"
  (folder / "in" / "it").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for name, size in (("a", 1000), ("in/b", 1), ("in/it/c", 0)):
    (folder / name).write_bytes(rng.bytes(size))
  files.seal(folder)
  return folder


def test_a_whole_folder_is_whole(sealed):
  assert files.is_sealed(sealed)
  assert files.damage(sealed) is None
  listed = json.loads((sealed / files.MANIFEST).read_text())["files"]
  assert {name: size for name, (size, _) in listed.items()} == {
    "a": 1000,
    "in/b": 1,
    "in/it/c": 0,
  }


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda f: (f / "a").unlink(), "a is missing"),
    (lambda f: (f / "a").write_bytes(b"x"), "a has 1 bytes instead of 1,000"),
    (lambda f: (f / "in/b").write_bytes(b"ab"), "in/b has 2 bytes"),
    (lambda f: (f / files.MANIFEST).unlink(), "never finished"),
    (
      lambda f: (f / files.MANIFEST).write_text("{"),
      "manifest.json is damaged",
    ),
    (lambda f: (f / files.MANIFEST).write_text("[]"), "is damaged"),
    (lambda f: (f / files.MANIFEST).write_text('{"files": 3}'), "is damaged"),
    (lambda f: (f / files.MANIFEST).write_bytes(b"\xff"), "is damaged"),
  ],
)
def test_damage_is_named(sealed, spoil, message):
  spoil(sealed)
  assert message in files.damage(sealed)


def test_every_flipped_bit_is_found(sealed):
  rng = np.random.default_rng(1)
  whole = (sealed / "a").read_bytes()
  for _ in range(50):
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    (sealed / "a").write_bytes(data)
    assert files.damage(sealed) == "a has other content than was saved"
  (sealed / "a").write_bytes(whole)
  assert files.damage(sealed) is None


def test_removing_unseals_first(sealed, monkeypatch):
  def killed(folder):
    raise KeyboardInterrupt

  monkeypatch.setattr(files.shutil, "rmtree", killed)
  with pytest.raises(KeyboardInterrupt):
    files.remove(sealed)
  assert not files.is_sealed(sealed)
  monkeypatch.undo()
  files.remove(sealed)
  assert not sealed.exists()


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "new" / "x.json"
  files.write_json(path, {"a": [1, 2]})
  assert json.loads(path.read_text()) == {"a": [1, 2]}

  def full(file):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    files.write_json(path, {"a": 3})
  assert json.loads(path.read_text()) == {"a": [1, 2]}
  assert [p.name for p in path.parent.iterdir()] == ["x.json"]
