"""What a run reads: source, tokenizers and transform, as its config says."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from aced.data import identity, sources, tokenizers
from aced.data.transforms import Transform
from aced.training import views as views_lib
from aced.training.views import View


@dataclasses.dataclass(frozen=True, eq=False)
class Input:
  """What a run reads, and how it becomes arrays.

  Attributes:
    source: the pairs to learn from.
    tokenizers: column of labels -> captions to token ids.
    transform: records to pictures, as the student sees them.
    reading: threads, processes and batches ahead, for `aced.data.pipeline`.
  """

  source: Any
  tokenizers: Mapping[str, Any]
  transform: Any
  reading: Mapping[str, Any]

  @property
  def tokenizer(self) -> Any:
    """That of the student."""
    return self.tokenizers[View().labels]

  @property
  def vocab_sizes(self) -> dict[str, int]:
    """Column of labels -> token ids."""
    return {name: t.vocab_size for name, t in self.tokenizers.items()}

  def seen(self, view: View) -> "Input":
    """The input as if the student saw what a model of this view sees."""
    return dataclasses.replace(
      self,
      tokenizers={View().labels: self.tokenizers[view.labels]},
      transform=dataclasses.replace(self.transform, image_size=view.image_size),
    )

  @functools.cached_property
  def _source_identity(self) -> str:
    return identity.of_source(self.source)

  def identities(self, view: View | None = None) -> dict[str, str]:
    """What tells an input from another, for caches and for resuming.

    Args:
      view: of the model whose input it is; that of the student by default.
    """
    view = view or View(image_size=self.transform.image_size)
    transform = dataclasses.replace(self.transform, image_size=view.image_size)
    return {
      "input.source": self._source_identity,
      "input.tokenizer": identity.of_tokenizer(self.tokenizers[view.labels]),
      "input.transform": repr(transform),
    }


def open_input(config: ConfigDict, source: Any = None) -> Input:
  """Opens the data, the tokenizers and the transform of a resolved config."""
  given = config.input
  reading = "num_threads", "num_workers", "prefetch", "stall_seconds"
  return Input(
    sources.open_source(given.source) if source is None else source,
    {
      view.labels: tokenizers.load_tokenizer(view.tokenizer, view.text_length)
      for view in views_lib.from_config(config).values()
    },
    make_transform(given),
    {k: given[k] for k in reading},
  )


def make_transform(config: ConfigDict, *, train: bool = True) -> Any:
  """The picture transform of `config.input`; no augmentation unless `train`."""
  return Transform(
    image_size=config.image_size,
    resize=config.resize,
    crop_scale=tuple(config.crop_scale) or None if train else None,
    flip=config.flip and train,
    shrink=config.shrink,
  )
