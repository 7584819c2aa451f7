"""Keys of a config on the command line: `--config.evals.new.source=...`.

Every key has a place of its type before its flag is read. Most are in
`config.default()`; those of towers, decoders and evaluators are the fields of
the classes that they configure. New evaluators, frozen models and teachers are
made here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_flags import config_path

from aced import config as config_lib
from aced.config.defaults import frozen_model
from aced.evaluation.evaluators import EVALUATORS, fields_of
from aced.evaluation.generation import GENERATORS
from aced.models.build import TOWERS, field_types, plain_type
from aced.models.decoder import Decoder

# A tower or a decoder -> the class whose fields it has.
_MODULES = {**TOWERS, "model": Decoder}
_OPEN = re.compile(r"(student|frozen\.[^.]+)\.(image|text)|decoder\.model")


def complete(config: Mapping[str, Any], names: Iterable[str]) -> ConfigDict:
  """Completes a config, with a typed place for every key that is to be set.

  Args:
    config: as `get_config` of a config file returns it.
    names: of the keys, without "config.", such as "student.image.remat".

  Raises:
    ConfigError: a key that is not known, in the config or among the names.
  """
  config = config_lib.complete(config)
  given = [_split(name) for name in names]
  with config.unlocked():
    for parts in given:
      _make_room(config, parts, given)
  return config


def named(arguments: Sequence[str]) -> list[str]:
  """The keys of a config that arguments of a command line set."""
  found = (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in arguments)
  return list(dict.fromkeys(match[1] for match in found if match))


def _split(name) -> tuple[str, ...]:
  """The words of a key, each that of a table but for the last."""
  try:
    return tuple(map(str, config_path.split(name)))
  except ValueError:
    raise config_lib.ConfigError(
      f"--config.{name} is no key: its words have letters, digits and"
      " underscores; other names of evaluators and models are written as in"
      ' --config.evals["a-name"].source.'
    ) from None


def _make_room(config, parts, given):
  """Makes the place of one key, and the tables on the way to it."""
  table, where = config, ""
  for part in parts[:-1]:
    _enter(table, where, part, given)
    table, where = table[part], f"{where}.{part}".lstrip(".")
    if not isinstance(table, ConfigDict):
      raise config_lib.ConfigError(
        f"--config.{'.'.join(parts)}: config.{where}={table!r} is no table of"
        " keys."
      )
  known, key = _fields(config, where, parts[-1]), parts[-1]
  if known is None:
    _enter(table, where, key, given)
    return
  if key not in known:
    _refuse(known, where, key)
  kind, value = plain_type(known[key]), table.get(key)
  # What is there may be of another type than the key: None, or 0 for 0.0.
  if value is None or (kind is float and isinstance(value, int)):
    if key in table:
      del table[key]
    table[key] = FieldReference(value, field_type=kind)


def _enter(table, where, part, given):
  """Checks that a table has a key; new models and evaluators are made."""
  if part in table:
    return
  if where == "frozen":
    table[part] = frozen_model()
  elif where == "evals":
    if not {("evals", part), ("evals", part, "type")} & set(given):
      raise config_lib.ConfigError(
        f"config.evals has no {part!r} ({', '.join(table) or 'empty'}); a new"
        f" evaluator needs --config.evals.{part}.type, one of"
        f" {', '.join([*EVALUATORS, *GENERATORS])}, and its source."
        f"{config_lib.did_you_mean(part, table)}"
      )
    table[part] = ConfigDict()
  else:
    _refuse(table, where, part)


def _fields(config, where, key) -> Mapping[str, Any] | None:
  """Field -> its type, of a table whose keys are free; None of others."""
  if where == "distillation.teachers":
    return {key: float}
  if re.fullmatch(r"evals\.[^.]+", where):
    found = {"type": str, "source": str}
    for kind in (*EVALUATORS.values(), *GENERATORS.values()):
      found |= fields_of(kind)
    return found
  if not _OPEN.fullmatch(where):
    return None
  *above, tower = where.split(".")
  for part in above:
    config = config[part]
  if ":" in config.get("model", "") and tower != "model":
    return {key: Any}  # Another package's model has fields of its own.
  return field_types(_MODULES[tower])


def _refuse(known, where, key):
  name = f"{where}.{key}".lstrip(".")
  raise config_lib.ConfigError(
    f"config.{name} is not a known key; known here: {', '.join(sorted(known))}."
    f"{config_lib.did_you_mean(key, known)}"
  )
