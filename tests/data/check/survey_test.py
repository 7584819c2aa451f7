"""The pass over the records ends whatever they do."""

import contextlib
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from aced.data.check import command as check
from aced.data.check import facts, survey
from aced.data.check.text import text
from aced.data.records import SourceError
from aced.data.tokenizers import load_tokenizer
from tests.data.check.tools import (
  SMALL,
  Failing,
  look,
)


def test_records_are_spread_evenly():
  assert survey.spread(5, 0).tolist() == survey.spread(5, 9).tolist()
  assert survey.spread(5, 0).tolist() == [0, 1, 2, 3, 4]
  assert survey.spread(10, 4).tolist() == [0, 2, 5, 7]
  assert survey.spread(10**12, 2).tolist() == [0, 5 * 10**11]
  report = look("synthetic:train?size=100", records=10)
  assert (report.records, report.read, report.usable) == (100, 10, 10)
  assert report.sample == tuple(range(0, 100, 10))
  assert "evenly spread" in text(report)


def test_an_error_that_is_no_fault_of_a_record_is_told():
  report = check.check(Failing(40, raises=7), SMALL)
  assert report.usable == 39
  (cause,) = report.causes
  assert (cause.name, cause.count) == (facts.RAISES, 1)
  assert cause.examples[0].detail == "OSError: [Errno 5] the disk is gone"
  assert not report.fit and "would end a run" in report.reasons[0]


def test_a_record_that_ends_its_process_does_not_end_the_check():
  tokenizer = load_tokenizer("bytes", 1024)
  pools = survey._Pools(Failing(2, deadly=1), tokenizer, 1)
  found = facts.join(pools.examine([np.array([0]), np.array([1])], lambda x: x))
  others = facts.examine(Failing(1), tokenizer, [0])
  assert found.read == 2 and found.causes == {"reader_died": 1}
  assert found.examples["reader_died"][0].index == 1
  assert (found.pictures == others.pictures).all()
  assert (found.captions == others.captions).all()


def test_the_record_that_ends_processes_is_found_by_halving(monkeypatch):
  source, tokenizer = Failing(32, deadly=21), load_tokenizer("bytes", 64)
  started = []

  class Pool:
    def submit(self, function, indices):
      started.append(len(indices))
      if 21 in indices:
        raise BrokenProcessPool
      task = Future()
      task.set_result(facts.examine(source, tokenizer, indices))
      return task

  pools = survey._Pools(source, tokenizer, 1)
  monkeypatch.setattr(
    pools, "_pool", lambda workers: contextlib.nullcontext(Pool())
  )
  found = pools._alone(np.arange(32))
  assert found.causes == {"reader_died": 1}
  assert found.examples["reader_died"][0].index == 21
  rest = [k for k in range(32) if k != 21]
  assert found.pictures["index"].tolist() == rest
  assert sorted(started) == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32]


def test_many_deaths_are_no_accident(monkeypatch):
  monkeypatch.setattr(survey, "MOST_DEATHS", 0)
  pools = survey._Pools(Failing(1), load_tokenizer("bytes", 64), 2)
  with pytest.raises(SourceError, match="record 0 of failing, ended the"):
    pools._died(0)
