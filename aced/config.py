"""The configuration: every key with its default, and how a config is checked.

A config file defines `get_config(arg=None)`: it starts from `default()`, sets
what its experiment changes and returns the `ConfigDict`. A mistyped key or a
value of the wrong type raises where it is written; `resolve` checks the rest
and fills in what follows from other keys.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from aced.curation import (
  KERNELS,
  SCOPES,
  SCORES,
  check_sizes,
  super_batch_size,
)
from aced.objectives import CONTRASTIVE, DISTILLATION, FORMS

METHODS = ("joint", "independent", "uniform")
DURATIONS = ("steps", "examples", "epochs", "percent")


class ConfigError(ValueError):
  """A key that is unknown, of the wrong type, or at odds with another."""


def default() -> ConfigDict:
  """Returns a config with every key: an IID run on the built-in data set."""
  config = ConfigDict()
  config.name = "aced"
  config.seed = 0
  config.batch_size = 1024  # b: pairs trained on in each step.
  config.loss = "sigmoid"  # The contrastive loss: sigmoid or softmax.
  config.loss_form = "auto"  # dense, ring (block by block), or auto, by size.
  config.update(durations("total", percent=False))

  config.input = _input()
  config.student = _model()
  # name -> model, as `student`, with `init` saying whence its weights come.
  # Frozen models are never trained, saved or given to the optimiser.
  config.frozen = ConfigDict()

  config.curation = ConfigDict()
  config.curation.method = "uniform"  # joint, independent or uniform.
  config.curation.score = "learnability"  # learnability, easy_reference, hard.
  config.curation.filter_ratio = 0.0  # Share of the super-batch *discarded*.
  config.curation.num_chunks = 16
  config.curation.gain = 1.0
  config.curation.temperature = 1.0
  config.curation.reference = ""  # A name in `frozen`.
  # global: the best of the super-batch; per_device: a quota of each device's.
  config.curation.scope = "global"
  config.curation.kernel = "xla"  # xla, or pallas: one fused kernel.

  config.distillation = ConfigDict()
  config.distillation.loss = "softmax"  # softmax, sigmoid or feature.
  config.distillation.weight = 0.0  # lambda; 0 is no distillation.
  config.distillation.teachers = ConfigDict()  # name in `frozen` -> weight.
  config.distillation.batch = "curated"  # curated, or iid (IIDistill).

  config.scoring = _scoring()
  config.accumulation = ConfigDict()
  # Examples of one forward and backward pass, on all devices together; the
  # gradient is that of the whole batch all the same. 0 is all of them.
  config.accumulation.microbatch = 0

  config.optimizer = _optimizer()

  config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # -1: what is left.
  # First match wins: (regex of the parameter's name, "replicate" or "fsdp").
  config.sharding = ((".*", "fsdp"),)
  config.frozen_sharding = ((".*", "fsdp"),)

  config.checkpoint = ConfigDict()
  config.checkpoint.update(durations("every", percent=True))
  config.checkpoint.keep_last = 1
  # The evaluation metric, larger is better, whose best step is kept as well.
  config.checkpoint.best = ""

  # name -> evaluator: {"type": "zero_shot" or "retrieval", "source": ...}.
  config.evals = ConfigDict()
  config.eval = ConfigDict()
  config.eval.update(durations("every", percent=True))

  config.log = ConfigDict()
  config.log.update(durations("every", percent=True))
  config.log.trackers = ()  # Beside JSON lines: "tensorboard", "wandb".
  config.log.progress = True  # The progress bar.
  config.log.report = True  # The start-up report.
  return _lock(config)


def _lock(config):
  """Locks every table but those whose keys are free."""
  config.lock()
  for table in (config.frozen, config.evals, config.distillation.teachers):
    table.unlock()
  for table in (config.student.image, config.student.text):
    table.unlock()
  return config


def _input() -> ConfigDict:
  """What is read, and how it becomes arrays."""
  config = ConfigDict()
  config.source = "synthetic:train"
  config.image_size = 32
  config.resize = "bilinear"  # bilinear or bicubic, antialiased.
  config.crop_scale = ()  # (least, most) area of a random resized crop.
  config.flip = False
  config.tokenizer = "bytes"
  config.text_length = 64
  config.num_threads = 2
  config.num_workers = 0  # Processes; 0 reads in threads of this one.
  config.prefetch = 2  # Super-batches kept ready, on the host and on devices.
  return config


def _model() -> ConfigDict:
  """A model: its kind, its towers and its initial weights."""
  config = ConfigDict()
  config.model = "two_towers"
  config.variant = ""  # A named pair, such as ACED-F1, instead of both towers.
  # Fields of the towers, checked by the model: width, depth, variant, ...
  config.image = ConfigDict(convert_dict=True)
  config.text = ConfigDict(convert_dict=True)
  config.out_dim = ()  # Width of (image head or None, text head).
  config.temperature_init = 10.0
  config.bias_init = placeholder(float)
  config.init = ""  # A checkpoint or .npz to start from; "" is random.
  # Of a frozen model: the folder of its embeddings, from `aced.cache`.
  config.cache = ""
  return config


def _scoring() -> ConfigDict:
  """How the super-batch is embedded to be scored (Flexi-JEST)."""
  config = ConfigDict()
  # Examples embedded at a time, on all devices together; 0 is all of them.
  config.microbatch = 0
  config.patch_size = 0  # Of the image tower, in pixels; 0 is its own.
  config.resolution = 0  # Of the pictures, in pixels; 0 is input.image_size.
  config.token_drop = 0.0  # Share of the patch tokens that are left out.
  # With any of these: share of each trained batch embedded in the same way.
  config.cotrain = 0.5
  # Whether the reference is scored so too; it should have been trained so.
  config.reference = False
  return config


def _optimizer() -> ConfigDict:
  """Adam with decoupled weight decay, as the papers use it."""
  config = ConfigDict()
  config.learning_rate = 1e-3
  config.weight_decay = 1e-4
  config.b1 = 0.9
  config.b2 = 0.95
  config.eps = 1e-8
  config.clip = 1.0  # Global norm of the gradient; 0 is no clipping.
  config.decay = "cosine"  # cosine, linear or constant.
  config.update(durations("warmup", percent=True))
  # First match wins: (regex of the parameter's name, multiplier). A learning
  # rate multiplier of 0 freezes the parameter.
  config.learning_rate_rules = ()
  config.weight_decay_rules = ((".*/kernel", 1.0), (".*", 0.0))
  config.mu_dtype = "float32"
  return config


def durations(prefix: str, *, percent: bool) -> dict[str, Any]:
  """Returns empty keys `{prefix}_{unit}`, of which one is to be set."""
  units = DURATIONS if percent else DURATIONS[:-1]
  return {
    f"{prefix}_{u}": placeholder(float if u in ("epochs", "percent") else int)
    for u in units
  }


def steps(
  prefix: str,
  config: Mapping[str, Any],
  *,
  batch_size: int,
  data_size: int,
  total_steps: int | None = None,
  default: int | None = None,
  where: str = "",
) -> int:
  """Reads a duration in steps, whatever unit it was given in.

  Args:
    prefix: "total", "warmup" or "every".
    config: holds at most one set key `{prefix}_{steps,examples,...}`.
    batch_size: `b`, examples trained on in a step.
    data_size: examples in an epoch.
    total_steps: what a percentage is of.
    default: returned where no key is set.
    where: of the config, for messages, such as "log.".

  Raises:
    ConfigError: more than one key is set, or none and there is no default.
  """
  keys = [f"{prefix}_{u}" for u in DURATIONS[: 3 if prefix == "total" else 4]]
  given = {k: config[k] for k in keys if config.get(k) is not None}
  if not given and default is not None:
    return default
  if len(given) != 1:
    raise ConfigError(
      f"exactly one of {', '.join(where + k for k in keys)} must be set; got"
      f" {given if given else 'none of them'}. To give a duration in another"
      " unit, set the one that stands there to None."
    )
  ((key, value),) = given.items()
  per_step = {
    "steps": 1,
    "examples": 1 / batch_size,
    "epochs": data_size / batch_size,
    "percent": (total_steps or 0) / 100,
  }[key.rsplit("_", 1)[1]]
  number = round(value * per_step)
  if value < 0 or (value > 0 and number == 0 and prefix == "total"):
    raise ConfigError(f"{key}={value} is {value * per_step:g} steps; raise it.")
  return max(number, 1) if prefix == "every" else number


def resolve(config: Mapping[str, Any]) -> ConfigDict:
  """Checks a config against `default()` and returns it complete.

  Raises:
    ConfigError: naming the key, its value, what was expected and what to do.
  """
  resolved = default()
  with resolved.unlocked():
    _merge(resolved, config)
  _check_choices(resolved)
  _check_ranges(resolved)
  try:
    super_batch = loaded_size(resolved)
    check_sizes(
      super_batch,
      resolved.batch_size,
      resolved.curation.num_chunks
      if resolved.curation.method == "joint"
      else 1,
    )
  except ValueError as error:
    raise ConfigError(f"curation: {error}") from error
  _check_roles(resolved)
  return _lock(resolved)


def loaded_size(config: ConfigDict) -> int:
  """Pairs read for each step: `B` where they are scored, `b` otherwise.

  Raises:
    ValueError: the filter ratio does not fit the method or the batch size.
  """
  if config.curation.method == "uniform":
    if config.curation.filter_ratio:
      raise ValueError(
        f"filter_ratio={config.curation.filter_ratio} with method='uniform'"
        " would read pairs only to drop them; set filter_ratio=0."
      )
    return config.batch_size
  return super_batch_size(config.batch_size, config.curation.filter_ratio)


def did_you_mean(word: str, known: Any) -> str:
  """Returns " Did you mean 'x'?" or an empty string."""
  near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
  return f" Did you mean {near[0]!r}?" if near else ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns `key: old -> new` for every key whose value differs."""
  old, new = flatten(old), flatten(new)
  missing = "(absent)"
  return [
    f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
    for key in sorted({*old, *new})
    if old.get(key, missing) != new.get(key, missing)
  ]


