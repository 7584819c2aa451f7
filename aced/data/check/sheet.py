"""A page of samples of a source: one HTML file that asks for nothing else."""

import html
from collections.abc import Iterable

from aced.data.check.facts import attempt, count_tokens, long_tokenizer
from aced.data.check.findings import Report
from aced.data.decoding import decode
from aced.data.records import Source, captions
from aced.data.tokenizers import Tokenizer
from aced.pages import frame

# Captions of one record that are shown.
MOST_CAPTIONS = 2


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
    return frame.cards(
      _card(source, i, tokenizer, run.text_length) for i in indices
    )

  groups = [
    f'<div class="group"><p class="dim">{group.size:,} pictures'
    + f", {len(group.records)} shown" * (group.size > len(group.records))
    + f"</p>{cards(group.records)}</div>"
    for group in report.duplicates.largest
  ]
  parts = [
    _head(report),
    frame.section("Figures", _figures(report)),
    frame.section("Records that cannot be used", *_causes(report.causes)),
    frame.section("Pictures to look at", *_causes(report.remarks)),
    frame.section(f"Sample of {len(report.sample)}", cards(report.sample)),
    frame.section("Pictures that look the same", *groups),
    frame.section("Most frequent captions", *_repeated(report)),
    f"<h2>Report</h2><details><summary>As printed</summary>"
    f"<pre>{html.escape(account)}</pre></details>",
  ]
  return frame.page("Check of a data set", "\n".join(filter(None, parts)))


def _head(report) -> str:
  tone, verdict = "good", "Fit to train on"
  if not report.fit:
    tone, verdict = "bad", "Not fit to train on"
  lines = [html.escape(line) for line in report.reasons]
  lines += [
    f'<span class="warn">Warning:</span> {html.escape(line)}'
    for line in report.warnings
  ]
  return (
    f'<h1>Check of a data set</h1>\n<p class="path dim">'
    f"{html.escape(report.source)}</p>\n"
    f"{frame.verdict(tone, verdict, lines)}"
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
  return frame.figures(rows)


def _causes(causes) -> list[str]:
  return [
    f'<p class="cause"><strong>{html.escape(cause.name)}</strong>'
    f' <span class="dim">{cause.count:,} ({cause.share:.1%})</span></p>'
    + _rows(
      (f"#{e.index:,}", frame.short(e.detail), frame.short(e.where))
      for e in cause.examples
    )
    for cause in causes
  ]


def _repeated(report) -> list[str]:
  found = report.captions.most_repeated
  rows = ((f"{n:,} x", frame.short(text), "") for text, n in found)
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
    note = f"<small>#{index:,}</small>"
    return frame.card(None, "", [note], ": ".join(why))
  pixels, texts = found
  tokens = count_tokens(tokenizer, texts)
  height, width = pixels.shape[:2]
  notes = [f"<small>#{index:,} · {width:,} x {height:,}</small>"]
  notes += [
    f"{frame.caption(text)}<div>{_tokens(n, text_length)}</div>"
    for text, n in zip(texts[:MOST_CAPTIONS], tokens.tolist())
  ]
  if len(texts) > MOST_CAPTIONS:
    notes.append(f"<small>and {len(texts) - MOST_CAPTIONS} more</small>")
  return frame.card(pixels, f"record {index}", notes)


def _tokens(count: int, text_length: int) -> str:
  if count <= text_length:
    return f"<small>{count:,} tokens</small>"
  return f'<small class="warn">{count:,} tokens, cut at {text_length:,}</small>'
