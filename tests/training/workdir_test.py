"""A workdir belongs to one run."""

import json

import pytest

from aced import config as config_lib
from aced.training import workdir


def config(**changes):
  return config_lib.resolve({"batch_size": 8, "total_steps": 3, **changes})


def test_claimed_once_and_found_again(tmp_path):
  assert workdir.claim(tmp_path / "new", config()) == []
  assert workdir.claim(tmp_path / "new", config()) == []
  written = json.loads((tmp_path / "new" / workdir.FILE).read_text())
  assert written["batch_size"] == 8


def test_another_run_is_refused_and_the_keys_are_named(tmp_path):
  workdir.claim(tmp_path, config())
  before = (tmp_path / workdir.FILE).read_bytes()
  with pytest.raises(workdir.WorkdirError, match="batch_size: 8 -> 16"):
    workdir.claim(tmp_path, config(batch_size=16))
  with pytest.raises(workdir.WorkdirError, match="seed: 0 -> 1"):
    workdir.claim(tmp_path, config(seed=1))
  assert (tmp_path / workdir.FILE).read_bytes() == before


def test_harmless_changes_are_told(tmp_path):
  workdir.claim(tmp_path, config())
  changed = config(log={"every_steps": 7}, mesh={"data": 8, "fsdp": 1})
  assert workdir.claim(tmp_path, changed) == [
    "log.every_steps: None -> 7",
    "mesh.data: -1 -> 8",
  ]


@pytest.mark.parametrize("name", workdir.FOREIGN)
def test_what_another_program_left_is_not_taken_over(tmp_path, name):
  (tmp_path / name).write_text("precious")
  with pytest.raises(workdir.WorkdirError, match=f"holds {name} but no config"):
    workdir.claim(tmp_path, config())
  assert (tmp_path / name).read_text() == "precious"
