"""What all evaluators share: pictures are embedded, records have fields."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from absl import logging

from aced.evaluation import embed
from aced.evaluation.embed import Embed
from aced.evaluation.outcomes import Outcome


class Evaluator(ABC):
  """Scores a model on one data set; knows it by its two embedding functions.

  Records that cannot be decoded are left out and counted in the metric
  `masked`.

  Attributes:
    name: what its metrics are logged under.
    unnamed: whether it knows classes by numbers alone, so that its scores say
      little.
  """

  name: str
  unnamed: bool = False
  _told = False

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
  def measure(self, images: embed.Rows, embed_text: Embed) -> Outcome:
    """What the model finds, the same on every process.

    Args:
      images: of `images`, in the order of the source.
      embed_text: maps `(n, l)` token ids to `(n, d)` embeddings.

    Raises:
      ValueError: there is nothing to evaluate.
    """

  def check(self) -> None:  # noqa: B027 -- most have nothing to look at.
    """Looks at what can be told before pictures are embedded.

    Raises:
      ValueError: it cannot be evaluated.
    """

  def notes(self, images: embed.Rows) -> list[str]:
    """What a reader of the scores should know of the data.

    Args:
      images: of `images`, in the order of the source.
    """
    del images
    return []

  def run(self, embed_image: Embed, embed_text: Embed) -> dict[str, float]:
    """Returns the metrics of the model, the same on every process.

    The first run logs the notes as warnings.

    Args:
      embed_image: maps `(n, h, w, 3)` pictures to `(n, d)` embeddings.
      embed_text: maps `(n, l)` token ids to `(n, d)` embeddings.

    Returns:
      The metrics of what `measure` finds, and `masked`.

    Raises:
      ValueError: there is nothing to evaluate.
    """
    self.check()
    images = self.images(embed_image)
    if not self._told:
      self._told = True
      for note in self.notes(images):
        logging.warning("%s: %s", self.name, note)
    metrics = self.measure(images, embed_text).metrics()
    return metrics | {"masked": float(len(self.source) - len(images.z))}

  def images(self, embed_image: Embed) -> embed.Rows:
    """Embeds every picture that can be read.

    Raises:
      ValueError: there is none.
    """
    count = len(self.source)
    rows = embed.Rows(np.zeros((0, 0)), np.zeros(0, np.int64))
    if count:
      batches = embed.read_batches(
        self.source, self.tokenizer, self.transform, self.batch_size
      )
      with batches:
        rows = embed.embed_images(embed_image, batches)
    if not len(rows.z):
      raise ValueError(
        f"nothing to evaluate in {self.source!r}: none of its {count} records"
        " could be read; check its path and its images and captions."
      )
    return rows


def read_field(
  source: Any,
  field: str,
  types: type | tuple[type, ...],
  user: str,
  limit: int | None = None,
) -> list[Any]:
  """Reads one field of every record; all must have it.

  Args:
    source: of the records.
    field: its name; "name.0" is the first item of the list in "name".
    types: that its values may have.
    user: what needs it, for the message.
    limit: the first records alone, so many.

  Raises:
    ValueError: records have no such field, or one of another type; says how
      many, and names the first.
  """
  values, bad = [], []
  name, _, item = field.partition(".")
  for index in range(len(source))[:limit]:
    record = source.fields(index)
    value = record.get(field)
    if value is None and item.isdigit() and isinstance(record.get(name), list):
      value = dict(enumerate(record[name])).get(int(item))
    value = value.item() if isinstance(value, np.generic) else value
    values.append(value)
    if not isinstance(value, types):
      bad.append(index)
  if bad:
    first = bad[0]
    raise ValueError(
      f"{user} needs a {field!r} in every record, and record {first} of"
      f" {source!r} has {values[first]!r}, {len(bad)} of {len(values)} have"
      f" none that will do; its fields are"
      f" {', '.join(sorted(source.fields(first)))}. Name another field in the"
      " config or in the source, such as 'jsonl:test.jsonl?label=name', or"
      " leave such records out."
    )
  return values
