"""The three keys that our trainer adds to a config of big_vision's.

    config.curation = dict(
        method="joint", score="learnability", filter_ratio=0.8, num_chunks=16,
        reference="large")
    config.reference = dict(large=dict(
        model_name="proj.image_text.two_towers", model=..., model_init=...,
        model_load=...))
    config.teachers = dict(large=dict(weight=1.0))

Reference and teachers are named. A name that stands in both tables is one
model, described in one of them, whose embeddings are computed once. With none
of the keys, training is big_vision's.

`config.input.batch_size` is the batch that is trained on, in every method; the
loader reads `batch_size / (1 - filter_ratio)` pairs for it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from aced import config as config_lib
from aced import curation
from aced.bv import keys
from aced.config import ConfigError, did_you_mean
from aced.objectives import DISTILLATION
from aced.training import views
from aced.training.recipe import Recipe, Scoring

RANDOM = "random"  # `model_init` of a model that was never trained.
METHODS = ("joint", "independent", "uniform")
# Of `config.curation`; the same names, with the same meaning, as ours.
CURATION = {
  **config_lib.default().curation.to_dict(),
  "loss_form": "auto",
  "microbatch": 0,  # Pairs scored at a time; 0 is all of them.
}
MODEL = {
  "model_name": "",
  "model": None,
  "model_init": "",
  "model_load": None,
  "image": "image",  # The columns of a batch that the model sees.
  "labels": "labels",
}
TEACHER = {"weight": 1.0, "loss": "softmax", "batch": "curated"}
CHOICES = {
  "method": METHODS,
  "score": tuple(curation.SCORES),
  "scope": curation.SCOPES,
  "kernel": curation.KERNELS,
  "loss": tuple(DISTILLATION),
  "batch": ("curated", "iid"),
  "loss_form": ("auto", "dense", "ring"),
}


@dataclasses.dataclass(frozen=True)
class Frozen:
  """A model that scores or teaches, as a table describes it.

  Attributes:
    where: the table, for messages.
    model_name: a module of `big_vision.models`.
    model: fields of its `Model`.
    init: what its `load` reads, or "random".
    load: further arguments of `load`.
    view: the columns it sees.
  """

  where: str
  model_name: str
  model: ConfigDict
  init: Any
  load: Mapping[str, Any]
  view: views.View


@dataclasses.dataclass(frozen=True)
class Method:
  """What the three keys say.

  Attributes:
    recipe: the method, as static values.
    frozen: name -> model, of those that the recipe runs.
    plain: whether none of the keys is there.
  """

  recipe: Recipe
  frozen: Mapping[str, Frozen]
  plain: bool


def read(config: ConfigDict) -> Method:
  """Reads and checks the three keys of a config.

  Args:
    config: of big_vision's trainer, with some of the keys or none.

  Raises:
    ConfigError: a key that is not known, a value that does not fit, or a name
      that nothing or nobody uses.
    ValueError: sizes that do not fit together.
  """
  keys.check(config)
  batch_size = config.input.batch_size
  table = _table("config.curation", config.get("curation"), CURATION)
  models = {
    key: {
      name: _table(f"config.{key}.{name}", given, known)
      for name, given in _named(config, key)
    }
    for key, known in (("reference", MODEL), ("teachers", MODEL | TEACHER))
  }
  curated = table["method"] != "uniform"
  if curated != bool(table["filter_ratio"]):
    raise ConfigError(
      f"config.curation.method={table['method']!r} and filter_ratio="
      f"{table['filter_ratio']} do not fit: 'uniform' discards nothing (0.0),"
      " the others a share of what is loaded, such as 0.8."
    )
  super_batch = curation.super_batch_size(batch_size, table["filter_ratio"])
  curation.check_sizes(
    super_batch,
    batch_size,
    table["num_chunks"] if table["method"] == "joint" else 1,
  )
  recipe = _recipe(table, models["teachers"], batch_size, super_batch)
  frozen = {name: _frozen(name, models) for name in recipe.frozen}
  for key, found in models.items():
    for name in found:
      if name not in frozen:
        raise ConfigError(
          f"config.{key}.{name} is not used; name it in"
          " config.curation.reference, or remove it."
        )
  return Method(recipe, frozen, not any(k in config for k in keys.OURS))


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
  """The three keys with their defaults, unchecked, to be compared.

  Beside them stands what else says which pairs `bv:aced` has read.

  Args:
    config: of big_vision's trainer, perhaps as JSON has kept it.
  """
  given = _plain(config)
  models = {"reference": MODEL, "teachers": MODEL | TEACHER}
  found = {"curation": {**CURATION, **(given.get("curation") or {})}}
  for key, known in models.items():
    tables = given.get(key) or {}
    found[key] = {name: {**known, **t} for name, t in tables.items()}
  table = given.get("input") or {}
  data = table.get("data") or {}
  if data.get("name") == keys.SOURCE:
    size = table.get("batch_size")
    found["input"] = {"batch_size": size, "data": {"seed": 0, **data}}
  return found


def pairs_of_a_step(found: Mapping[str, Any]) -> int:
  """The pairs that a step reads, by what `resolved` found of `bv:aced`."""
  share = found["curation"]["filter_ratio"]
  return curation.super_batch_size(found["input"]["batch_size"], share)


def _recipe(table, teachers, batch_size, super_batch) -> Recipe:
  """The tables as static values."""
  curated = table["method"] != "uniform"
  needs_reference = curated and bool(curation.SCORES[table["score"]][1])
  if needs_reference and not table["reference"]:
    raise ConfigError(
      f"config.curation.score={table['score']!r} needs a reference: name one of"
      " config.reference in config.curation.reference."
    )
  batch = _shared(teachers, "batch")
  if batch == "iid" and not curated:
    raise ConfigError(
      "config.teachers: batch='iid' needs curation; without it every batch is"
      " an IID one; set it to 'curated'."
    )
  weights = {name: float(t["weight"]) for name, t in teachers.items()}
  return Recipe(
    loss="sigmoid",
    loss_form=table["loss_form"],
    batch_size=batch_size,
    super_batch=super_batch,
    method=table["method"],
    score=table["score"],
    num_chunks=table["num_chunks"],
    gain=table["gain"],
    temperature=table["temperature"],
    scope=table["scope"],
    kernel=table["kernel"],
    reference=table["reference"] if needs_reference else "",
    distill_loss=_shared(teachers, "loss"),
    distill_weight=1.0 if teachers else 0.0,
    teachers=tuple(weights.items()),
    distill_batch=batch,
    scoring=Scoring(microbatch=table["microbatch"]),
    microbatch=0,
    dropout=True,  # Models are not ours: whether they have any is not known.
  )


def _shared(teachers, key):
  """A setting in which all teachers have to agree."""
  values = {table[key] for table in teachers.values()} or {TEACHER[key]}
  if len(values) > 1:
    raise ConfigError(
      f"config.teachers: {key} is {', '.join(map(repr, sorted(values)))}; all"
      " teachers share one."
    )
  return values.pop()


def _frozen(name, models) -> Frozen:
  """The one description of a model, of the tables that name it."""
  given = {
    key: table[name]
    for key, table in models.items()
    if name in table and any(table[name][k] != v for k, v in MODEL.items())
  }
  if len(given) != 1:
    there = sorted({n for table in models.values() for n in table} - {name})
    described = "No other model is described."
    if there:
      described = f"Described: {', '.join(there)}.{did_you_mean(name, there)}"
    raise ConfigError(
      f"the model {name!r} is described "
      + (
        f"in both config.reference.{name} and config.teachers.{name}; leave it"
        " out of one of them."
        if given
        else "nowhere: set model_name, model and model_init in"
        f" config.reference.{name} or config.teachers.{name}. {described}"
      )
    )
  ((key, table),) = given.items()
  where = f"config.{key}.{name}"
  if not table["model_name"]:
    raise ConfigError(
      f"{where}.model_name is empty; name a module of big_vision.models, such"
      " as 'proj.image_text.two_towers'."
    )
  if not table["model_init"]:
    raise ConfigError(
      f"{where}.model_init is empty; give what the module's load takes, or"
      f" {RANDOM!r} to try things out."
    )
  for part in ("image", "labels"):
    if table[part] != part and "@" not in table[part]:
      raise ConfigError(
        f"{where}.{part}={table[part]!r} must be {part!r} or a column of its"
        f" own, with an @ in its name, such as '{part}@{name}'."
      )
  return Frozen(
    where,
    table["model_name"],
    ConfigDict(table["model"] or {}),
    table["model_init"],
    table["model_load"] or {},
    views.View(table["image"], table["labels"]),
  )


def _named(config, key):
  """The tables in a table of models."""
  given = _plain(config.get(key)) or {}
  if not isinstance(given, Mapping):
    raise ConfigError(f"config.{key}={given!r} must map names to tables.")
  for name, table in given.items():
    if not isinstance(table, Mapping):
      raise ConfigError(
        f"config.{key}.{name}={table!r} must be a table: config.{key} maps the"
        f" name of a model to its keys, {', '.join(MODEL)}."
      )
    yield name, table


def _table(where, given, known) -> dict[str, Any]:
  """A table, its keys and the types of its values checked, defaults added."""
  given = _plain(given) or {}
  if not isinstance(given, Mapping):
    raise ConfigError(f"{where}={given!r} must be a table.")
  for key, value in given.items():
    if key not in known:
      raise ConfigError(
        f"{where}.{key} is not a known key.{did_you_mean(key, known)} Known"
        f" here: {', '.join(known)}."
      )
    _check_value(f"{where}.{key}", key, value, known[key])
  return {**known, **given}


def _check_value(where, key, value, default):
  if key in ("model", "model_load"):
    fits, wanted = isinstance(value, Mapping), "a table"
  elif key == "model_init":
    fits, wanted = isinstance(value, str | Mapping), "a text or a table"
  elif key in CHOICES:
    fits = value in CHOICES[key]
    wanted = f"one of {', '.join(CHOICES[key])}"
  elif isinstance(default, str):
    fits, wanted = isinstance(value, str), "a text"
  else:
    kinds = (int,) if isinstance(default, int) else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    fits = fits and value >= (key == "num_chunks")
    wanted = f"a number of the kind of {default!r}, not negative"
  if not fits:
    hint = did_you_mean(value, CHOICES[key]) if key in CHOICES else ""
    raise ConfigError(f"{where}={value!r} must be {wanted}.{hint}")


def _plain(value):
  return value.to_dict() if isinstance(value, ConfigDict) else value