def to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts of plain values; keys that are not set are None."""
  return {
    key: to_plain(value) if isinstance(value, Mapping | ConfigDict) else value
    for key, value in config.items()
  }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns `{"a.b.c": value}`; tuples become lists, as JSON has them."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = _plain(value)
  return flat


def _plain(value):
  if isinstance(value, tuple | list):
    return [_plain(v) for v in value]
  return value


# Tables whose keys are free here: what they configure checks them.
FREE = re.compile(
  r"evals|frozen|distillation\.teachers|(student|frozen\.[^.]+)\.(image|text)"
)


def _merge(into, given, path=""):
  """Writes `given` over `into`, refusing unknown keys and wrong types."""
  if not isinstance(given, Mapping | ConfigDict):
    raise ConfigError(f"config.{path}={given!r} must be a table of keys.")
  free = FREE.fullmatch(path) is not None
  for key, value in given.items():
    name = f"{path}.{key}" if path else key
    if path == "frozen":
      into[key] = _model()
    if not free and key not in into:
      raise ConfigError(
        f"config.{name} is not a known key;"
        f" known here: {', '.join(sorted(into.keys()))}."
        f"{did_you_mean(key, into.keys())}"
      )
    if isinstance(into.get(key), ConfigDict):
      _merge(into[key], value, name)
    else:
      _assign(into, key, value, name)


def _assign(into, key, value, name):
  """Sets one value, naming the key and both types where they differ."""
  try:
    into[key] = value
  except TypeError as error:
    want = into.get_type(key)
    raise ConfigError(
      f"config.{name}={value!r} is of type {type(value).__name__}; expected"
      f" {getattr(want, '__name__', want)}."
    ) from error


def _check_choices(config):
  for key, known in (
    ("loss", CONTRASTIVE),
    ("loss_form", FORMS),
    ("curation.method", METHODS),
    ("curation.score", SCORES),
    ("curation.scope", SCOPES),
    ("curation.kernel", KERNELS),
    ("distillation.loss", DISTILLATION),
    ("distillation.batch", ("curated", "iid")),
    ("optimizer.decay", ("cosine", "linear", "constant")),
    ("input.resize", ("bilinear", "bicubic")),
  ):
    value = flatten(config)[key]
    if value not in known:
      raise ConfigError(
        f"config.{key}={value!r} is not known; it is one of"
        f" {', '.join(known)}.{did_you_mean(value, known)}"
      )


def _check_ranges(config):
  """Numbers that no run can have."""
  positive = {"batch_size", "curation.num_chunks", "checkpoint.keep_last"}
  positive |= {"optimizer.learning_rate", "input.image_size", "input.prefetch"}
  not_negative = {"seed", "curation.temperature", "distillation.weight"}
  not_negative |= {"optimizer.weight_decay", "optimizer.clip"}
  not_negative |= {"scoring.microbatch", "input.num_workers"}
  not_negative |= {"scoring.patch_size", "scoring.resolution"}
  not_negative |= {"accumulation.microbatch"}
  flat = flatten(config)
  for key in sorted(positive | not_negative):
    least = "above 0" if key in positive else "0 or more"
    if flat[key] < 0 or (flat[key] == 0 and key in positive):
      raise ConfigError(f"config.{key}={flat[key]} must be {least}.")
  for key in ("scoring.token_drop", "scoring.cotrain"):
    if not 0 <= flat[key] < 1:
      raise ConfigError(f"config.{key}={flat[key]} must lie in [0, 1).")
  for name, weight in config.distillation.teachers.items():
    if not isinstance(weight, int | float) or weight < 0:
      raise ConfigError(
        f"config.distillation.teachers.{name}={weight!r} must be its weight, a"
        " number of 0 or more."
      )
  if config.distillation.batch == "iid" and config.curation.method == "uniform":
    raise ConfigError(
      "config.distillation.batch='iid' needs curation: without it every batch"
      " is an IID one; set it to 'curated'."
    )
  best = config.checkpoint.best
  if best and best.removeprefix("eval/").split("/")[0] not in config.evals:
    raise ConfigError(
      f"config.checkpoint.best={best!r} names none of config.evals"
      f" ({', '.join(config.evals) or 'empty'}); expected such as"
      " 'eval/retrieval/mean/R@1'."
    )


def _check_roles(config):
  """Every model that is named exists, and every one that exists is used."""
  curation, distillation = config.curation, config.distillation
  needs_reference = curation.method != "uniform" and SCORES[curation.score][1]
  scoring = config.scoring
  cheap = scoring.patch_size or scoring.resolution or scoring.token_drop
  if cheap and curation.method == "uniform":
    raise ConfigError(
      "config.scoring says how a super-batch is embedded to be scored, and with"
      " curation.method='uniform' nothing is; take patch_size, resolution and"
      " token_drop out, or choose another method."
    )
  if needs_reference and not curation.reference:
    raise ConfigError(
      f"config.curation.score={curation.score!r} needs a reference: name one of"
      " config.frozen in config.curation.reference."
    )
  if config.student.cache:
    raise ConfigError(
      f"config.student.cache={config.student.cache!r}: the student changes at"
      " every step and cannot be cached; frozen models can."
    )
  named = {}
  if needs_reference:
    named["curation.reference"] = [curation.reference]
  if distillation.weight:
    named["distillation.teachers"] = list(distillation.teachers)
    if not distillation.teachers:
      raise ConfigError(
        f"config.distillation.weight={distillation.weight} needs a teacher:"
        " set config.distillation.teachers = {name in config.frozen: weight}."
      )
  for key, names in named.items():
    for name in names:
      if name not in config.frozen:
        raise ConfigError(
          f"config.{key} names {name!r}, which is not in config.frozen"
          f" ({', '.join(config.frozen) or 'empty'})."
          f"{did_you_mean(name, config.frozen)}"
        )
  used = {name for names in named.values() for name in names}
  for name in config.frozen:
    if name not in used:
      raise ConfigError(
        f"config.frozen.{name} is neither the reference nor a teacher; remove"
        " it, or name it in curation.reference or distillation.teachers."
      )
