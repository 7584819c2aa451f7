"""Our IID step against the update step of big_vision's SigLIP trainer.

Claim: on one device, with one model, batch and optimiser, ours takes no longer.
Both run in turn in one process, so that both meet the same machine.

The peer is big_vision's own step and not a copy of it: `main` of its trainer
`trainers/proj/image_text/siglip.py` runs up to its first update, on a batch of
ours in place of its input pipeline. The function that it jits as `update_fn` is
taken over there, with the train state and the mesh that the trainer made for
it, and is then called as the trainer calls it. Nothing inside it is changed.

Before any clock runs: the trees of parameters are equal, name by name; ours are
copied into theirs; loss and norms are equal at the first update, and still
after several. Both have Adam, clipping at a global norm of 1, a cosine schedule
and the same weight decay on kernels, which both scale by the schedule but not
by the learning rate. Both report the loss and the norms of gradients,
parameters and updates; ours its temperature, bias and masked pairs besides. All
is float32, as big_vision's text tower knows no other dtype, and pictures are in
[-1, 1], as its preprocessing hands them over.

big_vision is not a package: clone it, and install what its trainer imports.
Where it cannot be imported the benchmark says so and ends without an error.

    git clone https://github.com/google-research/big_vision
    pip install tensorflow-cpu einops clu
    PYTHONPATH=big_vision python -m benchmarks.big_vision
"""

import argparse
import contextlib
import importlib
import json
import pathlib
import statistics
import subprocess
import time
import types
import warnings
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from aced import models
from aced.training import optimizer, sharding, state
from aced.training.recipe import Recipe
from aced.training.step import TrainStep
from benchmarks.step import method, student_config

TRAINER = "big_vision.trainers.proj.image_text.siglip"
RULES = [("act_batch", "data")]  # Its default, of activations.
METRICS = {  # Ours: theirs.
  "loss/contrastive": "training_loss",
  "norm/gradient": "l2_grads",
  "norm/parameters": "l2_params",
  "norm/updates": "l2_updates",
}
CHECKED = 5  # Updates after which both are compared again.
START, COURSE = 1e-5, 1e-3  # Relative tolerances; rounding grows on the way.


class Ours:
  """Our compiled step, its state and its batch."""

  def __init__(self, args, config, batch):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1})
    model = models.build(student_config(args))
    tx = optimizer.make_optimizer(
      config.optimizer, warmup_steps=0, total_steps=config.total_steps
    )
    self.state = state.create(
      lambda rng: state.init_params(model, rng, args.size, args.length),
      tx,
      seed=0,
      mesh=mesh,
      rules=config.sharding,
    )
    self.batch = {**batch, "_mask": jax.device_put(np.ones(args.batch, bool))}
    step = TrainStep(model, {}, tx, Recipe.from_config(config), mesh)
    jitted = jax.jit(step, donate_argnums=0)
    self.compiled = jitted.lower(self.state, {}, self.batch).compile()

  def __call__(self):
    """Takes one step; returns its metrics."""
    self.state, metrics = self.compiled(self.state, {}, self.batch)
    return jax.block_until_ready((self.state, metrics))[1]


class Theirs:
  """big_vision's jitted step, its state and its batch."""

  def __init__(self, args, config, batch, params):
    trainer = load_trainer()
    self.step, (self.state, *self.inputs) = capture(
      trainer, peer_config(args, config), batch
    )
    params = jax.device_get(params)
    same_trees(params, self.state["params"])
    places = jax.tree.map(lambda x: x.sharding, self.state["params"])
    self.state["params"] = jax.device_put(params, places)
    self.mesh = jax.tree.leaves(places)[0].mesh
    with self.context():
      lowered = self.step.lower(self.state, *self.inputs)
      self.compiled = lowered.compile()  # To be looked at.

  def __call__(self):
    """Takes one step; returns its metrics."""
    self.state, metrics = self.step(self.state, *self.inputs)
    return jax.block_until_ready((self.state, metrics))[1]

  @contextlib.contextmanager
  def context(self):
    """What the trainer's loop enters around an update; JAX has a newer way."""
    quiet = warnings.catch_warnings(
      action="ignore", category=DeprecationWarning
    )
    with quiet, self.mesh, nn.logical_axis_rules(RULES):
      yield


def peer_config(args, config):
  """The config of big_vision's trainer that says what ours says."""
  model, ours = student_config(args), config.optimizer
  del model["model"], model["text"]["dtype_mm"]  # The latter is not known.
  return ConfigDict(
    {
      "model_name": "proj.image_text.two_towers",
      "model": {**model, "temperature_init": 10.0},
      "input": {"batch_size": config.batch_size},
      "total_steps": config.total_steps,
      "log_training_steps": config.total_steps,
      "pp_modules": (),
      "optax_name": "scale_by_adam",
      "optax": {k: ours[k] for k in ("b1", "b2", "eps", "mu_dtype")},
      "lr": ours.learning_rate,
      "wd": ours.weight_decay,
      "wd_mults": ours.weight_decay_rules,
      "grad_clip_norm": ours.clip,
      "schedule": {"decay_type": ours.decay, "warmup_steps": 0},
      "sharding_rules": RULES,
    }
  )


def load_trainer():
  """big_vision's trainer, with what its HEAD needs on a current JAX."""
  for name in ("map", "leaves"):  # jax.tree_map and the like: gone since 0.6.
    if not hasattr(jax, f"tree_{name}"):
      setattr(jax, f"tree_{name}", getattr(jax.tree, name))
  trainer = importlib.import_module(TRAINER)
  jax.config.update("jax_transfer_guard", "allow")  # It forbids transfers.
  return trainer


class Reached(Exception):
  """Ends the trainer's `main` at its first update."""


