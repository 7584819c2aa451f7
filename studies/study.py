"""What a study is: one data set, one student, and cells that differ in little.

A *cell* is one run of `aced.train`: a method, a seed, a share of noise and the
few keys of the config in which it differs. Everything else is the study's, so
that the cells of a study are comparable: equal trained batch, trained examples,
schedule and, for equal seeds, initial weights.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aced import config as config_lib
from aced.demo import Method, load_config

METHODS = {
  "iid": Method("IID", "iid"),
  "softmax_kd": Method("Softmax-KD", "kd", "softmax"),
  "i_acid": Method("I-ACID", "acid", "easy_reference"),
  "h_acid": Method("H-ACID", "acid", "learnability"),
  "independent": Method("independent", "acid", "independent"),
  "iidistill": Method("IIDistill", "aced", "iidistill"),
  "acidistill": Method("ACIDistill", "aced", "acidistill"),
}


class Reference(NamedTuple):
  """Both towers of a reference, beside a student of (64, 2, 2), and its length.

  Attributes:
    width: of both.
    depth: of both.
    heads: of both.
    times: how many times the steps of the study's references.
  """

  width: int
  depth: int
  heads: int
  times: int = 1


# A larger one need not be a better one: "longer" is the equal one, and better.
REFERENCES = {
  "smaller": Reference(32, 1, 2),
  "equal": Reference(64, 2, 2),
  "larger": Reference(96, 3, 3),
  "longer": Reference(64, 2, 2, times=3),
}
# Seeds of references, far from those of students.
REFERENCE_SEED = 1_000
# In the folder of a study.
DATA, TOKENIZER = "data", "tokenizer.model"
# Keys that say how a run is carried out, not what comes of it.
NOT_OF_THE_RESULT = ("log.", "name", "checkpoint.", "guards.")


@dataclasses.dataclass(frozen=True)
class Study:
  """One data set and one student.

  Attributes:
    name: of the study.
    about: what the data is, in a sentence.
    pool: the source that students learn from, with `{noise}` in it and, for
      files, `{data}`: the folder that `prepare` fills.
    clean: the source of references, which shares no record with the pool.
    base: dotted key -> value, on top of the preset `demo`.
    reference_base: the same, of references alone.
    evals: name -> table of an evaluator.
    metric: the score that decides, a name in the metrics of a run.
    noise: the share that the questions ask at.
    noises: the shares that the first question asks at.
    chance: what guessing gives in `metric`.
    distill_weight: lambda of all methods that distil.
    files: the set under the folder of real data that `data.split` splits, or
      "" where nothing is read from files.
    crops: of each of its pictures in the pool, as of `data.split`.
    vocab_size: pieces of its tokenizer, which is trained on the pool.
  """

  name: str
  about: str
  pool: str
  clean: str
  base: Mapping[str, Any]
  reference_base: Mapping[str, Any]
  evals: Mapping[str, Mapping[str, Any]]
  metric: str
  noise: float
  noises: tuple[float, ...]
  chance: float
  distill_weight: float = 4.0
  files: str = ""
  crops: int = 0
  vocab_size: int = 200


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    method: a key of `METHODS`.
    noise: share of the pool's pairs with a fault.
    seed: of weights, order and draws.
    reference: a key of `REFERENCES`.
    changes: `(dotted key, value)` in which it differs from its method.
    cached: whether the embeddings of the reference are read from a cache, which
      changes a result by no more than their rounding to bfloat16.
    devices: that it needs; more than one are virtual on a CPU.
  """

  method: str
  noise: float
  seed: int
  reference: str = "larger"
  changes: tuple[tuple[str, Any], ...] = ()
  cached: bool = True
  devices: int = 1

  @property
  def variant(self) -> str:
    """In what it differs from its method, in words; "" for nothing."""
    parts = [f"{key.split('.')[-1]}={value}" for key, value in self.changes]
    if self.reference != "larger":
      parts.append(f"reference={self.reference}")
    parts += ["not cached"] * (not self.cached)
    parts += [f"devices={self.devices}"] * (self.devices > 1)
    return " ".join(parts)

  @property
  def name(self) -> str:
    """The name of its folder."""
    variant = self.variant.replace(" ", ".") or "as_is"
    return f"{self.method}.{variant}.noise={self.noise:g}.seed={self.seed}"


