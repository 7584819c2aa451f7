"""Opens data sets by a short text: `kind:where?option=value&option=value`."""

import inspect
import typing
from collections.abc import Callable, Mapping

from aced.config import did_you_mean
from aced.data import faults as faults_lib
from aced.data.records import Slice, Source, SourceError
from aced.data.sources.fields import Fields
from aced.data.specs import options_of

# What opens a kind is imported when the kind is: some need extras.


def open_jsonl(
  where: str,
  *,
  image: str = "image",
  text: str = "text",
  label: str | None = None,
  lines: bool = False,
) -> Source:
  """Opens `jsonl:path/file.jsonl`; the options name fields of the lines.

  With `lines`, here and below, each line of a caption is a caption of its own.
  """
  if not where:
    raise SourceError("jsonl: needs a file, such as jsonl:pairs/train.jsonl.")
  from aced.data.sources.jsonl import Jsonl

  return Jsonl(where, Fields(image, text, label, lines))


def open_array_record(
  where: str,
  *,
  image: str = "image",
  text: str = "text",
  label: str | None = None,
  lines: bool = False,
) -> Source:
  """Opens `array_record:set/*.array_record`, of `tf.train.Example`."""
  from aced.data.sources.array_records import ArrayRecords

  return ArrayRecords(where, Fields(image, text, label, lines))


def open_webdataset(
  where: str,
  *,
  image: str = "",
  text: str = "txt",
  label: str | None = None,
  lines: bool = False,
  metadata: str = "",
  index: str = "",
) -> Source:
  """Opens `webdataset:set/{0000..0099}.tar`; options name kinds of members.

  `json.NAME` is the field NAME of the member json. `metadata` is a member with
  numbers in a row, such as npy. `index` is the folder that keeps the offsets of
  the members.
  """
  from aced.data.sources.webdataset import WebDataset

  return WebDataset(
    where,
    image=image,
    text=text,
    label=label,
    lines=lines,
    metadata=metadata,
    index=index,
  )


def open_parquet(
  where: str,
  *,
  image: str = "image",
  text: str = "text",
  label: str | None = None,
  lines: bool = False,
) -> Source:
  """Opens `parquet:set/*.parquet`; the options name columns."""
  from aced.data.sources.parquet import Parquet

  return Parquet(where, Fields(image, text, label, lines))


def open_tfds(
  where: str,
  *,
  data_dir: str = "",
  image: str = "image",
  text: str = "text",
  label: str | None = None,
  lines: bool = False,
) -> Source:
  """Opens `tfds:name/config:split`, stored as ArrayRecord in `data_dir`."""
  from aced.data.sources.tfds import Tfds

  return Tfds(where, data_dir, Fields(image, text, label, lines))


def open_hf(
  where: str,
  *,
  config: str = "",
  image: str = "image",
  text: str = "text",
  label: str | None = None,
  lines: bool = False,
) -> Source:
  """Opens `hf:name:split`, a data set of Hugging Face, or `hf:folder`."""
  from aced.data.sources.hf import HuggingFace

  return HuggingFace(where, config, Fields(image, text, label, lines))


def open_mixture(where: str) -> Source:
  """Opens `mixture:3*SPEC;1*SPEC`: several sources, in proportion."""
  from aced.data.sources.mixture import Mixture, components

  weights, specs = components(where)
  return Mixture([open_source(spec) for spec in specs], weights)


def open_synthetic(
  where: str,
  *,
  size: int = 20_000,
  seed: int = 0,
  image_size: int = 32,
  asked: int = 0,
) -> Source:
  """Opens `synthetic:train`, `val`, `test` or `classes`: drawn scenes."""
  from aced.data.synthetic import Scenes

  return Scenes(size, seed, image_size, where or "train", asked)


# Kind -> what opens it: `opener(where, **options)`. The keyword arguments of an
# opener are the options of its kind, and their annotations the types.
KINDS: dict[str, Callable[..., Source]] = {
  "array_record": open_array_record,
  "hf": open_hf,
  "jsonl": open_jsonl,
  "mixture": open_mixture,
  "parquet": open_parquet,
  "synthetic": open_synthetic,
  "tfds": open_tfds,
  "webdataset": open_webdataset,
}


