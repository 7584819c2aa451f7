"""Two-tower models of big_vision as models of ours.

    config.student.model = "big_vision:proj.image_text.two_towers"

Student, reference or teacher of `python -m aced.train` may be one. Fields are
those of its `Model`, tables of towers those of the towers' modules; the rest of
the config stays as it is.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from aced.bv import compat
from aced.bv.towers import Towers
from aced.models.costs import PairCost, TowerCost
from aced.training import program

# Table of a tower -> the subtree of its parameters.
TOWERS = {"image": "img", "text": "txt"}


@dataclasses.dataclass(frozen=True, eq=False)
class Pair(Towers):
  """A model of big_vision, with what ours have beside `init` and `apply`.

  Attributes:
    name: of its module in `big_vision.models`.
  """

  name: str = ""

  def count(self, image_size: int, text_length: int) -> PairCost:
    """Counts products and parameters, in the program that JAX traces.

    Args:
      image_size: side of the picture in pixels.
      text_length: tokens of a text.
    """
    image = jnp.zeros((1, image_size, image_size, 3))
    text = jnp.zeros((1, text_length), jnp.int32)
    shapes = jax.eval_shape(self.init, jax.random.key(0), image, text)
    inputs = {"image": (image, None), "text": (None, text)}
    sizes = {
      key: sum(x.size for x in jax.tree.leaves(tree))
      for key, tree in shapes["params"].items()
    }
    towers = []
    for place, (tower, subtree) in enumerate(TOWERS.items()):
      embed = functools.partial(self._embed, place, *inputs[tower])
      macs, width = _count(embed, shapes)
      tokens = text_length
      if tower == "image":
        tokens = self._tokens(shapes, image)
      towers.append(TowerCost(macs, sizes.pop(subtree, 0), width, tokens))
    return PairCost(*towers, scales=sum(sizes.values()))

  def _embed(self, place, image, text, variables):
    return self.apply(variables, image, text)[place]

  def _tokens(self, shapes, image):
    """Tokens of the image tower, if it names what it encodes; else 0."""
    named = jax.eval_shape(
      lambda v: self.apply(v, image, None)[2].get("img/encoded"), shapes
    )
    return 0 if named is None else named.shape[1]


def build(name: str, fields: Mapping[str, Any]) -> Pair:
  """Builds a model of big_vision; the entry point of our `aced.models`.

  Args:
    name: a module of `big_vision.models`, such as
      "proj.image_text.two_towers".
    fields: of its `Model`; `image` and `text` are fields of the towers.

  Raises:
    ModuleNotFoundError: big_vision cannot be imported.
    ValueError: a module or a field that is not known.
  """
  module = compat.module("models", name)
  if not hasattr(module, "Model"):
    raise ValueError(f"big_vision.models.{name} has no Model; it is no model.")
  # big_vision's code reads tables of configs by attribute.
  fields = {
    k: ConfigDict(v) if isinstance(v, Mapping) else v for k, v in fields.items()
  }
  model = _made(module, fields, "")
  for tower in TOWERS:
    inside = getattr(model, f"{tower}_model", None)
    if inside is not None:
      given = {"num_classes": None, **fields.get(tower, {})}
      _made(compat.module("models", inside), given, f"{tower}.")
  return Pair(model, name)


def _made(module, fields, where) -> nn.Module:
  """`module.Model(**fields)`, a field that it does not know told by name."""
  try:
    return module.Model(**fields)
  except TypeError as error:
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not unknown:
      raise ValueError(f"{where}{module.__name__}: {error}") from error
    raise ValueError(
      f"{where}{unknown[1]} is not a field of {module.__name__}, in whose file"
      " they stand; take it out."
    ) from error
  except KeyError as error:
    raise ValueError(
      f"{where}variant={fields.get('variant')!r} is not one that"
      f" {module.__name__} knows: {error}."
    ) from error


def _count(function, variables) -> tuple[int, int]:
  """`(multiply-accumulates, width)` of an embedding function.

  What does not lead to the embedding is left out: the towers also compute
  logits that nobody asks for.
  """
  traced = jax.make_jaxpr(function, return_shape=True)(variables)
  jaxpr, shape = traced
  live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True])
  return program.flops(live) // 2, shape.shape[-1]
