"""Evaluators: a data set, a task, and the metrics of a model on it."""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aced.config import ConfigError, did_you_mean
from aced.data import pipeline, sources
from aced.evaluation import embed, zero_shot
from aced.evaluation import labels as labels_lib
from aced.evaluation.association import Association
from aced.evaluation.evaluator import Evaluator, read_field
from aced.evaluation.outcomes import Classified, Retrieved
from aced.evaluation.retrieval import check_ks, retrieval_ranks
from aced.models.build import fits, type_name

# Where a line of a text ends.
_LINES = re.compile(r"[\r\n]")


class ZeroShot(Evaluator):
  """Zero-shot classification with an ensemble of prompts.

  Args:
    source: records with a class name each.
    tokenizer: maps texts to token ids.
    transform: makes a picture of a record, as in training.
    class_names: the classes to tell apart; None is those of the source,
      sorted. Which labels mean them, `aced.evaluation.labels` says.
    templates: prompts, with "{}" where the name of the class goes.
    batch_size: rows embedded at a time, of all processes together.
    label_field: the field of a record that holds the name of its class, or
      its number.
    group_field: that holds its group, for the worst group's scores; "name.0"
      is the first item of the list in the field "name".
    groups_left_out: that do not count among the groups.
    label_names: what records call the classes, in the order of `class_names`;
      None is the same, or their numbers.

  Raises:
    ValueError: a template without "{}", no class names, or no such field.
  """

  def __init__(
    self,
    source: Any,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    transform: Callable[..., Any],
    *,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = zero_shot.TEMPLATES,
    batch_size: int = 256,
    label_field: str = "label",
    group_field: str | None = None,
    groups_left_out: Sequence[str | int] = (),
    label_names: Sequence[str] | None = None,
    name: str = "zero_shot",
  ):
    super().__init__(source, tokenizer, transform, batch_size)
    self.name = name
    zero_shot.check_templates(templates)
    # The first record alone now, so that a wrong name is found at once.
    (first,) = labels_lib.read(source, label_field, limit=1) or [""]
    labels_lib.check_names(class_names, label_names, first)
    if group_field is not None:
      read_field(source, group_field, (str, int), "ZeroShot", limit=1)
    self._class_names = class_names
    self.templates = tuple(templates)
    self.label_field = label_field
    self.group_field = group_field
    self.groups_left_out = tuple(groups_left_out)
    self.label_names = label_names

  @functools.cached_property
  def classes(self) -> labels_lib.Classes:
    """The classes, and which one each record is of."""
    return labels_lib.classes(
      self.source, self.label_field, self._class_names, self.label_names
    )

  @property
  def class_names(self) -> tuple[str, ...]:
    """The classes to tell apart."""
    return self.classes.names

  @property
  def labels(self) -> np.ndarray:
    """The number of every record's class."""
    return self.classes.labels

  @property
  def unnamed(self) -> bool:
    """Whether classes are known by numbers alone."""
    return self.classes.numbered

  @functools.cached_property
  def groups(self) -> np.ndarray | None:
    """The group of each record as a number; -1 of one that is left out."""
    if self.group_field is None:
      return None
    found = read_field(self.source, self.group_field, (str, int), "ZeroShot")
    # As text, so that a 5 of the data is the "5" of a config, as with labels.
    values = [str(value).strip() for value in found]
    known = sorted(set(values) - {str(name) for name in self.groups_left_out})
    if not known:
      raise ValueError(
        f"{self.source!r}: the field {self.group_field!r} has none but the"
        f" groups that are left out, {self.groups_left_out}."
      )
    numbers = {value: k for k, value in enumerate(known)}
    return np.array([numbers.get(value, -1) for value in values])

  def check(self):
    """Reads labels and groups."""
    _ = self.labels, self.groups

  def notes(self, images):
    """On the classes."""
    return list(self.classes.notes)

  def measure(self, images, embed_text) -> Classified:
    """Classifies all pictures."""
    classes = zero_shot.class_embeddings(
      embed_text,
      self.tokenizer,
      self.class_names,
      self.templates,
      self.batch_size,
    )
    groups = None if self.groups is None else self.groups[images.index]
    return zero_shot.classify(
      images.z,
      classes,
      self.labels[images.index],
      index=images.index,
      group=groups,
    )


