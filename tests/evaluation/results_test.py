"""Averages, tables that line up, and files that are refused."""

import json
import re

import numpy as np
import pytest

from aced.evaluation import results as module
from aced.evaluation import suites
from aced.evaluation.results import ResultsError, average, markdown, read, table


def entry(title, score, **changes):
  """A task's entry as `aced.evaluate` writes it."""
  return {
    "title": title,
    "metric": "accuracy",
    "score": score,
    "low": score - 0.01,
    "high": score + 0.01,
    "evaluated": 10_000,
    "masked": 0,
    "seconds": 12.34,
    "metrics": {"accuracy": score},
    "notes": [],
  } | changes


def recall(title, score, **changes):
  metrics = {"text_to_image/R@1": score - 0.1, "mean/R@1": score}
  return entry(
    title, score, metric="mean/R@1", metrics=metrics, evaluated=5000
  ) | (changes)


def results(tasks=None, of=27, suite="stableeval", **changes):
  """A results file of a suite."""
  tasks = TASKS if tasks is None else tasks
  return {
    "format": 1,
    "suite": suite,
    "about": "What this suite is.",
    "model": {
      "name": "runs-aced@1000",
      "params": 63_123_456,
      "gmacs": 7.1412,
      "image_gmacs": 5.8,
      "text_gmacs": 1.3412,
      "image_size": 256,
      "text_length": 64,
      "latency": {
        "image_ms": 10.04,
        "text_ms": 2.03,
        "batch_size": 1,
        "repeats": 20,
      },
    },
    "tasks": tasks,
    "skipped": {},
    "average": average(tasks, of),
    "device": "8 x NVIDIA H100 80GB HBM3",
  } | changes


TASKS = {
  "imagenet1k": entry("ImageNet", 0.68512, evaluated=50_000, seconds=1234.5),
  "cifar10": entry("CIFAR-10", 1.0, low=0.9, high=1.0),
  "mscoco_captions": recall("MSCOCO", 0.5101),
  "flickr30k": recall("Flickr30k", 0.795, partial=True, notes=["1 of 2"]),
  "wilds-iwildcam": entry(
    "iWildCam", 0.0412, metric="macro_f1", evaluated=42_791
  ),
  "geode": entry(
    "GeoDE", 0.77, metric="worst_group_accuracy", seconds=0.04, low=0.0
  ),
}


def test_average_is_over_whole_tasks_alone():
  tasks = {
    "a": entry("A", 0.5),
    "b": entry("B", 0.8, partial=True),
    "c": entry("C", 0.25),
    "d": entry("D", 0.0, partial=False),
  }
  assert average(tasks, 7) == {"score": 0.25, "tasks": 3, "of": 7}
  # The score of a partial task is nothing to it, and neither is their order.
  tasks["b"]["score"] = np.nan
  assert average(dict(reversed(tasks.items())), 7)["score"] == 0.25


@pytest.mark.parametrize("tasks", [{}, {"a": entry("A", 0.5, partial=True)}])
def test_there_is_no_average_of_nothing(tasks):
  found = results(tasks)
  assert found["average"] == {"score": None, "tasks": 0, "of": 27}
  line = module.average_line(found)
  assert line.startswith("no average: ") and "of the 27 tasks" in line
  assert line in table(found).splitlines()
  assert f"\n\nN{line[1:]}.\n\n" in markdown(found)
  _, summary = tables(markdown(found))
  assert summary[2][4] == "(0 of 27)"


def test_average_line_says_of_how_many():
  assert module.average_line(results()) == (
    f"average {100 * np.mean([0.68512, 1.0, 0.5101, 0.0412, 0.77]):.1f} over"
    " 5 of 27 tasks of stableeval; 22 left out"
  )
  assert module.average_line(results({"a": entry("A", 0.5)}, 1, "mine")) == (
    "average 50.0 over 1 of 1 tasks of mine"
  )


def test_table_lines_up():
  lines = table(results()).splitlines()
  head, rule, *rows = lines[: len(TASKS) + 3]
  assert set(rule) == {"─"} and rows.pop() == rule
  assert {len(line) for line in (head, rule, *rows)} == {len(head)}
  assert len(head) <= 100 and max(map(len, lines)) <= 100
  titles = [task["title"] for task in TASKS.values()]
  assert [row.split("  ")[0] for row in rows] == [
    "Flickr30k (partial)" if t == "Flickr30k" else t for t in titles
  ]
  # No column begins or ends within a word of another row.
  columns = [
    k
    for k in range(len(head))
    if all(line[k : k + 2] == "  " for line in (head, *rows))
  ]
  cells = [re.split(r" {2,}", line.strip()) for line in (head, *rows)]
  assert {len(row) for row in cells} == {6} and len(columns) >= 5
  assert cells[0][1:3] == ["metric", "score"]
  assert cells[1] == [
    *("ImageNet", "accuracy", "68.5", "67.5 to 69.5", "50,000", "1,234.5")
  ]
  assert cells[5][1] == "macro f1" and cells[6][-1] == "0.0"
  for name in ("score", "seconds"):
    end = head.index(name) + len(name)
    assert all(row[end - 1].isdigit() for row in rows)
    assert all(line[end : end + 1] in ("", " ") for line in rows)


