"""A study from end to end: three small cells, their table, plots and page."""

import dataclasses
import json

import pytest

from aced import config as config_lib
from aced.training.watch import Diverged
from studies import plot, questions, table
from studies.run import Runner, parse
from studies.sets import STUDIES
from studies.study import Cell

# Seconds: two steps of a study whose pictures are few.
CHANGES = {
  "total_steps": 2,
  "eval.every_steps": 1,
  "log.every_steps": 1,
  "batch_size": 16,
  "curation.num_chunks": 4,
  "optimizer.warmup_steps": 0,
  "log.progress": False,
}
STUDY = dataclasses.replace(
  STUDIES["scenes"],
  pool="synthetic:train?size=400&seed=0&noise={noise}",
  reference_base={},
  evals={"retrieval": {"type": "retrieval", "source": "synthetic:val?size=64"}},
)
CELLS = [Cell("iid", 0.6, 0), Cell("h_acid", 0.6, 0)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("study")
  left = Runner(STUDY, path, changes=CHANGES).run(
    [*CELLS, Cell("h_acid", 0.6, 0, devices=64)]
  )
  assert [cell.devices for cell in left] == [64]
  return path


@pytest.mark.slow
def test_the_table_has_a_row_for_every_run(workdir):
  rows = {row["run"]: row for row in table.read(workdir / table.TABLE)}
  assert set(rows) == {"larger", *(cell.name for cell in CELLS)}
  iid, acid = (rows[cell.name] for cell in CELLS)
  assert iid["trained_examples"] == acid["trained_examples"] == 2 * 16
  assert iid["scored_examples"] == 0 and acid["scored_examples"] == 2 * 80
  assert iid["relative_cost"] == 1.0
  # Read from a cache, the reference costs nothing; without, it does.
  assert acid["flops"] < acid["flops_without_cache"]
  assert 0 < acid["kept/clean"] < 3 and "selection_gain" in acid
  assert iid["config"] != acid["config"] and len(str(iid["config"])) == 12
  curves = table.read(workdir / table.CURVES)
  steps = [p["step"] for p in curves if p["run"] == CELLS[1].name]
  assert steps == [1, 2]
  assert curves[-1][STUDY.metric] == pytest.approx(
    rows[curves[-1]["run"]][STUDY.metric]
  )


@pytest.mark.slow
def test_what_is_done_is_not_done_again(workdir):
  before = (workdir / "cells" / CELLS[1].name / "row.json").stat().st_mtime_ns
  runner = Runner(STUDY, workdir, changes=CHANGES)
  runner.run(CELLS)
  after = (workdir / "cells" / CELLS[1].name / "row.json").stat().st_mtime_ns
  assert before == after
  with pytest.raises(config_lib.ConfigError, match="is of another study"):
    Runner(STUDY, workdir, changes=CHANGES | {"total_steps": 3})
  other = dataclasses.replace(STUDY, reference_base={"seed": 7})
  with pytest.raises(config_lib.ConfigError, match="with another config"):
    Runner(other, workdir, changes=CHANGES).run(CELLS)


def test_a_cell_that_diverges_does_not_stop_the_others(tmp_path, monkeypatch):
  def train(config, where):
    if "h_acid" in where.name:
      raise Diverged(2, {"loss": float("nan")}, None)

  runner = Runner(STUDY, tmp_path, changes=CHANGES)
  monkeypatch.setattr("studies.run.train", train)
  monkeypatch.setattr(runner, "reference", lambda size: None)
  monkeypatch.setattr(runner, "_cache", lambda cell: None)
  lines = [{"step": 2, "eval/retrieval/mean/R@1": 0.1, "loss": 1.0}]
  monkeypatch.setattr("studies.run.read_jsonl", lambda path: lines)
  monkeypatch.setattr("studies.run.table.write", lambda workdir: None)
  cells = [CELLS[1], CELLS[0]]
  assert runner.run(cells) == []
  assert runner.diverged == [CELLS[1]]
  assert (tmp_path / "cells" / CELLS[0].name / "row.json").exists()
  assert not (tmp_path / "cells" / CELLS[1].name / "row.json").exists()


@pytest.mark.slow
def test_a_cell_of_another_reference_is_not_taken_for_done(workdir):
  runner = Runner(STUDY, workdir, changes=CHANGES)
  path = workdir / "references" / "larger" / "row.json"
  before = path.read_text()
  row = json.loads(before)
  try:
    path.write_text(json.dumps(row | {"config": "0" * 12}))
    with pytest.raises(config_lib.ConfigError, match="another reference"):
      runner.cell(CELLS[1])
  finally:
    path.write_text(before)


def test_a_failed_evaluation_is_no_result():
  with pytest.raises(ValueError, match="eval/x/failed"):
    table.outcome([{"step": 1, "eval/x/failed": 1.0}])


def test_time_goes_on_between_lines_that_tell_the_speed():
  lines = [
    {"step": 10, "time/examples_per_second": 64.0},
    {"step": 15, "eval/x": 0.1},
    {"step": 20, "time/examples_per_second": 32.0},
    {"step": 30, "time/examples_per_second": 32.0},
    {"step": 30, "eval/x": 0.2},
  ]
  row = {"run": "a", "config": "b", "trained_examples": 30 * 64}
  row["flops_without_cache"] = 30.0
  first, second = table._curve(row, lines)
  # One step a second, and from the fifteenth on one in two seconds.
  assert first["seconds"] == 15.0 and second["seconds"] == 15.0 + 2 * 15.0
  assert first["flops"] == 15.0 and second["trained_examples"] == 30 * 64


@pytest.mark.slow
def test_plots_tables_and_the_page(workdir, tmp_path):
  files = plot.draw(workdir, tmp_path / "out")
  names = {path.name for path in files}
  assert {"study.html", "study.md", "a.svg", "g.svg"} <= names
  page = (tmp_path / "out" / "study.html").read_text()
  assert "Study: scenes" in page and "<svg" in page
  text = (tmp_path / "out" / "study.md").read_text()
  rows = table.read(workdir / table.TABLE)
  iid = next(row for row in rows if row["method"] == "iid")
  assert str(iid["config"]) in text  # Every number can be traced.
  # From the tables alone, where the runs are not there any more.
  again = plot.draw(tmp_path / "out", tmp_path / "again")
  assert [p.name for p in again] == [p.name for p in files]
  assert (tmp_path / "again" / "study.md").read_text() == text


def test_damaged_picks_cost_a_row_nothing_else(tmp_path, caplog):
  where = tmp_path / "cells" / "x"
  (where / "picks").mkdir(parents=True)
  (where / "picks" / "00000001.npz").write_bytes(b"PK\x03\x04 cut short")
  (where / "row.json").write_text('{"method": "reference", "seed": 0}')
  table.write(tmp_path)
  assert table.read(tmp_path / table.TABLE)[0]["method"] == "reference"
  assert "is damaged" in caplog.text
  with pytest.raises(ValueError, match="studies"):
    plot.draw(tmp_path)
  (where / "row.json").write_text('{"method": "refer')
  with pytest.raises(ValueError, match=r"row\.json is damaged"):
    table.write(tmp_path)


def test_a_table_without_students_or_cut_short_is_refused(tmp_path):
  path = tmp_path / table.TABLE
  (tmp_path / table.CURVES).write_text("run,step\n")
  path.write_text("run,study,method\nlarger,scenes,reference\n")
  with pytest.raises(ValueError, match="no row of a student yet"):
    plot.draw(tmp_path)
  path.write_text("run,study,method\nlarger,scenes\n")
  with pytest.raises(ValueError, match="number of columns in line 2"):
    plot.draw(tmp_path)


def test_tables_of_no_study_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"studies\.run"):
    plot.draw(tmp_path)
  (tmp_path / "table.csv").write_text("study,run\nother,x\n")
  (tmp_path / "curves.csv").write_text("run\n")
  with pytest.raises(ValueError, match="expected one of scenes"):
    plot.draw(tmp_path)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--questions", "z"], "it is one of"),
    (["--seeds", "0"], "must be 1 or more"),
    (["--total_steps", "0"], "must be 1 or more"),
  ],
)
def test_a_wrong_command_is_told_of(arguments, message, capsys):
  with pytest.raises(SystemExit):
    parse(["--study", "scenes", "--workdir", "x", *arguments])
  assert message in capsys.readouterr().err


def test_a_study_of_files_asks_for_their_folder(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="by --data"):
    Runner(STUDIES["signdigits"], tmp_path)
  # A folder in which nothing began is nobody's.
  assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_changes_says_which(tmp_path):
  Runner(STUDY, tmp_path, changes=CHANGES)
  with pytest.raises(config_lib.ConfigError) as refused:
    Runner(STUDY, tmp_path, changes=CHANGES | {"total_steps": 3})
  assert "changes" in str(refused.value) and "crops" not in str(refused.value)


def test_the_real_set_is_split_and_its_config_resolves(shared_data, tmp_path):
  study = dataclasses.replace(STUDIES["signdigits"], crops=1)
  runner = Runner(study, tmp_path, shared_data)
  Runner(study, tmp_path)  # What is split already is asked for no more.
  counts = json.loads((tmp_path / "data" / "split.json").read_text())
  assert counts["test"] == 402 and counts["pool"] % (study.crops + 1) == 0
  for cell in questions.cells(study, "a", seeds=1):
    config_lib.resolve(runner.config(cell))