class Retrieval(Evaluator):
  """Image-text retrieval in both directions, several captions a picture.

  Args:
    source: records with one or several captions.
    tokenizer: maps texts to token ids.
    transform: makes a picture of a record, as in training.
    ks: the ranks at which recall is taken.
    batch_size: rows embedded at a time, of all processes together.
    group_field: a field of the records; pictures that agree in it, such as
      copies of one picture, count as the same. None: each is its own.

  Raises:
    ValueError: a rank that is not positive, or no such field.
  """

  def __init__(
    self,
    source: Any,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    transform: Callable[..., Any],
    *,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 256,
    group_field: str | None = None,
    name: str = "retrieval",
  ):
    super().__init__(source, tokenizer, transform, batch_size)
    self.name = name
    check_ks(ks)
    if group_field is not None:
      read_field(source, group_field, (str, int), "Retrieval", limit=1)
    self.ks = tuple(ks)
    self.group_field = group_field

  @functools.cached_property
  def captions(self) -> tuple[Sequence[str], np.ndarray]:
    """All captions, and the record of each."""
    texts, index = pipeline.eval_captions(self.source)
    return texts, np.asarray(index, np.int64)

  @functools.cached_property
  def groups(self) -> np.ndarray | None:
    """A number for each record, equal where the pictures are."""
    if self.group_field is None:
      return None
    values = read_field(self.source, self.group_field, (str, int), "Retrieval")
    return np.unique(values, return_inverse=True)[1]

  def check(self):
    """Reads captions and groups."""
    _ = self.captions, self.groups

  def notes(self, images):
    """On captions that are missing or of several lines, and on copies."""
    texts, record = self.captions
    bare = np.setdiff1d(images.index, record)
    lined = [k for k, text in enumerate(texts) if _LINES.search(text.strip())]
    lined = np.unique(record[lined])
    found = []
    if len(bare):
      found.append(
        f"{len(bare):,} of {len(images.index):,} pictures have no caption,"
        f" first {self.source.where(bare[0])}; they are in the gallery of"
        " captions, and are no queries"
      )
    if len(lined):
      found.append(
        f"captions of {len(lined):,} records have several lines, first"
        f" {self.source.where(lined[0])}, and each counts as one caption; where"
        " each line is a caption, say so by ?lines=1 in the source"
      )
    copies = [] if self.group_field else _copies(images.z)
    if len(copies):
      found.append(
        f"{len(copies):,} of {len(images.index):,} pictures are embedded as an"
        " earlier one is, first"
        f" {self.source.where(images.index[copies[0]])}: where they are copies,"
        " finding the other one counts as wrong; group_field names a field that"
        " copies agree in"
      )
    return found

  def measure(self, images, embed_text) -> Retrieved:
    """Looks for every picture and every caption among the others."""
    texts, record = self.captions
    row = np.full(len(self.source), -1)
    row[images.index] = np.arange(len(images.index))
    # The captions of a picture that cannot be read have no right answer.
    kept = np.flatnonzero(row[record] >= 0)
    if not len(kept):
      raise ValueError(
        f"nothing to evaluate in {self.source!r}: none of its"
        f" {len(images.z)} pictures that could be read has a caption."
      )
    batches = embed.text_batches(
      [texts[k] for k in kept], self.tokenizer, self.batch_size
    )
    own = row[record[kept]]
    found = retrieval_ranks(
      images.z,
      embed.embed_texts(embed_text, batches).z,
      own,
      None if self.groups is None else self.groups[images.index],
    )
    return Retrieved(
      image_rank=found.image_rank,
      image_index=found.image_index,
      text_rank=found.text_rank,
      text_index=own,
      clusters=len(images.z),
      ks=self.ks,
    )


def _copies(z: np.ndarray) -> np.ndarray:
  """Rows that are equal to an earlier one, ascending."""
  rows = np.ascontiguousarray(z).view(np.dtype((np.void, z[0].nbytes)))
  first = np.unique(rows, return_index=True)[1]
  return np.setdiff1d(np.arange(len(z)), first)


