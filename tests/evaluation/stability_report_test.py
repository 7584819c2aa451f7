"""The command of `aced.evaluation.stability`: its files and its tables."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from aced.evaluation.stability import bootstrap
from aced.evaluation.stability_report import main
from tests.evaluation.stability_test import A, B, task


def write(folder, scores, seed=0, right=None, **more):
  """Writes the results of a seed; returns its folder as a text.

  Args:
    folder: that is made.
    scores: task -> score, or the whole entry.
    seed: names the model.
    right: task -> (index, right), outcomes.
    more: of the file.
  """
  folder.mkdir()
  tasks = {
    name: dict(one) if isinstance(one, dict) else task(one, title=name)
    for name, one in scores.items()
  }
  for name, (index, hits) in (right or {}).items():
    (folder / "outcomes").mkdir(exist_ok=True)
    tasks[name]["outcomes"] = f"outcomes/{name}.npz"
    where = folder / tasks[name]["outcomes"]
    np.savez(where, index=np.array(index), right=np.array(hits))
  content = {
    "format": 1,
    "suite": "stableeval",
    "model": {"fingerprint": f"{folder.name[0]}{seed}"},
    "tasks": tasks,
    "skipped": {},
  }
  (folder / "results.json").write_text(json.dumps(content | more))
  return str(folder)


def write_seeds(tmp_path, letter, **scores):
  """Writes a recipe's seeds; `scores` is task -> one score each, or None."""
  found = []
  for k, row in enumerate(zip(*scores.values(), strict=True)):
    names = dict(zip(scores, row))
    has = {name: x for name, x in names.items() if x is not None}
    lacks = {n: {"reason": "no data"} for n, x in names.items() if x is None}
    folder = tmp_path / f"{letter}{k}"
    found.append(write(folder, has, k, skipped=lacks))
  return found


def test_tables_and_numbers(tmp_path, capsys):
  a = write_seeds(tmp_path, "a", one=A, two=A / 10, three=A)
  b = write_seeds(tmp_path, "b", one=B, two=B / 10, three=[0.7, None, 0.7, 0.7])
  output = tmp_path / "out.json"
  options = [*a, "--against", *b[:3], f"{b[3]}/results.json"]
  assert main([*options, "--output", str(output)]) == 0
  text = capsys.readouterr().out
  table = [line for line in text.splitlines() if str(tmp_path) not in line]
  assert max(map(len, table)) <= 100
  assert "paired in this order" in text and f"B4: {b[3]}/results.json" in text
  (first, second) = (line for line in table if line.startswith("one "))
  assert re.search(r"4  73.12  1.60  1.11 to 3.07 .* noisy", first)
  # 1.875 +- 3.18245 * 2.1360 / 2.
  assert re.search(r"73.12  71.25  \+1.88  -1.52 to \+5.27", second)
  assert "three*" in text and "average (2)" in text
  joined = " ".join(text.split())
  assert "*three is left out of the averages" in joined and "no data" in joined
  assert "With 4 seeds no p of flips of signs is below 2/2^4 = 0.125" in joined
  assert "it cannot reach 0.05" in joined and "0.250†" in text
  assert "not all their outcomes are on disk: one, two" in joined
  found = json.loads(output.read_text())
  assert found["suite"] == "stableeval" and found["paired"] is True
  assert found["tasks"]["one"]["difference"]["mean"] == pytest.approx(0.01875)
  assert found["runs"][0] == f"{a[0]}/results.json"
  assert found["averages"]["all"]["tasks"] == ["one", "two"]
  assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out.json"]


def test_six_seeds_can_reach_a_twentieth(tmp_path, capsys):
  low = np.array([0.1, 0.2, 0.3, 0.2, 0.4, 0.1])
  a = write_seeds(tmp_path, "a", one=low + [0.1, 0.2, 0.1, 0.1, 0.1, 0.2])
  assert main([*a, "--against", *write_seeds(tmp_path, "b", one=low)]) == 0
  text = capsys.readouterr().out
  assert "0.031" in text and "†" not in text


