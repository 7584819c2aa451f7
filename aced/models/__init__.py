"""Two-tower models and a text decoder in flax.linen.

The towers have big_vision's parameter tree.
"""

from aced.models.build import build
from aced.models.costs import count
from aced.models.decoder import Decoder, build_decoder
from aced.models.params import load
from aced.models.text import TextTransformer
from aced.models.two_towers import TwoTowers
from aced.models.vit import ViT

__all__ = [
  "Decoder",
  "TextTransformer",
  "TwoTowers",
  "ViT",
  "build",
  "build_decoder",
  "count",
  "load",
]
