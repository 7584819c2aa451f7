"""What all evaluators share: pictures are embedded, records have fields."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from aced.evaluation import embed
from aced.evaluation.embed import Embed
from aced.evaluation.outcomes import Outcome


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

  def run(self, embed_image: Embed, embed_text: Embed) -> dict[str, float]:
    """Returns the metrics of the model, the same on every process.

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
    ValueError: a record has no such field, or of another type.
  """
  values = []
  name, _, item = field.partition(".")
  for index in range(len(source))[:limit]:
    record = source.fields(index)
    value = record.get(field)
    if value is None and item.isdigit() and isinstance(record.get(name), list):
      value = dict(enumerate(record[name])).get(int(item))
    if not isinstance(value, types):
      raise ValueError(
        f"{user} needs a {field!r} in every record, and record {index} of"
        f" {source!r} has {value!r}; its fields are"
        f" {', '.join(sorted(record))}. Name another field in the config or in"
        " the source, such as 'jsonl:test.jsonl?label=name'."
      )
    values.append(value)
  return values
