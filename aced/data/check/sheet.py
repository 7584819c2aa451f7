"""A page of samples of a source: one HTML file that asks for nothing else."""

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from aced.data.check.facts import attempt, count_tokens, long_tokenizer
from aced.data.check.findings import Report
from aced.data.decoding import decode
from aced.data.records import Source, captions
from aced.data.tokenizers import Tokenizer

# Pixels along the longer side.
THUMBNAIL = 128
# Captions of one record that are shown, and characters of each.
MOST_CAPTIONS, MOST_CHARACTERS = 2, 400

# Whatever a caption may hold, a browser loads nothing and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1d20; --dim: #62656d;
  --page: #f6f6f4; --card: #fff; --line: #dcdcd8; --well: #ececea;
  --good: #14713d; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --dim: #9fa2a9;
  --page: #151617; --card: #1f2022; --line: #35373a; --well: #2a2b2e;
  --good: #6fd699; --bad: #ff8f86; --warn: #e5b65c; } }
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
"""


def sheet(source: Source, report: Report, account: str) -> str:
  """Returns the page: figures, samples, copies and what cannot be used.

  Args:
    source: whose records are shown.
    report: of a check of it.
    account: the report as text, which the page holds too.
  """
  run = report.settings
  tokenizer = long_tokenizer(run.tokenizer, run.text_length)

  def cards(indices):
    return _cards(_card(source, i, tokenizer, run.text_length) for i in indices)

  groups = [
    f'<div class="group"><p class="dim">{group.size:,} pictures'
    + f", {len(group.records)} shown" * (group.size > len(group.records))
    + f"</p>{cards(group.records)}</div>"
    for group in report.duplicates.largest
  ]
  parts = [
    _head(report),
    _section("Figures", _figures(report)),
    _section("Records that cannot be used", *_causes(report)),
    _section(f"Sample of {len(report.sample)}", cards(report.sample)),
    _section("Pictures that look the same", *groups),
    _section("Most frequent captions", *_repeated(report)),
    f"<h2>Report</h2><details><summary>As printed</summary>"
    f"<pre>{html.escape(account)}</pre></details>",
  ]
  return _page("\n".join(filter(None, parts)))


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


def _page(body: str) -> str:
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>Check of a data set</title>\n<style>{_STYLE}</style>\n</head>\n"
    f"<body>\n{body}\n</body>\n</html>\n"
  )


def _section(title: str, *parts: str) -> str:
  """A section, or nothing where nothing is in it."""
  body = "\n".join(filter(None, parts))
  return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>" * bool(
    body
  )


def _head(report) -> str:
  tone, verdict = "good", "Fit to train on"
  if not report.fit:
    tone, verdict = "bad", "Not fit to train on"
  lines = [html.escape(line) for line in report.reasons]
  lines += [
    f'<span class="warn">Warning:</span> {html.escape(line)}'
    for line in report.warnings
  ]
  notes = "".join(f"<li>{line}</li>" for line in lines)
  return (
    f'<h1>Check of a data set</h1>\n<p class="path dim">'
    f"{html.escape(report.source)}</p>\n"
    f'<div class="verdict" style="--tone: var(--{tone})">'
    f"<strong>{verdict}</strong>{f'<ul>{notes}</ul>' if notes else ''}</div>"
  )


def _figures(report) -> str:
  pictures, texts = report.pictures, report.captions
  copies, run = report.duplicates, report.settings

  def median(values, style=",.0f"):
    return f"{values['median']:{style}}" if values else "none"

  rows = [
    ("records", f"{report.records:,}"),
    ("read", f"{report.read:,}"),
    ("usable", f"{report.usable:,} ({report.usable / report.read:.1%})"),
    ("formats", ", ".join(pictures.formats) or "none"),
    (
      "median size",
      f"{median(pictures.width)} x {median(pictures.height)} px",
    ),
    (f"smaller than {run.image_size} px", f"{pictures.small_share:.1%}"),
    ("showing nothing", f"{pictures.flat_share:.1%}"),
    ("median tokens", median(texts.tokens)),
    (f"cut at {run.text_length} tokens", f"{texts.cut_share:.1%}"),
    ("captions shared by records", f"{texts.repeated_share:.1%}"),
    ("equal pictures, redundant", f"{copies.same_share:.1%}"),
    ("alike or equal, redundant", f"{copies.alike_share:.1%}"),
    ("super-batch", f"{report.needs.super_batch:,} pairs"),
    ("epochs of the run", f"{report.needs.epochs:,.1f}"),
  ]
  if report.rate:
    rows.append(("images/s on this machine", f"{report.rate.machine:,.0f}"))
  return (
    '<dl class="figures">'
    + "".join(
      f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
      for name, value in rows
    )
    + "</dl>"
  )


def _causes(report) -> list[str]:
  return [
    f'<p class="cause"><strong>{html.escape(cause.name)}</strong>'
    f' <span class="dim">{cause.count:,} ({cause.share:.1%})</span></p>'
    + _rows(
      (f"#{e.index:,}", _short(e.detail), _short(e.where))
      for e in cause.examples
    )
    for cause in report.causes
  ]


def _repeated(report) -> list[str]:
  found = report.captions.most_repeated
  rows = ((f"{n:,} x", _short(text), "") for text, n in found)
  return [_rows(rows)] * bool(found)


def _rows(rows: Iterable[tuple[str, str, str]]) -> str:
  """A table of what stands left, what right, and a note below that."""
  cells = (
    f'<tr><td class="count">{html.escape(left)}</td>'
    f'<td dir="auto">{html.escape(right)}'
    + f'<span class="dim">{html.escape(note)}</span>' * bool(note)
    + "</td></tr>"
    for left, right, note in rows
  )
  return f'<table class="rows">{"".join(cells)}</table>'


def _cards(cards: Iterable[str]) -> str:
  cards = "\n".join(cards)
  return f'<div class="cards">\n{cards}\n</div>' if cards else ""


def _card(
  source: Source, index: int, tokenizer: Tokenizer, text_length: int
) -> str:
  """A picture with its captions, and the tokens of each."""

  def read():
    record = source[index]
    return decode(record.get("image")), captions(record)

  found, why = attempt(read)
  if why:
    # It could be read a moment ago.
    return (
      f'<figure><div class="none">{html.escape(": ".join(why))}</div>'
      f"<figcaption><small>#{index:,}</small></figcaption></figure>"
    )
  pixels, texts = found
  tokens = count_tokens(tokenizer, texts)
  shown = [
    f'<p dir="auto">{html.escape(_short(text))}</p>'
    f"<div>{_tokens(n, text_length)}</div>"
    for text, n in zip(texts[:MOST_CAPTIONS], tokens.tolist())
  ]
  if len(texts) > MOST_CAPTIONS:
    shown.append(f"<small>and {len(texts) - MOST_CAPTIONS} more</small>")
  height, width = pixels.shape[:2]
  return (
    f'<figure><img src="{thumbnail(pixels)}" alt="record {index}">'
    f"<figcaption><small>#{index:,} · {width:,} x {height:,}</small>"
    f"{''.join(shown)}</figcaption></figure>"
  )


def _tokens(count: int, text_length: int) -> str:
  if count <= text_length:
    return f"<small>{count:,} tokens</small>"
  return f'<small class="warn">{count:,} tokens, cut at {text_length:,}</small>'


def _short(text: str) -> str:
  if len(text) <= MOST_CHARACTERS:
    return text
  return f"{text[: MOST_CHARACTERS - 1]}…"
