"""Charts: where things are drawn, and that what is drawn is well-formed."""

import re
from xml.etree import ElementTree

import pytest

from aced.pages import charts
from aced.pages.charts import Bar, Series

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
  return ElementTree.fromstring(charts.standalone(svg))


def points(svg):
  """The points of every line drawn, in pixels."""
  return [
    [tuple(map(float, p.split(","))) for p in line.get("points").split()]
    for line in parsed(svg).iter(f"{SVG}polyline")
  ]


def words(svg):
  return [text.text for text in parsed(svg).iter(f"{SVG}text")]


def test_lines_stand_where_their_values_say():
  svg = charts.lines("Loss", [Series("loss", [0, 50, 100], [0.0, 1.0, 2.0])])
  (line,) = points(svg)
  left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
  bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
  assert line == [
    (left, bottom),
    ((left + right) / 2, (bottom + top) / 2),
    (right, top),
  ]
  assert words(svg)[0] == "Loss"
  assert {"0.0", "2.0", "0", "100", "step"} <= set(words(svg))


def test_a_gap_is_no_line_and_a_lone_point_is_a_dot():
  ys = [1.0, 2.0, float("nan"), 3.0]
  svg = charts.lines("x", [Series("x", [1, 2, 3, 4], ys)])
  assert [len(line) for line in points(svg)] == [2]
  assert len(list(parsed(svg).iter(f"{SVG}circle"))) == 1


def test_a_band_goes_around_its_line():
  series = Series("x", [0, 1], [1.0, 2.0], [0.5, 1.0], [2.0, 4.0])
  svg = charts.lines("x", [series])
  (band,) = parsed(svg).iter(f"{SVG}polygon")
  heights = [float(p.split(",")[1]) for p in band.get("points").split()]
  (line,) = points(svg)
  for (_, y), high, low in zip(line, heights[:2], heights[:1:-1]):
    assert high < y < low  # Pixels count downwards.


@pytest.mark.parametrize(
  "values", [[3.0], [0.0], [5.0, 5.0], [-2.0, -1.0], [1e-9, 2e-9], [1e13, 3e13]]
)
def test_any_range_of_values_has_ticks_within_the_chart(values):
  svg = charts.lines("x", [Series("x", range(len(values)), values)])
  root = parsed(svg)
  grid = [g for g in root.iter(f"{SVG}line") if g.get("class") == "grid"]
  assert 2 <= len(grid) <= 12
  for line in grid:
    assert charts.TOP - 1 <= float(line.get("y1")) <= charts.HEIGHT
  assert not re.search("nan|inf", svg)


def test_nothing_is_drawn_of_nothing():
  assert charts.lines("x", []) == ""
  assert charts.lines("x", [Series("x", [1.0], [float("nan")])]) == ""
  assert charts.bars("x", [Bar("a", float("nan"))]) == ""


def test_bars_are_as_long_as_their_values():
  svg = charts.bars("Score", [Bar("a", 0.25), Bar("b", 0.5, [0.4, 0.6])])
  root = parsed(svg)
  drawn = list(root.iter(f"{SVG}rect"))[1:]  # The first is the ground.
  widths = [float(r.get("width")) for r in drawn]
  assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
  end = float(drawn[1].get("x")) + widths[1]
  first, second = (float(c.get("cx")) for c in root.iter(f"{SVG}circle"))
  assert first < end < second  # 0.4 and 0.6 on both sides of 0.5.
  assert {"a", "b"} <= set(words(svg))


def test_percent_and_large_numbers_are_told_short():
  svg = charts.lines("x", [Series("x", [0, 2e6], [0.1, 0.3])], percent=True)
  assert {"10%", "30%"} <= set(words(svg))
  assert {"1M", "2M"} <= set(words(svg))


SMALL = 1e-5, 1.2e-5, 4e-5


@pytest.mark.parametrize("percent", [False, True])
@pytest.mark.parametrize(
  ("x", "y"),
  [
    ((0, 500, 1000), SMALL),
    (SMALL, SMALL),
    ((9990, 10_000, 10_010), (0.99991, 0.99992, 0.99995)),
    ((1e5, 1.5e5, 163_840), (1_234_567, 1_234_600, 1_234_700)),
    ((1e-7, 1.5e-7, 2e-7), (1e-9, 1.5e-9, 2e-9)),
    ((0, 1, 2), (-12_345.5, -1000, 12_345)),
  ],
)
def test_numbers_of_axes_are_whole_unlike_and_apart(x, y, percent):
  drawn = [
    charts.lines("x", [Series("x", x, y)], percent=percent),
    charts.bars("x", [Bar("", v, [v]) for v in y], percent=percent),
  ]
  for svg in drawn:
    texts = [t for t in parsed(svg).iter(f"{SVG}text") if t.text]
    rows = {}
    for text in texts[1:]:
      if re.fullmatch(r"-?[\d.,]+(e-\d+)?[kM]?%?", text.text):
        anchor = text.get("text-anchor", "start")
        # No font of 12 px has wider digits on average.
        wide = 7.6 * len(text.text)
        start = (
          float(text.get("x"))
          - {"start": 0, "middle": 0.5, "end": 1}[anchor] * wide
        )
        assert start > 0 and start + wide < charts.WIDTH, text.text
        rows.setdefault((anchor, text.get("y")), []).append(
          (start, start + wide, text.text)
        )
    for (anchor, _), row in rows.items():
      if anchor == "middle":  # The x axis.
        assert len(row) >= 2 and len({t for *_, t in row}) == len(row)
        assert all(a[1] < b[0] for a, b in zip(sorted(row), sorted(row)[1:]))
    levels = [t for (a, _), row in rows.items() if a == "end" for *_, t in row]
    assert len(set(levels)) == len(levels)


def test_what_is_written_is_escaped():
  nasty = '<script>"&'
  svg = charts.lines(nasty, [Series(nasty, [0, 1], [0, 1])] * 2)
  assert "<script>" not in svg
  assert nasty in words(svg)


def test_every_line_has_a_place_in_the_legend():
  names = [f"a rather long name {k}" for k in range(7)]
  svg = charts.lines("x", [Series(n, [0, 1], [0, 1]) for n in names])
  root = parsed(svg)
  assert set(names) <= set(words(svg))
  height = float(root.get("viewBox").split()[3])
  for text in root.iter(f"{SVG}text"):
    assert float(text.get("y")) <= height
    if text.text in names:
      assert float(text.get("x")) + 6 * len(text.text) <= charts.WIDTH
