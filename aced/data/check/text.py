"""The report of a check, for the terminal."""

import textwrap
from collections.abc import Iterable, Mapping

from aced.data.check.facts import REMARKS
from aced.data.check.findings import LONG, QUANTILES, Report

# Of a line; tables are as wide.
WIDTH = 80
# Share of the time above which waiting is told.
MUCH_WAITING = 0.2


def text(report: Report) -> str:
  """The report, for the terminal."""
  parts = {
    "source": _source(report),
    "records that cannot be used": _causes(report.causes),
    "pictures": _pictures(report),
    "records to look at": _remarks(report),
    "captions": _captions(report),
    "duplicates": _duplicates(report),
    "speed": _speed(report),
    "what a run needs": _needs(report),
    "verdict": _verdict(report),
  }
  lines = []
  for title, body in parts.items():
    if body:
      lines.append(f"── {title} ".ljust(WIDTH, "─"))
      lines += [f"  {line}" for line in body]
  return "\n".join(lines)


def plain(line: str, most: int = 200) -> str:
  """A line that is safe on a terminal: nothing that moves the cursor."""
  line = "".join(c if c.isprintable() else "\ufffd" for c in line)
  return line if len(line) <= most else f"{line[: most - 1]}…"


def _line(title, count, share=None, note=""):
  """A line of figures: a title, a count, what share that is, and of what."""
  line = f"{title:22} {count:>12,}"
  if share is not None:
    line += f" {share:>7.1%}"
  return f"{line}  {note}".rstrip()


def _source(report):
  note = "all" if report.read == report.records else "evenly spread"
  share = report.read / report.records
  return [
    plain(report.source),
    _line("records", report.records),
    _line("read", report.read, share, note),
    _line("usable", report.usable, report.usable / report.read),
  ]


def _causes(causes):
  lines = []
  for cause in causes:
    lines.append(_line(cause.name, cause.count, cause.share))
    for example in cause.examples:
      lines += _wrap("  ", [f"{plain(example.where)}: {plain(example.detail)}"])
  return lines


def _remarks(report):
  lines = []
  for remark in report.remarks:
    lines.append(_line(remark.name, remark.count, remark.share))
    lines.append(f"  {REMARKS[remark.name]}; the first:")
    lines += _wrap("  ", [example.where for example in remark.examples])
  return lines


def _table(rows: Iterable[tuple[str, Mapping[str, float], str]]) -> list[str]:
  """A table of quantiles: of each row a title, the values and a format."""
  rows = [row for row in rows if row[1]]
  head = f"{'':22}" + "".join(f"{name:>8}" for name in QUANTILES)
  return [head] * bool(rows) + [
    f"{title:22}" + "".join(f"{values[name]:>8{kind}}" for name in QUANTILES)
    for title, values, kind in rows
  ]


def _pictures(report):
  if not report.usable:
    return []
  found, size = report.pictures, report.settings.image_size
  formats = ", ".join(f"{name} {n:,}" for name, n in found.formats.items())
  kilobytes = {k: v / 1e3 for k, v in found.encoded_bytes.items()}
  return [
    formats,
    *_table(
      [
        ("width", found.width, ",.0f"),
        ("height", found.height, ",.0f"),
        ("shorter side", found.shorter_side, ",.0f"),
        ("megapixels", found.megapixels, ",.3f"),
        ("kB", kilobytes, ",.1f"),
      ]
    ),
    _line(
      "scaled up", found.small, found.small_share, f"shorter side < {size}"
    ),
    _line("squashed", found.long, found.long_share, f"sides over {LONG:g} : 1"),
    _line("flat", found.flat, found.flat_share, "showing nothing"),
  ]


def _captions(report):
  if not report.usable:
    return []
  found, run = report.captions, report.settings
  return [
    *_table(
      [
        (f"tokens ({run.tokenizer:.13})", found.tokens, ",.0f"),
        ("captions of a picture", found.per_picture, ",.0f"),
      ]
    ),
    _line("captions", found.count),
    _line("distinct", found.distinct, found.distinct / found.count),
    _line("cut", found.cut, found.cut_share, f"over {run.text_length} tokens"),
    _line(
      "records that share one",
      found.repeated,
      found.repeated_share,
      "the most frequent:" if found.repeated else "",
    ),
    *(f"{n:>10,} x {text!r:.60}" for text, n in found.most_repeated),
  ]


def _duplicates(report):
  if not report.usable:
    return []
  found = report.duplicates
  lines = [
    _line("equal pixels", found.same, found.same_share, "redundant"),
    _line("alike or equal", found.alike, found.alike_share, "redundant"),
    _line("groups that are alike", found.groups),
  ]
  for group in found.largest[:3]:
    records = ", ".join(map(str, group.records))
    more = ", ..." if group.size > len(group.records) else ""
    lines.append(f"{group.size:>10,} x records {records}{more}")
  if report.read < report.records:
    lines.append("(among the records read: in the whole source there are more)")
  return lines


def _speed(report):
  rate = report.rate
  if rate is None:
    return []
  lines = [
    f"{rate.per_core:,.0f} images/s per core, about {rate.machine:,.0f} on the"
    f" {rate.cores} cores of this machine",
    f"(reading, {report.settings.image_size} px, tokens; timed on"
    f" {rate.records:,} records just read, so that a slow disk",
    "or network does not show)",
  ]
  if rate.waiting > MUCH_WAITING:
    lines.append(
      f"{rate.waiting:.0%} of the time went into waiting, for storage or for"
      " other programs"
    )
  return lines


def _needs(report):
  found, run = report.needs, report.settings
  lines = [
    f"super-batch B = b / (1 - f) = {run.batch_size:,} /"
    f" (1 - {run.filter_ratio:g}) = {found.super_batch:,} pairs",
    f"{found.steps:,} steps to train on {run.train_examples:,} pairs",
    f"{found.pairs:,} pairs read, {found.epochs:,.1f} epochs of this source",
  ]
  if found.hours is not None:
    lines.append(f"{found.hours:,.1f} hours of reading at this machine's rate")
  if found.images_per_second is not None:
    cores = "" if found.cores is None else f", {found.cores:,} cores like these"
    lines.append(
      f"a step every {run.step_seconds:g} s: {found.images_per_second:,.0f}"
      f" images/s{cores}"
    )
  return lines


def _verdict(report):
  lines = [*_wrap("warning: ", report.warnings)]
  if report.fit:
    return [*lines, "fit to train on"]
  return [*lines, *_wrap("not fit: ", report.reasons)]


def _wrap(title, texts):
  """Lines of texts, each after a title, and indented where it goes on."""
  for text in texts:
    yield from textwrap.wrap(
      title + plain(text, 400),
      WIDTH - 2,
      subsequent_indent=" " * len(title),
      break_on_hyphens=False,
      break_long_words=False,
    )
