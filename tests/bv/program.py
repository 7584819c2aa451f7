"""Trains with big_vision's trainer and with ours, in a process of its own.

    python -m tests.bv.program FOLDER

big_vision's trainer changes JAX for the whole process. Each run has a folder
below FOLDER; `results.json` there says what else was found.
"""

import importlib
import json
import logging
import os
import sys
import warnings
from unittest import mock

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import aced.bv
from aced.bv import compat, trainer
from aced.training.workdir import WorkdirError

TRAINER = "big_vision.trainers.proj.image_text.siglip"
SOURCE = "synthetic:train?size=48&image_size=16&noise=0.5"
STEPS = 4


def towers(width, **extra):
  shape = {"width": width, "depth": 1, "mlp_dim": 2 * width, "num_heads": 2}
  return {
    "image": {"patch_size": (8, 8), "pool_type": "map", **shape, **extra},
    "text": {"vocab_size": 258, **shape, **extra},
    "out_dim": (None, width),
    "temperature_init": 10.0,
    "bias_init": -2.71,
  }


def base(*kept):
  """A config of big_vision's SigLIP trainer, on eight devices under FSDP."""
  config = ConfigDict()
  config.seed = 3
  config.total_steps = STEPS
  config.log_training_steps = 1
  config.ckpt_steps = 2
  config.input = {
    "data": {"name": "bv:aced", "source": SOURCE, "seed": 1},
    "batch_size": 8,
    "pp": 'aced_decode(16)|aced_tokenize("bytes", 16)|value_range(-1, 1)'
    f"|keep{('image', 'labels', *kept)}",
  }
  config.pp_modules = ["ops_general"]
  config.model_name = "proj.image_text.two_towers"
  config.model = towers(32, dropout=0.1)
  config.optax_name = "scale_by_adam"
  config.optax = {"b2": 0.95}
  config.lr = 1e-3
  config.wd = 1e-4
  config.grad_clip_norm = 1.0
  # Two schedules: the temperature is frozen.
  cosine = {"decay_type": "cosine", "warmup_steps": 1}
  config.schedule = [("t", None), (".*", cosine)]
  config.mesh = [("data", -1)]
  fsdp = 'fsdp(axis="data", min_size_to_shard_mb=0.001)'
  config.sharding_strategy = [(".*", fsdp)]
  config.sharding_rules = [("act_batch", "data")]
  return config


def aced_config(large):
  """ACED: curation by a reference that teaches, whose weights are a file's."""
  config = base("_mask", "fault", "index")
  config.curation = {
    "method": "joint",
    "filter_ratio": 0.5,
    "num_chunks": 2,
    "reference": "large",
  }
  table = {"model_name": "proj.image_text.two_towers", "model": towers(48)}
  config.reference = {"large": {**table, "model_init": large}}
  config.teachers = {"large": {"weight": 0.5}}
  return config


def from_checkpoint(path):
  """Student and reference of a trainer's checkpoint, on larger pictures."""
  config = base("_mask")
  config.total_steps = 3
  config.input.pp = config.input.pp.replace("decode(16)", "decode(24)")
  config.model_init = path
  table = {"model_name": config.model_name, "model": towers(32)}
  config.reference = {"big": {**table, "model_init": path}}
  config.curation = {
    "method": "joint",
    "filter_ratio": 0.5,
    "num_chunks": 2,
    "reference": "big",
  }
  return config


def refused(config, workdir):
  """What is said of a run that may not go on."""
  try:
    trainer.train(config, workdir)
  except WorkdirError as error:
    return str(error)
  raise AssertionError("it went on")


def with_our_names():
  """What the config of `base` names, named as ours where there is such."""
  config = base()
  config.model_name = "aced.two_towers"
  config.model = towers(32)
  config.optax_name, config.optax = "aced.scale_by_adam", {}
  config.sharding_strategy = [(".*", 'aced_fsdp(axis="data")')]
  config.evals = {
    "scenes": {
      "type": "aced.retrieval",
      "source": "synthetic:val?size=24",
      "tokenizer": "bytes",
      "text_length": 16,
      "image_size": 16,
      "log_steps": STEPS,
    }
  }
  return config


def run_theirs(config, workdir):
  """Runs `main` of big_vision's trainer as it is."""
  siglip = importlib.import_module(TRAINER)
  siglip.u.chrono = siglip.u.Chrono()
  flags.FLAGS.config, flags.FLAGS.workdir = config, workdir
  siglip.main(None)


class Killed(Exception):
  """Ends a run after a step."""


def run_killed(config, workdir, after):
  """Runs ours, and ends it once a step is saved and the next one taken."""
  log = trainer.Loop.log

  def killing(loop, step, metrics):
    log(loop, step, metrics)
    if step == after:
      raise Killed

  with mock.patch.object(trainer.Loop, "log", killing):
    try:
      trainer.train(config, workdir)
    except Killed:
      return
  raise AssertionError("it ran to its end")


def save_large(path):
  """Random weights of the reference, as an .npz of big_vision's layout."""
  from aced.models.params import save_npz

  utils = compat.load().utils
  module = compat.module("models", "proj.image_text.two_towers")
  image, text = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 16), int)
  model = module.Model(**ConfigDict(towers(48)))
  params = jax.jit(model.init)(jax.random.key(9), image, text)["params"]
  save_npz(path, params)
  return dict(utils.tree_flatten_with_names(params)[0])


def main(folder):
  logging.disable(logging.INFO)
  warnings.simplefilter("ignore")
  flags.FLAGS([""])
  aced.bv.register()

  def at(name):
    return os.path.join(folder, name)

  trainer.train(base(), at("ours"))
  large = at("large.npz")
  save_large(large)
  with jax.transfer_guard("allow"):
    state = trainer.train(aced_config(large), at("whole"))
    run_killed(aced_config(large), at("killed"), after=3)
    again = trainer.train(aced_config(large), at("killed"))
    same = jax.tree.map(
      lambda a, b: bool((jax.device_get(a) == jax.device_get(b)).all()),
      state,
      again,
    )
  run_theirs(base(), at("theirs"))
  trainer.train(from_checkpoint(at("theirs/checkpoint.bv")), at("from_bv"))
  changed = aced_config(large)
  changed.curation.filter_ratio = 0.75
  run_theirs(with_our_names(), at("theirs_by_name"))
  trainer.train(with_our_names(), at("ours_by_name"))
  results = {
    "state": sorted(state),
    "same": all(jax.tree.leaves(same)),
    "refused": refused(changed, at("whole")),
    "sharded": any(
      not x.sharding.is_fully_replicated for x in jax.tree.leaves(state)
    ),
  }
  with open(at("results.json"), "w", encoding="utf-8") as file:
    json.dump(results, file)


if __name__ == "__main__":
  main(sys.argv[1])
