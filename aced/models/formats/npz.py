"""big_vision's format: arrays named by their place in the tree."""

import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from aced.files import whole
from aced.models import refusals
from aced.models.trees import ParamsError, flatten, unflatten

# What numpy and zipfile raise on a damaged archive.
DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, MemoryError)
DAMAGED += (NotImplementedError, RuntimeError, SyntaxError, TypeError)
DAMAGED += (tokenize.TokenError,)
PREFIXES = ("params/", "opt/target/")


def load_npz(path: str | os.PathLike, subtree: str = "") -> dict[str, Any]:
  """Loads big_vision's format: arrays named by their place in the tree.

  Args:
    path: the file. Names may stand under "params/" or "opt/target/".
    subtree: names below this one are taken, such as "img".

  Raises:
    FileNotFoundError: there is no such file.
    ParamsError: the file is damaged, holds pickled objects, or no such subtree.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise refusals.no_file(path)
  if not zipfile.is_zipfile(path):
    # numpy would take any other file for a pickle, a Git LFS pointer too.
    raise refusals.not_whole(path, ".npz", "no zip archive")
  try:
    # Opened here, since numpy leaves a damaged archive's file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      flat = {name: _recover(archive[name]) for name in archive.files}
  except ValueError as error:
    if "allow_pickle" not in str(error):
      raise refusals.not_whole(path, ".npz", error) from error
    raise ParamsError(
      f"{path} holds pickled objects, which are never loaded as they can run"
      f" code; save plain arrays instead. ({error})"
    ) from error
  except DAMAGED as error:
    raise refusals.not_whole(path, ".npz", error) from error
  for prefix in PREFIXES:
    inside = {
      k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)
    }
    if inside:
      flat = inside
      break
  if subtree:
    prefix = subtree.rstrip("/") + "/"
    tops = sorted({name.split("/")[0] for name in flat})
    flat = {
      k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)
    }
    if not flat:
      raise ParamsError(
        f"{path} has no subtree {subtree!r}; at its top are {', '.join(tops)}."
      )
  return unflatten(flat)


def save_npz(path: str | os.PathLike, params: Mapping[str, Any]) -> None:
  """Saves in big_vision's format; the file appears whole or not at all."""
  flat = {k: np.asarray(jax.device_get(v)) for k, v in flatten(params).items()}
  with whole(path) as part, part.open("wb") as file:
    np.savez(file, **flat)


def _recover(array):
  """bfloat16 is written by numpy as two void bytes."""
  if not isinstance(array, np.ndarray):
    raise TypeError("it holds a file that is no array")
  return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
