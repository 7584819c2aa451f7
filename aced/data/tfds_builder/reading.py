"""Records of a source as examples of TFDS; what Beam runs on its workers."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

from aced.data.convert import shard_files
from aced.data.records import BadRecord, Record, Source, captions
from aced.data.sources import open_source
from aced.data.sources.examples import EXTRA

# The counters in the metrics of Beam: "SPLIT/dropped/CAUSE", and so on.
METRICS = "aced_pairs"
# Records that a worker reads in one go, and what is split up on the workers:
# a pipeline holds some stretches, not all that it will be split into.
_SPAN, _STRETCHES = 1000, 1000

Example = dict[str, Any]
# Told "dropped/CAUSE" or "left_out/FIELD".
Count = Callable[[str], None]


def spans(start: int, stop: int, size: int) -> list[tuple[int, int]]:
  """Returns `(start, stop)` of consecutive parts of at most `size`."""
  return [(k, min(k + size, stop)) for k in range(start, stop, size)]


def example(record: Record) -> Example:
  """Returns a record as an example of the features of `AcedPairs`.

  Args:
    record: as `shard_files.usable` returns it.

  Raises:
    TypeError: a field is not what JSON can express.
  """
  texts = [_utf8(text) for text in captions(record)]
  others = {k: v for k, v in record.items() if k != "image"}
  # A lone caption is read as a string.
  if others["text"] == (texts if len(texts) > 1 else texts[0]):
    del others["text"]
  return {"image": record["image"], "text": texts, EXTRA: json.dumps(others)}


def examples(
  source: Source, span: tuple[int, int], verify: bool, count: Count
) -> Iterator[tuple[int, Example]]:
  """Yields `(index, example)` of the records that can be used.

  Args:
    source: of pairs.
    span: first record, and the one after the last.
    verify: whether pictures are decoded, to see that they can be.
    count: told of each record that is dropped, and of fields left out.
  """
  for index in range(*span):
    try:
      record = shard_files.usable(source[index], verify)
    except BadRecord as bad:
      count(f"dropped/{bad.cause}")
      continue
    try:
      yield index, example(record)
    except TypeError:
      record, left_out = shard_files.expressible(record)
      for name in left_out:
        count(f"left_out/{name}")
      yield index, example(record)


def beam_examples(spec: str, split: str, records: int, verify: bool) -> Any:
  """Returns a Beam transform that gives `(index, example)` of a source.

  Args:
    spec: of the source, which every worker process opens once, as it stands:
      its paths must mean the same everywhere.
    split: named in the counters.
    records: of the source.
    verify: whether pictures are decoded, to see that they can be.
  """
  import apache_beam as beam

  stretch = _SPAN * math.ceil(records / (_SPAN * _STRETCHES))
  return (
    beam.Create(spans(0, records, stretch))
    | "split up" >> beam.FlatMap(_split_up)
    # Without it, each worker would read a whole stretch.
    | beam.Reshuffle()
    | "read" >> beam.FlatMap(_read, spec, split, verify)
  )


def counted(result: Any) -> dict[str, dict[str, int]]:
  """Returns split -> what was counted -> how often, of an ended pipeline."""
  import apache_beam as beam

  ours = beam.metrics.MetricsFilter().with_namespace(METRICS)
  counts: dict[str, dict[str, int]] = {}
  for counter in result.metrics().query(ours)["counters"]:
    split, _, what = counter.key.metric.name.partition("/")
    counts.setdefault(split, {})[what] = counter.result
  return counts


def _split_up(stretch):
  return spans(*stretch, _SPAN)


def _read(span, spec, split, verify):
  import apache_beam as beam

  def count(what):
    beam.metrics.Metrics.counter(METRICS, f"{split}/{what}").inc()

  return examples(_open(spec), span, verify, count)


_OPENING, _OPEN = threading.Lock(), {}


def _open(spec: str) -> Source:
  """The source, opened once in each process; its threads share it."""
  with _OPENING:
    if spec not in _OPEN:
      _OPEN[spec] = open_source(spec)
    return _OPEN[spec]


def _utf8(text: str) -> str:
  """Text that UTF-8 can hold: half of a surrogate pair becomes "?"."""
  return text.encode("utf-8", "replace").decode("utf-8")
