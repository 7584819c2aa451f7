"""Processes that read: equal to threads, and steady when records are not."""

import os
import shutil
import time

import numpy as np
import pytest

from aced.data import workers
from aced.data.devices import BadRecords
from aced.data.pipeline import eval_batches, superbatches
from aced.data.records import CAUSES
from aced.data.sources import open_source
from aced.data.tokenizers import load_tokenizer
from aced.data.transforms import Transform
from aced.data.workers import WorkerError
from tests.data.unsteady import Failing, SlowToOpen, Unsteady, UnsteadyTokens

TOKENIZER = load_tokenizer("bytes", 12)
TRANSFORM = Transform(8, crop_scale=(0.5, 1.0), flip=True)


def read(source, **options):
  options = {"num_workers": 2, "stall_seconds": 30.0} | options
  with eval_batches(
    source, TOKENIZER, Transform(8), batch_size=10, **options
  ) as batches:
    found = list(batches)
    return found, batches.metrics()["data/reader_restarts"]


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
      assert a[key].dtype == b[key].dtype


def test_processes_make_what_threads_make():
  source = open_source("synthetic:train?size=90&image_size=16&noise=0.5")

  def batches(**options):
    with superbatches(
      source,
      TOKENIZER,
      TRANSFORM,
      batch_size=30,
      seed=3,
      num_steps=5,
      image_views={"image@12": 12},
      label_views={"labels@b": load_tokenizer("bytes", 30)},
      **options,
    ) as found:
      return list(found)

  want = batches(num_threads=1)
  assert want[0]["image@12"].shape == (30, 12, 12, 3)
  assert want[0]["labels@b"].shape == (30, 30)
  assert_same(batches(num_workers=3, prefetch=1), want)
  assert_same(batches(num_threads=4), want)


def test_a_process_that_dies_is_started_anew_with_its_records(tmp_path, caplog):
  source = Unsteady(40, kills=(7, 23), once=tmp_path)
  got, restarts = read(source)
  want, none = read(Unsteady(40), num_workers=0)
  assert_same(got, want)
  assert (restarts, none) == (2, 0)
  assert "record 23, shelf 2, is read again" in caplog.text
  assert "SIGKILL" in caplog.text and "host " in caplog.text


def test_a_record_that_always_kills_is_masked_and_no_other(caplog):
  got, restarts = read(Unsteady(40, kills=(7,)))
  error = np.concatenate([b["error"] for b in got])
  assert np.flatnonzero(error).tolist() == [7]
  assert error[7] == CAUSES["reader_died"]
  mask = np.concatenate([b["_mask"] for b in got])
  assert np.flatnonzero(~mask).tolist() == [7]
  assert restarts == 2
  assert "record 7, shelf 0, is masked" in caplog.text


def test_a_record_that_hangs_is_named_and_masked(caplog):
  got, restarts = read(Unsteady(20, hangs=(12,)), stall_seconds=0.5)
  error = np.concatenate([b["error"] for b in got])
  assert np.flatnonzero(error).tolist() == [12]
  assert error[12] == CAUSES["reader_hung"] and restarts == 2
  assert "record 12, shelf 1, is masked: it hangs" in caplog.text


def test_a_place_that_cannot_be_told_stops_nothing(caplog):
  got, _ = read(Unsteady(20, kills=(12,), lost=True))
  assert np.flatnonzero(np.concatenate([b["error"] for b in got])) == [12]
  assert "record 12, whose place cannot be told" in caplog.text


def test_a_caption_that_kills_is_that_of_its_record():
  with eval_batches(
    Unsteady(20), UnsteadyTokens(), Transform(8), batch_size=10, num_workers=1
  ) as batches:
    got = list(batches)
  error = np.concatenate([b["error"] for b in got])
  assert np.flatnonzero(error).tolist() == [7]
  assert error[7] == CAUSES["reader_died"]


def test_a_tokenizer_that_always_kills_ends_the_run():
  batches = eval_batches(
    Unsteady(20),
    UnsteadyTokens(None),
    Transform(8),
    batch_size=10,
    num_workers=1,
  )
  with pytest.raises(WorkerError, match="at the caches or the tokenizers"):
    list(batches)


def test_a_process_that_does_not_begin_ends_the_run(monkeypatch):
  monkeypatch.setattr(workers, "START_SECONDS", 1.0)
  with pytest.raises(WorkerError, match=r"before its first record \(it hangs"):
    read(SlowToOpen(20), stall_seconds=0.5)


def test_what_killed_a_process_is_not_read_again_to_be_explained(caplog):
  bad = BadRecords(Unsteady(20, kills=(3,), fails=(4,)))
  codes = [CAUSES["reader_died"], CAUSES["reader_hung"], CAUSES["cut_short"]]
  bad.name({"error": np.array(codes), "index": np.array([3, 3, 4])})
  assert "cut_short (OSError: [Errno 5] the disk is gone)" in caplog.text


def test_closing_while_rows_are_copied():
  for seed in range(4):
    batches = superbatches(
      Unsteady(400),
      TOKENIZER,
      Transform(128),
      batch_size=128,
      seed=seed,
      num_steps=50,
      num_workers=2,
    )
    next(batches)
    time.sleep(0.01 * seed)
    batches.close()
    batches.close()
    with pytest.raises(Exception, match=r"."):
      list(batches)


def test_threads_name_what_hangs(caplog):
  class Slow(Unsteady):
    def __getitem__(self, index):
      time.sleep(1.0 if index == 3 else 0)
      return super().__getitem__(index)

  found, _ = read(Slow(10), num_workers=0, num_threads=1, stall_seconds=0.2)
  assert found[0]["_mask"].all()
  assert caplog.text.count("record 3, shelf 0, hangs") == 1


def test_failures_of_the_disk_are_raised_with_their_traceback():
  with pytest.raises(OSError, match="disk is gone") as error:
    read(Unsteady(20, fails=(4,)))
  assert "__getitem__" in error.value.__notes__[0]


def test_an_error_that_cannot_be_sent_is_told_all_the_same():
  with pytest.raises(WorkerError, match="Unsendable: this and that") as error:
    read(Failing(20))
  assert "__getitem__" in error.value.__notes__[0]


def test_too_little_shared_memory_is_told_before_it_is_fatal(monkeypatch):
  usage = shutil.disk_usage("/")._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  if not os.path.isdir("/dev/shm"):
    pytest.skip("there is no /dev/shm here")
  with pytest.raises(WorkerError, match=r"shared memory.*--shm-size"):
    read(Unsteady(20))


def test_closing_early_ends_the_processes():
  batches = eval_batches(
    Unsteady(100, hangs=(15,)),
    TOKENIZER,
    Transform(8),
    batch_size=10,
    num_workers=2,
  )
  next(batches)  # Meanwhile record 15 is read ahead, and hangs.
  started = batches._assembly.reader._workers
  start = time.monotonic()
  batches.close()
  assert all(worker._process is None for worker in started)
  assert time.monotonic() - start < 30  # Of the 60 until it would be named.
