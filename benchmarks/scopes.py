"""What per-device quotas give up: the score of what they keep.

The two scopes of a joint selection, on the same embeddings, split over more and
more devices. The fewer rows a device has, the more often a good pair of one
device is left for a worse one of another. With shuffled data every device has
its share of good pairs; sorted data, where neighbours are alike, is the worst
case. The cost is told too: pictures that cross the network.

    python -m benchmarks.scopes        # virtual devices on a CPU
"""

import json

import jax
import numpy as np

from aced.curation import sample_jointly, super_batch_size
from aced.training import sharding
from aced.training.exchange import place
from benchmarks.sampler import models

DEVICES = (8, 16, 32)
BATCH, WIDTH, CHUNKS, SEEDS = 256, 64, 4, 5


def sampler(scope, devices):
  """`(seed, student, reference) -> (gain, share of rows that move)`.

  The gain is the mean score of what is kept less that of the pool.
  """
  mesh = sharding.make_mesh({"data": -1}, jax.devices()[:devices])

  @jax.jit
  def draw(seed, student, reference):
    drawn = sample_jointly(
      jax.random.key(seed),
      student,
      reference,
      batch_size=BATCH,
      num_chunks=CHUNKS,
      scope=scope,
      mesh=mesh,
    )
    rows = student.zimg.shape[0] // devices
    moved = place(drawn.indices, rows, devices).turn >= 0
    return drawn.kept_score - drawn.pool_score, moved.mean()

  return draw


def pairs(order, size, seed):
  """A student and a reference; sorted, the rows of a device are alike."""
  both = models(size, WIDTH, seed)
  if order == "sorted":  # By how well the student knows them.
    own = np.sum(np.asarray(both[0].zimg) * np.asarray(both[0].ztxt), axis=1)
    both = [model.take(np.argsort(own)) for model in both]
  return both


def main():
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(DEVICES))
  size = super_batch_size(BATCH, 0.8)
  result = {}
  for devices in DEVICES:
    draws = {s: sampler(s, devices) for s in ("global", "per_device")}
    for order in ("shuffled", "sorted"):
      found = {
        scope: np.mean(
          [draw(seed, *pairs(order, size, seed)) for seed in range(SEEDS)],
          axis=0,
        )
        for scope, draw in draws.items()
      }
      result[f"{order}, {devices} devices, {size // devices} rows each"] = {
        "gain of per_device / global": round(
          float(found["per_device"][0] / found["global"][0]), 3
        ),
        "rows that move in global": round(float(found["global"][1]), 3),
      }
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
