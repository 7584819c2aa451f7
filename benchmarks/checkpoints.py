"""Saving the state of a model of 200 M parameters, and what it costs the loop.

Claims: saving holds the loop up for less than a step of that model; and for no
longer than Orbax's own CheckpointManager does, with our manifest on top. Both
save the same state (parameters and two moments, 2.4 GB) in turn, with a step
taken between a save and the end of its writing.

    python -m benchmarks.checkpoints
"""

import argparse
import json
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from aced import config as config_lib
from aced import files, models
from aced.training import optimizer, sharding, state
from aced.training.checkpoints import Checkpoints
from aced.training.recipe import Recipe
from aced.training.step import TrainStep


def build(args):
  """The state, the compiled step and a batch of a B/16 pair."""
  text = {"variant": "B", "vocab_size": 32_000}
  image = {"variant": args.image, "pool_type": "map"}
  towers = {"image": image, "text": text, "out_dim": (None, 768)}
  model = models.build({**towers, "bias_init": -10.0})
  config = config_lib.resolve({"batch_size": args.batch, "total_steps": 100})
  mesh = sharding.make_mesh(config.mesh)
  tx = optimizer.make_optimizer(
    config.optimizer, warmup_steps=0, total_steps=100
  )
  made = state.create(
    lambda rng: state.init_params(model, rng, args.size, 64),
    tx,
    seed=0,
    mesh=mesh,
    rules=config.sharding,
  )
  rng = np.random.default_rng(0)
  shape = (args.batch, args.size, args.size, 3)
  batch = {
    "image": rng.integers(0, 256, shape).astype(np.uint8),
    "labels": rng.integers(1, 32_000, (args.batch, 64)).astype(np.int32),
    "_mask": np.ones(args.batch, bool),
  }
  step = TrainStep(model, {}, tx, Recipe.from_config(config), mesh)
  where = jax.tree.map(lambda x: x.sharding, made)
  jitted = jax.jit(step, out_shardings=(where, None), donate_argnums=0)
  return made, jitted.lower(made, {}, batch).compile(), batch


class Ours:
  """`aced.training.checkpoints`."""

  def __init__(self, folder):
    self.checkpoints = Checkpoints(folder, keep_last=1)

  def save(self, saved):
    self.checkpoints.save(saved, {})

  def wait(self):
    self.checkpoints.wait()
    assert self.checkpoints.failed == 0

  def close(self):
    self.checkpoints.__exit__(None, None, None)


class Orbax:
  """Its CheckpointManager with its defaults."""

  def __init__(self, folder):
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    self.manager = ocp.CheckpointManager(folder.resolve(), options=options)

  def save(self, saved):
    self.manager.save(int(saved.step), args=ocp.args.StandardSave(saved))

  def wait(self):
    self.manager.wait_until_finished()

  def close(self):
    self.manager.close()


def measure(saver, made, step, batch):
  """Seconds that a save held the caller, and until it was on disk."""
  began = time.perf_counter()
  saver.save(made)
  held = time.perf_counter() - began
  made, metrics = step(made, {}, batch)
  jax.block_until_ready(metrics)
  saver.wait()
  return made, held, time.perf_counter() - began


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--image", default="B/16")
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--saves", type=int, default=4)
  args = parser.parse_args()
  made, step, batch = build(args)
  found = {"device": jax.devices()[0].device_kind}
  found["parameters"] = sum(x.size for x in jax.tree.leaves(made.params))
  found["bytes"] = sum(x.nbytes for x in jax.tree.leaves(made))
  alone = []
  for _ in range(3):
    began = time.perf_counter()
    made, metrics = step(made, {}, batch)
    jax.block_until_ready(metrics)
    alone.append(time.perf_counter() - began)
  root = pathlib.Path(tempfile.mkdtemp(prefix="aced-checkpoints-"))
  savers = {"ours": Ours(root / "ours"), "orbax": Orbax(root / "orbax")}
  times = {name: [] for name in savers}
  for _ in range(args.saves):
    for name, saver in savers.items():
      made, *seconds = measure(saver, made, step, batch)
      times[name].append(seconds)
  for saver in savers.values():
    saver.close()
  newest = max((root / "ours" / "checkpoints").glob("[0-9]*"))
  began = time.perf_counter()
  assert files.damage(newest) is None
  found["seconds to check one"] = time.perf_counter() - began
  shutil.rmtree(root)
  found["seconds of a step"] = statistics.median(alone)
  for name, pairs in times.items():
    held, whole = zip(*pairs, strict=True)
    found[f"{name}: held, seconds, first and median of the others"] = (
      held[0],
      statistics.median(held[1:]),
    )
    found[f"{name}: held / step"] = (
      statistics.median(held) / (found["seconds of a step"])
    )
    found[f"{name}: on disk after, seconds"] = statistics.median(whole)
  found["ours / orbax: held"] = statistics.median(
    a[0] / b[0] for a, b in zip(times["ours"], times["orbax"], strict=True)
  )
  found["ours / orbax: on disk after"] = statistics.median(
    a[1] / b[1] for a, b in zip(times["ours"], times["orbax"], strict=True)
  )
  print(json.dumps(found, indent=2))


if __name__ == "__main__":
  main()
