"""Several sources as one, each in proportion to its weight."""

import math
import re
from collections.abc import Sequence

import numpy as np

from aced.data.records import Source, SourceError

_WEIGHTED = re.compile(
  r"\s*(?:([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*\*)?\s*(\S.*?)\s*"
)


def components(where: str) -> tuple[list[float | None], list[str]]:
  """Splits `3*SPEC;1*SPEC` into weights and specs.

  Returns:
    Weights, None where none is given, and as many specs.

  Raises:
    SourceError: there is none, a weight that is no number above 0, or a
      mixture in a mixture.
  """
  weights, specs = [], []
  for part in where.split(";"):
    match = _WEIGHTED.fullmatch(part)
    if match is None:
      raise SourceError(
        f"mixture:{where}: {part!r} must be WEIGHT*SPEC, parts joined by ';',"
        " such as mixture:3*jsonl:a.jsonl;1*jsonl:b.jsonl?limit=1000."
      )
    if "*" in match[2].partition(":")[0]:
      raise SourceError(
        f"mixture:{where}: {part!r}: what stands before * must be a weight, a"
        " number above 0."
      )
    if match[2].startswith("mixture:"):
      raise SourceError(f"mixture:{where}: a mixture has no mixture in it.")
    weights.append(_weight(match[1], part) if match[1] else None)
    specs.append(match[2])
  return weights, specs


def _weight(text, part):
  try:
    weight = float(text)
  except ValueError:
    weight = 0.0
  if not 0 < weight < math.inf:
    raise SourceError(f"{part!r}: the weight {text} must be a number above 0.")
  return weight


class Mixture(Source):
  """Sources one after the other, repeated so that their shares are right.

  An epoch has every record at least once. The source with the most records for
  its weight is read once; the others begin anew until they have their share.
  Shuffling, which is the pipeline's, mixes them.

  Args:
    sources: at least one.
    weights: the share of each in an epoch, in any unit; None everywhere is
      that of its records, so that nothing is repeated.

  Raises:
    SourceError: some weights are given and others not.
  """

  def __init__(
    self, sources: Sequence[Source], weights: Sequence[float | None]
  ):
    given = [w for w in weights if w is not None]
    if given and len(given) < len(sources):
      raise SourceError("a mixture needs weights of all its parts, or of none.")
    self.sources = tuple(sources)
    self.weights = tuple(weights)
    counts = [len(source) for source in sources]
    if given:
      longest = max(n / w for n, w in zip(counts, given, strict=True))
      # Of the source that decides it this is its number, whatever the rounding.
      counts = [
        max(n, round(longest * w)) for n, w in zip(counts, given, strict=True)
      ]
    self._ends = np.cumsum(counts)
    self.has_faults = any(source.has_faults for source in sources)

  def __len__(self):
    return int(self._ends[-1])

  def __getitem__(self, index):
    source, own = self._find(index)
    return source[own]

  def fields(self, index):
    """The record at `index` without its picture."""
    source, own = self._find(index)
    return source.fields(own)

  def damage(self):
    """What is wrong with whole files."""
    return [text for source in self.sources for text in source.damage()]

  def where(self, index):
    """Where the record at `index` is stored."""
    source, own = self._find(index)
    return source.where(own)

  def __repr__(self):
    parts = [
      f"{source!r}" if weight is None else f"{weight:g}*{source!r}"
      for source, weight in zip(self.sources, self.weights, strict=True)
    ]
    return f"mixture:{';'.join(parts)}"

  def _find(self, index):
    index = self._check(index)
    part = int(np.searchsorted(self._ends, index, "right"))
    first = int(self._ends[part - 1]) if part else 0
    source = self.sources[part]
    return source, (index - first) % len(source)
