"""Embeddings that are kept: none made twice, none of another, none damaged."""

import collections
import json
import types

import jax
import numpy as np
import pytest

from aced.data import records, transforms
from aced.evaluation import Retrieval
from aced.evaluation import store as module
from aced.evaluation.store import Store

COUNT, BAD = 23, (0, 9, 22)


class Source(records.Source):
  """Pictures that are all of one number, from 1 on; some cannot be read."""

  def __init__(self, count=COUNT, bad=BAD):
    self.count, self.bad = count, bad

  def __len__(self):
    return self.count

  def __repr__(self):
    return "Source(numbers)"

  def __getitem__(self, index):
    if index in self.bad:
      return {"image": b"no picture", "text": str(index)}
    return {"image": np.full((4, 4, 3), index + 1, np.uint8), "text": "one"}


class Model:
  """Embeds numbers, and counts how often each was embedded.

  Args:
    stop_at: the call that ends in a KeyboardInterrupt, from 1 on.
  """

  def __init__(self, stop_at=None, clock=None):
    self.seen, self.calls = collections.Counter(), 0
    self.stop_at, self.clock = stop_at, clock
    self.shapes = set()

  def __call__(self, image):
    self.calls += 1
    if self.calls == self.stop_at:
      raise KeyboardInterrupt
    if self.clock is not None:
      self.clock[0] += 2.5
    number = np.asarray(image)[:, 0, 0, 0]
    self.shapes.add(image.shape)
    self.seen.update(number[number > 0].tolist())  # Padding is black.
    return vectors(number)


def vectors(number):
  turn = np.float32(number)[:, None] * np.float32([0.1, 0.2, 0.3])
  return np.sin(turn)


TRANSFORM = transforms.Transform(image_size=4)


def tokenizer(texts):
  return np.zeros((len(texts), 1), np.int32)


def embed(store, model, identity="a", source=None, batch_size=5, **options):
  source = Source() if source is None else source
  return store.images(
    source,
    identity,
    model,
    TRANSFORM,
    tokenizer,
    batch_size=batch_size,
    **options,
  )


GOOD = np.setdiff1d(np.arange(COUNT), BAD)


def check(rows, index=GOOD):
  """Every picture that can be read, at its place, bit for bit."""
  np.testing.assert_array_equal(rows.index, index)
  assert rows.index.dtype == np.int64 and rows.z.dtype == np.float32
  np.testing.assert_array_equal(rows.z, vectors(index + 1))


def files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("part_records", [1, 5, 7, 10, 22, 23, 24, 1000])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_parts_do_not_change_rows(tmp_path, part_records, batch_size):
  model, told = Model(), []
  rows, _ = embed(
    Store(tmp_path, part_records),
    model,
    batch_size=batch_size,
    progress=told.append,
  )
  check(rows)
  assert set(model.seen.values()) == {1} and len(model.seen) == len(GOOD)
  assert sum(told) == COUNT and max(told) <= part_records
  # Of one size, for compiled models.
  assert len(model.shapes) == 1


