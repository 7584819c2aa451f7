"""big_vision: our method in its trainer, its models in ours, and both by name.

    register()        ours under its names, in one line of its config files
    aced.bv.trainer   its SigLIP trainer with curation and distillation
    aced.bv.models    its models in `python -m aced.train`

big_vision is no package: it is cloned, and found by PYTHONPATH. Importing this
imports neither it nor TensorFlow. `docs/big_vision.md` tells how to use both.
"""

__all__ = ["register"]


def register() -> None:
  """Makes our parts known to big_vision, and mends it for a current JAX.

  To be called at the top of a config file of big_vision's; again does no harm.

  Raises:
    ModuleNotFoundError: big_vision, or what it needs, cannot be imported.
  """
  from aced.bv import names

  names.register()
