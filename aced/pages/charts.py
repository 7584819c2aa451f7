"""Charts as SVG, in the colours of the page they stand in.

Drawn here and not by a plotting package so that a page follows the light or
dark scheme of its reader, is readable on a phone, and costs a run milliseconds
and no dependency. `standalone` makes a file of one.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# As wide as a phone shows it, so that there text is no smaller than elsewhere.
WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 34, 40
_LEGEND_ROW, _CHARACTER = 18, 7.0  # Pixels, the second of 12 px text.
_DIGIT = 7.8  # Of a wide font, with its full stops and percent signs.
_GAP = 7  # Between a number and what it is of.
_TITLE_ROW, _TITLE_CHARACTERS = 17, 46
TICKS = 5

# Told apart by those who see no red or no green, on white and on black.
COLOURS = (
  ("#0b62b3", "#6cb2f5"),
  ("#c4570a", "#f29a56"),
  ("#2f7d32", "#7ccb7f"),
  ("#a12a6e", "#ea8cc0"),
  ("#6a6d75", "#a6a9b1"),
  ("#7a5c00", "#d9b64a"),
  ("#4b3fa8", "#aaa0f2"),
)


class Series(NamedTuple):
  """One line.

  Attributes:
    label: in the legend.
    x: ascending.
    y: as many; not a number is a gap.
    low: the least over seeds, for a band; None is no band.
    high: the most.
    colour: number in `COLOURS`; None is that of its place.
    dashed: whether the line is.
  """

  label: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  colour: int | None = None
  dashed: bool = False


class Bar(NamedTuple):
  """One bar, with a mark for every seed."""

  label: str
  value: float
  seeds: Sequence[float] = ()
  colour: int = 0


def colours() -> str:
  """The CSS that charts need, for pages and files."""

  def names(scheme):
    return " ".join(f"--c{k}: {c[scheme]};" for k, c in enumerate(COLOURS))

  return (
    f":root {{ {names(0)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {names(1)} }} }}\n"
    ".chart text { font: 12px system-ui, sans-serif; fill: var(--dim); }\n"
    ".chart .title { font-weight: 600; font-size: 13px; fill: var(--ink); }\n"
    ".chart .grid { stroke: var(--line); stroke-width: 1; }\n"
    ".chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }\n"
    ".chart .band { opacity: .16; }\n"
  )


def lines(
  title: str,
  series: Iterable[Series],
  *,
  x_label: str = "step",
  percent: bool = False,
  zero: bool = False,
  marks: Sequence[tuple[str, float]] = (),
) -> str:
  """A chart of lines.

  Args:
    title: what is drawn, and its unit.
    series: the lines; those without a number are left out.
    x_label: below the x axis.
    percent: whether values are shares, to be told in percent.
    zero: whether the y axis begins at 0.
    marks: `(label, y)` of levels, drawn across.

  Returns:
    SVG, or "" where there is nothing to draw.
  """
  series = [s for s in series if np.isfinite(np.asarray(s.y, float)).any()]
  if not series:
    return ""
  ys = [
    np.asarray(v, float)
    for s in series
    for v in (s.y, s.low, s.high)
    if v is not None
  ]
  ys.append(np.array([y for _, y in marks] + [0.0] * zero))
  y = _Axis.around(np.concatenate(ys), (HEIGHT - BOTTOM, TOP), percent)
  left = max(LEFT, _GAP + 2 + max(_width(y.text(t)) for t in y.ticks()))
  xs = np.concatenate([np.asarray(s.x, float) for s in series])
  x = _Axis(xs.min(), xs.max(), (left, WIDTH - RIGHT))
  parts = [_grid(y, left), _x_axis(x, x_label)]
  for label, level in marks:
    at = y(level)
    parts.append(
      f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"'
      ' stroke="var(--dim)" stroke-dasharray="2 4"/>'
      f'<text x="{WIDTH - RIGHT}" y="{at - 4:.1f}" text-anchor="end">'
      f"{html.escape(label)}</text>"
    )
  for number, one in enumerate(series):
    parts.append(_line(one, _colour(one, number), x, y))
  legend = [(s.label, _colour(s, k), s.dashed) for k, s in enumerate(series)]
  return _svg(title, parts, legend if len(series) > 1 else [])


def bars(
  title: str,
  rows: Iterable[Bar],
  *,
  percent: bool = False,
  marks: Sequence[tuple[str, float]] = (),
) -> str:
  """A chart of bars that lie, with a mark for every seed.

  Args:
    title: what is drawn, and its unit.
    rows: from above.
    percent: whether values are shares, to be told in percent.
    marks: `(label, value)` of levels, drawn down all bars.
  """
  rows = [row for row in rows if math.isfinite(row.value)]
  if not rows:
    return ""
  row_height, left = 44, 14.0
  values = [v for row in rows for v in (row.value, *row.seeds)]
  most = max([*values, *(v for _, v in marks)])
  least = min(0.0, *values)
  x = _Axis(least, most or 1.0, (left, WIDTH), percent)
  told = max(_width(x.text(row.value, True)) for row in rows)
  x.last = WIDTH - max(56, told + 2 * _GAP)
  bottom = TOP + row_height * len(rows)
  parts = [
    f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}"'
    f' y2="{bottom}"/>'
    for t in x.ticks()
  ]
  parts.append(_x_ticks(x, bottom + 16))
  for number, row in enumerate(rows):
    top = TOP + row_height * number + 20  # Its label is above it.
    start, end = sorted((x(0.0), x(row.value)))
    dots = "".join(
      f'<circle cx="{x(v):.1f}" cy="{top + 9}" r="2.6" fill="var(--ink)"/>'
      for v in row.seeds
    )
    beyond = max([end, *(x(v) for v in row.seeds)])
    parts.append(
      f'<text x="{left}" y="{top - 5}">{html.escape(row.label)}</text>'
      f'<rect x="{start:.1f}" y="{top}" width="{max(end - start, 1):.1f}"'
      f' height="18" rx="2" fill="var(--c{row.colour})" opacity=".75"/>{dots}'
      f'<text x="{beyond + _GAP:.1f}" y="{top + 13}">{x.text(row.value, True)}'
      "</text>"
    )
  for label, level in marks:
    parts.append(
      f'<line x1="{x(level):.1f}" x2="{x(level):.1f}" y1="{TOP - 4}"'
      f' y2="{bottom}" stroke="var(--dim)" stroke-dasharray="2 4"/>'
      f"{_centred(label, x(level), bottom + 30)}"
    )
  return _svg(title, parts, [], bottom + (38 if marks else 24))


def standalone(svg: str) -> str:
  """A chart as a file of its own, with its colours."""
  style = (
    "<style>:root { --ink: #1c1d20; --dim: #62656d; --line: #dcdcd8;"
    " --card: #ffffff; }\n@media (prefers-color-scheme: dark) { :root {"
    " --ink: #e8e8e6; --dim: #9fa2a9; --line: #35373a; --card: #1f2022; } }\n"
    f"{colours()}</style>"
    '<rect width="100%" height="100%" fill="var(--card)"/>'
  )
  head, body = svg.split(">", 1)
  return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}\n'


class _Axis:
  """Values to pixels, with ticks at round numbers."""

  def __init__(self, least, most, pixels, percent=False):
    self.percent = percent
    self.least, self.most = float(least), float(most)
    if self.most <= self.least:
      half = abs(self.least) / 2 or 0.5
      self.least, self.most = self.least - half, self.most + half
    self.first, self.last = pixels

  @classmethod
  def around(cls, values, pixels, percent):
    """An axis that begins and ends at ticks around values."""
    values = values[np.isfinite(values)]
    axis = cls(values.min(), values.max(), pixels, percent)
    step = axis.step()
    axis.least = math.floor(axis.least / step + 1e-9) * step
    axis.most = math.ceil(axis.most / step - 1e-9) * step
    return axis

  def __call__(self, value):
    share = (value - self.least) / (self.most - self.least)
    return self.first + share * (self.last - self.first)

  def step(self):
    """1, 2 or 5 times a power of ten: some `TICKS` of them fit."""
    raw = (self.most - self.least) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(k for k in (1, 2, 5, 10) if k * power >= raw * 0.999)

  def ticks(self):
    step = self.step()
    first = math.ceil(self.least / step - 1e-9)
    last = math.floor(self.most / step + 1e-9)
    return [k * step for k in range(first, last + 1)]

  def text(self, value, precise=False):
    """A value in words, as precisely as ticks need, or a place more."""
    value = value * 100 if self.percent else value
    step = self.step() * (100 if self.percent else 1)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if precise:
      # At least three digits of a number below 100.
      places = max(places, 1) if abs(value) < 100 else places
    if max(abs(self.least), abs(self.most)) >= 10_000 and not self.percent:
      if precise and value:  # Three digits, whatever ticks need.
        step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
      return _thousands(value, step)
    text = f"{value:,.{places}f}" if places < 7 else f"{value:.3g}"
    return f"{text}%" if self.percent else text


def _thousands(value, step):
  """A large number in its unit, told apart from those a step away."""
  for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      places = max(0, math.ceil(-math.log10(step / size) - 1e-9))
      if places > 2 and step >= 1:
        return f"{value:,.0f}"
      text = f"{value / size:.{places}f}"
      return f"{text.rstrip('0').rstrip('.') if places else text}{unit}"
  return f"{value:g}"


def _width(text):
  """How wide a number is at most, in pixels, whatever the reader's font."""
  return math.ceil(_DIGIT * len(text))