EVALUATORS = {
  "zero_shot": ZeroShot,
  "retrieval": Retrieval,
  "association": Association,
}


def build(
  name: str,
  config: Mapping[str, Any],
  tokenizer: Callable[[Sequence[str]], np.ndarray],
  transform: Callable[..., Any],
) -> Evaluator:
  """Builds an evaluator from its table in the config.

  Args:
    name: what its metrics are logged under, the key in `config.evals`.
    config: `type` (a key of `EVALUATORS`), `source` (as in `open_source`) and
      the keyword arguments of that class.
    tokenizer: of the student.
    transform: pictures as in training, without augmentation.

  Raises:
    ConfigError: an unknown type or key, one that is missing, or a value that
      the evaluator refuses.
  """
  kind, given = check_table(name, config, EVALUATORS)
  return open_table(name, EVALUATORS[kind], given, tokenizer, transform)


def check_table(
  name: str, config: Mapping[str, Any], kinds: Mapping[str, type]
) -> tuple[str, dict[str, Any]]:
  """Checks the table of an evaluator.

  Args:
    name: the key in `config.evals`.
    config: `type`, `source` and keyword arguments of the class of that type.
    kinds: type -> class.

  Returns:
    The type, and the rest of the table.

  Raises:
    ConfigError: an unknown type or key, one that is missing, or a value of
      another type.
  """
  given = dict(config)
  where = f"config.evals.{name}"
  kind = given.pop("type", None)
  if kind not in kinds:
    raise ConfigError(
      f"{where}.type={kind!r} is not known here; it is one of"
      f" {', '.join(kinds)}.{did_you_mean(kind, kinds)}"
    )
  known = {"source": str, **fields_of(kinds[kind])}
  for key, value in given.items():
    if key not in known:
      raise ConfigError(
        f"{where}.{key} is not a known key of {kind}.{did_you_mean(key, known)}"
        f" Known here: {', '.join(sorted(known))}."
      )
    if not fits(value, known[key]):
      raise ConfigError(
        f"{where}.{key}={value!r} is of type {type(value).__name__}; expected"
        f" {type_name(known[key])}."
      )
  if "source" not in given:
    raise ConfigError(
      f"{where}.source is missing; set the data set to evaluate, such as"
      " 'jsonl:path/test.jsonl'."
    )
  return kind, given


def fields_of(kind: type) -> dict[str, Any]:
  """What the table of an evaluator may set, and of which type."""
  hints = typing.get_type_hints(kind.__init__)
  parameters = inspect.signature(kind).parameters.values()
  return {
    p.name: hints[p.name]
    for p in parameters
    if p.kind is p.KEYWORD_ONLY and p.name != "name"
  }


def open_table(
  name: str,
  kind: type,
  given: Mapping[str, Any],
  tokenizer: Callable[[Sequence[str]], np.ndarray],
  transform: Callable[..., Any],
) -> Any:
  """Opens the source of a checked table and makes the evaluator.

  Raises:
    ConfigError: the source cannot be opened, or the evaluator refuses a value.
  """
  given = dict(given)
  source = sources.open_source(given.pop("source"))
  try:
    return kind(source, tokenizer, transform, name=name, **given)
  except (TypeError, ValueError) as error:
    raise ConfigError(f"config.evals.{name}: {error}") from error


def run_all(
  evaluators: Iterable[Any],
  *functions: Callable[[Any], Any],
  failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, float]:
  """Runs evaluators in turn.

  Args:
    evaluators: to run.
    *functions: that their `run` takes, what they know the model by.
    failed: told the name of an evaluator that raised, and what; the others are
      run nevertheless. None: what it raises, this raises.

  Returns:
    `{"name/metric": value}`, and `{"name/failed": 1.0}` of one that failed.
  """
  found = {}
  for evaluator in evaluators:
    try:
      metrics = evaluator.run(*functions)
    except Exception as error:
      if failed is None:
        raise
      failed(evaluator.name, error)
      metrics = {"failed": 1.0}
    found |= {f"{evaluator.name}/{k}": v for k, v in metrics.items()}
  return found
