"""Our evaluators as those of big_vision: zero-shot and retrieval.

config.evals.flowers = dict(
    type="aced.zero_shot", source="jsonl:flowers/test.jsonl?label=name",
    tokenizer="sentencepiece:my.model", text_length=64, image_size=224,
    log_steps=1000)
"""

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from aced import evaluation
from aced.data import tokenizers
from aced.data.transforms import Transform
from aced.models.two_towers import to_float


def make(kind: str) -> type:
  """The class `Evaluator` of a kind of ours.

  Args:
    kind: a key of `aced.evaluation.EVALUATORS`.
  """

  class Evaluator:
    """An evaluator of ours, as big_vision's trainers build and run one.

    Args:
      predict_fn: `(train_state, batch) -> (zimg, ztxt, out)`.
      batch_size: rows embedded at a time.
      devices: all of them, in the trainer's order.
      tokenizer: as `aced.data.load_tokenizer` takes it.
      text_length: tokens of a text.
      image_size: pixels along a side.
      resize: bilinear or bicubic.
      **fields: `source` and whatever else the evaluator of ours takes.
    """

    def __init__(
      self,
      predict_fn: Callable[..., Any],
      *,
      batch_size: int,
      devices: Sequence[jax.Device],
      tokenizer: str,
      text_length: int,
      image_size: int,
      resize: str = "bilinear",
      **fields: Any,
    ):
      self.evaluator = evaluation.build(
        kind,
        {**fields, "type": kind, "batch_size": batch_size},
        tokenizers.load_tokenizer(tokenizer, text_length),
        Transform(image_size, resize),
      )
      mesh = jax.sharding.Mesh(devices, ("devices",))

      def image(state, rows):
        return predict_fn(state, {"image": to_float(rows)})[0]

      def text(state, rows):
        return predict_fn(state, {"labels": rows})[1]

      self._embed = [evaluation.split_rows(f, mesh) for f in (image, text)]

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
      """Yields the metrics of the model by name."""

      def bound(embed):
        return lambda rows: embed(train_state, rows)

      # The trainer forbids transfers that are not spelled out.
      with jax.transfer_guard("allow"):
        yield from self.evaluator.run(*map(bound, self._embed)).items()

  return Evaluator


def modules() -> dict[str, types.ModuleType]:
  """Kind -> what stands for a module of `big_vision.evaluators`."""
  found = {}
  for kind in evaluation.EVALUATORS:
    found[kind] = types.ModuleType(f"big_vision.evaluators.aced.{kind}")
    found[kind].API, found[kind].Evaluator = "jit", make(kind)
  return found
