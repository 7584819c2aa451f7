"""The demo in its smallest form."""

import json

import pytest

from aced import demo


@pytest.mark.slow
def test_smoke(tmp_path):
  rows = demo.run(tmp_path, size="smoke", seeds=1)
  labels = ["reference"] + [m.label for m in demo.METHODS.values()]
  assert [row["method"] for row in rows] == labels
  assert json.loads((tmp_path / "results.json").read_text()) == rows
  by_label = {row["method"]: row for row in rows}
  # Equal trained pairs, and a cost that counts the scoring.
  assert len({row["trained pairs"] for row in rows[1:]}) == 1
  assert by_label["IID"]["cost"] == 1.0
  assert by_label["ACED"]["cost"] == by_label["H-ACID"]["cost"] > 2.0
  assert by_label["H-ACID"]["scored pairs"] == 5 * rows[1]["trained pairs"]
  assert by_label["reference"]["clean"] == 1.0

  demo.plot(tmp_path, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 10_000
  # As if another seed had given the same.
  rows += [{**row, "seed": 1} for row in rows if row["method"] != "reference"]
  lines = demo.table(rows).splitlines()
  assert len({len(line) for line in lines[:7]}) == 1  # Columns line up.
  assert "mean R@1 by seed" in demo.table(rows)
  assert lines[0].startswith("| method")
