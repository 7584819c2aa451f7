"""Class labels: what records call their classes, and which class each is.

One rule for suites, evaluators of runs and probes:

1. A label that is the name of a class means that class.
2. Where all labels are whole numbers (3, "3", 3.0, True) and not all are names,
   they count the class names from 0.
3. A label that differs from one name alone, by capitals, spaces or underscores,
   means that class; the records are counted in a note.

Without class names those of the records are taken, sorted; where these are
numbers, and the publisher of shards has laid a `classnames.txt` beside them,
those of the file.
"""

import collections
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aced.config import ConfigError, did_you_mean
from aced.data.records import Slice
from aced.data.sources.webdataset import WebDataset
from aced.evaluation.evaluator import read_field

_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")
_TRUTH = {"false": 0, "true": 1}
_LISTED = 3  # Names that a note has at most.
# What publishers lay beside the folders of their shards: a class a line, in the
# order of their numbers.
NAMES_FILE = "classnames.txt"


class Classes(NamedTuple):
  """The classes of a data set.

  Attributes:
    names: `c` names, for prompts.
    labels: `(n,)` int64, the class of each record.
    numbered: whether the names are numbers, since nothing names the classes.
    notes: what a reader of a score should know.
  """

  names: tuple[str, ...]
  labels: np.ndarray
  numbered: bool
  notes: tuple[str, ...]


def read(source: Any, field: str, limit: int | None = None) -> list[str]:
  """Reads the label of every record, as text without spaces around it.

  Args:
    source: of the records.
    field: that holds the label: a text, a whole number or a truth value.
    limit: the first records alone, so many.

  Raises:
    ValueError: records without a label, or with one that is none; the first is
      named.
  """
  found = read_field(source, field, (str, int, float), "ZeroShot", limit)
  texts = [_text(value) for value in found]
  bad = [k for k, text in enumerate(texts) if not text]
  if bad:
    raise ValueError(
      f"the label of {len(bad)} of {len(texts)} records of {source!r} is"
      f" {found[bad[0]]!r} or like it, first {source.where(bad[0])}; expected"
      " the name or the number of a class in each."
    )
  return texts


def check_names(
  class_names: Sequence[str] | None,
  label_names: Sequence[Any] | None,
  first: str,
) -> None:
  """Refuses names that labels could not tell apart.

  Args:
    class_names: of the classes; None is those of the source.
    label_names: what records call them; None is the same.
    first: the label of the first record.

  Raises:
    ValueError: names that are none or no texts, that are as many as the others
      are not, or that stand for two classes.
  """
  names = class_names or ()
  if class_names is not None and (
    isinstance(class_names, str)
    or not len(class_names)
    or not all(isinstance(name, str) for name in class_names)
  ):
    raise ValueError(
      f"class_names={class_names!r} must be a list of names, or left out to"
      " take those of the source."
    )
  if label_names is not None and len(label_names) != len(names):
    raise ValueError(
      f"{len(label_names)} label_names and {len(names)} class_names; give both"
      " in one order."
    )
  called = names if label_names is None else label_names
  by_number = label_names is None and first not in called
  if not (by_number and _number(first) is not None):
    _check_unlike(called, called)


def classes(
  source: Any,
  field: str,
  class_names: Sequence[str] | None = None,
  label_names: Sequence[Any] | None = None,
) -> Classes:
  """Reads labels and finds the class of each record.

  Args:
    source: of the records.
    field: that holds the label.
    class_names: of the classes; None is those of the source, sorted, or those
      beside it.
    label_names: what records call the classes, in the order of `class_names`;
      None is the same, or their numbers.

  Raises:
    ValueError: a record whose label is none of them; the first is named.
  """
  texts = read(source, field)
  if class_names is None and all(_number(t) is not None for t in set(texts)):
    class_names = names_beside(source)
  if class_names is None:
    return _of_source(texts)
  names = tuple(class_names)
  if label_names is not None:
    called, option = [_text(name) for name in label_names], "label_names"
  else:
    called, option = names, "class_names"
  counts = collections.Counter(texts)
  numbers = {text: _number(text) for text in counts}
  by_number = label_names is None and None not in numbers.values()
  if by_number and not counts.keys() <= set(names):
    _check_range(source, texts, numbers, names)
    found, notes = numbers, []
  else:
    found, notes = _by_name(source, texts, counts, called, option)
    other = [t for t in counts if numbers[t] not in (None, found[t])]
    if other and label_names is None:
      notes.append(
        "labels that are numbers, and names of classes too, are taken for the"
        f" names: {_some(other)}"
      )
  labels = np.array([found[text] for text in texts], np.int64)
  return Classes(names, labels, False, (*notes, *_empty(names, labels)))


def names_file(source: Any) -> pathlib.Path | None:
  """Where the class names of shards are, if there; None of other sources."""
  while isinstance(source, Slice):
    source = source.source
  if not isinstance(source, WebDataset):
    return None
  return pathlib.Path(source.paths[0]).parent.parent / NAMES_FILE


