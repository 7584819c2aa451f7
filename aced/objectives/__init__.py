"""Losses of a batch of pairs: contrastive, and distilled from a teacher.

Pure functions of `Embeddings`; scalars out, in float32. Those exported here are
dense; `objectives.ring` has the same ones block by block, for large batches.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax

from aced.embeddings import Embeddings
from aced.objectives import ring
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
FORMS = ("auto", "dense", "ring")


class Form(NamedTuple):
  """The losses by name, in one form."""

  contrastive: Mapping[str, Callable[..., jax.Array]]
  distillation: Mapping[str, Callable[..., jax.Array]]


DENSE = Form(CONTRASTIVE, DISTILLATION)


def ring_form(mesh: jax.sharding.Mesh | None) -> Form:
  """The losses block by block, over the devices of a mesh.

  Feature distillation compares each pair with itself alone and has one form.
  """
  return Form(
    {
      "sigmoid": partial(ring.sigmoid_loss, mesh=mesh),
      "softmax": partial(ring.softmax_loss, mesh=mesh),
    },
    {
      "feature": feature_distillation,
      "sigmoid": partial(ring.sigmoid_distillation, mesh=mesh),
      "softmax": partial(ring.softmax_distillation, mesh=mesh),
    },
  )


__all__ = [
  "CONTRASTIVE",
  "DENSE",
  "DISTILLATION",
  "FORMS",
  "Embeddings",
  "Form",
  "feature_distillation",
  "ring",
  "ring_form",
  "sigmoid_distillation",
  "sigmoid_loss",
  "softmax_distillation",
  "softmax_loss",
]
