"""What each model sees of a pair: pictures of its size, tokens of its kind.

The student sees the columns `image` and `labels` of a batch. A frozen model
whose picture size, tokenizer or text length is another one has columns of its
own, `image@SIZE` and `labels@NAME`; those that agree share them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# The student's name among models; that of a frozen one cannot be empty.
STUDENT = ""


class View(NamedTuple):
  """What one model sees.

  Attributes:
    image: the column of its pictures.
    labels: the column of its tokens.
    image_size: pixels along a side.
    tokenizer: the spec of its tokenizer.
    text_length: tokens of a caption.
  """

  image: str = "image"
  labels: str = "labels"
  image_size: int = 0
  tokenizer: str = ""
  text_length: int = 0

  def of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The pairs of a batch as the model sees them."""
    return {"image": batch[self.image], "labels": batch[self.labels]}


class Views(dict[str, View]):
  """Name of a model -> what it sees; `STUDENT` for the student."""

  def extra(self, names: Iterable[str]) -> dict[str, View]:
    """Columns beside `image` and `labels` that models need -> a view with it.

    Args:
      names: of the models.
    """
    found = {}
    for name in names:
      view = self.get(name, View())
      found |= {c: view for c in view[:2] if is_extra(c)}
    return found


def is_extra(column: str) -> bool:
  """Whether a column is one that the student does not see."""
  return "@" in column


def without_extra(
  batch: Mapping[str, Any], kept: Iterable[str] = ()
) -> dict[str, Any]:
  """A batch without the columns of other models, save some."""
  kept = set(kept)
  return {k: v for k, v in batch.items() if not is_extra(k) or k in kept}


def from_config(config: ConfigDict) -> Views:
  """The views of all models of a resolved config."""
  given = config.input
  first = View(
    image_size=given.image_size,
    tokenizer=given.tokenizer,
    text_length=given.text_length,
  )
  views = Views({STUDENT: first})
  labels = {first[3:]: first.labels}
  for name, table in config.frozen.items():
    size = table.image_size or first.image_size
    tokens = (
      table.tokenizer or first.tokenizer,
      table.text_length or first.text_length,
    )
    same = size == first.image_size
    views[name] = View(
      first.image if same else f"image@{size}",
      labels.setdefault(tokens, f"labels@{name}"),
      size,
      *tokens,
    )
  return views