def _centred(text, at, y):
  """A text around a place, or as near to it as the chart has room."""
  half = _width(text) / 2
  at = min(max(at, half + 1), WIDTH - half - 1)
  return (
    f'<text x="{at:.1f}" y="{y}" text-anchor="middle">{html.escape(text)}'
    "</text>"
  )


def _x_ticks(x, y):
  """The numbers of an axis: all, or every second and so on if these fit."""
  ticks = x.ticks()
  texts = [x.text(tick) for tick in ticks]
  wide = max(map(_width, texts)) + _GAP
  # At its ends numbers are moved inwards, by half of their width at most.
  room = abs(x(ticks[-1]) - x(ticks[0])) - max(0, wide / 2 - RIGHT)
  most = max(1, int(room / wide) + 1)
  every = math.ceil(len(ticks) / most)
  return "".join(
    _centred(text, x(tick), y)
    for tick, text in zip(ticks[::every], texts[::every], strict=True)
  )


def _colour(series, number):
  found = number if series.colour is None else series.colour
  return found % len(COLOURS)


def _grid(y, left):
  return "".join(
    f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}"'
    f' y2="{y(t):.1f}"/><text x="{left - _GAP}" y="{y(t) + 4:.1f}"'
    f' text-anchor="end">{y.text(t)}</text>'
    for t in y.ticks()
  )


