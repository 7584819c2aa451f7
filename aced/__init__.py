"""aced: pretraining small image-text models by choosing what they learn from.

Importing `aced` imports nothing; `aced.Embeddings` imports jax, `aced.load` and
`aced.load_captioner`, which load models to be used, the models and the data.
"""

__version__ = "0.1.0"

__all__ = ["Embeddings", "__version__", "load", "load_captioner"]


def __getattr__(name):
  # Processes that only read data do without jax.
  if name == "Embeddings":
    from aced.embeddings import Embeddings

    return Embeddings
  if name == "load":
    from aced.pretrained import load

    return load
  if name == "load_captioner":
    from aced.captioner import load_captioner

    return load_captioner
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
