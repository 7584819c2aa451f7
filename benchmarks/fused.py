"""The fused kernel against XLA's own fusion of the sampler's inner product.

Both compute what a chunk of m = 2,048 pairs adds to the scores of n = 163,840
candidates, for a student of width 768 and a reference of width 1,152: the step
of the paper's setting that a chunk of joint sampling costs (JEST, arXiv
2406.17711, algorithm 1; 16 chunks of a batch of 32,768).

On a GPU or TPU the two run in turn: ratio of their medians, temporary memory,
and how far they are apart. On a CPU, for which the kernel cannot be compiled,
both are compiled ahead of time for one v5e chip; that gives memory, and XLA's
estimates of bytes and seconds, but no measured time. The estimates are not of
one kind: XLA cannot look inside the kernel and adds up what the kernel says of
itself, with every time that a tile is read again, while of its own fusions it
counts each array once; and for neither does it count that float32 takes several
passes of the matrix unit. Memory is the same quantity for both.

    python -m benchmarks.fused                      # on a GPU or TPU
    JAX_PLATFORMS=cpu python -m benchmarks.fused    # without one
"""

import argparse
import json
import os
import statistics
import time

if os.environ.get("JAX_PLATFORMS") == "cpu":
  # Read when jax is imported: there is no chip to ask about or to lock.
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from aced.curation import Embeddings, fused, scores

WIDTHS = (768, 1152)
PATHS = {"xla": scores.added_scores, "fused": fused.added_scores}


def learnability(path, models, chunk):
  """Student less reference, by either path."""
  return path(list(zip((1.0, -1.0), models, strict=True)), chunk)


def arguments(make, n, m, dtype):
  """Two models of `n` candidates and the chunk, each array from `make`."""
  scales = ((10.0, -10.0), (20.0, -12.0))
  models = [
    Embeddings(
      make((n, d), dtype),
      make((n, d), dtype),
      *(make((), jnp.float32, value) for value in scale),
    )
    for d, scale in zip(WIDTHS, scales, strict=True)
  ]
  chunk = [(make((m, d), dtype), make((m, d), dtype)) for d in WIDTHS]
  return models, chunk


def maker(seed=0):
  """Makes seeded, normalised embeddings on the device, and scalars."""
  keys = iter(jax.random.split(jax.random.key(seed), 16))

  def make(shape, dtype, value=None):
    if value is not None:
      return jnp.asarray(value, dtype)
    z = jax.random.normal(next(keys), shape)
    return (z / jnp.linalg.norm(z, axis=1, keepdims=True)).astype(dtype)

  return make


def compile_for(args):
  """Both paths, compiled for where `args` are or will be."""
  return {
    name: jax.jit(lambda *a, path=path: learnability(path, *a))
    .lower(*args)
    .compile()
    for name, path in PATHS.items()
  }


def report(n, m, dtype, device):
  return {
    "device": device,
    "candidates": n,
    "chunk": m,
    "widths": WIDTHS,
    "dtype": jnp.dtype(dtype).name,
    "MB of a block of logits": round(4 * n * m / 1e6, 1),
  }


def temporaries(compiled):
  return {
    name: round(c.memory_analysis().temp_size_in_bytes / 1e6, 3)
    for name, c in compiled.items()
  }


def seconds(compiled, args):
  start = time.perf_counter()
  jax.block_until_ready(compiled(*args))
  return time.perf_counter() - start


def compare(n, m, dtype, repeats):
  """Runs both in turn, so that both meet the same machine."""
  args = arguments(maker(), n, m, dtype)
  compiled = compile_for(args)
  # The first call of each also warms it up.
  xla, ours = (np.asarray(compiled[name](*args)) for name in PATHS)
  times = {name: [] for name in PATHS}
  for _ in range(repeats):
    for name in PATHS:
      times[name].append(seconds(compiled[name], args))
  median = {name: statistics.median(t) for name, t in times.items()}
  return report(n, m, dtype, jax.devices()[0].device_kind) | {
    "times faster": round(median["xla"] / median["fused"], 2),
    "milliseconds": {k: round(1e3 * v, 3) for k, v in median.items()},
    "temporary MB": temporaries(compiled),
    "largest difference": float(np.abs(xla - ours).max()),
    "largest score": float(np.abs(xla).max()),
  }


def compile_ahead(n, m, dtype):
  """What XLA says of both when it compiles them for a chip not here."""
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x2"
  )
  mesh = jax.sharding.Mesh(np.asarray(topology.devices[:1]), ("data",))
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  compiled = compile_for(
    arguments(
      lambda shape, dtype, value=None: jax.ShapeDtypeStruct(
        shape, dtype, sharding=whole
      ),
      n,
      m,
      dtype,
    )
  )
  cost = {name: c.cost_analysis() for name, c in compiled.items()}
  # XLA counts down from 0 where it could not estimate a part.
  time_of = {k: c.get("optimal_seconds", -1.0) for k, c in cost.items()}
  return report(n, m, dtype, topology.devices[0].device_kind) | {
    "temp_size_in_bytes": {
      name: c.memory_analysis().temp_size_in_bytes
      for name, c in compiled.items()
    },
    "bytes accessed": {k: c.get("bytes accessed") for k, c in cost.items()},
    "optimal_seconds": {k: v if v > 0 else None for k, v in time_of.items()},
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--candidates", type=int, default=163_840)
  parser.add_argument("--chunk", type=int, default=2_048)
  parser.add_argument("--repeats", type=int, default=20)
  args = parser.parse_args()
  accelerator = jax.default_backend() != "cpu"
  if not accelerator:
    print("No accelerator here: compiled for one v5e chip, nothing is timed.")
  for dtype in (jnp.float32, jnp.bfloat16):
    if accelerator:
      result = compare(args.candidates, args.chunk, dtype, args.repeats)
    else:
      result = compile_ahead(args.candidates, args.chunk, dtype)
    print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
  main()