def _x_axis(x, label):
  bottom = HEIGHT - BOTTOM
  middle = (x.first + WIDTH - RIGHT) / 2
  return (
    f'{_x_ticks(x, bottom + 16)}<text x="{middle}" y="{bottom + 33}"'
    f' text-anchor="middle">{html.escape(label)}</text>'
  )


def _line(series, colour, x, y):
  """A line in pieces where numbers are missing, and its band."""
  points = [
    (x(a), y(b)) if math.isfinite(b) else None
    for a, b in zip(series.x, map(float, series.y), strict=True)
  ]
  band = ""
  if series.low is not None and series.high is not None:
    edge = [(x(a), y(b)) for a, b in zip(series.x, series.high, strict=True)]
    edge += [(x(a), y(b)) for a, b in zip(series.x, series.low, strict=True)][
      ::-1
    ]
    band = (
      f'<polygon class="band" fill="var(--c{colour})" points="'
      + " ".join(f"{a:.1f},{b:.1f}" for a, b in edge)
      + '"/>'
    )
  dash = ' stroke-dasharray="6 4"' if series.dashed else ""
  pieces, piece = [], []
  for point in [*points, None]:
    if point is not None:
      piece.append(point)
    elif piece:
      pieces.append(piece)
      piece = []
  drawn = "".join(_piece(piece, colour, dash) for piece in pieces)
  title = f"<title>{html.escape(series.label)}</title>"
  return f"<g>{title}{band}{drawn}</g>"


def _piece(points, colour, dash):
  if len(points) == 1:
    ((a, b),) = points
    return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="var(--c{colour})"/>'
  text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
  return (
    f'<polyline class="line" stroke="var(--c{colour})"{dash} points="{text}"/>'
  )


def _svg(
  title: str,
  parts: Sequence[str],
  legend: Sequence[tuple[str, int, bool]],
  height: int = HEIGHT,
) -> str:
  """The whole chart, its legend in rows below."""
  rows, x, y = [], float(LEFT), height + 8
  for label, colour, dashed in legend:
    wide = 38 + _CHARACTER * len(label)
    if x + wide > WIDTH and x > LEFT:
      x, y = float(LEFT), y + _LEGEND_ROW
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    rows.append(
      f'<line class="line" x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y - 4}"'
      f' y2="{y - 4}" stroke="var(--c{colour})"{dash}/>'
      f'<text x="{x + 23:.1f}" y="{y}">{html.escape(label)}</text>'
    )
    x += wide
  words = textwrap.wrap(title, _TITLE_CHARACTERS)
  heads = "".join(
    f'<text class="title" x="4" y="{16 + _TITLE_ROW * k}">{html.escape(w)}'
    "</text>"
    for k, w in enumerate(words)
  )
  down = _TITLE_ROW * (len(words) - 1)
  total = (y + 8 if legend else height) + down
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {total}" role="img"'
    f' aria-label="{html.escape(title)}">{heads}'
    f'<g transform="translate(0 {down})">{"".join(parts)}{"".join(rows)}</g>'
    "</svg>"
  )
