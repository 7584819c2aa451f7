"""Faults of web data, put into clean pairs at a known rate."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from aced.config import did_you_mean
from aced.data.records import BadRecord, Record, Source, SourceError

# What is wrong with a pair: the `fault` of its record.
NONE, SWAPPED, JUNK, BLANK, NOISE, DUPLICATE = range(6)
UNKNOWN = -1

KINDS = {
  "swapped": SWAPPED,
  "junk": JUNK,
  "blank": BLANK,
  "noise": NOISE,
  "duplicate": DUPLICATE,
}
# Shares of the faults where all kinds occur. Most of what is wrong with pairs
# from the web is the text: it belongs to something else on the page, or to
# nothing; pictures that show nothing, and copies, are rarer.
WEIGHTS = {
  "swapped": 0.60,
  "junk": 0.20,
  "blank": 0.05,
  "noise": 0.05,
  "duplicate": 0.10,
}

_PHRASES = (
  "buy now",
  "click here to enlarge",
  "free shipping on all orders",
  "image not available",
  "untitled",
  "thumbnail",
  "add to cart",
  "share this page",
  "loading, please wait",
  "advertisement",
  "photo gallery",
  "sign up for our newsletter",
)
_FILES = ("IMG_{}.JPG", "DSC0{}.jpg", "image{}.png", "Screenshot {}.png")
_COUNTED = ("page {}", "item no. {}", "{} views", "photo {}")
# Another record whose caption differs is looked for this often: in a set of
# few captions most others may have the same one.
_TRIES = 16
# The size of a made-up picture where that of the true one is not known.
_SIDE = 64
_STREAM = 0xFA017


class Faulty(Source):
  """A source with faults put in; what is wrong stands in each record.

  Every record gets `fault` (a code) and `clean` (whether it is `NONE`). The
  other fields stay those of the picture that the clean source has there, save
  for a duplicate, which is a copy of another record in everything. Whether a
  record is at fault, and how, depends on `(seed, index)` and the source alone.

  Args:
    source: of pairs that are taken to be clean.
    rate: the share of records at fault, 0 to 1.
    kinds: names in `KINDS`; they occur in proportion to `WEIGHTS`.
    seed: of the faults, 0 or above.

  Raises:
    SourceError: a rate, kind or seed that is none, or a source too small.
  """

  has_faults = True

  def __init__(
    self,
    source: Source,
    rate: float,
    kinds: Iterable[str] = tuple(KINDS),
    seed: int = 0,
  ):
    kinds = tuple(kinds)
    _check(source, rate, kinds, seed)
    self.source, self.rate, self.kinds, self.seed = source, rate, kinds, seed
    weights = np.array([WEIGHTS[kind] for kind in kinds])
    self._edges = rate * np.cumsum(weights) / weights.sum()

  def __len__(self):
    return len(self.source)

  def __repr__(self):
    return (
      f"{self.source!r} with noise={self.rate}"
      f" faults={'+'.join(self.kinds)} noise_seed={self.seed}"
    )

  def __getitem__(self, index):
    return self._get(self._check(index), self.source.__getitem__)

  def fields(self, index):
    """The record at `index` without its picture."""
    return self._get(self._check(index), self.source.fields)

  def damage(self):
    """What is wrong with whole files."""
    return self.source.damage()

  def where(self, index):
    """Where the clean record at `index` is stored."""
    return self.source.where(index)

  def _get(self, index, get) -> Record:
    rng = np.random.default_rng((_STREAM, self.seed, index))
    draw = rng.random()
    if draw >= self.rate:
      return _told(get(index), NONE)
    which = np.searchsorted(self._edges, draw, "right")
    kind = self.kinds[min(which, len(self.kinds) - 1)]
    if kind == "duplicate":
      return _told(get(self._other(index, rng)), DUPLICATE)
    record = get(index)
    if kind == "swapped":
      return self._swap(record, index, rng)
    if kind == "junk":
      return _told(record | {"text": junk_caption(rng)}, JUNK)
    if "image" in record:
      record["image"] = _no_picture(record["image"], kind, rng)
    return _told(record, KINDS[kind])

  def _swap(self, record, index, rng):
    """Gives a record the caption of another; clean if all have the same."""
    for _ in range(_TRIES):
      text = self.source.fields(self._other(index, rng)).get("text")
      if not isinstance(text, BadRecord) and text != record.get("text"):
        return _told(record | {"text": text}, SWAPPED)
    return _told(record, NONE)

  def _other(self, index, rng):
    """Any record but that at `index`."""
    other = int(rng.integers(len(self) - 1))
    return other + (other >= index)


def inject(
  source: Source,
  rate: float,
  kinds: Iterable[str] = tuple(KINDS),
  seed: int = 0,
) -> Faulty:
  """Returns the source with a share of faults put in; see `Faulty`."""
  return Faulty(source, rate, kinds, seed)


def junk_caption(rng: np.random.Generator) -> str:
  """Returns text as it stands beside pictures of which it says nothing."""
  which, pick, number = rng.random(), rng.random(), rng.integers(1000, 10_000)
  phrases = _FILES if which < 0.4 else _COUNTED if which < 0.6 else _PHRASES
  return phrases[int(pick * len(phrases))].format(number)


def _no_picture(image: Any, kind: str, rng: np.random.Generator) -> np.ndarray:
  """One flat colour, or noise, in the place of a picture."""
  shape = np.shape(image) if isinstance(image, np.ndarray) else (_SIDE, _SIDE)
  shape = (*shape[:2], 3)
  if kind == "noise":
    return rng.integers(0, 256, shape, np.uint8)
  return np.full(shape, rng.integers(0, 256), np.uint8)


def _told(record, fault):
  return record | {"fault": fault, "clean": fault == NONE}


def _check(source, rate, kinds, seed):
  if not 0 <= rate <= 1:
    raise SourceError(
      f"noise={rate} must be the share of records at fault, 0 to 1."
    )
  if seed < 0:
    raise SourceError(f"noise_seed={seed} must be 0 or above.")
  for kind in kinds:
    if kind not in KINDS:
      raise SourceError(
        f"faults={'+'.join(map(str, kinds))}: {kind!r} is not known; it is one"
        f" of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}"
      )
  if not kinds or len(set(kinds)) != len(kinds):
    raise SourceError(
      f"faults={'+'.join(kinds)!s} must name kinds once each, of"
      f" {', '.join(KINDS)}."
    )
  if source.has_faults:
    raise SourceError(
      f"{source!r} knows its own faults; noise can only be put into clean"
      " pairs: leave out noise=."
    )
  if len(source) < 2 and rate:
    raise SourceError(
      f"{source!r} has one record; noise needs two or more to swap."
    )
