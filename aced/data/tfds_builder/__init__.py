"""A TFDS data set of any source of pairs; see `aced.data.tfds_builder.builder`.

Importing it registers the data set `aced_pairs` with TensorFlow Datasets.
"""

from aced.data.tfds_builder.builder import AcedPairs, PairsConfig

__all__ = ["AcedPairs", "PairsConfig"]