def set_keys(config: ConfigDict, changes: Mapping[str, Any]) -> None:
  """Sets dotted keys; an unknown one raises as in a config file."""
  for key, value in changes.items():
    *path, last = key.split(".")
    table = config
    for part in path:
      table = table[part]
    table[last] = value


def towers(name: str) -> dict[str, Any]:
  """The table of a model of a size in `REFERENCES`."""
  size = REFERENCES[name]
  shape = {
    "width": size.width,
    "depth": size.depth,
    "mlp_dim": 4 * size.width,
    "num_heads": size.heads,
    "scan": True,
  }
  return {
    "image": {"patch_size": (8, 8), "pool_type": "map", **shape},
    "text": shape,
    "out_dim": (None, size.width),
  }


def configure(
  study: Study, cell: Cell, workdir: pathlib.Path, *, cached: bool = True
) -> ConfigDict:
  """The config of a cell.

  Args:
    study: that it belongs to.
    cell: the cell.
    workdir: of the study.
    cached: False leaves out the cache that the cell asks for, to make it.
  """
  config = load_config(METHODS[cell.method], "demo")
  _common(config, study, workdir)
  config.input.source = pool(study, cell.noise, workdir)
  config.seed = cell.seed
  if "reference" in config.frozen:
    config.frozen.reference.update(towers(cell.reference))
    config.frozen.reference.init = str(reference_folder(workdir, cell))
    if cell.cached and cached:
      config.frozen.reference.cache = str(cache_folder(workdir, cell))
  if config.distillation.weight:
    config.distillation.weight = study.distill_weight
  set_keys(config, dict(cell.changes))
  return config


def pool(study: Study, noise: float, workdir: pathlib.Path) -> str:
  """The source that students learn from."""
  return study.pool.format(noise=f"{noise:g}", data=workdir / DATA)


def reference_folder(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """The workdir of a cell's reference."""
  return workdir / "references" / cell.reference


def cache_folder(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """The embeddings of a cell's pool by its reference."""
  return workdir / "caches" / f"{cell.reference}.noise={cell.noise:g}"


def configure_reference(
  study: Study, size: str, workdir: pathlib.Path
) -> ConfigDict:
  """The config of a reference: longer, on clean pairs that are its own."""
  config = load_config(Method("reference", "reference"), "demo")
  _common(config, study, workdir)
  config.student.update(towers(size))
  config.input.source = study.clean.format(data=workdir / DATA)
  config.seed = REFERENCE_SEED
  set_keys(config, study.reference_base)
  config.total_steps *= REFERENCES[size].times
  return config


def config_hash(config: ConfigDict, workdir: pathlib.Path) -> str:
  """Twelve hex digits of all that decides a result; places play no part.

  Args:
    config: of a run.
    workdir: of the study, in whose place paths below it are told.
  """
  flat = config_lib.flatten(config_lib.resolve(config))
  kept = {k: v for k, v in flat.items() if not k.startswith(NOT_OF_THE_RESULT)}
  text = json.dumps(kept, sort_keys=True, default=str)
  text = text.replace(str(workdir), "$WORKDIR")
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _common(config, study, workdir):
  config.input.tokenizer = f"sentencepiece:{workdir / TOKENIZER}"
  set_keys(config, study.base)
  for name in list(config.evals):
    del config.evals[name]
  for name, table in study.evals.items():
    table = {
      k: v.format(data=workdir / DATA) if isinstance(v, str) else v
      for k, v in table.items()
    }
    config.evals[name] = table
  config.checkpoint.best = ""
  config.log.report = False
  config.log.picks = 11
