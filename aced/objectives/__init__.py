"""Losses of a batch of pairs: contrastive, and distilled from a teacher.

Pure functions of `Embeddings`; scalars out, in float32.
"""

from aced.embeddings import Embeddings
from aced.objectives.contrastive import sigmoid_loss, softmax_loss
from aced.objectives.distillation import (
  feature_distillation,
  sigmoid_distillation,
  softmax_distillation,
)

CONTRASTIVE = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
DISTILLATION = {
  "feature": feature_distillation,
  "sigmoid": sigmoid_distillation,
  "softmax": softmax_distillation,
}

__all__ = [
  "CONTRASTIVE",
  "DISTILLATION",
  "Embeddings",
  "feature_distillation",
  "sigmoid_distillation",
  "sigmoid_loss",
  "softmax_distillation",
  "softmax_loss",
]
