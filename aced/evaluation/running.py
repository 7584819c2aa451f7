"""Runs the tasks of a suite on a model, each data set in one pass."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from aced.data import identity
from aced.evaluation import probe as probe_lib
from aced.evaluation.association import Association
from aced.evaluation.embed import Embed, Rows
from aced.evaluation.evaluator import Evaluator
from aced.evaluation.evaluators import Retrieval, ZeroShot
from aced.evaluation.outcomes import Outcome, bootstrap
from aced.evaluation.results import PARTIAL, UNNAMED
from aced.evaluation.store import Store
from aced.evaluation.suites import Found, find_training
from aced.files import whole

SCORING = 1  # Raised where a change to this package changes scores.
OUTCOMES = "outcomes"
WHOLE = 0.99  # Share of the pictures that a score must be over to be averaged.


class Runner:
  """Runs one task after the other.

  Args:
    reading: names the model, its parameters and its transform.
    embed_image: `(n, h, w, 3)` -> `(n, d)`.
    embed_text: `(n, l)` -> `(n, d)`.
    transform: makes a picture of a record.
    tokenizer: maps texts to token ids.
    folder: of the results.
    data_dir: of the tasks.
    batch_size: rows embedded at a time, of all processes together.
    probe: whether kNN and a linear probe are added where a task has training
      data.
    progress: told how many pictures were done.
    agree: raises where processes do not have the same, `(what, {name: value})`.
  """

  def __init__(
    self,
    reading: str,
    embed_image: Embed,
    embed_text: Embed,
    transform: Callable[..., Any],
    tokenizer: Any,
    folder: pathlib.Path,
    data_dir: str,
    *,
    batch_size: int,
    probe: bool = False,
    progress: Callable[[int], None] = lambda records: None,
    agree: Callable[[str, Mapping[str, str]], None] = lambda what, mine: None,
  ):
    self.agree = agree
    self.reading = reading
    self.embed_image, self.embed_text = embed_image, embed_text
    self.transform, self.tokenizer = transform, tokenizer
    self.folder, self.data_dir = folder, data_dir
    self.batch_size = batch_size
    self.probe, self.progress = probe, progress
    self.store = Store(folder / "embeddings")
    self._rows = ("", None)  # Of the last data set: tasks may share one.

  def run(self, found: Found, before: Mapping[str, Any] | None = None):
    """Runs a task, unless it was run before.

    Args:
      found: its data.
      before: the entry of an earlier run, which is returned where it is of the
        same model, data and task.

    Returns:
      The entry of the results file.

    Raises:
      ValueError, OSError: the task cannot be evaluated.
    """
    task, source = found.task, found.source
    data = f"{identity.of_source(source)}, {self.reading}"
    evaluator = self.evaluator(found)
    fields = of_fields(source)
    own = self._identity(found, f"{data}, {fields}")
    self.agree("task", {task.name: own})  # Or some would skip it, others not.
    if before is not None and before["identity"] == own:
      self.progress(len(source))
      return dict(before)
    began = time.perf_counter()
    evaluator.check()
    images, spent = self.images(source, data)
    waited = time.perf_counter() - began
    outcome = evaluator.measure(images, self.embed_text)
    interval = bootstrap(outcome, task.metric)
    metrics = outcome.metrics()
    told = notes(found, masked := len(source) - len(images.z))
    told += evaluator.notes(images)
    if self.probe and task.kind == "zero_shot":
      try:
        metrics |= self.probed(found, evaluator, images)
      except (
        ValueError,
        OSError,
        ImportError,
      ) as error:  # It has its zero-shot score yet.
        if jax.process_count() > 1:  # The others are in the middle of it.
          raise
        told.append(f"no probe: {error}")
        own = ""  # To be tried again.
    return {
      "title": task.title,
      "group": task.group,
      "kind": task.kind,
      "metric": task.metric,
      "score": interval.score,
      "low": interval.low,
      "high": interval.high,
      "records": task.records,
      "evaluated": len(images.z),
      "masked": masked,
      "seconds": spent + time.perf_counter() - began - waited,
      "metrics": metrics,
      "source": found.spec,
      "data": of_data(found, fields),
      "notes": told,
      "outcomes": self._keep(task.name, outcome),
      "identity": own,
      **({PARTIAL: True} if len(images.z) < WHOLE * task.records else {}),
      **({UNNAMED: True} if evaluator.unnamed else {}),
    }

  def evaluator(self, found: Found) -> Evaluator:
    """The evaluator of a task."""
    task = found.task
    given = found.source, self.tokenizer, self.transform
    options = {"batch_size": self.batch_size, "name": task.name}
    if task.kind == "association":
      return Association(*given, **options)
    options["group_field"] = task.group_field or None
    if task.kind == "retrieval":
      return Retrieval(*given, **options)
    return ZeroShot(
      *given,
      class_names=found.class_names,
      templates=task.prompts,
      groups_left_out=task.groups_left_out,
      label_names=found.label_names,
      **options,
    )

  def images(self, source: Any, data: str) -> tuple[Rows, float]:
    """The embedded pictures of a source, and the seconds that they took."""
    if self._rows[0] != data:
      self._rows = (
        data,
        self.store.images(
          source,
          data,
          self.embed_image,
          self.transform,
          self.tokenizer,
          batch_size=self.batch_size,
          progress=self.progress,
        ),
      )
    else:
      self.progress(len(source))
    rows, spent = self._rows[1]
    if not len(rows.z):
      raise ValueError(f"none of the pictures of {source!r} could be read.")
    return rows, spent

  def probed(
    self, found: Found, evaluator: ZeroShot, images: Rows
  ) -> dict[str, float]:
    """Accuracy of nearest neighbours and of a linear probe.

    Args:
      found: the data of the task.
      evaluator: of it.
      images: its pictures.

    Raises:
      ValueError: there is no training data, or none that tells classes apart.
    """
    source = find_training(found, self.data_dir)
    if source is None:
      raise ValueError("there is no training data")
    train = ZeroShot(
      source,
      self.tokenizer,
      self.transform,
      class_names=evaluator.class_names,
      batch_size=self.batch_size,
      # Names that nobody gave have no order, so that numbers are none of them.
      label_names=found.label_names
      or (None if found.class_names else evaluator.class_names),
    )
    train.check()
    data = f"{identity.of_source(train.source)}, {self.reading}"
    rows, _ = self.store.images(
      train.source,
      data,
      self.embed_image,
      self.transform,
      self.tokenizer,
      batch_size=self.batch_size,
    )
    given = (
      rows.z,
      train.labels[rows.index],
      images.z,
      evaluator.labels[images.index],
    )
    neighbours = probe_lib.knn(*given, k=min(20, len(rows.z)))
    probe = probe_lib.linear_probe(*given)
    return {
      "knn/accuracy": neighbours.metrics["accuracy"],
      "linear_probe/accuracy": probe.metrics["accuracy"],
    }

  def _identity(self, found, data):
    """Names all that a score depends on."""
    parts = repr(found.task), found.task.prompts, found.class_names, data
    parts += (found.label_names,)
    if self.probe and found.task.kind == "zero_shot":
      try:
        train = find_training(found, self.data_dir)
      except (ValueError, OSError, ImportError):  # Told of by the probe.
        train = None
      parts += (train and (identity.of_source(train), of_fields(train)),)
    parts += identity.of_tokenizer(self.tokenizer), self.probe, SCORING
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

  def _keep(self, name: str, outcome: Outcome) -> str:
    """Stores what was found for each record; returns where."""
    path = self.folder / OUTCOMES / f"{name}.npz"
    if jax.process_index() == 0:
      with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **outcome.arrays())
    return f"{OUTCOMES}/{name}.npz"


def of_data(found: Found, fields: str) -> str:
  """Names what a score is of, whatever the model: two may be compared if equal.

  Args:
    found: the task and its data.
    fields: of its records, from `of_fields`.
  """
  parts = repr(found.task), found.task.prompts, found.class_names
  parts += found.label_names, identity.of_source(found.source), fields, SCORING
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def of_fields(source: Any) -> str:
  """Names a source by all that its records say beside their pictures."""
  digest = hashlib.sha256()
  for index in range(len(source)):
    fields = source.fields(index)
    text = json.dumps(fields, sort_keys=True, default=repr)
    digest.update(text.encode("utf-8", "replace"))
  return digest.hexdigest()[:16]


def notes(found: Found, masked: int) -> list[str]:
  """What a reader of a score should know."""
  lines = [found.note] if found.note else []
  if masked:
    lines.append(f"{masked:,} pictures could not be read, and do not count")
  return lines
