"""Where a run goes on from, and with which keys it may."""

import json
import logging

import pytest
from ml_collections import ConfigDict

from aced.bv import saving
from aced.config import ConfigError
from aced.training.workdir import WorkdirError

pytestmark = pytest.mark.big_vision

LARGE = {"model_name": "m", "model": {"width": 8}, "model_init": "a/b.npz"}


def config(**changes):
  found = {
    "input": {
      "data": {"name": "bv:aced", "source": "jsonl:a"},
      "batch_size": 8,
      "pp": "decode",
    },
    "curation": {"method": "joint", "filter_ratio": 0.5, "reference": "large"},
    "reference": {"large": LARGE},
    "total_steps": 9,
    "schedule": [("t", None), (".*", {"decay_type": "cosine"})],
  }
  return ConfigDict({**found, **changes})


def began(path, given, step=3):
  """A workdir as a run of `given` leaves it after so many steps."""
  path.mkdir(exist_ok=True)
  (path / "config.json").write_text(given.to_json())
  if step:
    (path / "checkpoint.bv-LAST").write_text(f"{step:09d}-tmp")
  return str(path)


def curation(**changes):
  return {"curation": {**config().curation.to_dict(), **changes}}


def data(**changes):
  given = config().input.to_dict()
  return {"input": {**given, "data": {**given["data"], **changes}}}


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"total_steps": 99},  # As big_vision lets it be changed.
    {"lr": 1e-4, "evals": {}},
    curation(kernel="xla", microbatch=16, loss_form="ring"),
    curation(gain=1.0),  # The default, spelt out.
    data(seed=0),
    {"reference": {"large": LARGE | {"labels": "labels"}}},
  ],
)
def test_a_run_goes_on_with_keys_that_may_change(bv, tmp_path, changes):
  workdir = began(tmp_path, config())
  saving.check_goes_on(config(**changes), workdir)


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    (curation(filter_ratio=0.75), "curation.filter_ratio: 0.5 -> 0.75"),
    (curation(temperature=0.5), "curation.temperature: 1.0 -> 0.5"),
    ({"curation": {}}, "curation.method: joint -> uniform"),
    (
      {"reference": {"large": LARGE | {"model_init": "c/d.npz"}}},
      "reference.large.model_init: a/b.npz -> c/d.npz",
    ),
    (
      {"reference": {"large": LARGE | {"model": {"width": 9}}}},
      "reference.large.model.width: 8 -> 9",
    ),
    ({"teachers": {"large": {}}}, "teachers.large.weight: .absent. -> 1.0"),
    (data(source="jsonl:b"), "input.data.source: jsonl:a -> jsonl:b"),
    (data(seed=1), "input.data.seed: 0 -> 1"),
    (
      {"input": config().input.to_dict() | {"batch_size": 16}},
      "input.batch_size: 8 -> 16",
    ),
  ],
)
def test_a_run_of_other_keys_is_refused(bv, tmp_path, changes, line):
  workdir = began(tmp_path, config())
  before = (tmp_path / "config.json").read_text()
  with pytest.raises(WorkdirError, match="these keys differ from it") as caught:
    saving.check_goes_on(config(**changes), workdir)
  assert caught.match(line)
  assert caught.match("Choose another --workdir")
  assert (tmp_path / "config.json").read_text() == before
  # Nothing is saved yet: the new config is taken.
  saving.check_goes_on(
    config(**changes), began(tmp_path / "new", config(), step=0)
  )
  saving.check_goes_on(config(**changes), None)


def test_other_data_than_ours_may_be_changed(bv, tmp_path):
  given = {"input": {"data": {"name": "coco"}, "batch_size": 8}}
  workdir = began(tmp_path, config(**given))
  given["input"]["batch_size"] = 16
  saving.check_goes_on(config(**given), workdir)
  saving.check_goes_on(config(), workdir)


def test_a_run_whose_config_is_gone_goes_on_with_a_word(bv, tmp_path, caplog):
  workdir = began(tmp_path, config())
  (tmp_path / "config.json").unlink()
  with caplog.at_level(logging.WARNING):
    saving.check_goes_on(config(**curation(filter_ratio=0.75)), workdir)
  assert "config.json is gone" in caplog.text


def test_a_run_begins_where_its_state_is_from(bv, tmp_path):
  workdir = began(tmp_path / "a", config(), step=7)
  other = str(tmp_path / "b")
  last = f"{workdir}/checkpoint.bv"
  assert saving.first_step(config(), None) == 0
  assert saving.first_step(config(), other) == 0
  assert saving.first_step(config(), workdir) == 7
  # So data go on where they were, also when that run is killed in its turn.
  assert saving.first_step(config(resume=last), other) == 7
  kept = f"{last}-000000004"
  assert saving.first_step(config(resume=kept), None) == 4
  assert saving.first_step(config(resume=kept), workdir) == 7


def test_a_checkpoint_to_go_on_from_that_is_not_there_is_told(bv, tmp_path):
  workdir = began(tmp_path / "a", config())
  saving.check_resume(config(resume=f"{workdir}/checkpoint.bv"))
  with pytest.raises(ConfigError, match="config.resume='.*/b': there is no"):
    saving.check_resume(config(resume=str(tmp_path / "b")))


def test_a_stream_that_could_not_go_on_is_refused(bv, tmp_path):
  """A step of 16 pairs, and one of 32: pairs would be read again."""
  last = f"{began(tmp_path, config())}/checkpoint.bv"
  other = curation(filter_ratio=0.75)
  with pytest.raises(ConfigError, match="read 16 pairs a step .* read 32"):
    saving.check_resume(config(resume=last, **other))
  saving.check_resume(config(resume=last, **curation(gain=2.0)))
  saving.check_resume(config(resume=last, **other, **data(seed=1)))


def test_what_is_kept_is_read_as_it_was_written(bv, tmp_path):
  """Tuples become lists in JSON, and are not told as changed."""
  reference = {"large": LARGE | {"model": {"out_dim": (None, 8)}}}
  workdir = began(tmp_path, config(reference=reference))
  assert json.loads((tmp_path / "config.json").read_text())["schedule"]
  saving.check_goes_on(config(reference=reference), workdir)
