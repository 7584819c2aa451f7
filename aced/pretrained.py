"""A trained model, with all that it takes to use it: `aced.load(where)`.

    import aced

    model = aced.load("runs/aced")
    model.classify(["cat.jpg", "dog.jpg"], ["cat", "dog"])

A student of ours, released SigLIP weights and a teacher are used alike.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from aced import embeddings, evaluation
from aced.config import ConfigError
from aced.data import tokenizers
from aced.data.decoding import from_pillow
from aced.data.records import BadRecord
from aced.data.tokenizers import released
from aced.data.tokenizers.base import listed
from aced.data.transforms import Transform
from aced.evaluation.embed import pad_rows
from aced.models import build, flexi
from aced.models.formats import Weights, read
from aced.models.formats.weights import shapes
from aced.models.trees import count_params, merge

BATCH = 64  # Rows embedded at a time.


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A two-tower model with its preprocessing.

  Attributes:
    weights: what was found, and where.
    model: the module; see `aced.models.TwoTowers`.
    params: its parameters.
    transform: makes a picture of a record.
    tokenizer: maps texts to ids; None where none was found or given.
  """

  weights: Weights
  model: Any
  params: Mapping[str, Any]
  transform: Transform
  tokenizer: tokenizers.Tokenizer | None

  def __repr__(self):
    return (
      f"Pretrained({self.weights.kind}, {self.image_size} px,"
      f" {self.text_length} tokens, {count_params(self.params) / 1e6:.1f} M"
      f" parameters, tokenizer={self.tokenizer!r})"
    )

  @property
  def image_size(self) -> int:
    """Side of its pictures in pixels."""
    return self.transform.image_size

  @property
  def text_length(self) -> int:
    """Tokens of its texts."""
    return self.weights.text_length

  @property
  def scale(self) -> float:
    """The temperature `t` by which similarities are multiplied."""
    return float(np.exp(np.asarray(self.params["t"], np.float32)).item())

  @property
  def bias(self) -> float:
    """The bias `b` added to them; 0 for models trained with softmax."""
    return float(np.asarray(self.params.get("b", 0.0)).item())

  def pixels(self, images: Iterable[Any]) -> np.ndarray:
    """Pictures as the model takes them, `(n, s, s, 3)` uint8.

    Args:
      images: paths, encoded bytes, `(h, w, 3)` uint8 arrays, or Pillow images.

    Raises:
      BadRecord: one cannot be decoded.
      OSError: one cannot be read.
    """
    return pictures(images, self.transform)

  def tokens(self, texts: Iterable[str]) -> np.ndarray:
    """Texts as the model takes them, `(n, l)` int32.

    Raises:
      ConfigError: `texts` is one text, or holds something else; or there is no
        tokenizer.
    """
    texts = listed("texts", texts)
    if self.tokenizer is None:
      raise ConfigError(
        f"{self.weights.where} does not say which tokenizer its texts want;"
        " give one: aced.load(where, tokenizer='sentencepiece:path/to.model')."
      )
    return self.tokenizer(texts)

  def embed_images(self, images: Iterable[Any]) -> np.ndarray:
    """L2-normalised embeddings of pictures, `(n, d)` float32; see `pixels`."""
    return self._in_batches(self._embedders[0], self.pixels(images))

  def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
    """L2-normalised embeddings of texts, `(n, d)` float32."""
    return self._in_batches(self._embedders[1], self.tokens(texts))

  def logits(self, images: Iterable[Any], texts: Iterable[str]) -> np.ndarray:
    """`t <zimg_i, ztxt_j> + b` of `n` pictures and `m` texts, `(n, m)`."""
    zimg, ztxt = self.embed_images(images), self.embed_texts(texts)
    return np.asarray(embeddings.logits(zimg, ztxt, self.scale, self.bias))

  def classify(
    self,
    images: Iterable[Any],
    class_names: Iterable[str],
    templates: Iterable[str] = evaluation.TEMPLATES,
  ) -> np.ndarray:
    """Zero-shot probabilities of classes, `(n, c)` float32, rows summing to 1.

    Args:
      images: as `pixels` takes them.
      class_names: `c` names, in a list, array or iterator.
      templates: prompts, with "{}" where the name goes.

    Raises:
      ValueError: no class names, one text in the place of a list, something
        that is no text, or a template without "{}".
    """
    self.tokens([])  # Says so where there is no tokenizer.
    class_names = listed("class_names", class_names)
    templates = listed("templates", templates)
    classes = evaluation.class_embeddings(
      self._embedders[1], self.tokenizer, class_names, templates
    )
    zimg = self.embed_images(images)
    return np.asarray(jax.nn.softmax(self.scale * zimg @ classes.T, axis=-1))

  @functools.cached_property
  def _embedders(self):
    """Jitted `rows -> embeddings`, of pictures and of ids."""
    # Imported here: only what embeds needs devices.
    mesh = jax.make_mesh(
      (jax.local_device_count(),),
      ("data",),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.local_devices(),
    )
    return tuple(
      functools.partial(embed, self.params)
      for embed in evaluation.embedders(self.model, mesh)
    )

  def _in_batches(self, embed, rows):
    size = min(BATCH, max(len(rows), 1))
    found = [
      np.asarray(embed(pad_rows(rows[k : k + size], size)))[: len(rows) - k]
      for k in range(0, len(rows), size)
    ]
    if not found:  # The width is the model's all the same.
      return np.asarray(embed(pad_rows(rows, 1)))[:0]
    return np.concatenate(found)


