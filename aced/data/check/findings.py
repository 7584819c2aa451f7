"""What the facts of a source come to, and whether it is fit to train on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aced.data.check.duplicates import group
from aced.data.check.facts import (
  FORMATS,
  RAISES,
  REMARKS,
  Example,
  Facts,
  attempt,
  text_digest,
)
from aced.data.check.needs import Needs, Rate, Settings, needs
from aced.data.greys import GUESSES
from aced.data.records import Source, captions

QUANTILES = {
  "min": 0.0,
  "5%": 0.05,
  "25%": 0.25,
  "median": 0.5,
  "75%": 0.75,
  "95%": 0.95,
  "max": 1.0,
}
# Captions and groups of pictures that are named, and pictures of a group.
REPEATED, GROUPS, MEMBERS = 5, 10, 6
SAMPLE = 60
# Share of the records with one caption above which nothing can be learnt.
MOST_SAME = 0.9
# Shares above which something is worth a warning.
MANY_ALIKE = 0.2
MANY_CUT = 0.1
MANY_SMALL = 0.5
MANY_REPEATED = 0.5
MANY_FLAT = 0.05
# Remark -> share of the pictures above which it is warned of. Guesses, of which
# a source has none or many, are from the first picture on.
MANY_REMARKED = {
  **dict.fromkeys(GUESSES, 0.0),
  "thumbnail": 0.0,
  "high_bits_unused": 0.01,
  "nearly_black": 0.01,
}
# A squashed picture whose sides differ more than this is hard to make out.
LONG = 2.0


@dataclasses.dataclass(frozen=True)
class Cause:
  """Records of which one thing is told, and the first few of them."""

  name: str
  count: int
  share: float
  examples: tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Pictures of usable records; quantiles are dicts as of `quantiles`."""

  formats: dict[str, int]
  width: dict[str, float]
  height: dict[str, float]
  shorter_side: dict[str, float]
  megapixels: dict[str, float]
  encoded_bytes: dict[str, float]  # Of those that are not arrays.
  small: int  # Those whose shorter side is scaled up.
  small_share: float
  long: int  # Those with one side more than `LONG` times the other.
  long_share: float
  flat: int  # Those that show nothing.
  flat_share: float


@dataclasses.dataclass(frozen=True)
class Captions:
  """Captions of usable records; they are equal whatever their case."""

  count: int
  per_picture: dict[str, float]
  tokens: dict[str, float]
  cut: int  # Those longer than `text_length`.
  cut_share: float
  distinct: int
  repeated: int  # Records that share a caption with another.
  repeated_share: float
  most_repeated: tuple[tuple[str, int], ...]  # With the records of each.
  same_share: float  # Of records that have the most frequent caption.


