"""Which tasks' data are there, whole, and of the classes they should have."""

import glob
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from aced.config import ConfigError
from aced.data import open_source
from aced.data.records import Slice, Source
from aced.data.specs import options_of
from aced.evaluation.labels import names_beside, names_file
from aced.evaluation.suites.task import Task

# Shards of publishers have captions in the lines of one text.
_SHARDS = "webdataset:"


class Found(NamedTuple):
  """The data of a task.

  Attributes:
    task: whose.
    spec: the source that was opened, as text.
    source: opened.
    class_names: in the order of their numbers; empty for retrieval, None where
      they are those of the source.
    label_names: what the records call the classes, in the same order; None is
      the same.
    note: what a reader of the score should know, or "".
  """

  task: Task
  spec: str
  source: Source
  class_names: tuple[str, ...] | None = None
  label_names: tuple[str, ...] | None = None
  note: str = ""


class Missing(NamedTuple):
  """A task without data that can be used.

  Attributes:
    task: which.
    reason: what is wrong.
    refused: whether data is there, and is wrong.
  """

  task: Task
  reason: str
  refused: bool = False


class Chosen(Source):
  """Some records of another source.

  Args:
    source: of all of them.
    indices: of those that are taken.
  """

  def __init__(self, source: Source, indices: Sequence[int]):
    self.source, self.indices = source, indices

  def __len__(self):
    return len(self.indices)

  def __repr__(self):
    return f"{len(self)} records of {self.source!r}"

  def __getitem__(self, index):
    return self.source[self.indices[self._check(index)]]

  def fields(self, index):
    """The record at `index` without its picture."""
    return self.source.fields(self.indices[self._check(index)])

  def where(self, index):
    """Where the record at `index` is stored."""
    return self.source.where(self.indices[self._check(index)])


def find(
  task: Task, data_dir: str, *, partial: bool = False
) -> Found | Missing:
  """Looks for a task's data, in each of the places where it may be.

  Args:
    task: whose data.
    data_dir: the folder that stands for "{data_dir}" in its sources.
    partial: whether a data set that is not whole will do.
  """
  wrong = why = ""
  for spec in task.sources:
    spec = spec.replace("{data_dir}", data_dir)
    try:
      spec = _in_lines(task, spec)
      source = open_source(spec)
    except (ConfigError, OSError, ImportError) as error:
      why = str(error)
      if _is_there(spec):
        wrong = wrong or why
      continue
    return _checked(task, spec, source, partial)
  where = ", ".join(
    spec.replace("{data_dir}", data_dir).partition("?")[0]
    for spec in task.sources
  )
  if wrong:
    return Missing(task, wrong, refused=True)
  # Of several places, what is wrong with one says little.
  more = f": {why}" if len(task.sources) == 1 else ""
  return Missing(task, f"not found; looked for {where}{more}")


def find_training(found: Found, data_dir: str) -> Source | None:
  """The training split of a task, from where its test split is; None if none.

  Args:
    found: the test split.
    data_dir: as of `find`.

  Raises:
    ConfigError, OSError, ImportError: it is there, or the task names it, and it
      cannot be opened.
  """
  specs = [s.replace("{data_dir}", data_dir) for s in found.task.train_sources]
  named = bool(specs)
  if not specs and found.spec.startswith(_SHARDS) and "/test/" in found.spec:
    specs = [found.spec.replace("/test/", "/train/", 1)]
  for spec in specs:
    try:
      return open_source(spec)
    except (ConfigError, OSError, ImportError):
      if named or _is_there(spec):
        raise
  return None


def _in_lines(task, spec) -> str:
  """A spec of shards with captions: each line is one, unless it says not.

  Raises:
    ConfigError: its options cannot be read.
  """
  if task.kind != "retrieval" or not spec.startswith(_SHARDS):
    return spec
  query = spec.partition("?")[2]
  if "lines" in options_of(query, spec):
    return spec
  return f"{spec}{'&' if query else '?'}lines=1"


def _checked(task, spec, source, partial) -> Found | Missing:
  """The data, if it is all of it and of the right classes."""
  notes = []
  whole, count = source, len(source)
  damage = source.damage()
  if count != task.records or damage:
    reason = f"{count:,} of {task.records:,} pictures are there"
    if damage:
      reason += f"; {damage[0]}"
    if not partial or count > task.records:
      more = "" if count > task.records else "; --partial takes what is there"
      return Missing(task, f"{reason} ({spec}){more}", refused=True)
    notes.append(reason)
    if task.kind == "zero_shot":  # Of a record cut short, the class may lack.
      labels = (source.fields(k).get("label") for k in range(count))
      kept = [k for k, label in enumerate(labels) if label is not None]
      if len(kept) < count:
        first = min(set(range(count)) - set(kept))
        notes.append(
          f"{count - len(kept):,} of them have no label and are left out, first"
          f" {source.where(first)}"
        )
      source = Chosen(source, kept)
  if task.kind != "zero_shot":
    return Found(task, spec, source, note="; ".join(notes))
  try:
    names, label_names, note = _classes(task, spec, whole)
  except ConfigError as error:
    return Missing(task, str(error), refused=True)
  notes += [note] if note else []
  return Found(task, spec, source, names, label_names, "; ".join(notes))


def _classes(task, spec, source):
  """Names of the classes, what records call them, and a note on them.

  Raises:
    ConfigError: there are none, or as many as the task has not.
  """
  names = task.class_names
  # Of a suite of one's own; with no names they are those of the source.
  own = isinstance(task.classes, tuple)
  if spec.startswith(_SHARDS):
    beside, file, note = names_beside(source), names_file(source), ""
    if beside is not None:
      _check_count(task, beside, file)
      if names and beside != names:
        differ = sum(a != b for a, b in zip(beside, names, strict=True))
        note = (
          f"{differ} of the {len(beside)} class names are those of the data"
        )
    names = beside or names
    if own:
      return names or None, None, note
    if not names:
      raise ConfigError(
        f"its class names come with the data, and there is no {file.name} in"
        f" {file.parent}"
      )
    return names, tuple(str(k) for k in range(len(names))), note
  known = _declared(source)
  if known:
    _check_count(task, known, spec)
    return names or known, known, ""
  return names or None, None, ""


def _declared(source) -> tuple[str, ...] | None:
  """The class names that a data set itself has, in their order; or None."""
  while isinstance(source, Slice):
    source = source.source
  try:
    return getattr(source, "class_names", None)
  except ConfigError:  # Its labels are no classes, but texts or numbers.
    return None


def _check_count(task, names, where):
  if task.num_classes and len(names) != task.num_classes:
    raise ConfigError(
      f"class count mismatch: {where} names {len(names)} classes, and"
      f" {task.title} has {task.num_classes}"
    )


def _is_there(spec) -> bool:
  """Whether anything stands where a source was looked for."""
  kind, _, rest = spec.partition(":")
  where, _, query = rest.partition("?")
  if kind == "tfds":
    name = re.split(r"[/:]", where)[0]
    folder = options_of(query, spec).get("data_dir", "")
    return (pathlib.Path(folder).expanduser() / name).is_dir()
  pattern = os.path.expanduser(re.sub(r"\{[^}]*\}", "*", where))
  # Brackets may be those of a pattern, or of a name.
  return any(glob.glob(p) for p in (pattern, pattern.replace("[", "[[]")))
