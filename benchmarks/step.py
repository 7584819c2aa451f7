"""A step of H-ACID with cached reference embeddings against an IID step.

Claim: it costs at most 1.15 times what its FLOPs predict, `1 + 1 / (3 (1 - f))`
of an IID step and the selection. Both steps run in turn on one device, so that
both meet the same machine.

    python -m benchmarks.step
    python -m benchmarks.step --image B/32 --size 256 --batch 256   # a GPU
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from aced import config as config_lib
from aced import models
from aced.embeddings import Embeddings
from aced.training import ledger, optimizer, sharding, state
from aced.training.recipe import Recipe
from aced.training.step import TrainStep


def student_config(args):
  """Two towers of one variant."""
  return {
    "model": "two_towers",
    "image": {
      "variant": args.image,
      "pool_type": "map",
      "dtype_mm": args.dtype,
    },
    "text": {
      "variant": args.text,
      "vocab_size": 32_000,
      "dtype_mm": args.dtype,
    },
    "out_dim": (None, args.width),
    "bias_init": -10.0,
  }


def method(args, curated):
  """The config of one of the two steps."""
  config = {"batch_size": args.batch, "total_steps": 100}
  if curated:
    config["frozen"] = {"reference": {"init": "cached"}}
    config["curation"] = {
      "method": "joint",
      "filter_ratio": args.filter_ratio,
      "num_chunks": args.chunks,
      "reference": "reference",
    }
  return config_lib.resolve(config)


def batch_of(recipe, args, seed=0):
  """A random batch, with the reference's embeddings where it is curated."""
  rng = np.random.default_rng(seed)
  n = recipe.super_batch
  shape = (n, args.size, args.size, 3)
  batch = {
    "image": rng.integers(0, 256, shape, np.uint8),
    "labels": rng.integers(0, 32_000, (n, args.length)).astype(np.int32),
    "_mask": np.ones(n, bool),
  }
  if recipe.curated:
    z = rng.standard_normal((2, n, args.width)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    z = jnp.asarray(z, jnp.bfloat16)
    batch["cached"] = {"reference": Embeddings(z[0], z[1], 10.0, -10.0)}
  return jax.tree.map(jnp.asarray, batch)


class Step:
  """One compiled step, its state and its batch."""

  def __init__(self, args, curated):
    config = method(args, curated)
    self.recipe = Recipe.from_config(config)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    model = models.build(student_config(args))
    tx = optimizer.make_optimizer(
      config.optimizer, warmup_steps=0, total_steps=100
    )
    self.state = state.create(
      lambda rng: state.init_params(model, rng, args.size, args.length),
      tx,
      seed=0,
      mesh=mesh,
      rules=config.sharding,
    )
    self.batch = batch_of(self.recipe, args)
    step = TrainStep(model, {"reference": model}, tx, self.recipe, mesh)
    self.compiled = (
      jax.jit(step, donate_argnums=0)
      .lower(self.state, {}, self.batch)
      .compile()
    )

  def seconds(self):
    """Time of one step."""
    start = time.perf_counter()
    self.state, metrics = self.compiled(self.state, {}, self.batch)
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--image", default="Ti/16")
  parser.add_argument("--text", default="Ti")
  parser.add_argument("--width", type=int, default=192)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--length", type=int, default=16)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--filter_ratio", type=float, default=0.8)
  parser.add_argument("--chunks", type=int, default=16)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--repeats", type=int, default=9)
  args = parser.parse_args()

  steps = {"iid": Step(args, False), "h_acid": Step(args, True)}
  times = {name: [] for name in steps}
  for repeat in range(args.repeats + 2):
    for name, step in steps.items():
      spent = step.seconds()
      if repeat >= 2:  # The first two warm up.
        times[name].append(spent)
  cost = models.count(student_config(args), args.size, args.length)
  recipe = steps["h_acid"].recipe
  predicted = ledger.count(
    recipe, cost.macs, {}, width=args.width, cached=("reference",)
  ).relative
  measured = statistics.median(
    b / a for a, b in zip(times["iid"], times["h_acid"], strict=True)
  )
  result = {
    "device": jax.devices()[0].device_kind,
    "image tower": f"{args.image} at {args.size} px",
    "text tower": f"{args.text}, {args.length} tokens",
    "batch": recipe.batch_size,
    "super_batch": recipe.super_batch,
    "H-ACID / IID, by FLOPs": round(predicted, 3),
    "H-ACID / IID, by time": round(measured, 3),
    "time over FLOPs": round(measured / predicted, 3),
  }
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