def test_table_of_the_longest_words():
  tasks = {
    "a": entry(
      "KITTI closest vehicle (x)",
      1.0,
      metric="worst_group_accuracy",
      low=1.0,
      high=1.0,
      evaluated=182_405,
      seconds=12_345.6,
      partial=True,
    )
  }
  width = len(table(results(tasks)).splitlines()[0])
  assert width <= 100


@pytest.mark.parametrize("name", suites.names())
def test_the_tables_of_the_suites_fit_a_terminal(name):
  tasks = {
    task.name: entry(
      task.title,
      1.0,
      metric=task.metric,
      evaluated=task.records,
      low=1.0,
      high=1.0,
      seconds=1234.5,
      notes=["2 of 3 pictures have no caption, first " + 30 * "record "],
    )
    for task in suites.suite(name).tasks
  }
  lines = table(results(tasks, len(tasks), name)).splitlines()
  assert max(map(len, lines)) <= 80
  assert any(
    line.startswith(f"{task}: 2 of 3") for line in lines for task in tasks
  )


def test_table_ends_with_the_average_the_costs_and_the_notes():
  found = results()
  lines = table(found).splitlines()[len(TASKS) + 3 :]
  assert lines == [
    module.average_line(found),
    "63.1 M parameters, 7.14 GMACs a pair (5.8 image + 1.34 text) at 256 px and"
    " 64",
    "  tokens",
    "latency 12.1 ms, batch 1 (10 image + 2.03 text), on one NVIDIA H100 80GB"
    " HBM3",
    "flickr30k: 1 of 2",
  ]


def test_large_models_have_no_powers_of_ten():
  found = results()
  found["model"] |= {"gmacs": 1234.5, "image_gmacs": 999.6, "text_gmacs": 234.9}
  found["model"]["latency"] |= {"image_ms": 20_000.0, "text_ms": 0.012}
  lines = "\n".join(module.cost_lines(found))
  assert "1,234 GMACs a pair (1,000 image + 235 text)" in lines
  assert "latency 20,000 ms, batch 1 (20,000 image + 0.012 text)" in lines
  assert "e+" not in lines + markdown(found)


def test_without_a_latency_there_is_no_line_and_no_number():
  found = results()
  found["model"]["latency"] = {}
  assert "latency" not in table(found)
  assert "latency" not in markdown(found)


def test_what_was_not_run_says_why_and_how_to_get_it():
  found = results(
    skipped={
      "sun397": {"reason": "not found; looked for x", "get": "fetch sun397"},
      "cars": {"reason": "1 of 2 pictures are there", "get": ""},
    }
  )
  assert module.skipped_lines(found) == [
    "2 of 27 tasks were not run:",
    "  sun397: not found; looked for x",
    "      get it: fetch sun397",
    "  cars: 1 of 2 pictures are there",
  ]
  text = markdown(found)
  assert "2 of 27 tasks were not run:\n\n- sun397\n- cars\n" in text
  assert module.skipped_lines(results()) == []
  assert "not run" not in markdown(results())


def tables(text):
  """The cells of every table: `[[head, rule, *rows], ...]`."""
  found, before = [], ""
  for line in text.splitlines():
    if line.startswith("|"):
      if not before.startswith("|"):
        # A paragraph would go on into the table.
        assert before == ""
        found.append([])
      assert line.endswith(" |") or set(line) <= set("|-:")
      cells = re.split(r"(?<!\\)\|", line)[1:-1]
      found[-1].append([cell.strip() for cell in cells])
    before = line
  return found


@pytest.mark.parametrize("suite", ["stableeval", "mine"])
@pytest.mark.parametrize("tasks", [TASKS, {}])
def test_markdown_is_tables_of_equal_rows(suite, tasks):
  found = markdown(results(tasks, suite=suite))
  every = tables(found)
  assert len(every) == 2
  for head, rule, *_ in every:
    assert all(re.fullmatch(r"-{3,}:?", cell) for cell in rule) and all(head)
  for rows in every:
    assert {len(row) for row in rows} == {len(rows[0])}
  assert len(every[0]) == 2 + len(tasks)
  assert len(every[1]) == 3 + (6 if suite == "stableeval" else 0)
  assert found.startswith(f"# runs-aced@1000: {suite}\n\n|")
  assert found.endswith("\n\nWhat this suite is.\n")


