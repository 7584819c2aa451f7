"""Sizes in which every experiment comes, from the papers' to a smoke test.

A file in `configs/` says what its *method* is; a preset says how large it runs.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aced import config as config_lib


class Preset(NamedTuple):
  """A size, ready for a method to be set.

  Attributes:
    config: an IID run of the student.
    variant: which of the experiment's own variants was asked for, or "".
    reference: the table of the larger model that goes with the student.
  """

  config: ConfigDict
  variant: str
  reference: dict[str, Any]


def preset(arg: str | None, variants: tuple[str, ...] = ()) -> Preset:
  """Reads what follows the colon of `--config configs/x.py:variant,size`.

  Args:
    arg: words joined by commas, or None; the size is "paper" if none is given.
    variants: the experiment's own variants, of which at most one is chosen.

  Raises:
    ConfigError: a word that is neither a variant nor a size.
  """
  size, variant = size_and_variant(arg, variants)
  config = config_lib.default()
  # Those that are empty are there to be set on the command line.
  empty = {"init": "", "cache": "", "tokenizer": ""}
  empty |= {"image_size": 0, "text_length": 0, "model": "two_towers"}
  reference = {**empty, **SIZES[size](config)}
  return Preset(config, variant, reference)


def size_and_variant(
  arg: str | None, variants: tuple[str, ...] = ()
) -> tuple[str, str]:
  """The words that `preset` reads; raises as it does."""
  size, variant = "paper", ""
  for word in filter(None, (arg or "").split(",")):
    if word in SIZES:
      size = word
    elif word in variants and not variant:
      variant = word
    else:
      known = [*variants, *SIZES]
      raise config_lib.ConfigError(
        f"config argument {word!r} is not known here; words are joined by"
        " commas, and each is one of"
        f" {', '.join(known)}.{config_lib.did_you_mean(word, known)}"
      )
  return size, variant


def _paper(config):
  """The papers' setting (arXiv 2411.18674, section 4), for a pod."""
  config.batch_size = 32_768
  config.total_examples = 13_000_000_000
  config.input.update(image_size=256, num_threads=16, num_workers=16)
  config.student.variant = "ACED-F1"
  config.student.bias_init = -10.0
  # Settled by compiling for 256 v5e chips of 16 GB (`benchmarks.settings`, 128
  # pairs a chip): without remat a step needs 15.7 GB of temporaries and does
  # not fit, with products kept 5.3 GB and as many FLOPs, with nothing kept 2.2
  # GB and 8% more. Scanned layers compile in 115 s in the place of 256.
  towers = {"dtype_mm": "bfloat16", "scan": True, "remat": "full"}
  for tower in (config.student.image, config.student.text):
    tower.update(towers, remat="dots_saveable")
  config.optimizer.warmup_percent = 1.0
  config.checkpoint.every_steps = 1000
  config.eval.every_steps = 5000
  config.log.every_steps = 50
  return {
    "image": {"variant": "So400m/16", "pool_type": "map", **towers},
    "text": {"variant": "So400m", **towers},
    "out_dim": (None, 1152),
    "bias_init": -10.0,
  }


def _small(config):
  """One GPU and some hundred thousand pictures."""
  config.batch_size = 1024
  config.total_examples = 5_000_000
  config.input.update(image_size=96, num_threads=8, num_workers=4)
  config.student.update(_towers("S/16", "S", 384, dtype_mm="bfloat16"))
  config.optimizer.warmup_percent = 5.0
  config.checkpoint.every_steps = 500
  config.eval.every_steps = 500
  _evaluate(config, 2048)
  return _towers("B/16", "B", 768, dtype_mm="bfloat16")


def _demo(config):
  """Minutes on two CPU cores."""
  config.batch_size = 64
  config.total_steps = 300
  config.input.update(
    source="synthetic:train?size=20000&noise=0.6", text_length=80
  )
  config.student.update(_tiny(8, 64, 2, 2))
  config.curation.num_chunks = 8
  config.optimizer.update(learning_rate=1e-3, warmup_steps=30)
  config.eval.every_steps = 100
  _evaluate(config, 512)
  return _tiny(8, 96, 2, 3)


def _smoke(config):
  """Seconds on a laptop: that it runs, not that it learns."""
  _demo(config)
  config.batch_size = 16
  config.total_steps = 12
  config.input.update(source="synthetic:train?size=400&noise=0.6")
  config.student.update(_tiny(16, 32, 1, 2))
  config.curation.num_chunks = 4
  config.optimizer.warmup_steps = 2
  config.log.every_steps = 4
  _evaluate(config, 64)
  # The score of a model that knows nothing; say init=PATH for a real one.
  return _tiny(16, 48, 1, 2) | {"init": "random"}


SIZES = {"paper": _paper, "small": _small, "demo": _demo, "smoke": _smoke}


def _towers(image, text, width, **fields):
  """Towers of named widths that meet in the width of the image tower."""
  return {
    "image": {"variant": image, "pool_type": "map", **fields},
    "text": {"variant": text, **fields},
    "out_dim": (None, width),
    "bias_init": -10.0,
  }


def _tiny(patch, width, depth, heads):
  """Two towers of one width, too small to have a name."""
  shape = {
    "width": width,
    "depth": depth,
    "mlp_dim": 4 * width,
    "num_heads": heads,
    "scan": True,  # Compiles in half the time.
  }
  return {
    "image": {"patch_size": (patch, patch), "pool_type": "map", **shape},
    "text": shape,
    "out_dim": (None, width),
    # The log odds that one of 64 texts is a picture's own. At -10, right for
    # batches of thousands, a tiny run spends all its steps on the bias.
    "bias_init": -4.0,
  }


def _evaluate(config, size):
  """Zero-shot and retrieval on held-out scenes; the best step is kept."""
  config.evals.zero_shot = {
    "type": "zero_shot",
    "source": f"synthetic:classes?size={size}",
    "templates": ("a photo of a {}.", "a picture of a {}.", "{}"),
  }
  config.evals.retrieval = {
    "type": "retrieval",
    "source": f"synthetic:val?size={size}",
  }
  config.checkpoint.best = "eval/retrieval/mean/R@1"
