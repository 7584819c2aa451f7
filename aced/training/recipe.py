"""What a step does, as static values: the method, read off a config."""

import dataclasses

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from aced import config as config_lib
from aced import curation
from aced.models import flexi
from aced.objectives import blocks
from aced.training import sharding


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How the super-batch is embedded to be scored (Flexi-JEST).

  Attributes:
    microbatch: examples embedded at a time; 0 is all.
    patch_size: of the image tower, in pixels; 0 is its own.
    resolution: of the pictures, in pixels; 0 is their own.
    token_drop: share of the patch tokens that are left out.
    cotrain: share of each trained batch that is embedded the same way, so that
      the scores stay those of the model.
    reference: whether the reference is scored the same way too.
  """

  microbatch: int = 0
  patch_size: int = 0
  resolution: int = 0
  token_drop: float = 0.0
  cotrain: float = 0.5
  reference: bool = False

  @property
  def cheap(self) -> bool:
    """Whether scoring embeds otherwise than training does."""
    return bool(self.patch_size or self.resolution or self.token_drop)

  def flex(self, model: nn.Module, image_size: int) -> flexi.Flexed:
    """The model as it scores; raises ValueError if it cannot."""
    return flexi.flex(
      model,
      image_size,
      patch_size=self.patch_size,
      resolution=self.resolution,
      token_drop=self.token_drop,
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a step does, as static values: the method.

  Attributes:
    loss: the contrastive loss, a key of `objectives.CONTRASTIVE`.
    loss_form: "dense", "ring", or "auto": in blocks where the logits of one
      device are more than a block.
    batch_size: `b`, pairs trained on.
    super_batch: `B`, pairs loaded; equal to `b` without curation.
    method: "joint", "independent" or "uniform".
    score: a key of `curation.SCORES`.
    num_chunks: of joint sampling.
    gain: multiplies the scores.
    temperature: divides them.
    scope: "global" or "per_device".
    kernel: of joint sampling, a key of `curation.KERNELS`.
    reference: name of the frozen model that scores, or "".
    distill_loss: a key of `objectives.DISTILLATION`.
    distill_weight: lambda; 0 is no distillation.
    teachers: `(name, weight)` of the frozen models distilled from.
    distill_batch: "curated", or "iid" for a separate uniform draw.
    scoring: how the super-batch is embedded.
    microbatch: examples of one forward and backward pass; 0 is all.
    dropout: whether the student has any.
  """

  loss: str
  loss_form: str
  batch_size: int
  super_batch: int
  method: str
  score: str
  num_chunks: int
  gain: float
  temperature: float
  scope: str
  kernel: str
  reference: str
  distill_loss: str
  distill_weight: float
  teachers: tuple[tuple[str, float], ...]
  distill_batch: str
  scoring: Scoring
  microbatch: int
  dropout: bool

  @classmethod
  def from_config(cls, config: ConfigDict) -> "Recipe":
    """Reads a resolved config."""
    curation_, student = config.curation, config.student
    curated = curation_.method != "uniform"
    _, reference_sign = curation.SCORES[curation_.score]
    distilled = bool(config.distillation.weight)
    teachers = tuple(config.distillation.teachers.items()) if distilled else ()
    towers = student.image, student.text
    return cls(
      loss=config.loss,
      loss_form=config.loss_form,
      batch_size=config.batch_size,
      super_batch=config_lib.loaded_size(config),
      method=curation_.method,
      score=curation_.score,
      num_chunks=curation_.num_chunks,
      gain=curation_.gain,
      temperature=curation_.temperature,
      scope=curation_.scope,
      kernel=curation_.kernel,
      reference=curation_.reference if curated and reference_sign else "",
      distill_loss=config.distillation.loss,
      distill_weight=config.distillation.weight,
      teachers=teachers,
      distill_batch=config.distillation.batch if curated else "curated",
      scoring=Scoring(**config.scoring),
      microbatch=config.accumulation.microbatch,
      dropout=any(tower.get("dropout", 0) for tower in towers),
    )

  @property
  def curated(self) -> bool:
    """Whether a super-batch is scored."""
    return self.method != "uniform"

  @property
  def scores_student(self) -> bool:
    """Whether the student embeds the super-batch."""
    return self.curated and curation.SCORES[self.score][0] != 0

  @property
  def cotrains(self) -> bool:
    """Whether the student also trains at the settings of cheap scoring."""
    cheap = self.scores_student and self.scoring.cheap
    return cheap and self.scoring.cotrain > 0

  @property
  def accumulates(self) -> bool:
    """Whether the gradient is made of several passes."""
    return 0 < self.microbatch < self.batch_size

  @property
  def reuses_scoring(self) -> bool:
    """Whether the embeddings of scoring are those of training as well."""
    same = not (self.dropout or self.scoring.cheap)
    return self.accumulates and self.scores_student and same

  @property
  def frozen(self) -> tuple[str, ...]:
    """Names of the frozen models that the step needs, each once."""
    names = [self.reference, *(name for name, _ in self.teachers)]
    return tuple(dict.fromkeys(filter(None, names)))

  def ring(self, mesh: jax.sharding.Mesh) -> bool:
    """Whether losses are computed block by block."""
    if self.loss_form == "auto":
      return self.batch_size**2 // mesh.size > blocks.BLOCK
    return self.loss_form == "ring"

  def check(self, mesh: jax.sharding.Mesh) -> None:
    """Refuses sizes that the mesh or a microbatch cannot carry, by name."""
    sharding.check_divides("batch_size", self.batch_size, mesh)
    sharding.check_divides("super-batch", self.super_batch, mesh)
    if self.curated:
      chunks = self.num_chunks if self.method == "joint" else 1
      curation.check_mesh(
        self.super_batch, self.batch_size // chunks, self.scope, mesh
      )
    for name, size, wholes in (
      (
        "scoring.microbatch",
        self.scoring.microbatch,
        {"super-batch": self.super_batch, "batch_size": self.batch_size},
      ),
      (
        "accumulation.microbatch",
        self.microbatch,
        {"batch_size": self.batch_size},
      ),
    ):
      if size:
        _check_microbatch(name, size, wholes, mesh)
    self._check_cotrain(mesh)
    self._check_kernel(mesh)

  def _check_kernel(self, mesh):
    if self.kernel == "xla":
      return
    platform = mesh.devices.flat[0].platform
    if platform == "cpu" or self.loss != "sigmoid":
      raise ValueError(
        f"curation.kernel={self.kernel!r} computes the sigmoid loss on a GPU or"
        f" a TPU; here are loss={self.loss!r} and a {platform}. Use"
        " curation.kernel='xla'."
      )

  def _check_cotrain(self, mesh):
    """Both parts of a co-trained batch need rows on every device."""
    size = self.microbatch if self.accumulates else self.batch_size
    rows = size // mesh.size
    cheap = int(rows * self.scoring.cotrain)
    if self.cotrains and not 0 < cheap < rows:
      raise ValueError(
        f"scoring.cotrain={self.scoring.cotrain} of the {rows} rows that a"
        " device trains on at a time leaves none for one of the two settings;"
        " raise batch_size, or set scoring.cotrain=0."
      )


def _check_microbatch(name, size, wholes, mesh):
  sharding.check_divides(name, size, mesh)
  for whole, number in wholes.items():
    if number > size and number % size:
      raise ValueError(f"{whole}={number} is not divisible by {name}={size}.")