def capture(trainer, config, batch):
  """Runs `trainer.main` to its first update; returns that and its arguments."""
  caught, jit = [], jax.jit

  def watching_jit(function, **kwargs):
    jitted = jit(function, **kwargs)

    def update(*arguments):
      caught.extend((jitted, arguments))
      raise Reached

    return update if function.__name__ == "update_fn" else jitted

  spec = trainer.tf.TensorSpec
  specs = {k: spec(x.shape, str(x.dtype)) for k, x in batch.items()}
  data = types.SimpleNamespace(element_spec=specs)
  pipeline = types.SimpleNamespace(
    training=lambda _: (data, config.input.batch_size),
    start_global=lambda *_: iter([batch]),
  )
  flags = types.SimpleNamespace(config=config, workdir=None)
  with (
    mock.patch.object(trainer, "input_pipeline", pipeline),
    mock.patch.object(trainer.flags, "FLAGS", flags),
    mock.patch.object(trainer.u, "BigVisionMetricWriter"),
    mock.patch.object(jax.distributed, "initialize"),
    mock.patch.object(jax, "jit", watching_jit),
    contextlib.suppress(Reached),
  ):
    trainer.main(None)
  if not caught:
    raise RuntimeError(f"{TRAINER}.main has no `update_fn` that it jits.")
  return caught


def same_trees(ours, theirs):
  """Refuses parameters that differ in a name, a shape or a dtype."""
  ours, theirs = (
    jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (ours, theirs)
  )
  if ours != theirs:
    raise RuntimeError("The parameters differ in a name, a shape or a dtype.")


def same_step(steps, tolerance):
  """Takes a step of each; what both report must agree. Returns the losses."""
  ours, theirs = (step() for step in steps.values())
  pairs = [(float(ours[a]), float(theirs[b])) for a, b in METRICS.items()]
  if not np.allclose(*zip(*pairs), rtol=tolerance, atol=0.0):
    raise RuntimeError(f"{list(METRICS)} differ, ours and theirs: {pairs}")
  return dict(zip(steps, pairs[0]))


def times_in_turn(steps, repeats):
  """Seconds of each step, `repeats` times in turn, either one first."""
  times = {name: [] for name in steps}
  for repeat in range(repeats):
    for name in list(steps)[:: -1 if repeat % 2 else 1]:
      start = time.perf_counter()
      steps[name]()
      times[name].append(time.perf_counter() - start)
  return times


def batch_of(args, seed=0):
  """Random pictures and texts."""
  rng = np.random.default_rng(seed)
  image = rng.uniform(-1, 1, (args.batch, args.size, args.size, 3))
  labels = rng.integers(0, 32_000, (args.batch, args.length))
  batch = {"image": np.float32(image), "labels": np.int32(labels)}
  return jax.device_put(batch)


def interval(ratios, seed=0):
  """Where the median lies in 95 of 100 bootstrap samples."""
  drawn = np.random.default_rng(seed).choice(ratios, (2_000, len(ratios)))
  return np.quantile(np.median(drawn, axis=1), (0.025, 0.975)).round(3).tolist()


def costs(steps):
  """What XLA counts in the compiled programs, theirs over ours."""
  ours, theirs = (x.compiled.cost_analysis() for x in steps.values())
  return {k: round(theirs[k] / ours[k], 4) for k in ("flops", "bytes accessed")}


def commit():
  """The commit of the folder that big_vision was imported from."""
  folder = pathlib.Path(importlib.import_module(TRAINER).__file__).parent
  git = ["git", "-C", folder, "rev-parse", "HEAD"]
  done = subprocess.run(git, capture_output=True, text=True)
  return done.stdout.strip() or "unknown"


def compare(args):
  """Checks that both do the same, then times them."""
  config, batch = method(args, False), batch_of(args)
  ours = Ours(args, config, batch)
  theirs = Theirs(args, config, batch, ours.state.params)
  steps = {"aced": ours, "big_vision": theirs}
  with theirs.context():
    first = same_step(steps, START)
    for _ in range(CHECKED):
      last = same_step(steps, COURSE)
    times = times_in_turn(steps, args.repeats)
  median = {name: statistics.median(spent) for name, spent in times.items()}
  ratios = np.divide(times["big_vision"], times["aced"])
  return {
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "big_vision": commit(),
    "image tower": f"{args.image} at {args.size} px",
    "text tower": f"{args.text}, {args.length} tokens",
    "parameters": sum(x.size for x in jax.tree.leaves(ours.state.params)),
    "batch": args.batch,
    "repeats": args.repeats,
    "loss, first step": first,
    f"loss, after {CHECKED} steps": last,
    "median seconds": {k: round(v, 4) for k, v in median.items()},
    "big_vision / aced, by XLA": costs(steps),
    "big_vision / aced, of medians": round(
      median["big_vision"] / median["aced"], 3
    ),
    "times faster than big_vision": round(float(np.median(ratios)), 3),
    "95% interval": interval(ratios),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--image", default="Ti/16")
  parser.add_argument("--text", default="Ti")
  parser.add_argument("--width", type=int, default=192)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--length", type=int, default=16)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=41)
  parser.set_defaults(dtype="float32")
  args = parser.parse_args()
  try:
    load_trainer()
  except ImportError as error:
    print(f"skipped: {TRAINER} cannot be imported: {error}.")
    print("How to get it:\n" + __doc__.split("error.\n\n")[1], end="")
    return
  if jax.device_count() > 1:
    raise SystemExit("big_vision's trainer takes every device; show it one.")
  # On a GPU or TPU, else, the two would round their products differently.
  jax.config.update("jax_default_matmul_precision", "float32")
  print(json.dumps(compare(args), indent=2))


if __name__ == "__main__":
  main()
