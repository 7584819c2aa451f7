"""What a run reads of a source: how much, how often, and for how long."""

import dataclasses
import math

from aced.config import ConfigError, default, loaded_size
from aced.data.check.survey import Speed


@dataclasses.dataclass(frozen=True)
class Settings:
  """Those of the run that the source is meant for.

  Attributes:
    tokenizer: as `load_tokenizer` takes it.
    text_length: tokens of a caption.
    image_size: pixels along a side.
    batch_size: `b`, pairs trained on in each step.
    filter_ratio: `f`, the share of each super-batch that is discarded.
    train_examples: pairs trained on in all.
    step_seconds: how long a step takes, where that is known.
    max_bad: the largest share of unusable records that is still fit.

  Raises:
    ConfigError: a value that is out of its range.
  """

  tokenizer: str = "bytes"
  text_length: int = 64
  image_size: int = 224
  batch_size: int = 1024
  filter_ratio: float = 0.8
  train_examples: int = 5_000_000
  step_seconds: float | None = None
  max_bad: float = 0.05

  def __post_init__(self):
    for name in ("batch_size", "train_examples"):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"--{name}={getattr(self, name)} must be 1 or above: it counts pairs."
        )
    if not 0 <= self.max_bad <= 1:
      raise ConfigError(
        f"--max_bad={self.max_bad} must be a share of the records, 0 to 1."
      )
    if self.step_seconds is not None and not self.step_seconds > 0:
      raise ConfigError(
        f"--step_seconds={self.step_seconds} must be above 0; leave it out"
        " where it is not known."
      )

  @property
  def super_batch(self) -> int:
    """`B`, the pairs read for each step."""
    config = default()
    config.batch_size = self.batch_size
    config.curation.filter_ratio = self.filter_ratio
    config.curation.method = "joint" if self.filter_ratio else "uniform"
    try:
      return loaded_size(config)
    except ValueError as error:
      raise ConfigError(f"the settings of the run: {error}") from error


@dataclasses.dataclass(frozen=True)
class Rate:
  """Records read, transformed and tokenized in a second."""

  records: int  # Timed.
  waiting: float  # Share of the time in which nothing was computed.
  per_core: float
  cores: int
  machine: float


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a run reads; hours and cores are None where there is no rate."""

  super_batch: int
  steps: int
  pairs: int
  epochs: float
  hours: float | None
  images_per_second: float | None
  cores: int | None


def rate_of(speed: Speed, cores: int) -> Rate:
  """The rate of a machine whose cores all read."""
  return Rate(
    records=speed.records,
    waiting=speed.waiting,
    per_core=speed.per_core,
    cores=cores,
    machine=cores * speed.per_core,
  )


def needs(settings: Settings, records: int, rate: Rate | None) -> Needs:
  """What a run reads, how often, and how long that takes at a rate."""
  size, wanted = settings.super_batch, None
  steps = math.ceil(settings.train_examples / settings.batch_size)
  if settings.step_seconds:
    wanted = size / settings.step_seconds
  return Needs(
    super_batch=size,
    steps=steps,
    pairs=steps * size,
    epochs=steps * size / records,
    hours=steps * size / rate.machine / 3600 if rate else None,
    images_per_second=wanted,
    cores=math.ceil(wanted / rate.per_core) if wanted and rate else None,
  )
