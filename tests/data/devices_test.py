import logging
import threading
import time

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from aced.data.devices import BadRecords, to_devices
from aced.data.pipeline import superbatches
from aced.data.records import CAUSES
from aced.data.sources import open_source
from aced.data.tokenizers import load
from aced.data.transforms import Transform

MESH = jax.make_mesh((8,), ("data",))


def rows(key, array):
  del key
  return jax.NamedSharding(MESH, jax.P("data", *(None,) * (array.ndim - 1)))


def batch(value):
  return {
    "image": np.full((16, 2, 2, 3), value, np.uint8),
    "labels": np.full((16, 3), value, np.int32),
    "_mask": np.ones(16, bool),
    "index": np.arange(16, dtype=np.int32),
    "error": np.zeros(16, np.int8),
  }


def test_places_columns_and_keeps_the_rest():
  with to_devices(map(batch, range(5)), rows) as batches:
    got = list(batches)
  assert len(got) == 5
  for value, (placed, info) in enumerate(got):
    assert set(placed) == {"image", "labels", "_mask", "index", "error"}
    assert set(info) == {"index", "error"}
    for key, array in placed.items():
      assert len(array.sharding.device_set) == 8
      assert array.dtype == batch(value)[key].dtype
      np.testing.assert_array_equal(array, batch(value)[key])
    assert isinstance(info["index"], np.ndarray)


def test_end_to_end():
  source = open_source("synthetic:train?size=64&noise=0.5&image_size=16")
  make = lambda: superbatches(  # noqa: E731
    source,
    load("bytes", 16),
    Transform(16),
    batch_size=32,
    seed=0,
    num_steps=4,
  )
  with make() as host, to_devices(make(), rows) as device:
    for want, (got, info) in zip(host, device, strict=True):
      for key in ("image", "labels", "_mask", "fault"):
        np.testing.assert_array_equal(got[key], want[key])
      np.testing.assert_array_equal(info["index"], want["index"])


@pytest.mark.parametrize("depth", [1, 3])
def test_reads_ahead_by_depth_and_no_more(depth):
  made = []

  def source():
    for value in range(20):
      made.append(value)
      yield batch(value)

  with to_devices(source(), rows, depth=depth) as batches:
    for taken in range(3):
      deadline = time.monotonic() + 10
      while len(made) < taken + depth and time.monotonic() < deadline:
        time.sleep(0.01)
      time.sleep(0.05)
      assert len(made) == taken + depth
      next(batches)
  assert len(made) <= 3 + depth + 1


def test_errors_come_through_in_order():
  def source():
    yield batch(0)
    raise OSError("the disk is gone")

  batches = to_devices(source(), rows)
  next(batches)
  for _ in range(2):
    with pytest.raises(OSError, match="the disk is gone"):
      next(batches)


def test_closing_closes_the_source_and_the_thread():
  class Host:
    closed = False

    def __iter__(self):
      return map(batch, range(100))

    def close(self):
      self.closed = True

  host = Host()
  batches = to_devices(host, rows)
  next(batches)
  batches.close()
  batches.close()
  assert host.closed
  assert all(t.name != "to_devices" for t in threading.enumerate())
  with pytest.raises(StopIteration):
    next(batches)


def test_waiting_is_measured():
  def slow():
    for value in range(3):
      time.sleep(0.1)
      yield batch(value)

  with to_devices(slow(), rows) as batches:
    next(batches)
    next(batches)
    # Two sleeps less what it takes to get here; a loaded machine adds to it.
    assert batches.seconds_waited > 0.1
    share = batches.metrics()["time/waiting"]
    assert 0.3 < share <= 1
    time.sleep(0.3)
    next(batches)
    assert batches.metrics()["time/waiting"] < 0.5


def test_refuses_no_depth():
  with pytest.raises(ValueError, match="depth=0"):
    to_devices([], rows, depth=0)


class Kept(logging.Handler):
  def __init__(self):
    super().__init__()
    self.lines = []

  def emit(self, record):
    self.lines.append(record.getMessage())


@pytest.fixture
def log():
  handler = Kept()
  logger = absl_logging.get_absl_logger()
  logger.addHandler(handler)
  yield handler.lines
  logger.removeHandler(handler)


def test_bad_records_are_counted_and_named_once(log):
  class Source(list):
    def __repr__(self):
      return "Source(test)"

  source = Source([{"image": b"", "text": "a"}] * 30)
  bad = BadRecords(source)
  fine = {"index": np.arange(4), "error": np.zeros(4, np.int8)}
  bad.name(fine)
  bad.count(np.zeros(len(CAUSES)))
  assert bad.total == 0 and bad.metrics() == {"data/bad_records": 0.0}
  code = [0, CAUSES["empty_image"], CAUSES["empty_image"], CAUSES["too_large"]]
  for start in (0, 10):
    info = {"index": np.arange(start, start + 4), "error": np.int8(code)}
    bad.name(info)
    # Of all processes: as many as a step says, and not as were named.
    bad.count(np.bincount(code, minlength=len(CAUSES)).astype(np.float32))
  assert bad.counts == {"empty_image": 4, "too_large": 2}
  assert bad.metrics() == {
    "data/bad_records": 6.0,
    "data/bad/empty_image": 4.0,
    "data/bad/too_large": 2.0,
  }
  assert len(log) == 2
  assert "record 1 of Source(test)" in log[0] and "zero bytes" in log[0]
  assert "record 3 of Source(test)" in log[1]
