"""Files of tensors: safetensors, in one file or in shards."""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes  # noqa: F401 (numpy knows bfloat16 by it)
import numpy as np

from aced import contents
from aced.files import whole
from aced.models import refusals
from aced.models.trees import ParamsError

INDEX = ".index.json"


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all tensors of a safetensors file, or of the shards of an index.

  Args:
    path: the file; where it is not there, `path` + ".index.json" names shards.

  Returns:
    Name -> array; bfloat16 as `ml_dtypes.bfloat16`.

  Raises:
    FileNotFoundError: neither is there, or a shard is missing.
    ParamsError: a file is damaged, or is not of this format.
  """
  index = path.with_name(path.name + INDEX)
  if path.exists() or not index.exists():
    return _read_one(path)
  try:
    shards = json.loads(index.read_text("utf-8"))["weight_map"]
    wanted = sorted(set(shards.values()))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    found = contents.not_json(index, repr(error))
    raise ParamsError(f"{index} is no index of safetensors: it {found}") from (
      error
    )
  for name in wanted:
    if name in ("", ".", "..") or pathlib.PurePath(name).name != name:
      raise ParamsError(f"{index} names a shard outside its folder: {name!r}.")
  absent = [n for n in wanted if not path.with_name(n).exists()]
  if absent:
    raise refusals.no_file(path, absent)
  tensors = {}
  for name in wanted:
    tensors |= _read_one(path.with_name(name))
  missing = sorted(set(shards) - set(tensors))
  if missing:
    raise ParamsError(
      f"{index} names {len(missing)} tensors that no shard holds, such as"
      f" {missing[0]}; fetch the shards again."
    )
  return tensors


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file; it appears whole or not at all."""
  safetensors = package()
  with whole(path) as part:
    # transformers reads the framework from the metadata. `save_file` would
    # leave a file that its owner alone can read.
    part.write_bytes(safetensors.numpy.save(dict(tensors), {"format": "pt"}))


def package():
  """The package safetensors; raises ImportError with advice."""
  try:
    import safetensors.numpy
  except ImportError as error:
    raise ImportError(
      "safetensors files need the package safetensors: pip install -e '.[hf]'."
    ) from error
  return safetensors


def _read_one(path):
  safetensors = package()
  if not path.exists():
    raise refusals.no_file(path)
  try:
    return dict(safetensors.numpy.load_file(path))
  except (AttributeError, TypeError) as error:
    raise ParamsError(
      f"{path} has tensors of a type that cannot be read: {error}."
    ) from error
  except (safetensors.SafetensorError, ValueError, OSError) as error:
    raise refusals.not_whole(path, "safetensors", error) from error