def wrap(
  source: Source,
  *,
  start: int = 0,
  limit: int | None = None,
  noise: float | None = None,
  noise_seed: int = 0,
  faults: str | None = None,
) -> Source:
  """Applies the options that every kind has.

  Args:
    source: of any kind.
    start: the first record taken.
    limit: the most records taken.
    noise: the share of records to put faults into; 0 puts in none, and marks
      all of them as clean.
    noise_seed: of the faults.
    faults: the kinds of faults, such as "swapped+junk"; all by default.
  """
  if start or limit is not None:
    stop = len(source) if limit is None else start + limit
    source = Slice(source, start, stop)
  if noise is None:
    if faults or noise_seed:
      raise SourceError(
        "faults= and noise_seed= say what noise is like; add noise=, the share"
        " of records at fault."
      )
    return source
  kinds = tuple(faults.split("+")) if faults else tuple(faults_lib.KINDS)
  return faults_lib.inject(source, noise, kinds, noise_seed)


def open_source(spec: str) -> Source:
  """Opens a data set.

  Args:
    spec: `kind:where?option=value&option=value`, such as
      "synthetic:train?size=20000&noise=0.6" or
      "jsonl:pairs/train.jsonl?label=name&limit=1000". A path that ends in
      .jsonl needs no kind. `KINDS` holds the kinds and the options of each;
      those of `wrap` go with all. Options of a mixture stand with its parts.

  Returns:
    A source of at least one record.

  Raises:
    SourceError: an unknown kind or option, a value that does not fit, or a
      source that is missing or empty.
  """
  kind, where, options = parse(spec)
  opener = KINDS[kind]
  own, common = _options(opener), _options(wrap)
  for name in options:
    if name not in {**own, **common}:
      known = sorted({**own, **common})
      raise SourceError(
        f"{spec!r}: {name!r} is not an option of {kind}; it is one of"
        f" {', '.join(known)}.{did_you_mean(name, known)}"
      )
  values = {
    name: _convert(spec, name, text, {**own, **common}[name])
    for name, text in options.items()
  }
  try:
    source = opener(where, **{k: v for k, v in values.items() if k in own})
    return wrap(source, **{k: v for k, v in values.items() if k in common})
  except SourceError as error:
    raise SourceError(f"source {spec!r}: {error}") from error


def parse(spec: str) -> tuple[str, str, dict[str, str]]:
  """Splits a spec into its kind, where and options.

  Raises:
    SourceError: the kind is not known, or an option has no value.
  """
  head, _, query = spec.partition("?")
  kind, colon, where = head.partition(":")
  if kind == "mixture":
    return kind, spec.removeprefix("mixture:"), {}
  mistyped = colon and kind.isalpha() and did_you_mean(kind, KINDS)
  path = not colon or (kind not in KINDS and not mistyped)
  if head.endswith(".jsonl") and path:
    kind, where = "jsonl", head
  if kind not in KINDS:
    raise SourceError(
      f"source {spec!r}: {kind!r} is not a kind of source; expected"
      f" kind:where?option=value, kind one of {', '.join(KINDS)}, or a path"
      f" that ends in .jsonl.{did_you_mean(kind, KINDS)}"
    )
  return kind, where, options_of(query, f"source {spec!r}", SourceError)


def _options(opener: Callable[..., Source]) -> Mapping[str, type]:
  """The options of an opener and their types."""
  hints = typing.get_type_hints(opener)
  parameters = inspect.signature(opener).parameters.values()
  return {
    p.name: next(
      t
      for t in (*typing.get_args(hints[p.name]), hints[p.name])
      if t is not type(None)
    )
    for p in parameters
    if p.kind is p.KEYWORD_ONLY
  }


def _convert(spec, name, text, kind):
  try:
    return _TRUTH[text] if kind is bool else kind(text)
  except (ValueError, KeyError) as error:
    expected = "1 or 0" if kind is bool else f"of type {kind.__name__}"
    raise SourceError(
      f"source {spec!r}: {name}={text} must be {expected}."
    ) from error


_TRUTH = {"0": False, "1": True}