@dataclasses.dataclass(frozen=True)
class Group:
  """Pictures that look the same: how many, and the first few records."""

  size: int
  records: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Duplicates:
  """Pictures that are there again; flat ones are left out.

  Redundant are all pictures of a group but one.
  """

  same: int
  same_share: float
  alike: int  # Those that are the same among them.
  alike_share: float
  groups: int  # Of pictures that look the same.
  largest: tuple[Group, ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """All that a check finds.

  Attributes:
    source: its repr.
    records: of the source.
    read: of them.
    usable: of those read.
    settings: of the run that is meant.
    causes: why the others are of no use, the most frequent first.
    remarks: what is told of usable ones, the most frequent first.
    pictures: of usable records.
    captions: of usable records.
    duplicates: among the records read.
    rate: of reading; None where no record is usable.
    needs: of the run.
    damage: what is wrong with whole files.
    sample: some usable records, picked at random with a fixed seed.
    warnings: what is worth knowing.
    reasons: why the source is not fit to train on; none, and it is.
  """

  source: str
  records: int
  read: int
  usable: int
  settings: Settings
  causes: tuple[Cause, ...]
  remarks: tuple[Cause, ...]
  pictures: Pictures
  captions: Captions
  duplicates: Duplicates
  rate: Rate | None
  needs: Needs
  damage: tuple[str, ...]
  sample: tuple[int, ...]
  warnings: tuple[str, ...] = ()
  reasons: tuple[str, ...] = ()

  @property
  def fit(self) -> bool:
    """Whether the source is fit to train on."""
    return not self.reasons


def findings(
  source: Source, facts: Facts, settings: Settings, rate: Rate | None
) -> Report:
  """Returns what the facts of a source come to, with the verdict."""
  report = Report(
    source=repr(source),
    records=len(source),
    read=facts.read,
    usable=len(facts.pictures),
    settings=settings,
    causes=_causes(facts.causes, facts.examples, facts.read),
    remarks=_causes(facts.remarks, facts.remarked, len(facts.pictures)),
    pictures=_pictures(facts, settings.image_size),
    captions=_captions(source, facts, settings.text_length),
    duplicates=_duplicates(facts),
    rate=rate,
    needs=needs(settings, len(source), rate),
    damage=tuple(source.damage()),
    sample=_sample(facts.pictures["index"]),
  )
  return dataclasses.replace(
    report, warnings=tuple(warnings(report)), reasons=tuple(reasons(report))
  )


def quantiles(values: np.ndarray) -> dict[str, float]:
  """The values of which the shares `QUANTILES` are no larger; {} of none."""
  if not len(values):
    return {}
  found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
  return dict(zip(QUANTILES, found.tolist(), strict=True))


def reasons(report: Report) -> list[str]:
  """Why the source is not fit to train on."""
  bad = 1 - _share(report.usable, report.read)
  found = []
  if not report.usable:
    found.append("no record that was read can be used")
  elif bad > report.settings.max_bad:
    found.append(
      f"{bad:.1%} of the records read cannot be used, more than"
      f" --max_bad={report.settings.max_bad:.1%}; most often:"
      f" {report.causes[0].name}"
    )
  if report.usable > 1 and report.captions.same_share > MOST_SAME:
    found.append(
      f"{report.captions.same_share:.1%} of the records have one and the same"
      " caption: there is nothing to tell their pictures apart by"
    )
  for cause in report.causes:
    if cause.name == RAISES:
      found.append(
        f"reading {cause.count:,} of the records raises an error that would end"
        f" a run: {cause.examples[0].detail}"
      )
  if report.needs.super_batch > report.records:
    found.append(
      f"a super-batch of {report.needs.super_batch:,} pairs is more than the"
      f" source has ({report.records:,}); lower batch_size or filter_ratio"
    )
  return found


def warnings(report: Report) -> list[str]:
  """What does not make the source unfit, and is worth knowing."""
  pictures, texts = report.pictures, report.captions
  size, length = report.settings.image_size, report.settings.text_length
  shares = [
    (
      report.duplicates.alike_share,
      MANY_ALIKE,
      "of the pictures are copies of others; they are trained on again and"
      " again",
    ),
    (
      texts.cut_share,
      MANY_CUT,
      f"of the captions are cut at text_length={length}; raise it, or train a"
      " tokenizer for these captions",
    ),
    (
      pictures.small_share,
      MANY_SMALL,
      f"of the pictures are smaller than image_size={size} and are scaled up:"
      " a lower one costs less and shows as much",
    ),
    (
      texts.repeated_share,
      MANY_REPEATED,
      "of the records share their caption with another; in one batch, the loss"
      " takes such pairs for mismatches",
    ),
    (pictures.flat_share, MANY_FLAT, "of the pictures show nothing"),
  ]
  found = [
    f"{share:.1%} {text}" for share, most, text in shares if share > most
  ]
  found += [
    f"{remark.share:.1%} of the records ({remark.name}):"
    f" {REMARKS[remark.name]}; the first is {remark.examples[0].where}"
    for remark in report.remarks
    if remark.share > MANY_REMARKED.get(remark.name, 1.0)
  ]
  guesses = [r.name for r in report.remarks if r.name in GUESSES]
  if len(guesses) > 1:
    found.append(
      f"greys are read in {len(guesses)} ways, picture by picture"
      f" ({', '.join(guesses)}); store them all as 8 bits, or as 16 that fill"
      " 0..65535"
    )
  found += [f"records may be lost, {text}" for text in report.damage]
  rate, cores = report.rate, report.needs.cores
  if cores is not None and cores > rate.cores:
    found.append(
      f"a step every {report.settings.step_seconds:g} s wants {cores:,} cores"
      f" for reading; this machine has {rate.cores}"
    )
  return found


def _share(count, total) -> float:
  return float(count / total) if total else 0.0


def _causes(counts, examples, total) -> tuple[Cause, ...]:
  counts = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return tuple(
    Cause(name, n, _share(n, total), tuple(examples[name]))
    for name, n in counts
  )


def _pictures(facts, image_size) -> Pictures:
  rows = facts.pictures
  width, height = rows["width"], rows["height"]
  shorter, longer = np.minimum(width, height), np.maximum(width, height)
  formats = np.bincount(rows["format"], minlength=len(FORMATS))
  counts = {
    "small": int((shorter < image_size).sum()),
    "long": int((longer > LONG * shorter).sum()),
    "flat": int(rows["flat"].sum()),
  }
  return Pictures(
    formats={f: n for f, n in zip(FORMATS, formats.tolist()) if n},
    width=quantiles(width),
    height=quantiles(height),
    shorter_side=quantiles(shorter),
    megapixels=quantiles(width.astype(np.int64) * height / 1e6),
    encoded_bytes=quantiles(
      rows["bytes"][rows["format"] != FORMATS.index("array")]
    ),
    **counts,
    **{f"{name}_share": _share(n, len(rows)) for name, n in counts.items()},
  )


def _captions(source, facts, text_length) -> Captions:
  rows, usable = facts.captions, len(facts.pictures)
  cut = int((rows["tokens"] > text_length).sum())
  # A record that repeats itself shares its caption with no other.
  once = np.unique(rows[["index", "digest"]])
  digests, first, which, counts = np.unique(
    once["digest"], return_index=True, return_inverse=True, return_counts=True
  )
  shared = np.unique(once["index"][counts[which] > 1])
  per_picture = np.unique(rows["index"], return_counts=True)[1]
  # The first of those that are as frequent is the first of the source.
  order = np.lexsort((once["index"][first], -counts))[:REPEATED]
  return Captions(
    count=len(rows),
    per_picture=quantiles(per_picture),
    tokens=quantiles(rows["tokens"]),
    cut=cut,
    cut_share=_share(cut, len(rows)),
    distinct=len(digests),
    repeated=len(shared),
    repeated_share=_share(len(shared), usable),
    most_repeated=tuple(
      (_text(source, once["index"][first[k]], digests[k]), int(counts[k]))
      for k in order
      if counts[k] > 1
    ),
    same_share=_share(int(counts.max(initial=0)), usable),
  )


def _text(source, index, digest) -> str:
  """The caption of a record that has this digest."""
  fields, _ = attempt(source.fields, int(index))
  texts, _ = attempt(captions, fields or {})
  # Where it cannot be read again, or has changed, there is no more to say.
  found = (t for t in texts or () if text_digest(t) == digest)
  return next(found, f"(the caption of record {index})")


def _duplicates(facts) -> Duplicates:
  rows = facts.pictures[~facts.pictures["flat"]]
  same, alike = group(rows["digest"], rows["hash"], rows["look"])
  total = len(facts.pictures)
  redundant = [len(rows) - len(np.unique(labels)) for labels in (same, alike)]
  _, first, sizes = np.unique(alike, return_index=True, return_counts=True)
  # Of those of one size, the first of the source comes first.
  largest = np.lexsort((first, -sizes))[:GROUPS]
  return Duplicates(
    same=redundant[0],
    same_share=_share(redundant[0], total),
    alike=redundant[1],
    alike_share=_share(redundant[1], total),
    groups=int((sizes > 1).sum()),
    largest=tuple(
      Group(int(sizes[k]), _members(rows["index"][alike == k]))
      for k in largest
      if sizes[k] > 1
    ),
  )


def _sample(usable) -> tuple[int, ...]:
  rng = np.random.default_rng(0)
  count = min(SAMPLE, len(usable))
  return tuple(np.sort(rng.choice(usable, count, replace=False)).tolist())


def _members(indices: Sequence[int]) -> tuple[int, ...]:
  return tuple(int(i) for i in indices[:MEMBERS])
