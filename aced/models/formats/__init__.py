"""Weights in files of several formats, each recognised by what is there."""

from aced.models.formats.reading import read
from aced.models.formats.weights import Weights

__all__ = ["Weights", "read"]