def pictures(images: Iterable[Any], transform: Transform) -> np.ndarray:
  """Pictures in any form as a model takes them; see `Pretrained.pixels`."""
  check_list("images", images)
  found = []
  for k, image in enumerate(images):
    try:
      found.append(transform({"image": _encoded(image)}))
    except BadRecord as bad:
      raise BadRecord(bad.cause, f"images[{k}]: {bad.detail}") from bad
  if not found:
    return np.zeros((0, *(transform.image_size,) * 2, 3), np.uint8)
  return np.stack(found)


def load(
  where: str | os.PathLike,
  *,
  tokenizer: str = "",
  image_size: int = 0,
  resize: str = "",
) -> Pretrained:
  """Loads a model, from wherever it is.

  Args:
    where: as `aced.models.load` takes it: a run of ours, an .npz file of
      big_vision, a Hugging Face folder, a folder or file of open_clip.
    tokenizer: the spec of its tokenizer, where it does not say itself.
    image_size: side of its pictures in pixels, if another than its own; the
      position embeddings are resampled.
    resize: how pictures are brought to it, where it does not say itself;
      "bilinear" if nothing says.

  Raises:
    FileNotFoundError: there is nothing there.
    ParamsError: it is none of these, is damaged, or does not fit together.
    ConfigError: an unknown tokenizer or way to resize, or a tokenizer with more
      ids than the model knows.
    ValueError: `image_size` does not divide into patches.
  """
  weights = read(where)
  transform = Transform(
    image_size or weights.image_size, resize or weights.resize or "bilinear"
  )
  config = {**weights.config}
  model, params = build(config), weights.params
  if image_size and image_size != weights.image_size:
    like = shapes(config, image_size, weights.text_length)
    params = merge(flexi.resample(params, like)[0], like)
  spec = tokenizer or find_tokenizer(weights)
  loaded = (
    tokenizers.load_tokenizer(spec, weights.text_length) if spec else None
  )
  known = weights.config.get("text", {}).get("vocab_size", 0)
  if loaded is not None and 0 < known < loaded.vocab_size:
    raise ConfigError(
      f"tokenizer {spec!r} has {loaded.vocab_size} ids, and {weights.where}"
      f" knows {known}; give the one that it was trained with."
    )
  return Pretrained(
    weights=weights,
    model=model,
    params=params,
    transform=transform,
    tokenizer=loaded,
  )


def find_tokenizer(weights: Weights) -> str:
  """The spec of the tokenizer that lies with weights; "" if there is none.

  Raises:
    ConfigError: there is one that cannot be used.
  """
  folder = weights.where if weights.where.is_dir() else weights.where.parent
  names = "tokenizer.json", "tokenizer_config.json"
  beside = any((folder / name).is_file() for name in names)
  if weights.tokenizer or not (weights.released or (beside and weights.config)):
    return weights.tokenizer
  return released.find(folder, weights.text_length)


def _encoded(image):
  """A picture as a record has it."""
  if isinstance(image, str | os.PathLike):
    return pathlib.Path(image).expanduser().read_bytes()
  if isinstance(image, Image.Image):
    return from_pillow(image)
  if isinstance(image, bytes | np.ndarray):
    return image
  raise ValueError(
    f"a picture of type {type(image).__name__}; expected a path, encoded bytes,"
    " a numpy array (h, w, 3) of uint8 or a Pillow image."
  )


def check_list(name, values):
  """Refuses one thing in the place of several."""
  one = isinstance(values, str | bytes | os.PathLike | Image.Image)
  if isinstance(values, np.ndarray):
    one = values.ndim in (0, 3)
  if one or not isinstance(values, Iterable):
    shown = values if isinstance(values, str) else type(values).__name__
    raise ValueError(f"{name}={shown!r} must be a list of them.")
