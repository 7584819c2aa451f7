"""Finds the folders of data sets that TensorFlow Datasets has prepared."""

import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from aced.config import did_you_mean
from aced.data.records import SourceError

_FEATURES = "features.json"  # In the folder of every prepared version.
# The last part of the path of every version.
VERSION = re.compile(r"\d+\.\d+\.\d+")

# What `aced.data.tfds_builder` builds.
OWN = "aced_pairs"
# What the command `tfds` imports, which TFDS does not install.
NEEDED = (
  "pip install tensorflow apache-beam mlcroissant importlib-resources, in an"
  " environment of its own"
)

# Config ("" where there are none) -> versions that are prepared, in order.
Prepared = dict[str, list[str]]


def find(name: str, data_dir: str = "") -> str:
  """Returns the folder of a prepared data set.

  Args:
    name: `name`, `name/config`, `name/version`, `name/config/version`, or a
      folder: a path that is absolute, or begins with a dot or a tilde.
    data_dir: where data sets are; "" is the default of TFDS.

  Raises:
    SourceError: it is not there; says how to prepare it.
  """
  for path in (name, data_dir):
    if "://" in path:
      raise SourceError(
        f"{path} is not on a disk; ArrayRecord files are read from local"
        " folders. Copy or mount it."
      )
  if name.startswith(("/", ".", "~")):
    return _folder(pathlib.Path(os.path.expanduser(name)).absolute())
  root = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  root = pathlib.Path(os.path.expanduser(root)).absolute()
  name, config, version = _parts(name)
  prepared = _prepared(root / name)
  if not prepared:
    raise SourceError(_nothing(root, name, config))
  config = _config(root, name, config, prepared)
  versions = prepared[config]
  if version and version not in versions:
    raise SourceError(
      f"version {version} of {name} is not prepared in {root / name / config};"
      f" there are {', '.join(versions)}."
    )
  return str(root / name / config / (version or versions[-1]))


def how_to_build(name: str, config: str, data_dir: str | os.PathLike) -> str:
  """The command that prepares a data set, and what it needs."""
  if name == OWN:
    return (
      f"python -m aced.data.tfds_builder --data_dir={data_dir}"
      f' --config=\'{{"name": "{config or "mine"}", "source": SOURCE}}\''
    )
  name = f"{name}/{config}" if config else name
  return (
    f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    f" (that command needs {NEEDED})"
  )


def _folder(path: pathlib.Path) -> str:
  if (path / _FEATURES).exists():
    return str(path)
  below = sorted(
    str(found.parent)
    for depth in ("*", "*/*", "*/*/*")
    for found in path.glob(f"{depth}/{_FEATURES}")
  )
  found = f"; below it there are {', '.join(below[:5])}" if below else ""
  raise SourceError(
    f"{path} is not the folder of a prepared data set: it has no {_FEATURES}"
    f"{found}. Name that of a version, such as DATA_DIR/name/config/1.0.0."
  )


def _parts(name: str) -> tuple[str, str, str]:
  """Name, config and version; those that are not given are empty."""
  name, *rest = name.split("/")
  version = rest.pop() if rest and VERSION.fullmatch(rest[-1]) else ""
  if len(rest) > 1:
    raise SourceError(
      f"tfds:{'/'.join([name, *rest])} must be name/config/version:split, or a"
      " folder that begins with / or ./"
    )
  return name, rest[0] if rest else "", version


def _prepared(base: pathlib.Path) -> Prepared:
  found: Prepared = {}
  for path in [*base.glob(f"*/{_FEATURES}"), *base.glob(f"*/*/{_FEATURES}")]:
    folder = path.parent
    if VERSION.fullmatch(folder.name):
      config = "" if folder.parent == base else folder.parent.name
      found.setdefault(config, []).append(folder.name)
  for versions in found.values():
    versions.sort(key=lambda v: tuple(map(int, v.split("."))))
  return found


def _config(root, name, config, prepared: Prepared) -> str:
  """The config asked for, or the one that is meant when none is."""
  if config in prepared:
    return config
  if not config:
    default = _default_config(root / name)
    if default in prepared or len(prepared) == 1:
      return default if default in prepared else next(iter(prepared))
  asked = f"has no config {config!r} that is" if config else "has several"
  known = ", ".join(f"{name}/{k}" if k else name for k in sorted(prepared))
  command = how_to_build(name, config or "CONFIG", root)
  raise SourceError(
    f"the data set {name} in {root} {asked} prepared; there are {known}."
    f"{did_you_mean(config, prepared)} To prepare another one: {command}."
  )


def _default_config(base: pathlib.Path) -> str:
  """The config that TFDS takes when none is named; "" if it does not say."""
  path = base / ".config" / "metadata.json"
  try:
    return json.loads(path.read_text())["default_config_name"]
  except (OSError, ValueError, KeyError, TypeError):
    return ""  # As it is for data sets without configs.


def _nothing(root: pathlib.Path, name: str, config: str) -> str:
  """Says that a data set is not there, and how to prepare it."""
  there = sorted(
    path.name
    for path in (root.iterdir() if root.is_dir() else ())
    if path.is_dir() and _prepared(path)
  )
  command = how_to_build(name, config, root)
  return (
    f"the data set {name} is not prepared in {root}, which holds"
    f" {', '.join(there) or 'none'}.{did_you_mean(name, there)} Nothing is"
    " downloaded here. Name another folder with ?data_dir=FOLDER, or prepare"
    f" it: {command}."
  )


def check_classes(folder: str) -> None:
  """Refuses features of other classes than those of TFDS.

  TFDS imports the module of every class that `features.json` names, which may
  be a file that came with the data.

  Raises:
    SourceError: naming the class.
  """
  try:
    text = (pathlib.Path(folder) / _FEATURES).read_text("utf-8")
    names = list(_classes(json.loads(text)))
  except (OSError, ValueError):
    return  # TFDS says better what is wrong with it.
  for name in names:
    if not name.startswith("tensorflow_datasets."):
      raise SourceError(
        f"{folder}/{_FEATURES} names the class {name!r}, which is none of TFDS;"
        " it would be imported, and code that comes with data is not run."
        " Prepare the data set anew with features of TFDS alone."
      )


def _classes(found: Any) -> Iterator[str]:
  """The names of classes anywhere in the content of `features.json`."""
  if isinstance(found, list):
    for part in found:
      yield from _classes(part)
  elif isinstance(found, dict):
    for key, value in found.items():
      named = key in ("pythonClassName", "python_class_name", "type")
      if named and isinstance(value, str) and "." in value:
        yield value
      yield from _classes(value)
