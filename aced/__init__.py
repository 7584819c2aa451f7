"""aced: pretraining small image-text models by choosing what they learn from.

Importing `aced` imports nothing; `aced.Embeddings` imports jax.
"""

__version__ = "0.1.0"

__all__ = ["Embeddings", "__version__"]


def __getattr__(name):
  # Processes that only read data do without jax.
  if name != "Embeddings":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from aced.embeddings import Embeddings

  return Embeddings
