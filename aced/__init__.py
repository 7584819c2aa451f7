"""aced: pretraining small image-text models by choosing what they learn from.

Importing `aced` imports nothing; `aced.Embeddings` imports jax, `aced.load`,
which loads a model to be used, the models and the data.
"""

__version__ = "0.1.0"

__all__ = ["Embeddings", "__version__", "load"]


def __getattr__(name):
  # Processes that only read data do without jax.
  if name == "Embeddings":
    from aced.embeddings import Embeddings

    return Embeddings
  if name == "load":
    from aced.pretrained import load

    return load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