def test_one_recipe_and_markdown(tmp_path, capsys):
  names = {"one": "A|B", "a_very_long_name_of_a_task": "x" * 40}
  folders = []
  for k, score in enumerate(A):
    tasks = {n: task(score, title=t) for n, t in names.items()}
    folders.append(write(tmp_path / f"a{k}", tasks, k))
  assert main([*folders, "--markdown", "--max_sd", "9"]) == 0
  text = capsys.readouterr().out
  table = [line for line in text.splitlines() if line.startswith("|")]
  assert len(table) == 2 + 2 + 2
  assert len({line.replace("\\|", "").count("|") for line in table}) == 1
  assert "A\\|B" in text and "xxx…" in text and "A - B" not in text
  assert text.count("| stable") == 2 and "is at most 9" in text
  assert "average, stable (2)" in text


def test_bootstrap_over_pictures(tmp_path, capsys):
  rng = np.random.default_rng(0)
  hits = rng.random((2, 3, 200)) < np.array([0.8, 0.6])[:, None, None]
  folders = {"a": [], "b": []}
  for letter, group in zip("ab", hits):
    for k, right in enumerate(group):
      order = rng.permutation(200)
      tasks = {
        "one": task(float(right.mean()), title="One", evaluated=200),
        "two": task(0.5, title="Two", metric="mean/R@1"),
      }
      outcomes = {"one": (order, right[order])}
      folder = write(tmp_path / f"{letter}{k}", tasks, k, outcomes)
      folders[letter].append(folder)
  options = [*folders["a"], "--against", *folders["b"]]
  assert main([*options, "--output", str(tmp_path / "out.json")]) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  pictures = found["tasks"]["one"]["pictures"]
  assert pictures == bootstrap(hits[0].mean(axis=0) - hits[1].mean(axis=0))
  assert pictures["low"] > 0 and "pictures" not in found["tasks"]["two"]
  text = capsys.readouterr().out
  assert (
    f"+{100 * pictures['low']:.2f} to +{100 * pictures['high']:.2f}" in text
  )
  (tmp_path / "b1" / "outcomes" / "one.npz").unlink()
  assert main(options) == 0
  assert "not all their outcomes are on disk: one" in capsys.readouterr().out


def cut(path):
  path.write_bytes(path.read_bytes()[:-60])


def array_alone(path):
  with path.open("wb") as file:
    np.save(file, np.zeros(3))


def holding(**arrays):
  return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (cut, "damaged or holds no outcomes"),
    (array_alone, "damaged or holds no outcomes"),
    (holding(right=[True]), "damaged or holds no outcomes"),
    (holding(right=np.array([True], object), index=[0]), "damaged or holds no"),
    (holding(right=[1.0], index=[0]), "right as float64"),
    (holding(right=[True] * 2, index=[4, 4]), "one outcome"),
    (holding(right=[True], index=[4, 5]), "one outcome"),
    (holding(right=[True], index=[4, 4]), "one outcome"),
    (holding(right=np.zeros(0, bool), index=np.zeros(0, int)), "one outcome"),
    (holding(right=[False], index=[0]), "0.0000, not 1.0000"),
    (holding(right=[True], index=[7]), "no record is in"),
  ],
)
def test_outcomes_that_are_refused(tmp_path, capsys, harm, message):
  folders = []
  for k in range(4):
    outcomes = {"one": ([0, 1], [True, True])}
    folders.append(write(tmp_path / f"a{k}", {"one": 1.0}, k, outcomes))
  harm(tmp_path / "a3" / "outcomes" / "one.npz")
  assert main([*folders[:2], "--against", *folders[2:]]) == 2
  error = capsys.readouterr().err
  assert "ResultsError" in error and message in error and "one" in error


