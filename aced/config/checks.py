"""What no run can have: choices, numbers and roles that do not fit."""

import math
import re

from aced.config.errors import ConfigError, did_you_mean
from aced.config.plain import flatten
from aced.curation import KERNELS, SCOPES, SCORES
from aced.objectives import CONTRASTIVE, DISTILLATION, FORMS

METHODS = ("joint", "independent", "uniform")
# Tables without a number that may be infinite.
_FINITE = ("optimizer.", "curation.", "distillation.", "student.", "scoring.")


def check_choices(config) -> None:
  """Values that are one of a few."""
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
    ("optimizer.mu_dtype", ("float32", "bfloat16", "float16")),
    ("input.resize", ("bilinear", "bicubic")),
  ):
    value = flatten(config)[key]
    if value not in known:
      raise ConfigError(
        f"config.{key}={value!r} is not known; it is one of"
        f" {', '.join(known)}.{did_you_mean(value, known)}"
      )


def check_ranges(config) -> None:
  """Numbers that no run can have."""
  positive = {"batch_size", "curation.num_chunks", "checkpoint.keep_last"}
  positive |= {"optimizer.learning_rate", "input.image_size", "input.prefetch"}
  not_negative = {"seed", "curation.temperature", "distillation.weight"}
  not_negative |= {"optimizer.weight_decay", "optimizer.clip"}
  not_negative |= {"scoring.microbatch", "input.num_workers"}
  not_negative |= {"scoring.patch_size", "scoring.resolution"}
  not_negative |= {"accumulation.microbatch", "checkpoint.patience_seconds"}
  not_negative |= {f"guards.{key}" for key in config.guards}
  not_negative -= {"guards.stall_seconds"}
  positive |= {"guards.stall_seconds"}
  positive |= {"input.stall_seconds", "input.num_threads"}
  positive |= {"input.text_length"}
  not_negative |= {"optimizer.eps", "log.picks"}
  for name in config.frozen:
    not_negative |= {f"frozen.{name}.image_size", f"frozen.{name}.text_length"}
  flat = flatten(config)
  for key, value in flat.items():
    endless = key.startswith(_FINITE) and value in (math.inf, -math.inf)
    if value != value or endless:
      raise ConfigError(f"config.{key}={value} must be a number.")
  for key in sorted(positive | not_negative):
    least = "above 0" if key in positive else "0 or more"
    if flat[key] < 0 or (flat[key] == 0 and key in positive):
      raise ConfigError(f"config.{key}={flat[key]} must be {least}.")
  for key in ("guards.stall_factor", "guards.loss_spike"):
    if 0 < flat[key] <= 1:
      raise ConfigError(
        f"config.{key}={flat[key]} must be above 1, or 0 for off."
      )
  for key in (
    "scoring.token_drop",
    "scoring.cotrain",
    "optimizer.b1",
    "optimizer.b2",
  ):
    if not 0 <= flat[key] < 1:
      raise ConfigError(f"config.{key}={flat[key]} must lie in [0, 1).")
  _check_rules(config)
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


def _check_rules(config) -> None:
  """Rules are pairs of a regex and what it is for."""
  for key, kinds, such in (
    ("optimizer.learning_rate_rules", (int, float), "(('img/.*', 0.1),)"),
    ("optimizer.weight_decay_rules", (int, float), "(('.*/kernel', 1.0),)"),
    ("sharding", str, "(('.*', 'fsdp'),)"),
    ("frozen_sharding", str, "(('.*', 'replicate'),)"),
  ):
    for rule in flatten(config)[key]:
      try:
        pattern, value = rule if isinstance(rule, list) else (None, None)
        re.compile(pattern)
        good = isinstance(value, kinds)
      except (TypeError, ValueError, re.error):
        good = False
      if not good:
        raise ConfigError(
          f"config.{key} has the rule {rule!r}; expected pairs of a regular"
          f" expression and its value, such as {such}."
        )


def check_roles(config) -> None:
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
  if scoring.reference and config.frozen.get(curation.reference, {}).get(
    "cache"
  ):
    raise ConfigError(
      "config.scoring.reference=True would score with the reference as it is"
      f" flexed, and config.frozen.{curation.reference}.cache holds embeddings"
      " of it in full; take one of them out."
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
        f"{did_you_mean(name, used)}"
      )


def check_decoder(config) -> None:
  """A decoder learns every pair that is read, from no other model."""
  if not config.decoder.model:
    return
  for key, neutral in (
    ("curation.method", "uniform"),
    ("distillation.weight", 0.0),
    ("accumulation.microbatch", 0),
  ):
    value = flatten(config)[key]
    if value != neutral:
      raise ConfigError(
        f"config.{key}={value!r} is of training a student; with config.decoder"
        f" it must be {neutral!r}."
      )
  if config.frozen:
    raise ConfigError(
      f"config.frozen names {', '.join(config.frozen)}; a decoder has the"
      " encoder of config.student alone."
    )