def test_markdown_has_the_numbers_of_the_table():
  tasks, summary = tables(markdown(results()))
  assert tasks[2] == ["ImageNet", "accuracy", "68.5", "67.5 to 69.5", "50,000"]
  assert tasks[5][0] == "Flickr30k (partial)"
  own = dict(zip(summary[0], summary[2], strict=True))
  assert own == {
    "model": "runs-aced@1000",
    "params (M)": "63.1",
    "GMACs": "7.14",
    "latency (ms)": "12.1",
    "average (tasks)": "60.1 (5 of 27)",
    "ImageNet": "68.5",
    "COCO mean R@1": "51.0",
    "Flickr mean R@1": "",  # Not of all its pictures.
  }
  # DESIGN: ACED-F1 has 69.7; 74.9, 55.6 and 85.3 for ImageNet, COCO and Flickr.
  published = {row[0]: row[1:] for row in summary[3:]}
  assert published["ACED-F1 (published)"] == [
    *("", "7.14", "", "69.7 (27 of 27)", "74.9", "55.6", "84.7")
  ]
  assert len(published) == 6


def test_columns_that_have_nothing_are_left_out():
  own = {"a": entry("A", 0.5, notes=["one\nnote"])}
  text = markdown(results(own, 1, "mine", about=""))
  _, summary = tables(text)
  assert summary[0] == [
    *("model", "params (M)", "GMACs", "latency (ms)", "average (tasks)")
  ]
  assert summary[2][-1] == "50.0 (1 of 1)" and len(summary) == 3
  assert "\n\n- a: one note\n\n" in text and text.endswith("(1 of 1) |\n")
  # Those of the paper stay where the suite is one's own, and has its tasks.
  coco = {"mscoco_captions": recall("MSCOCO", 0.5)}
  _, summary = tables(markdown(results(coco, 1, "mine")))
  assert summary[0][-1] == "COCO mean R@1" and summary[2][-1] == "50.0"


def test_a_score_of_classes_without_names_is_shown_and_not_averaged():
  tasks = {
    "a": entry("A", 0.5),
    "b": entry("B", 0.9, unnamed=True, notes=["numbers"]),
  }
  found = results(tasks, 2, "mine")
  assert found["average"] == {"score": 0.5, "tasks": 1, "of": 2}
  for text in (table(found), markdown(found)):
    assert "B (unnamed)" in text and "b: numbers" in text
  found = results({"b": tasks["b"]}, 1, "mine")
  assert "or its classes have no names" in module.average_line(found)
  both = entry("C", 0.1, unnamed=True, partial=True)
  assert "C (partial, unnamed)" in table(results({"c": both}))


def test_columns_of_the_paper_are_of_its_metric_whatever_the_score_is():
  tasks = {
    "mscoco_captions": recall("MSCOCO", 0.5)
    | {"metric": "text_to_image/R@1", "score": 0.4},
    "imagenet1k": recall("ImageNet?", 0.3),
  }
  _, summary = tables(markdown(results(tasks)))
  own = dict(zip(summary[0], summary[2], strict=True))
  assert own["COCO mean R@1"] == "50.0" and own["ImageNet"] == ""


def test_a_bar_or_a_line_end_does_not_break_a_table():
  tasks = {"a": entry("one | two\n| three", 0.5)}
  found = results(tasks)
  found["model"]["name"] = "a|b"
  first, second = tables(markdown(found))
  assert first[2][0] == r"one \| two \| three" and len(first[2]) == 5
  assert second[2][0] == r"a\|b" and len(second[2]) == 8


def test_a_parser_of_markdown_finds_the_same_tables():
  parser = pytest.importorskip("markdown_it", reason="needs markdown-it-py")
  tasks = TASKS | {"bar": entry("one | two", 0.5)}
  text = markdown(results(tasks))
  html = parser.MarkdownIt("commonmark").enable("table").render(text)
  assert html.count("<table>") == 2 and html.count("<h1>") == 1
  rows = html.count("<tr>")
  assert rows == (1 + len(tasks)) + (1 + 1 + 6)
  assert "<td>one | two</td>" in html and "|--" not in html


def test_read_gives_what_was_written(tmp_path):
  path = tmp_path / "results.json"
  path.write_text(json.dumps(results()), "utf-8")
  found = read(path)
  assert found == json.loads(json.dumps(results()))
  assert table(found) == table(results())
  assert markdown(read(str(path))) == markdown(results())


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (json.dumps(results() | {"format": 2}), "has format=2; expected 1"),
    (json.dumps({"tasks": {}}), "has format=None; expected 1"),
    (json.dumps({"format": "1" * 99}), "format='1{39}; expected 1"),
    ("[1, 2]", r"has format=\[1, 2\]; expected 1"),
    ("1", "has format=1; expected 1"),
    (json.dumps(results())[:-9], "is no JSON"),
    ("", "is no JSON"),
    (b"\xff\xfe", "is no JSON"),
  ],
)
def test_read_refuses(tmp_path, content, message):
  path = tmp_path / "results.json"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(ResultsError, match=message) as caught:
    read(path)
  assert str(path) in str(caught.value)


def test_read_says_who_writes_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="aced.evaluate writes"):
    read(tmp_path / "results.json")
