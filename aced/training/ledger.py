"""What a step costs, part by part, in FLOPs, and relative to an IID step.

Multiply-accumulates count as two FLOPs, a backward pass as two forward ones
(the convention of the papers), and what is not a matrix product as nothing.
"""

import dataclasses
from collections.abc import Mapping

from aced.training.recipe import Recipe

BACKWARD = 2  # Forward passes that a backward pass costs.


@dataclasses.dataclass(frozen=True)
class Ledger:
  """FLOPs of one step by part.

  Attributes:
    parts: name -> FLOPs of one step.
    iid: FLOPs of an IID step of the same student and batch size.
    trained: pairs learned from in a step.
    scored: pairs loaded and scored in a step; 0 without curation.
  """

  parts: Mapping[str, float]
  iid: float
  trained: int
  scored: int

  @property
  def total(self) -> float:
    """FLOPs of one step."""
    return sum(self.parts.values())

  @property
  def relative(self) -> float:
    """Cost of a step relative to an IID step."""
    return self.total / self.iid

  def shares(self) -> dict[str, float]:
    """Each part's share of the step."""
    return {name: flops / self.total for name, flops in self.parts.items()}


def count(
  recipe: Recipe,
  student_macs: float,
  frozen_macs: Mapping[str, float],
  *,
  width: int,
  frozen_widths: Mapping[str, int] | None = None,
  cached: tuple[str, ...] = (),
  scoring_macs: Mapping[str, float] | None = None,
) -> Ledger:
  """Counts the FLOPs of one step of a method.

  With a cached reference, learnability scoring costs `1 + 1 / (3 (1 - f))`
  times an IID step, `f` the filter ratio, and a little for the selection.

  Args:
    recipe: the method.
    student_macs: multiply-accumulates of a forward pass of one pair.
    frozen_macs: the same for each frozen model.
    width: of the student's embeddings.
    frozen_widths: of each frozen model's; the student's where not given.
    cached: frozen models whose embeddings come with the batch.
    scoring_macs: multiply-accumulates of scoring one pair, where they are
      fewer: under "" the student's, and those of frozen models by name.
  """
  b, big = recipe.batch_size, recipe.super_batch
  cheap = scoring_macs or {}
  forward, scoring = 2.0 * student_macs, 2.0 * cheap.get("", student_macs)
  iid = (1 + BACKWARD) * forward * b
  share = recipe.scoring.cotrain if recipe.cotrains else 0.0
  training = (1 - share) * iid + share * (1 + BACKWARD) * scoring * b
  parts = {"training": training}
  if recipe.accumulates and not recipe.reuses_scoring:
    parts["first pass"] = training / (1 + BACKWARD)
  if recipe.scores_student:
    parts["student scoring"] = scoring * big
  scored_cheaply = recipe.reference in cheap
  if recipe.reference and recipe.reference not in cached:
    macs = cheap.get(recipe.reference) or frozen_macs[recipe.reference]
    parts["reference scoring"] = 2.0 * macs * big
  if recipe.curated:
    widths = [width] if recipe.scores_student else []
    if recipe.reference:
      widths.append((frozen_widths or {}).get(recipe.reference, width))
    parts["selection"] = sum(selection_flops(recipe, w) for w in widths)
  taught = [
    frozen_macs[name]
    for name, _ in recipe.teachers
    if name not in cached and (name != recipe.reference or scored_cheaply)
  ]
  if taught:
    parts["teachers"] = sum(2.0 * macs * b for macs in taught)
  if recipe.teachers and recipe.distill_batch == "iid":
    parts["iid batch"] = training
    if recipe.accumulates:  # No scoring stands in for its first pass.
      parts["iid batch"] += training / (1 + BACKWARD)
  return Ledger(parts, iid, trained=b, scored=big if recipe.curated else 0)


def selection_flops(recipe: Recipe, width: int) -> float:
  """FLOPs of one model's matrix products in the sampler."""
  big, b, chunks = recipe.super_batch, recipe.batch_size, recipe.num_chunks
  own = 2.0 * big * width
  if recipe.method != "joint":
    return own
  products = 2 * 2.0 * big * (b / chunks) * width  # Both directions.
  passes = chunks - 1
  if recipe.loss == "softmax":
    # After chunk k: one pass over the newest, one over each selected so far.
    passes = sum(1 + k for k in range(1, chunks))
  return own + passes * products
