"""Evaluators of a text decoder: captions, and answers to questions.

They know the model by one function, `generate({"image", "labels"}) -> ids`: of
pictures and prompts, the ids of prompts and what was written behind them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aced.data.prompts import Asked, PromptTokenizer
from aced.evaluation import captioning, embed, vqa
from aced.evaluation.evaluators import check_table, open_table

Generate = Callable[[Mapping[str, np.ndarray]], Any]


class Generation(ABC):
  """Has texts written for the pictures of a data set, and scores them.

  Records whose picture cannot be decoded are left out and counted in `masked`.

  Args:
    source: of records, see `TASK`.
    tokenizer: of prompts.
    transform: makes a picture of a record, as in training.
    batch_size: pictures at a time, of all processes together.
    limit: records that are taken, 0 for all.
    name: what its metrics are logged under.

  Raises:
    ConfigError: no record has what the task is about.
    ValueError: a `batch_size` that is no whole number above 0.
  """

  TASK: str  # Of `aced.data.prompts.TASKS`.

  def __init__(
    self,
    source: Any,
    tokenizer: PromptTokenizer,
    transform: Callable[..., Any],
    *,
    batch_size: int = 256,
    limit: int = 0,
    name: str = "",
  ):
    if not isinstance(batch_size, int) or batch_size < 1:
      raise ValueError(f"batch_size={batch_size!r} must be a whole number > 0.")
    self.source = Asked(source, self.TASK, limit)
    self.tokenizer, self.transform = tokenizer, transform
    self.batch_size, self.name = batch_size, name or self.TASK

  def __repr__(self):
    return f"{type(self).__name__}({self.source!r})"

  def run(self, generate: Generate) -> dict[str, float]:
    """Returns the metrics of the model, the same on every process.

    Args:
      generate: maps `image` `(n, h, w, 3)` and `labels` `(n, l)`, prompts, to
        `(n, l)` ids.

    Raises:
      ValueError: there is nothing to evaluate.
    """
    texts, index = self.write(generate)
    references = [self.source.fields(k)["references"] for k in index]
    metrics = self.score(texts, references)
    return metrics | {"masked": float(len(self.source) - len(texts))}

  def write(self, generate: Generate) -> tuple[list[str], np.ndarray]:
    """What the model writes, and the record of `source` that each is of."""
    count = len(self.source)
    batches = embed.read_batches(
      self.source, self.tokenizer, self.transform, self.batch_size
    )
    with batches:
      rows = embed.collect(
        lambda batch: generate({k: batch[k] for k in ("image", "labels")}),
        batches,
      )
    if not len(rows.z):
      raise ValueError(
        f"nothing to evaluate in {self.source!r}: none of its {count} pictures"
        " could be read."
      )
    return [self.tokenizer.decode(ids) for ids in rows.z], rows.index

  @abstractmethod
  def score(
    self, texts: Sequence[str], references: Sequence[Sequence[str]]
  ) -> dict[str, float]:
    """Metrics of what was written, given what might have been."""


class Captioning(Generation):
  """Captions of pictures; CIDEr-D and BLEU against those of the records."""

  TASK = "caption"

  def score(self, texts, references):
    """Returns the metrics of `captioning.caption_metrics`."""
    return captioning.caption_metrics(texts, references)


class VQA(Generation):
  """Answers to questions, after the official normalisation."""

  TASK = "vqa"

  def score(self, texts, references):
    """Returns `accuracy`, the VQA accuracy, and `exact_match`."""
    return {
      "accuracy": float(vqa.vqa_accuracy(texts, references).mean()),
      "exact_match": float(vqa.exact_match(texts, references).mean()),
    }


GENERATORS = {"captioning": Captioning, "vqa": VQA}


def build(
  name: str,
  config: Mapping[str, Any],
  tokenizer: PromptTokenizer,
  transform: Callable[..., Any],
) -> Generation:
  """Builds an evaluator from its table, as `evaluators.build` does.

  Raises:
    ConfigError: as it does.
  """
  kind, given = check_table(name, config, GENERATORS)
  return open_table(name, GENERATORS[kind], given, tokenizer, transform)