def test_rows_are_those_of_an_evaluator(tmp_path):
  model = jax.jit(lambda image: image.reshape(len(image), -1)[:, :3] / 7.0)
  evaluator = Retrieval(Source(), tokenizer, TRANSFORM, batch_size=5)
  want = evaluator.images(model)
  for part_records in (4, 100):
    got, _ = embed(Store(tmp_path / f"{part_records}", part_records), model)
    np.testing.assert_array_equal(got.index, want.index)
    np.testing.assert_array_equal(got.z, want.z)


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_killed_midway_no_finished_part_is_made_twice(tmp_path, stop_at):
  # Parts of seven records are two batches each; the last one is one batch.
  first, told = Model(stop_at), []
  with pytest.raises(KeyboardInterrupt):
    embed(Store(tmp_path, 7), first, progress=told.append)
  done = sum(told)
  assert done == 7 * ((stop_at - 1) // 2)
  second, told = Model(), []
  rows, _ = embed(Store(tmp_path, 7), second, progress=told.append)
  check(rows)
  # The part that was under way is made again, and it alone.
  np.testing.assert_array_equal(sorted(second.seen), GOOD[done <= GOOD] + 1)
  assert set(second.seen.values()) == {1} and sum(told) == COUNT
  third = Model()
  check(embed(Store(tmp_path, 7), third)[0])
  assert not third.calls


@pytest.mark.parametrize("killed_on", [0, 2])
def test_a_half_written_part_is_not_used(tmp_path, monkeypatch, killed_on):
  savez, count = np.savez, iter(range(9))

  def half(file, **arrays):
    savez(file, **arrays)
    if next(count) == killed_on:
      file.truncate(file.tell() // 2)
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(module.np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
      embed(Store(tmp_path, 7), Model())
  assert len(files(tmp_path)) == killed_on
  model = Model()
  check(embed(Store(tmp_path, 7), model)[0])
  np.testing.assert_array_equal(
    sorted(model.seen), GOOD[7 * killed_on <= GOOD] + 1
  )
  assert {path.suffix for path in files(tmp_path)} == {".npz"}


def test_parts_of_another_identity_are_not_used(tmp_path):
  embed(Store(tmp_path, 7), Model(), "model 1")
  other = Model()
  embed(Store(tmp_path, 7), other, "model 2")
  assert len(other.seen) == len(GOOD)
  again = Model()
  for identity in ("model 1", "model 2"):
    check(embed(Store(tmp_path, 7), again, identity)[0])
  assert not again.calls


def test_parts_of_another_size_are_not_used(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    embed(Store(tmp_path, 10), Model(stop_at=4))
  for part_records in (5, 20, 10, 23):
    rows, _ = embed(Store(tmp_path, part_records), Model())
    check(rows)


def test_where_nothing_can_be_read_there_is_nothing(tmp_path):
  for source in (Source(9, range(9)), Source(0)):
    for _ in range(2):
      rows, _ = embed(Store(tmp_path, 4), Model(), repr(len(source)), source)
      assert rows.z.shape == (0, 0) and rows.index.shape == (0,)
      assert rows.z.dtype == np.float32 and rows.index.dtype == np.int64


def test_parts_without_a_picture_are_nothing_among_the_others(tmp_path):
  # Parts of four: the first and the third have none that can be read.
  bad = (*range(4), *range(8, 12))
  source = Source(14, bad)
  for _ in range(2):
    rows, _ = embed(Store(tmp_path, 4), Model(), source=source)
    check(rows, np.setdiff1d(np.arange(14), bad))


def test_seconds_are_those_of_all_processes_together(tmp_path, monkeypatch):
  clock = [100.0]
  fake = types.SimpleNamespace(perf_counter=lambda: clock[0])
  monkeypatch.setattr(module, "time", fake)
  whole = embed(Store(tmp_path / "whole", 7), Model(clock=clock))[1]
  assert whole == 2.5 * 7  # Of seven batches.
  with pytest.raises(KeyboardInterrupt):
    embed(Store(tmp_path / "killed", 7), Model(5, clock))
  clock[0] += 1e6  # Between the processes.
  assert embed(Store(tmp_path / "killed", 7), Model(clock=clock))[1] == whole
  assert embed(Store(tmp_path / "killed", 7), Model(clock=clock))[1] == whole


def damage(path, kind):
  content = path.read_bytes()
  if kind == "missing array":
    with np.load(path) as file:
      arrays = {k: file[k] for k in ("z", "seconds")}
    np.savez(path, **arrays)
  elif kind == "objects":
    np.savez(path, z=np.array([{}], object), index=[0], seconds=0.0)
  elif kind == "other bytes":
    path.write_bytes(content[:200] + b"\xff\xff\xff\xff" + content[204:])
  elif kind == "no archive":
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
  else:
    path.write_bytes(content[: int(len(content) * kind)])


@pytest.mark.parametrize(
  "kind",
  [
    *(0.0, 0.3, 0.6, 0.99),
    *("missing array", "objects", "other bytes", "no archive"),
  ],
)
def test_a_damaged_part_is_made_anew_and_named(tmp_path, caplog, kind):
  embed(Store(tmp_path, 7), Model())
  path = files(tmp_path)[1]
  damage(path, kind)
  model = Model()
  check(embed(Store(tmp_path, 7), model)[0])
  part = GOOD[(GOOD >= 7) & (GOOD < 14)]
  np.testing.assert_array_equal(sorted(model.seen), part + 1)
  (line,) = caplog.messages
  assert line.startswith(f"{path} is damaged, and its embeddings are made anew")
  caplog.clear()
  after = Model()
  check(embed(Store(tmp_path, 7), after)[0])
  assert not after.calls and not caplog.messages


def test_no_flipped_bit_ends_the_run_or_changes_a_row(tmp_path):
  source = Source(2, ())
  embed(Store(tmp_path), Model(), source=source)
  (path,) = files(tmp_path)
  content = path.read_bytes()
  rng, made = np.random.default_rng(0), 0
  for place in range(0, len(content), 5):
    changed = bytearray(content)
    changed[place] ^= 1 << rng.integers(8)
    path.write_bytes(changed)
    model = Model()
    check(embed(Store(tmp_path), model, source=source)[0], np.arange(2))
    made += model.calls
  assert made > 50


def test_clear_removes_what_was_kept(tmp_path):
  store = Store(tmp_path / "embeddings", 7)
  store.clear()
  embed(store, Model())
  (tmp_path / "results.json").write_text(json.dumps({}))
  store.clear()
  assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
  model = Model()
  check(embed(store, model)[0])
  assert len(model.seen) == len(GOOD)


def test_several_processes_keep_nothing(tmp_path, monkeypatch):
  # They may share no folder, and would not agree on what is there.
  embed(Store(tmp_path, 7), Model())
  before = files(tmp_path)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  store = Store(tmp_path, 7)
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  model = Model()
  check(embed(store, model)[0])
  check(embed(store, model, "b")[0])
  store.clear()
  assert set(model.seen.values()) == {2}
  assert files(tmp_path) == before
