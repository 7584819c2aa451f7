"""Checks of a config against the objects of its run, before the first step.

`aced.config` checks what a config says by itself; here it is held against the
evaluators, the captions and the parameters that it speaks of.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from aced.config import ConfigError, did_you_mean
from aced.data.identity import SAMPLED
from aced.data.records import BadRecord, captions
from aced.data.tokenizers.loading import is_short
from aced.evaluation.association import Association
from aced.evaluation.evaluators import Retrieval, ZeroShot
from aced.evaluation.generation import Generation
from aced.evaluation.outcomes import Associated, Classified, Retrieved

# Captions that must have been seen before they are judged by.
_LEAST_CAPTIONS = 8


def check_evaluators(config: ConfigDict, evaluators: Iterable[Any]) -> None:
  """Checks that evaluators have records, and yield `checkpoint.best`.

  Raises:
    ConfigError: naming the evaluator that has none, or the metric that no
      evaluator yields.
  """
  evaluators = list(evaluators)
  for evaluator in evaluators:
    if not len(evaluator.source):
      raise ConfigError(
        f"config.evals.{evaluator.name}.source: {evaluator.source!r} has no"
        " records; name another, or '' for no such evaluation."
      )
  best = config.checkpoint.best
  if not best:
    return
  name = best.removeprefix("eval/").split("/")[0]
  named = [evaluator for evaluator in evaluators if evaluator.name == name]
  if not named:
    logging.warning(
      "config.checkpoint.best=%r is of an evaluator without a source: no best"
      " checkpoint is kept, only the newest.",
      best,
    )
    return
  known = [f"eval/{name}/{metric}" for metric in metrics_of(named[0])]
  if best not in known:
    raise ConfigError(
      f"config.checkpoint.best={best!r} is none of the metrics of"
      f" config.evals.{name}: {', '.join(known)}.{did_you_mean(best, known)}"
    )


def metrics_of(evaluator: Any) -> list[str]:
  """The names of the metrics of an evaluator that tell how good a model is."""
  one, zero = np.ones(1), np.zeros(1, np.int64)
  if isinstance(evaluator, Generation):
    return list(evaluator.score(["a"], [["a"]]))
  if isinstance(evaluator, Retrieval):
    outcome = Retrieved(zero, zero, zero, zero, 1, evaluator.ks)
  elif isinstance(evaluator, Association):
    outcome = Associated(one, np.array([Associated.HARD]))
  elif isinstance(evaluator, ZeroShot):
    group = None if evaluator.group_field is None else zero
    classes = len(evaluator.class_names)
    outcome = Classified(zero, zero, zero, zero, classes, group)
  else:
    raise TypeError(f"the metrics of {evaluator!r} are not known")
  return list(outcome.metrics())


def check_captions(
  where: str, source: Any, tokenizer: Any, tokenizer_spec: str
) -> None:
  """Refuses tokens by which captions can no longer be told apart.

  Where fewer rows of tokens differ than a quarter of the captions, a length too
  short for any caption is refused, and another is warned of.

  Args:
    where: the table that the tokenizer is of, such as "input".
    source: of the captions; some records are looked at.
    tokenizer: maps them to rows of ids.
    tokenizer_spec: as the config has it.

  Raises:
    ConfigError: most of the captions looked at become the same rows.
  """
  places = np.linspace(0, len(source) - 1, min(SAMPLED, len(source)), dtype=int)
  texts = set()
  for place in np.unique(places):
    try:
      texts.update(captions(source.fields(int(place))))
    except BadRecord:
      continue
  texts = sorted(texts)
  if len(texts) < _LEAST_CAPTIONS:
    return
  rows = len(np.unique(tokenizer(texts), axis=0))
  if 4 * rows >= len(texts):
    return
  problem = (
    f"config.{where}.text_length={tokenizer.length} with the tokenizer"
    f" {tokenizer_spec!r} makes {rows} different rows of tokens of"
    f" {len(texts)} different captions that were looked at, such as"
    f" {texts[0]!r}: the model could not tell them apart. Raise it, or take"
    " another tokenizer."
  )
  if is_short(tokenizer):
    raise ConfigError(problem)
  logging.warning("%s", problem)


def warn_of_rules(config: ConfigDict, names: Iterable[str]) -> None:
  """Warns of rules of the optimiser that no parameter is named by."""
  names = list(names)
  for key in ("learning_rate_rules", "weight_decay_rules"):
    for pattern, _ in config.optimizer[key]:
      if not any(re.fullmatch(pattern, name) for name in names):
        logging.warning(
          "config.optimizer.%s: no parameter is named by %r; they are such as"
          " %s.",
          key,
          pattern,
          ", ".join(names[:: max(len(names) // 4, 1)]),
        )


def warn_of_intervals(
  config: ConfigDict, every: Mapping[str, int], total_steps: int
) -> None:
  """Warns where nothing is logged because the run is over before."""
  if every["log"] > total_steps and any(
    key.startswith("every_") and value for key, value in config.log.items()
  ):
    logging.warning(
      "config.log.every_* is %d steps, and the run has %d: no loss is logged.",
      every["log"],
      total_steps,
    )
