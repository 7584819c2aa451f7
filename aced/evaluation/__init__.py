"""How good a model is: zero-shot classification and retrieval.

Evaluators know a model by two functions, of pictures and of token ids, that
return embeddings; the metrics know arrays alone.
"""

from aced.evaluation.embed import (
  Rows,
  embed_images,
  embed_texts,
  embedders,
  split_rows,
  text_batches,
)
from aced.evaluation.evaluators import (
  EVALUATORS,
  Evaluator,
  Retrieval,
  ZeroShot,
  build,
  run_all,
)
from aced.evaluation.zero_shot import TEMPLATES, accuracy, class_embeddings

__all__ = [
  "EVALUATORS",
  "TEMPLATES",
  "Evaluator",
  "Retrieval",
  "Rows",
  "ZeroShot",
  "accuracy",
  "build",
  "class_embeddings",
  "embed_images",
  "embed_texts",
  "embedders",
  "run_all",
  "split_rows",
  "text_batches",
]