def test_outcomes_outside_the_folder_are_not_read(tmp_path, capsys):
  np.savez(tmp_path / "one.npz", right=[True], index=[0])
  entry = task(1.0, outcomes="../one.npz")
  folders = [write(tmp_path / f"a{k}", {"one": entry}, k) for k in range(4)]
  assert main([*folders[:2], "--against", *folders[2:]]) == 2
  assert "outcomes elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"format": 2}, "format=2"),
    ({"suite": "smoke"}, "of suite stableeval and .*a1.* of smoke"),
    ({"tasks": []}, "no table of tasks"),
    ({"model": None}, "no table of model"),
    ({"tasks": {"one": 3}}, "one is no table"),
    ({"skipped": {"one": 3}}, "one is no table"),
    ({"tasks": {"one": {"score": 1}}}, "one has no metric"),
    ({"tasks": {"one": task(math.nan)}}, "task one has the score nan"),
    ({"tasks": {"one": task(0.5) | {"high": math.inf}}}, "score 0.5 in .*inf"),
    ({"tasks": {"one": task(0.5) | {"score": "0.5"}}}, "score '0.5'"),
    ({"tasks": {"one": task(0.5, metric="mean_per_class")}}, "another metric"),
    ({"tasks": {"one": task(0.5, evaluated=7)}}, "another number of records"),
    ({"model": {"fingerprint": "a0"}}, "of the same model"),
  ],
)
def test_results_that_are_refused(tmp_path, capsys, change, message):
  folders = write_seeds(tmp_path, "a", one=A[:2])
  path = tmp_path / "a1" / "results.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  assert main(folders) == 2
  error = " ".join(capsys.readouterr().err.split())
  assert re.search(message, error) and "a1" in error


def test_arguments_that_are_refused(tmp_path, capsys):
  a, b = (write_seeds(tmp_path, x, one=A[:3]) for x in "ab")
  (tmp_path / "text.json").write_text("{")
  for options, message in (
    ([a[0], f"{a[0]}/results.json", a[1]], "of the same file"),
    ([a[0], a[1], "--against", b[0], a[1]], "of the same file"),
    ([a[0]], "is one seed"),
    ([*a, "--against", *b[:2]], "3 seeds against 2"),
    ([a[0], str(tmp_path / "none")], "none is not there"),
    ([a[0], str(tmp_path)], "results.json is not there"),
    ([a[0], str(tmp_path / "text.json")], "is no JSON"),
    ([*a, "--max_sd", "0"], "--max_sd=0"),
    ([*a, "--confidence", "1"], "--confidence=1"),
    ([*a, "--confidence", "0.4"], "--confidence=0.4"),
    ([*a, "--unpaired"], "--unpaired needs"),
    ([*a, "--output", f"{a[1]}/results.json"], "is one of the results"),
  ):
    assert main(options) == 2
    out, error = capsys.readouterr()
    assert message in error and not out


def test_what_is_let_pass(tmp_path, capsys):
  a, b = (write_seeds(tmp_path, x, one=A[:3]) for x in "ab")
  assert main([*a, "--against", *b[:2], "--unpaired"]) == 0
  text = capsys.readouterr().out
  assert "3 seeds of A against 2 of B, not paired" in text and "3+2" in text
  assert "With 3+2 seeds no p of ways to deal the scores is below 0.1" in text
  # Both recipes from the same models: other pictures may have been meant.
  again = [
    write(tmp_path / f"a{k + 7}", {"one": 0.3 + k / 9}, k) for k in (0, 1)
  ]
  assert main([*a[:2], "--against", *again]) == 0


def test_command_as_a_program(tmp_path, repository):
  folders = write_seeds(tmp_path, "a", one=A, two=A / 10)
  done = subprocess.run(
    [sys.executable, "-m", "aced.evaluation.stability", *folders],
    cwd=repository,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("Suite stableeval, 4 seeds")
  assert not done.stderr


def test_scores_of_other_data_are_refused(tmp_path, capsys):
  one = write(tmp_path / "a0", {"x": task(0.5) | {"data": "cafe"}})
  other = write(tmp_path / "a1", {"x": task(0.5) | {"data": "beef"}}, 1)
  assert main([one, other]) == 2
  assert (
    "another set of pictures, classes or prompts" in capsys.readouterr().err
  )
  # Results from before it was written down are taken as they are.
  older = write(tmp_path / "a2", {"x": task(0.6)}, 2)
  assert main([one, older]) == 0


def test_nothing_to_tell_is_no_success(tmp_path, capsys):
  folders = [write(tmp_path / f"a{k}", {}, k) for k in range(2)]
  assert main(folders) == 2
  assert "no task was run" in capsys.readouterr().err
  scored = [write(tmp_path / f"b{k}", {"x": 0.5}, k) for k in range(2)]
  assert main([*scored, "--max_sd", "inf"]) == 2
