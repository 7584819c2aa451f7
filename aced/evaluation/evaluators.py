"""Evaluators: a data set, a task, and the metrics of a model on it."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from aced.config import ConfigError, did_you_mean
from aced.data import pipeline, sources
from aced.evaluation import embed, zero_shot
from aced.evaluation.embed import Embed
from aced.evaluation.retrieval import check_ks, retrieval


class Evaluator(ABC):
  """Scores a model on one data set; knows it by its two embedding functions.

  Records that cannot be decoded are left out and counted in the metric
  `masked`.

  Attributes:
    name: what its metrics are logged under.
  """

  name: str

  def __init__(self, source, tokenizer, transform, batch_size):
    if not isinstance(batch_size, int) or batch_size < 1:
      raise ValueError(f"batch_size={batch_size!r} must be a whole number > 0.")
    self.source = source
    self.tokenizer = tokenizer
    self.transform = transform
    self.batch_size = batch_size

  def __repr__(self):
    return f"{type(self).__name__}({self.source!r})"

  @abstractmethod
  def run(self, embed_image: Embed, embed_text: Embed) -> dict[str, float]:
    """Returns the metrics of the model, the same on every process.

    Args:
      embed_image: maps `(n, h, w, 3)` pictures to `(n, d)` embeddings.
      embed_text: maps `(n, l)` token ids to `(n, d)` embeddings.

    Raises:
      ValueError: there is nothing to evaluate.
    """

  def _embed_images(self, embed_image) -> embed.Rows:
    """Embeds every picture that can be read."""
    count = len(self.source)
    rows = embed.Rows(np.zeros((0, 0)), np.zeros(0, np.int64))
    if count:
      batches = pipeline.eval_batches(
        self.source,
        self.tokenizer,
        self.transform,
        batch_size=embed.batch_rows(self.batch_size, count),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
      rows = embed.embed_images(embed_image, batches)
    if not len(rows.z):
      raise ValueError(
        f"nothing to evaluate in {self.source!r}: none of its {count} records"
        " could be read; check its path and its images and captions."
      )
    return rows


class ZeroShot(Evaluator):
  """Zero-shot classification with an ensemble of prompts.

  Args:
    source: records with a class name each.
    tokenizer: maps texts to token ids.
    transform: makes a picture of a record, as in training.
    class_names: the classes to tell apart; None is those of the source,
      sorted.
    templates: prompts, with "{}" where the name of the class goes.
    batch_size: rows embedded at a time, of all processes together.
    label_field: the field of a record that holds the name of its class.

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
    name: str = "zero_shot",
  ):
    super().__init__(source, tokenizer, transform, batch_size)
    self.name = name
    if class_names is not None and (
      isinstance(class_names, str) or not len(class_names)
    ):
      raise ValueError(
        f"class_names={class_names!r} must be a list of names, or left out to"
        " take those of the source."
      )
    zero_shot.check_templates(templates)
    # The first record alone now, so that a wrong name is found at once.
    _field(source, label_field, str, "ZeroShot", limit=1)
    self._class_names = class_names
    self.templates = tuple(templates)
    self.label_field = label_field

  @functools.cached_property
  def labels(self) -> list[str]:
    """The class name of every record."""
    return _field(self.source, self.label_field, str, "ZeroShot")

  @functools.cached_property
  def class_names(self) -> tuple[str, ...]:
    """The classes to tell apart."""
    return tuple(self._class_names or sorted(set(self.labels)))

  def run(self, embed_image, embed_text):
    """Returns the metrics of `zero_shot.accuracy`, and `masked`."""
    images = self._embed_images(embed_image)
    number = {name: k for k, name in enumerate(self.class_names)}
    for label in set(self.labels) - set(number):
      raise ValueError(
        f"{self.source!r} holds the class {label!r}, which is not in"
        f" class_names.{did_you_mean(label, number)}"
      )
    labels = np.array([number[self.labels[k]] for k in images.index])
    classes = zero_shot.class_embeddings(
      embed_text,
      self.tokenizer,
      self.class_names,
      self.templates,
      self.batch_size,
    )
    metrics = zero_shot.accuracy(images.z, classes, labels)
    return metrics | {"masked": float(len(self.source) - len(images.z))}


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
      _field(source, group_field, (str, int), "Retrieval", limit=1)
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
    values = _field(self.source, self.group_field, (str, int), "Retrieval")
    return np.unique(values, return_inverse=True)[1]

  def run(self, embed_image, embed_text):
    """Returns the metrics of `retrieval`, and `masked`."""
    images = self._embed_images(embed_image)
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
    metrics = retrieval(
      images.z,
      embed.embed_texts(embed_text, batches).z,
      row[record[kept]],
      self.ks,
      None if self.groups is None else self.groups[images.index],
    )
    return metrics | {"masked": float(len(self.source) - len(images.z))}


EVALUATORS = {"zero_shot": ZeroShot, "retrieval": Retrieval}


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
  given = dict(config)
  where = f"config.evals.{name}"
  kind = given.pop("type", None)
  if kind not in EVALUATORS:
    raise ConfigError(
      f"{where}.type={kind!r} is not known; it is one of"
      f" {', '.join(EVALUATORS)}.{did_you_mean(kind, EVALUATORS)}"
    )
  parameters = inspect.signature(EVALUATORS[kind]).parameters.values()
  known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"name"}
  known.add("source")
  for key in given:
    if key not in known:
      raise ConfigError(
        f"{where}.{key} is not a known key of {kind}.{did_you_mean(key, known)}"
        f" Known here: {', '.join(sorted(known))}."
      )
  if "source" not in given:
    raise ConfigError(
      f"{where}.source is missing; set the data set to evaluate, such as"
      " 'jsonl:path/test.jsonl'."
    )
  source = sources.open_source(given.pop("source"))
  try:
    return EVALUATORS[kind](source, tokenizer, transform, name=name, **given)
  except (TypeError, ValueError) as error:
    raise ConfigError(f"{where}: {error}") from error


def run_all(
  evaluators: Iterable[Evaluator],
  embed_image: Embed,
  embed_text: Embed,
  failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, float]:
  """Runs evaluators in turn.

  Args:
    evaluators: to run.
    embed_image: as `Evaluator.run` takes it.
    embed_text: as well.
    failed: told the name of an evaluator that raised, and what; the others are
      run nevertheless. None: what it raises, this raises.

  Returns:
    `{"name/metric": value}`, and `{"name/failed": 1.0}` of one that failed.
  """
  found = {}
  for evaluator in evaluators:
    try:
      metrics = evaluator.run(embed_image, embed_text)
    except Exception as error:
      if failed is None:
        raise
      failed(evaluator.name, error)
      metrics = {"failed": 1.0}
    found |= {f"{evaluator.name}/{k}": v for k, v in metrics.items()}
  return found


def _field(source, field, types, user, limit=None):
  """Reads one field of every record, or the first ones; all must have it."""
  values = []
  for index in range(len(source))[:limit]:
    record = source.fields(index)
    if not isinstance(record.get(field), types):
      raise ValueError(
        f"{user} needs a {field!r} in every record, and record {index} of"
        f" {source!r} has {record.get(field)!r}; its fields are"
        f" {', '.join(sorted(record))}. Name another field in the config or in"
        " the source, such as 'jsonl:test.jsonl?label=name'."
      )
    values.append(record[field])
  return values
