"""The keys of a config: big_vision's, ours, and those that nobody reads.

A key that nothing reads would be ignored in silence: with `config.curaton` a
run would train without curation. So it is refused, by name.
"""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from ml_collections import ConfigDict

from aced.config import ConfigError, did_you_mean

OURS = ("curation", "reference", "teachers")
SOURCE = "bv:aced"  # The data source that can go on where it was.
_SUFFIXES = ("steps", "examples", "epochs", "percent")
_DURATIONS = ("total", "log_training", "ckpt", "keep_ckpt")
# What big_vision's SigLIP trainer reads, and what it hands the config to: the
# optimiser and the evaluators.
THEIRS = (
  *("input", "evals", "seed", "pp_modules", "prefetch_to_device"),
  *("model_name", "model", "model_init", "model_load", "resume", "loss"),
  *("mesh", "sharding_rules", "sharding_strategy"),
  *("optax_name", "optax", "lr", "lr_mults", "wd", "wd_mults", "schedule"),
  *("grad_clip_norm", "grad_clip_per_example", "weight_decay_decouple"),
  *("batch_size_eval", "batch_size"),
  *(f"{name}_{suffix}" for name in _DURATIONS for suffix in _SUFFIXES),
)
# What its configs have and that trainer passes over, without harm: hints for
# the launcher, and arguments of the config file.
IDLE = (
  *("init_shapes", "init_types", "ckpt_timeout"),
  *("mode", "name", "res", "runlocal", "variant"),
)
# What other trainers of big_vision heed, or other names for ours.
HINTS = {
  "mixup": "it has no meaning here; remove it.",
  "init_head_bias": "it has no meaning here; remove it.",
  "distillation": "weight and loss of distillation stand with each of"
  " config.teachers.",
  "distill": "weight and loss of distillation stand with each of"
  " config.teachers.",
  "frozen": "frozen models stand in config.reference and config.teachers.",
  "student": "the student is config.model_name and config.model.",
  "weight_decay": "it is 'wd' in big_vision.",
  "optim": "it is 'optax' in big_vision.",
}
# Of a data set, in `config.input` or in the table of one that is mixed.
PIPELINE = (
  *("shuffle_buffer_size", "cache_raw", "num_parallel_calls"),
  *("pre_filter_fn", "post_filter_fn", "pack", "skip_errors"),
  *("pp", "tfdata"),
)
DATASET = ("data", *PIPELINE)
MIXTURE = ("batch_size", "data", "prefetch", "keep_only", "thread_pool_size")


def check(config: ConfigDict) -> None:
  """Refuses keys that neither big_vision's SigLIP trainer nor ours reads.

  Args:
    config: of big_vision's SigLIP trainer, perhaps with our three keys.

  Raises:
    ConfigError: naming the key, and the one that it is near.
  """
  for key in config:
    if key in HINTS:
      raise ConfigError(f"config.{key} is not a key here: {HINTS[key]}")
    if key not in (*OURS, *THEIRS, *IDLE):
      raise ConfigError(
        f"config.{key} is known neither to big_vision's SigLIP trainer nor to"
        f" ours, and would be ignored.{did_you_mean(key, (*OURS, *THEIRS))}"
        " Rename it, or take it out of what get_config returns."
      )
  _check_input(config.get("input"))


def datasets(config: ConfigDict) -> dict[str, Mapping[str, Any]]:
  """The tables of the data sets that are read, by where they stand."""
  data = config.input.data
  if _is_single(data):
    return {"config.input": config.input}
  return {
    f"config.input.{name}": config.input[name]
    for name, weight in data.items()
    if weight
  }


def _check_input(table) -> None:
  """`config.input`: a batch size, and a data set or several mixed."""
  if not _is_table(table):
    raise ConfigError(
      f"config.input={table!r} must be a table with data, pp and batch_size."
    )
  size = table.get("batch_size")
  if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
    raise ConfigError(
      f"config.input.batch_size={size!r} must be a number of pairs, 1 or more:"
      " of those that are trained on."
    )
  data = table.get("data")
  if not _is_table(data) or not len(data):
    raise ConfigError(
      f"config.input.data={_plain(data)!r} must be a table: of one data set,"
      " such as dict(name='coco_captions', split='train'); or, to mix several,"
      " of their names with weights, such as dict(a=0.7, b=0.3), each of them"
      " described in a table config.input.a = dict(data=..., pp=...)."
    )
  if _is_single(data):
    known = {*DATASET, "batch_size", "prefetch"}
    _refuse_unknown("config.input", table, known)
  else:
    _check_mixture(table, data)


def _check_mixture(table, data) -> None:
  """Tables of data sets that are mixed, and their weights."""
  for name, weight in data.items():
    fits = isinstance(weight, Real) and not isinstance(weight, bool)
    if not fits or weight < 0:
      raise ConfigError(
        f"config.input.data.{name}={_plain(weight)!r} must be the weight of"
        f" config.input.{name} in the mixture, 0 or more; or give"
        " config.input.data the name of one data set, a text."
      )
    if weight and not _is_table(table.get(name)):
      raise ConfigError(
        f"config.input.data.{name}={weight} names no data set: describe it in"
        f" config.input.{name} = dict(data=..., pp=...)."
        + did_you_mean(name, _described(table))
      )
  if not any(data.values()):
    raise ConfigError("config.input.data: all weights are 0; nothing is read.")
  for key in PIPELINE:
    if key in table:
      raise ConfigError(
        f"config.input.{key}: where data sets are mixed it stands with each of"
        f" them, in {', '.join(f'config.input.{n}' for n in data)}."
      )
  known = {*MIXTURE, *data, *_described(table)}
  _refuse_unknown("config.input", table, known)
  for name in data:
    if _is_table(table.get(name)):
      _refuse_unknown(f"config.input.{name}", table[name], DATASET)


def _described(table) -> list[str]:
  """Names of the data sets that a table `config.input` describes."""
  return [
    k for k, v in table.items() if k != "data" and _is_table(v) and "data" in v
  ]


def _refuse_unknown(where, table, known: Iterable[str]) -> None:
  known = sorted(known)
  for key in table:
    if key not in known:
      raise ConfigError(
        f"{where}.{key} is not a key that big_vision's input pipeline reads."
        f"{did_you_mean(key, known)} Known here: {', '.join(known)}."
      )


def _is_single(data) -> bool:
  return isinstance(data.get("name"), str)


def _is_table(value) -> bool:
  return isinstance(value, Mapping | ConfigDict)


def _plain(value):
  return value.to_dict() if isinstance(value, ConfigDict) else value