def names_beside(source: Any) -> tuple[str, ...] | None:
  """The class names beside shards; None if there are none.

  Raises:
    ConfigError: the file is no text.
  """
  path = names_file(source)
  if path is None or not path.is_file():
    return None
  try:
    text = path.read_text("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ConfigError(f"{path} is not UTF-8: {error}") from error
  # A published list has a class whose name is empty.
  return tuple(line.strip() for line in text.splitlines())


def _of_source(texts):
  """The classes as records call them."""
  names = tuple(sorted(set(texts)))
  number = {name: k for k, name in enumerate(names)}
  labels = np.array([number[text] for text in texts], np.int64)
  if not names:
    return Classes(names, labels, False, ())
  numbers = [name for name in names if _is_number(name)]
  numbered = len(numbers) == len(names)
  notes = []
  if numbers and not numbered:
    notes.append(
      f"{len(numbers)} of the {len(names)} classes are numbers, and prompts"
      f" have these: {_some(numbers)}; name all classes by class_names"
    )
  if len(names) == 1:
    notes.append(
      f"all records are of one class, {names[0]!r}: there is nothing to tell"
      " apart"
    )
  if numbered:
    notes.append(
      f"the labels are numbers without names ({_some(names)}), and prompts have"
      " nothing but these, so that the score says little: name the classes by"
      " class_names, in the order of their numbers"
    )
  alike = collections.defaultdict(list)
  for name in names:
    alike[_plain(name)].append(name)
  twins = [same for same in alike.values() if len(same) > 1]
  if twins:
    notes.append(
      f"classes that differ by capitals, spaces or underscores alone count as"
      f" several: {_some(twins[0])}; class_names with one of them joins them"
    )
  lined = [name for name in names if "_" in name]
  if lined:
    notes.append(
      f"{len(lined)} of the {len(names)} class names have underscores, and"
      f" prompts have them too: {_some(lined)}; class_names may have spaces"
      " there"
    )
  return Classes(names, labels, numbered, tuple(notes))


def _by_name(source, texts, counts, called, option):
  """`{label: number}` by names, and notes on those that are spelled otherwise.

  Raises:
    ValueError: a label that is no name, or the name of two classes.
  """
  number = {name: k for k, name in enumerate(called)}
  alike = collections.defaultdict(list)
  for k, name in enumerate(called):
    alike[_plain(name)].append(k)
  found, other = {}, {}
  for text in counts:
    same = alike[_plain(text)]
    if text in number:
      found[text] = number[text]
    elif len(same) == 1:
      found[text] = same[0]
      other[text] = called[same[0]]
  _check_unlike(called, counts)
  unknown = [k for k, text in enumerate(texts) if text not in found]
  if unknown:
    label = texts[unknown[0]]
    raise ValueError(
      f"{source!r} holds the class {label!r}, which is not in {option},"
      f" {len(called)} of them.{did_you_mean(label, called)}"
      f" {len(unknown)} of {len(texts)} records are of no class that is, first"
      f" {source.where(unknown[0])}."
    )
  if not other:
    return found, []
  text, name = next(iter(other.items()))
  return found, [
    f"the labels of {sum(counts[t] for t in other)} records are spelled"
    f" otherwise than in {option}, by capitals, spaces or underscores:"
    f" {text!r} is taken for {name!r}"
  ]


def _check_unlike(called, used):
  """Refuses a name that is used and stands for two classes."""
  for name, count in collections.Counter(called).items():
    if count > 1 and name in used:
      raise ValueError(
        f"{name!r} is the name of more than one class, and a label could mean"
        " either; tell them apart by label_names, or by labels that are"
        " numbers."
      )


def _check_range(source, texts, numbers: Mapping[str, int], names):
  """Refuses numbers that count no class."""
  least, most = min(numbers.values()), max(numbers.values())
  outside = [k for k, t in enumerate(texts) if not 0 <= numbers[t] < len(names)]
  truth = len(names) != len(_TRUTH) and all(
    t.lower() in _TRUTH for t in numbers
  )
  if not outside and not truth:
    return
  hint = ""
  if truth:
    hint = " Truth values tell two classes apart, the false one first."
  elif least < 0:
    hint = " A number below 0 often says that the class is not known; leave"
    hint += " such records out."
  elif least > 0 and most == len(names):
    hint = " They seem to count from 1; give label_names, what the records call"
    hint += " each class, or count from 0."
  first = (outside or [0])[0]
  raise ValueError(
    f"{source!r} holds the class {texts[first]!r}, which is not in class_names,"
    f" {len(names)} of them: labels that are numbers count them from 0 to"
    f" {len(names) - 1}, and these are {least} to {most}."
    f" {len(outside or texts)} of {len(texts)} records are outside, first"
    f" {source.where(first)}.{hint}"
  )


def _empty(names, labels):
  """A note on the classes that no record is of."""
  count = np.bincount(labels, minlength=len(names))
  empty = [name for name, k in zip(names, count, strict=True) if not k]
  if not empty:
    return []
  return [
    f"{len(empty)} of the {len(names)} classes have no picture: {_some(empty)}"
  ]


def _text(value: Any) -> str:
  """A label as text; "" where it is none."""
  if isinstance(value, float):
    return str(int(value)) if value.is_integer() else ""
  return str(value).strip()


def _number(text: str) -> int | None:
  """The number that a label is; None if it is a name."""
  if text.lower() in _TRUTH:
    return _TRUTH[text.lower()]
  found = _NUMBER.fullmatch(text)
  return int(found[1]) if found else None


def _is_number(text: str) -> bool:
  """Whether a label is a number, whole or not."""
  try:
    float(text)
  except ValueError:
    return _number(text) is not None
  return True


def _plain(name: str) -> str:
  """A name without what names are often spelled differently by."""
  name = unicodedata.normalize("NFKC", name)  # Names of files may have two.
  return " ".join(name.replace("_", " ").casefold().split())


def _some(names: Sequence[str]) -> str:
  listed = ", ".join(repr(name) for name in names[:_LISTED])
  return f"{listed}, ..." if len(names) > _LISTED else listed
