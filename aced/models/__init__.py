"""Two-tower models in flax.linen, with big_vision's parameter tree."""

from aced.models.build import build
from aced.models.costs import count
from aced.models.params import load
from aced.models.text import TextTransformer
from aced.models.two_towers import TwoTowers
from aced.models.vit import ViT

__all__ = ["TextTransformer", "TwoTowers", "ViT", "build", "count", "load"]
