"""The page of a run, from what its workdir holds."""

import json
import re
import subprocess
import sys

import pytest

from aced import report
from aced.reporting.run import run_page
from aced.training.workdir import WorkdirError
from tests.pages.frame_test import Tags


def test_the_page_holds_what_the_run_did(make_run):
  text = run_page(make_run())
  assert not Tags(text).open
  assert "Finished: 12 steps of 12" in text
  # 12 steps of 16 pairs, five scored for each.
  for name, value in (("trained pairs", "192"), ("scored pairs", "960")):
    assert f"<dt>{name}</dt><dd>{value}</dd>" in text
  for title in (
    "Loss",
    "retrieval",
    "Selection gain: score kept less score of the pool (nats)",
    "Effective sample size of a draw (candidates)",
    "Clean pairs",
    "Trained examples a second",
    "Share of the time that steps waited for data",
  ):
    assert f'aria-label="{title}"' in text
  for part in ("training", "student scoring", "reference scoring", "selection"):
    assert f"<td>{part}</td>" in text
  assert "retrieval/mean/R@1" in text and "0.2500" in text
  assert "curation.filter_ratio" in text


def test_the_contact_sheet_shows_pairs_with_scores_and_faults(make_run):
  text = run_page(make_run())
  assert text.count('<h3 class="moment">') == 2
  for word, count in (("Kept", 16), ("Dropped", 64)):
    assert f"<strong>{word}</strong> {count} pairs" in text
  assert text.count("data:image/jpeg") == 2 * 2 * 9
  assert re.search(r"[+-]\d\.\d\d = \d\.\d\d - \d\.\d\d", text)
  assert "swapped" in text


@pytest.mark.parametrize(
  ("unit", "value"), [("examples", 192), ("epochs", 0.48)]
)
def test_a_length_in_other_units_is_told_in_steps(make_run, unit, value):
  where = make_run()
  path = where / "config.json"
  flat = json.loads(path.read_text())
  flat |= {"total_steps": None, f"total_{unit}": value}
  path.write_text(json.dumps(flat))
  text = run_page(where)
  assert "Finished: 12 steps of 12" in text and "the run" in text


def test_a_run_without_curation_has_no_contact_sheet(make_run):
  text = run_page(make_run("iid"))
  assert "Kept and dropped" not in text and "Finished" in text


def test_a_run_that_goes_on_is_told_as_such(make_run):
  text = run_page(make_run(steps=5))
  assert "So far: 5 steps of 12" in text


def test_what_went_wrong_stands_first(make_run):
  where = make_run(
    **{
      "guard/skipped": 3.0,
      "data/bad_records": 2.0,
      "eval/zero_shot/failed": 1.0,
    }
  )
  text = run_page(where)
  assert "3 steps were not finite" in text
  assert "2 records could not be used" in text
  assert "the evaluator zero_shot failed" in text
  assert "--tone: var(--bad)" in text


def test_data_that_has_moved_costs_the_pictures_alone(make_run):
  text = run_page(make_run(source="jsonl:/nowhere/pairs.jsonl"))
  assert "The pairs cannot be shown" in text and "Finished" in text


def test_damaged_picks_cost_the_pictures_alone(make_run):
  where = make_run()
  next((where / "picks").glob("*.npz")).write_bytes(b"PK\x03\x04 cut short")
  text = run_page(where)
  assert "npz is damaged" in text and "Finished" in text


def test_an_evaluator_that_failed_once_and_works_again_is_no_failure(make_run):
  where = make_run()
  path = where / "metrics.jsonl"
  failed = json.dumps({"step": 6, "eval/retrieval/failed": 1.0})
  path.write_text(f"{failed}\n{path.read_text()}")
  assert "the evaluator retrieval" not in run_page(where)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(WorkdirError, match="Expected the workdir of a run"):
    run_page(tmp_path)


def test_the_command_writes_the_page_whole(make_run, tmp_path, monkeypatch):
  where = make_run()
  output = tmp_path / "pages" / "a.html"
  argv = ["report", "--workdir", str(where), "--output", str(output)]
  monkeypatch.setattr(sys, "argv", argv)
  report.main()
  assert [path.name for path in output.parent.iterdir()] == ["a.html"]
  assert report.write(where) == where / "report.html"


def test_a_page_that_fails_costs_the_run_a_line(make_run, caplog):
  where = make_run()
  (where / "metrics.jsonl").write_text("no JSON\n")
  report.at_the_end(where)
  assert "the page of the run could not be written" in caplog.text
  done = subprocess.run(
    [sys.executable, "-m", "aced.report", "--workdir", str(where)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and "metrics.jsonl, line 1" in done.stderr
