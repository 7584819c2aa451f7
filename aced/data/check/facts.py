"""What one look at a record tells: its picture, its captions, its faults."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aced.data import decoding, picture_formats
from aced.data.check.duplicates import LOOK_SIDE, likeness
from aced.data.records import BadRecord, Source, captions
from aced.data.tokenizers import Tokenizer, load_tokenizer

# The cause of a record that fails in a way that is not one of `CAUSES`.
RAISES = "raises_error"
# Longer captions are counted as this long: none is trained on whole.
MOST_TOKENS = 1024
# Records of each cause that are named.
EXAMPLES = 3

FORMATS = ("array", *(form.name for form in picture_formats.FORMATS))
# A picture that shows something, and nothing brighter, is nearly black.
DARK = 15
# What is told of pictures that are usable, and may not show what was meant.
REMARKS = {
  **decoding.REMARKS,
  "nearly_black": f"no value is above {DARK} of 255",
  "captions_left_out": "some of its captions are empty, or no text",
  "several_lines": "its caption has several lines; ?lines=1 if each is one",
  "lost_letters": "its caption has \ufffd, where letters were lost earlier",
}

# A row for each usable record.
PICTURE = np.dtype(
  [
    ("index", np.int64),
    ("width", np.int32),
    ("height", np.int32),
    ("bytes", np.int64),  # As stored; 0 where that is an array.
    ("format", np.int8),  # In FORMATS.
    ("digest", np.uint64),  # Of the pixels.
    ("hash", np.uint64),
    ("look", np.uint8, (LOOK_SIDE, LOOK_SIDE, 3)),
    ("flat", bool),
  ]
)
# A row for each caption of a usable record.
CAPTION = np.dtype(
  [
    ("index", np.int64),
    ("digest", np.uint64),  # Of the text, without case and outer blanks.
    ("tokens", np.int32),  # With start and end.
  ]
)


@dataclasses.dataclass(frozen=True)
class Example:
  """A record of which something is told: where it is stored, and what it is."""

  index: int
  where: str
  detail: str


class Facts(NamedTuple):
  """What was found in some records.

  Attributes:
    read: how many there are.
    pictures: of the dtype `PICTURE`, one for each that can be used.
    captions: of the dtype `CAPTION`, of those records.
    causes: cause -> records that cannot be used for it. A record whose picture
      and caption are both at fault counts for both.
    examples: cause -> the first few.
    remarks: key of `REMARKS` -> usable records of which it is to be told.
    remarked: key of `REMARKS` -> the first few.
  """

  read: int
  pictures: np.ndarray
  captions: np.ndarray
  causes: Mapping[str, int]
  examples: Mapping[str, Sequence[Example]]
  remarks: Mapping[str, int]
  remarked: Mapping[str, Sequence[Example]]


def examine(
  source: Source, tokenizer: Tokenizer, indices: Sequence[int]
) -> Facts:
  """Looks at records, in this process."""
  pictures, texts, bad, told = [], [], [], []
  for index in map(int, indices):
    record, why = attempt(source.__getitem__, index)
    if why is None:
      found, no_picture = attempt(_picture, record, index)
      rows, no_caption = attempt(_captions, record, index, tokenizer)
      problems = [p for p in (no_picture, no_caption) if p]
    else:
      problems = [why]
    if problems:
      # As a dict: one cause may keep both picture and caption.
      bad += [(index, *problem) for problem in dict(problems).items()]
    else:
      picture, remarks = found
      remarks = [*remarks, *_of_texts(record)]
      pictures.append(picture)
      texts += rows
      told += [(index, remark, REMARKS[remark]) for remark in remarks]
  return Facts(
    len(indices),
    np.array(pictures, PICTURE),
    np.array(texts, CAPTION),
    *count_causes(source, bad),
    *count_causes(source, told),
  )


def attempt(
  function: Callable, *args: Any
) -> tuple[Any, tuple[str, str] | None]:
  """Reads something of a record, which may fail in any way.

  Returns:
    What the function returns and None, or None and the cause and detail of why
    it did not; the cause is `RAISES` where no `BadRecord` says it.
  """
  try:
    return function(*args), None
  except BadRecord as bad:
    return None, (bad.cause, bad.detail)
  except Exception as error:
    # A run ends here, and the verdict says so; the survey goes on.
    return None, (RAISES, f"{type(error).__name__}: {error}")


def join(parts: Sequence[Facts]) -> Facts:
  """Facts of several parts of a source, in order, as one."""
  return Facts(
    sum(part.read for part in parts),
    np.concatenate([np.zeros(0, PICTURE), *(p.pictures for p in parts)]),
    np.concatenate([np.zeros(0, CAPTION), *(p.captions for p in parts)]),
    *_joined([(part.causes, part.examples) for part in parts]),
    *_joined([(part.remarks, part.remarked) for part in parts]),
  )


def long_tokenizer(spec: str, text_length: int) -> Tokenizer:
  """Loads a tokenizer to count with: it cuts no text that a run does not cut.

  Raises:
    ConfigError: as `load_tokenizer`.
  """
  return load_tokenizer(spec, max(MOST_TOKENS, text_length + 1))


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
  """Returns the ids of each text, start and end included, `(n,)` int.

  Args:
    tokenizer: its length is the most that is counted.
    texts: `n` of them.
  """
  ids, pad = tokenizer([*texts, ""]), tokenizer.pad
  filled = ids != pad
  last = ids.shape[1] - np.argmax(filled[:, ::-1], axis=1)
  count = np.where(filled.any(axis=1), last, 0)
  # An end that looks like padding was not counted: the row of no text says so.
  missing = pad == tokenizer.eos or count[-1] < tokenizer.reserved
  return count[:-1] + missing


def text_digest(text: str) -> int:
  """64 bits of a caption, the same whatever its case and outer blanks."""
  return _digest(text.strip().casefold().encode("utf-8", "surrogatepass"))


def image_format(image: Any) -> str:
  """Names how a picture that was decoded is stored, one of `FORMATS`."""
  if isinstance(image, np.ndarray):
    return "array"
  return picture_formats.find(bytes(image)).name


def _picture(record: Mapping[str, Any], index: int) -> tuple[tuple, list[str]]:
  """A row of `PICTURE`, and keys of `REMARKS`."""
  image = record.get("image")
  pixels = np.ascontiguousarray(decoding.decode(image))
  height, width = pixels.shape[:2]
  found = likeness(pixels)
  row = (
    index,
    width,
    height,
    0 if isinstance(image, np.ndarray) else len(image),
    FORMATS.index(image_format(image)),
    _digest(b"%d,%d," % (height, width), pixels.data),
    found.hash,
    found.look,
    found.flat,
  )
  remarks = decoding.remarks(image)
  if pixels.min() < pixels.max() <= DARK:
    remarks.append("nearly_black")
  return row, remarks


def _captions(
  record: Mapping[str, Any], index: int, tokenizer: Tokenizer
) -> list[tuple]:
  """Rows of `CAPTION`."""
  texts = captions(record)
  tokens = count_tokens(tokenizer, texts)
  return [(index, text_digest(t), n) for t, n in zip(texts, tokens)]


def _of_texts(record: Mapping[str, Any]) -> list[str]:
  """Keys of `REMARKS` that hold of the captions of a record."""
  texts, stored = captions(record), record["text"]
  found = {
    "captions_left_out": not isinstance(stored, str)
    and len(texts) < len(stored),
    "several_lines": any("\n" in text for text in texts),
    "lost_letters": any("\ufffd" in text for text in texts),
  }
  return [remark for remark, holds in found.items() if holds]


def _digest(*parts) -> int:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  return int.from_bytes(digest.digest()[:8], "big")


def count_causes(
  source: Source, bad: Sequence[tuple[int, str, str]]
) -> tuple[dict[str, int], dict[str, tuple[Example, ...]]]:
  """Counts the causes of `(index, cause, detail)`, and takes examples.

  Returns:
    cause -> records, and cause -> the first few `Example`s.
  """
  causes, examples = {}, {}
  for index, cause, detail in bad:
    causes[cause] = causes.get(cause, 0) + 1
    if causes[cause] <= EXAMPLES:
      example = Example(index, source.where(index), detail)
      examples[cause] = (*examples.get(cause, ()), example)
  return causes, examples


def _joined(parts) -> tuple[dict[str, int], dict[str, tuple[Example, ...]]]:
  """What `count_causes` gave of several parts of a source, in order, as one."""
  counts, examples = {}, {}
  for part_counts, part_examples in parts:
    for name, count in part_counts.items():
      counts[name] = counts.get(name, 0) + count
      named = [*examples.get(name, ()), *part_examples[name]]
      examples[name] = tuple(named[:EXAMPLES])
  return counts, examples
