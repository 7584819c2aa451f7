"""The contact sheet: what curation kept and what it dropped, as pictures."""

import html
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from aced.data import faults
from aced.data.decoding import decode
from aced.data.records import Source, captions
from aced.data.sources import open_source
from aced.pages import frame
from aced.training import picks as picks_lib
from aced.training.picks import Picks

# Pairs shown of each kind at each moment, and moments shown.
SHOWN, MOMENTS = 9, 6
_FAULTS = {code: name for name, code in faults.KINDS.items()}


def kept_and_dropped(config: ConfigDict, where: pathlib.Path) -> list[str]:
  """The contact sheet of a run, as HTML parts; [] where nothing was chosen.

  Where its pairs cannot be shown, a line says why.

  Args:
    config: of the run.
    where: its workdir.
  """
  try:
    found = picks_lib.read(where)
    if not found:
      return []
    source = open_source(config.input.source)
  except ValueError as error:
    why = f"The pairs cannot be shown: {error}"
    return [f'<p class="dim">{html.escape(why)}</p>']
  models = [n for n in ("student", "reference") if n in found[0].columns]
  score = {
    ("student", "reference"): "the loss of the pair alone by the student less"
    " that by the reference, in nats",
    ("student",): "the loss of the pair alone by the student, in nats",
    ("reference",): "the loss of the pair alone by the reference, in nats, with"
    " its sign turned",
  }.get(tuple(models), "0 for every pair")
  intro = (
    '<p class="dim">Of each super-batch, pairs evenly spaced in the order of'
    f" their scores, the highest first. A score is {score}; a draw may also"
    " look at the pairs drawn before.</p>"
  )
  return [intro, *contact_sheet(source, found)]


def contact_sheet(source: Source, found: Sequence[Picks]) -> list[str]:
  """The pairs of some steps, as HTML, a part for each step.

  Of the pairs that were kept, and of those that were dropped, those are shown
  that stand evenly in the order of their scores, from the highest on: what is
  shown is like what is not.

  Args:
    source: that the run read.
    found: of `picks.read`.
  """
  chosen = np.linspace(0, len(found) - 1, min(MOMENTS, len(found)))
  return [_moment(source, found[k]) for k in chosen.round().astype(int)]


def spread(score: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
  """Rows that stand evenly in the order of their scores, highest first.

  Args:
    score: `(n,)`.
    rows: `(m,)` of them that may be taken.
    count: the most that are.
  """
  ordered = rows[np.argsort(-score[rows], kind="stable")]
  places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
  return ordered[places.round().astype(int)]


def _moment(source, picks):
  score, kept = picks.score(), picks.kept
  usable = picks.columns.get("usable", np.ones_like(kept))
  parts = [f'<h3 class="moment">Step {picks.step:,}</h3>']
  for word, rows in (
    ("Kept", np.flatnonzero(kept)),
    ("Dropped", np.flatnonzero(~kept & usable)),
  ):
    if not len(rows):
      continue
    cards = (_card(source, picks, k) for k in spread(score, rows, SHOWN))
    parts.append(
      f'<div class="group sheet"><p class="dim"><strong>{word}</strong>'
      f" {len(rows):,} pairs, mean score {score[rows].mean():+.2f}"
      f"{_clean(picks, rows)}</p>{frame.cards(cards)}</div>"
    )
  return "\n".join(parts)


def _clean(picks, rows):
  """The share of clean pairs among rows, where the truth is known."""
  fault = picks.columns.get("fault")
  known = rows[:0] if fault is None else rows[fault[rows] >= 0]
  if not len(known):
    return ""
  return f", {(fault[known] == faults.NONE).mean():.0%} clean"


def _card(source, picks, row):
  """A pair with its losses and, where it is known, what is wrong with it."""
  index = int(picks.columns["index"][row])
  score = f"{picks.score()[row]:+.2f}{_losses(picks, row)}"
  told = [f"<small>{score}</small>"]
  fault = picks.columns.get("fault")
  if fault is not None and int(fault[row]) in _FAULTS:
    name = _FAULTS[int(fault[row])]
    told.append(f'<div><small class="tag bad">{name}</small></div>')
  try:
    record = source[index]
    text = captions(record)[0]
    pixels = decode(record.get("image"))
  # Data that has moved costs a picture, not the page.
  except Exception as error:
    why = f"{type(error).__name__}: {error}"
    return frame.card(None, "", told, frame.short(why))
  return frame.card(pixels, f"record {index}", [frame.caption(text), *told])


def _losses(picks, row):
  """The two losses that a score is the difference of, where there are two."""
  names = [n for n in ("student", "reference") if n in picks.columns]
  parts = [f"{picks.columns[name][row]:.2f}" for name in names]
  return f" = {' - '.join(parts)}" if len(parts) > 1 else ""
