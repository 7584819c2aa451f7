"""Wrong input of a command ends in a line that names it."""

import pytest

from tests.train_test import command


@pytest.mark.parametrize("module", ["aced.train", "aced.plan", "aced.cache"])
def test_a_misspelt_key_is_told_in_a_line(repository, tmp_path, module):
  folder = "workdir" if module == "aced.train" else "output"
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    f"--{folder}={tmp_path / 'new'}",
    "--config.curation.filter_ration=0.5",
    module=module,
  )
  assert code == 1
  assert "Did you mean 'filter_ratio'" in text
  assert "Traceback" not in text and len(text.splitlines()) <= 3
  assert not (tmp_path / "new").exists()


def test_a_trace_is_shown_where_it_is_asked_for(repository, tmp_path):
  code, text = command(
    repository,
    "--config=configs/acid.py:smoke",
    "--mfu=40",
    "--traceback",
    module="aced.plan",
  )
  assert code == 1 and "Traceback" in text and "--mfu=40.0 is a share" in text
