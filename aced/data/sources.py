"""Opens data sets by a short text: `kind:where?option=value&option=value`."""

import inspect
import typing
from collections.abc import Callable, Mapping

from aced.config import did_you_mean
from aced.data import faults as faults_lib
from aced.data.jsonl import Jsonl
from aced.data.records import Slice, Source, SourceError
from aced.data.synthetic import Scenes


def open_jsonl(
  where: str,
  *,
  image: str = "image",
  text: str = "text",
  label: str | None = None,
) -> Source:
  """Opens `jsonl:path/file.jsonl`; the options name fields of the lines."""
  if not where:
    raise SourceError("jsonl: needs a file, such as jsonl:pairs/train.jsonl.")
  return Jsonl(where, image=image, text=text, label=label)


def open_synthetic(
  where: str, *, size: int = 20_000, seed: int = 0, image_size: int = 32
) -> Source:
  """Opens `synthetic:train`, `val`, `test` or `classes`: drawn scenes."""
  return Scenes(size, seed, image_size, where or "train")


# Kind -> what opens it: `opener(where, **options)`. The keyword arguments of an
# opener are the options of its kind, and their annotations the types.
KINDS: dict[str, Callable[..., Source]] = {
  "jsonl": open_jsonl,
  "synthetic": open_synthetic,
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
      those of `wrap` go with all.

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
  if head.endswith(".jsonl") and (not colon or kind not in KINDS):
    kind, where = "jsonl", head
  if kind not in KINDS:
    raise SourceError(
      f"source {spec!r}: {kind!r} is not a kind of source; expected"
      f" kind:where?option=value, kind one of {', '.join(KINDS)}, or a path"
      f" that ends in .jsonl.{did_you_mean(kind, KINDS)}"
    )
  options = {}
  for item in filter(None, query.split("&")):
    name, _, value = item.partition("=")
    if not value or name in options:
      raise SourceError(
        f"source {spec!r}: {item!r} must be option=value, each option once."
      )
    options[name] = value
  return kind, where, options


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
    return kind(text)
  except ValueError as error:
    raise SourceError(
      f"source {spec!r}: {name}={text} must be of type {kind.__name__}."
    ) from error
