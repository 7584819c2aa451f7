"""Zero-shot classification: the class whose prompts are nearest."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from aced.evaluation.embed import Embed, embed_texts, text_batches
from aced.evaluation.outcomes import Classified
from aced.evaluation.retrieval import check_finite, ranks

# Similarities held at a time, 8 MiB of float64.
_BLOCK = 2**20
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "{}")
# Where the name of the class goes; in published lists it is {c}.
_PLACE = re.compile(r"\{c?\}")


def class_embeddings(
  embed_text: Embed,
  tokenizer: Callable[[Sequence[str]], np.ndarray],
  class_names: Sequence[str],
  templates: Sequence[str] = TEMPLATES,
  batch_size: int = 256,
) -> np.ndarray:
  """One embedding a class: its prompts' normalised mean (prompt ensembling).

  CLIP, arXiv 2103.00020, section 3.1.4.

  Args:
    embed_text: maps `(n, l)` token ids to `(n, d)`.
    tokenizer: maps `n` texts to `(n, l)` int32 token ids.
    class_names: `c` names.
    templates: prompts; each has "{}" or "{c}" where the name goes.
    batch_size: prompts embedded at a time, of all processes together.

  Returns:
    `(c, d)` float32, L2-normalised.

  Raises:
    ValueError: no class names, or a template without "{}".
  """
  check_templates(templates)
  if not class_names:
    raise ValueError("class_names is empty; name the classes to tell apart.")
  prompts = [prompt(t, name) for name in class_names for t in templates]
  batches = text_batches(prompts, tokenizer, batch_size)
  z = normalise(embed_texts(embed_text, batches).z.astype(np.float64))
  z = z.reshape(len(class_names), len(templates), -1)
  return normalise(z.mean(axis=1)).astype(np.float32)


def accuracy(
  zimg: np.ndarray, class_embedding: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """How often the right class is nearest: the metrics of `classify`."""
  return classify(zimg, class_embedding, labels).metrics()


def classify(
  zimg: np.ndarray,
  class_embedding: np.ndarray,
  labels: np.ndarray,
  *,
  index: np.ndarray | None = None,
  group: np.ndarray | None = None,
) -> Classified:
  """Finds the nearest class of every image, of equal ones the first.

  Args:
    zimg: `(n, d)` embeddings of images.
    class_embedding: `(c, d)` embeddings of classes.
    labels: `(n,)` integers, the right class of each image.
    index: `(n,)` integers, which record each image is; None is `0..n-1`.
    group: `(n,)` integers, see `Classified`.

  Raises:
    ValueError: inputs that are empty, not finite or do not fit together.
  """
  labels = np.asarray(labels)
  check_finite("zimg", zimg)
  check_finite("class_embedding", class_embedding)
  classes = len(class_embedding)
  if labels.shape != (len(zimg),) or labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels is {labels.dtype} of shape {labels.shape}; expected one integer"
      f" for each of the {len(zimg)} rows of zimg."
    )
  if labels.min() < 0 or labels.max() >= classes:
    raise ValueError(
      f"labels holds {labels.min()}..{labels.max()}; expected rows of"
      f" class_embedding, 0..{classes - 1}."
    )
  return Classified(
    index=np.arange(len(labels)) if index is None else index,
    labels=labels,
    predicted=_nearest(zimg, class_embedding),
    rank=ranks(zimg, class_embedding, labels, np.arange(classes)),
    classes=classes,
    group=group,
  )


def _nearest(zimg, class_embedding):
  """The nearest class of each image; rounding and ties are those of `ranks`."""
  classes = np.asarray(class_embedding, np.float64).T
  block = max(1, _BLOCK // classes.shape[1])
  found = []
  for start in range(0, len(zimg), block):
    similarity = zimg[start : start + block].astype(np.float64) @ classes
    found.append(similarity.astype(np.float32).argmax(axis=1))
  return np.concatenate(found)


def prompt(template: str, name: str) -> str:
  """A template with the name of a class in its places."""
  return _PLACE.sub(lambda place: name, template)


def check_templates(templates: Sequence[str]) -> None:
  """Raises ValueError unless every template has places for the name alone."""
  if isinstance(templates, str) or not templates:
    raise ValueError(
      f"templates={templates!r} must be a list of at least one prompt, such as"
      f" {list(TEMPLATES)}."
    )
  for template in templates:
    if not isinstance(template, str) or not _PLACE.search(template):
      raise ValueError(
        f"template {template!r} has no '{{}}' for the name of the class; write"
        f" it as in {TEMPLATES[0]!r}."
      )


def normalise(z: np.ndarray) -> np.ndarray:
  """Scales the last axis to length 1; a zero vector stays zero."""
  norm = np.linalg.norm(z, axis=-1, keepdims=True)
  return z / np.maximum(norm, np.finfo(z.dtype).tiny)
