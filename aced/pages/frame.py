"""HTML pages that ask for nothing but themselves: the frame and its parts.

Every function returns HTML as text. What comes from data or a config is escaped
here, save where an argument says that it is HTML already.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from aced.pages import charts

# Pixels along the longer side.
THUMBNAIL = 128
# Characters of a caption that are shown.
MOST_CHARACTERS = 400

# Whatever a caption may hold, a browser loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1d20; --dim: #62656d;
  --page: #f6f6f4; --card: #fff; --line: #dcdcd8; --well: #ececea;
  --good: #14713d; --bad: #b3261e; --warn: #8a5a00; --plain: #3b5b92; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --dim: #9fa2a9;
  --page: #151617; --card: #1f2022; --line: #35373a; --well: #2a2b2e;
  --good: #6fd699; --bad: #ff8f86; --warn: #e5b65c; --plain: #8fb1ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 70rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.35rem; }
h2 { margin: 2.2rem 0 .7rem; font-size: 1.05rem; }
p { margin: .3rem 0; }
.dim { color: var(--dim); }
.path { overflow-wrap: anywhere; font-family: ui-monospace, monospace;
  font-size: .85rem; }
.verdict { margin: 1rem 0; padding: .7rem .9rem; background: var(--card);
  border: 1px solid var(--line); border-left: 5px solid var(--tone);
  border-radius: 6px; }
.verdict strong { color: var(--tone); }
.verdict ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.warn { color: var(--warn); }
.figures { display: grid; gap: 0 2rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.figures div { display: flex; justify-content: space-between; gap: 1rem;
  padding: .3rem 0; border-bottom: 1px solid var(--line); }
.figures dd { margin: 0; text-align: right;
  font-variant-numeric: tabular-nums; }
.cards { display: grid; gap: .7rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.group .cards { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
.group { margin-bottom: .7rem; padding: .7rem; border-radius: 6px;
  border: 1px solid var(--line); }
.group > p { margin: 0 0 .5rem; }
figure { display: flex; flex-direction: column; margin: 0; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
figure img, .none { display: block; width: 100%; height: 8.5rem;
  object-fit: contain; background: var(--well); }
.none { padding: 1rem .6rem; font-size: .8rem; color: var(--dim); }
figcaption { padding: .45rem .6rem .5rem; overflow-wrap: anywhere; }
figcaption p { max-height: 9.45em; overflow: auto; font-size: .88rem;
  line-height: 1.35; unicode-bidi: isolate; }
small { color: var(--dim); font-size: .75rem; }
small.warn { color: var(--warn); }
.cause { margin-top: 1rem; }
.rows .dim { display: block; font-size: .8rem; }
.rows { width: 100%; border-collapse: collapse; font-size: .88rem; }
.rows td { padding: .35rem .5rem .35rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.rows td.count { width: 5rem; text-align: right; white-space: nowrap;
  padding-right: 1rem; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; padding: .8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; font-size: .75rem;
  line-height: 1.35; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
.numbers { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
.numbers th, .numbers td { padding: .35rem .9rem .35rem 0; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.numbers th:first-child, .numbers td:first-child { text-align: left; }
.numbers th { color: var(--dim); font-weight: 500; }
.charts { display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.charts > div { padding: .6rem .7rem .4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; }
.chart { display: block; width: 100%; height: auto; }
.moment { margin: 1.2rem 0 .4rem; font-size: .95rem; }
.tag { color: var(--good); } .tag.bad { color: var(--bad); }
.sheet { margin-bottom: .5rem; padding: .5rem .6rem; }
.sheet > p { margin-bottom: .3rem; font-size: .88rem; }
.group.sheet .cards { gap: .4rem;
  grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); }
.sheet img, .sheet .none { height: 5.6rem; image-rendering: pixelated; }
.sheet figcaption { padding: .25rem .4rem .3rem; line-height: 1.2; }
.sheet figcaption p { margin: 0 0 .15rem; font-size: .75rem;
  max-height: 4.1em; }
.sheet small { font-size: .68rem; }
"""


def page(title: str, body: str) -> str:
  """The whole page.

  Args:
    title: of the browser's window.
    body: HTML.
  """
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{html.escape(title)}</title>\n<style>{STYLE}{charts.colours()}</style>\n</head>\n"
    f"<body>\n{body}\n</body>\n</html>\n"
  )


def section(title: str, *parts: str) -> str:
  """A section of HTML parts, or nothing where nothing is in it."""
  body = "\n".join(filter(None, parts))
  if not body:
    return ""
  return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>"


def figures(rows: Iterable[tuple[str, str]]) -> str:
  """Names and values side by side."""
  return (
    '<dl class="figures">'
    + "".join(
      f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
      for name, value in rows
    )
    + "</dl>"
  )


def verdict(tone: str, words: str, notes: Iterable[str] = ()) -> str:
  """What it comes to.

  Args:
    tone: "good", "bad" or "plain".
    words: the verdict.
    notes: HTML, each on a line of its own.
  """
  listed = "".join(f"<li>{line}</li>" for line in notes)
  return (
    f'<div class="verdict" style="--tone: var(--{tone})">'
    f"<strong>{html.escape(words)}</strong>"
    f"{f'<ul>{listed}</ul>' if listed else ''}</div>"
  )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table, its first column of words and the others of numbers."""

  def line(cells, tag):
    return (
      "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)
    ) + "</tr>"

  body = "\n".join(line(row, "td") for row in rows)
  return (
    f'<div class="wide"><table class="numbers"><thead>{line(head, "th")}'
    f"</thead><tbody>\n{body}</tbody></table></div>"
  )


def details(summary: str, content: str) -> str:
  """HTML that is folded away."""
  return (
    f"<details><summary>{html.escape(summary)}</summary>\n{content}</details>"
  )


def cards(found: Iterable[str]) -> str:
  """Cards of `card`, side by side."""
  text = "\n".join(found)
  return f'<div class="cards">\n{text}\n</div>' if text else ""


def card(
  pixels: np.ndarray | None, alt: str, notes: Sequence[str], why: str = ""
) -> str:
  """A picture with what is said of it.

  Args:
    pixels: `(h, w, 3)` uint8, or None where there is none.
    alt: what stands for the picture.
    notes: HTML, one after the other.
    why: why there is no picture.
  """
  shown = (
    f'<div class="none">{html.escape(why)}</div>'
    if pixels is None
    else f'<img src="{thumbnail(pixels)}" alt="{html.escape(alt)}">'
  )
  return f"<figure>{shown}<figcaption>{''.join(notes)}</figcaption></figure>"


def caption(text: str) -> str:
  """A caption, in the direction of its script."""
  return f'<p dir="auto">{html.escape(short(text))}</p>'


def short(text: str) -> str:
  """A text, cut where it is long."""
  if len(text) <= MOST_CHARACTERS:
    return text
  return f"{text[: MOST_CHARACTERS - 1]}…"


def mapping(found: Mapping[str, object]) -> str:
  """Keys and values as a block of text."""
  width = max(map(len, found), default=0)
  lines = (f"{key:{width}}  {value}" for key, value in found.items())
  return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def thumbnail(pixels: np.ndarray) -> str:
  """Returns a picture as a data URI, at most `THUMBNAIL` px along a side.

  Args:
    pixels: `(h, w, 3)` uint8.
  """
  picture = Image.fromarray(pixels)
  picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=82)
  return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
