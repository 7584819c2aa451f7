"""aced: pretraining small image-text models by choosing what they learn from.

Importing `aced` imports jax and nothing heavier.
"""

from aced.embeddings import Embeddings

__version__ = "0.1.0"

__all__ = ["Embeddings", "__version__"]
