"""The engine at B=163,840 on 256 chips, compiled for a pod that is not here.

Claims, by XLA's memory analysis of programs compiled ahead of time for TPUs:

    sampler     v5e:16x16, b=32,768, d=768: at most 64 MB of temporaries a chip,
                against the full-matrix algorithm split over the same chips
    FLOPs       its products are at most 3% of an ACED-F1 step with a cached
                reference
    ring loss   v5e:2x4, b=32,768, d=768, value and gradient: at most 1/4 of the
                temporaries of the dense loss

    python -m benchmarks.pod      # needs the extra `tpu`, and no TPU; minutes
"""

import json

import jax
import jax.numpy as jnp

from aced import config as config_lib
from aced import models, objectives
from aced.curation import Embeddings, sample_jointly
from aced.training import chips, ledger, program, sharding
from aced.training.recipe import Recipe
from benchmarks.sampler import full_matrix

SUPER_BATCH, BATCH, WIDTH, CHUNKS = 163_840, 32_768, 768, 16


def mesh_of(topology):
  """All chips of a topology along one axis."""
  return sharding.make_mesh({"data": -1}, chips.devices(topology))


def embeddings(mesh, n):
  """Shapes of a model's embeddings of `n` pairs, rows split over the chips."""
  z = jax.ShapeDtypeStruct(
    (n, WIDTH), jnp.float32, sharding=sharding.rows(mesh, 2)
  )
  scale = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=sharding.replicated(mesh)
  )
  return Embeddings(z, z, scale, scale)


def megabytes(traced):
  """Temporaries of one chip."""
  memory = traced.lower().compile().memory_analysis()
  return memory.temp_size_in_bytes / 1e6


def sampler(topology):
  """Ours against the full matrix, whose rows are split over the chips."""
  mesh = mesh_of(topology)
  models_ = embeddings(mesh, SUPER_BATCH), embeddings(mesh, SUPER_BATCH)
  key = jax.ShapeDtypeStruct(
    (), jax.random.key(0).dtype, sharding=sharding.replicated(mesh)
  )
  sizes = {"batch_size": BATCH, "num_chunks": CHUNKS}
  found, traced = {}, None
  for scope in ("global", "per_device"):
    traced = jax.jit(
      lambda rng, *models, scope=scope: sample_jointly(
        rng, *models, **sizes, scope=scope, mesh=mesh
      )
    ).trace(key, *models_)
    found[scope] = megabytes(traced)
  peer = jax.jit(lambda rng, *models: full_matrix(rng, *models, **sizes))
  found["full_matrix"] = megabytes(peer.trace(key, *models_))
  return found, program.flops(traced.jaxpr)


def step_flops():
  """Of an H-ACID step of ACED-F1 with a cached reference, on paper."""
  pair = models.count({"variant": "ACED-F1"}, 256, 64)
  config = {
    "batch_size": BATCH,
    "total_steps": 1,
    "frozen": {"reference": {}},
    "curation": {
      "method": "joint",
      "filter_ratio": 1 - BATCH / SUPER_BATCH,
      "num_chunks": CHUNKS,
      "reference": "reference",
    },
  }
  recipe = Recipe.from_config(config_lib.resolve(config))
  return ledger.count(
    recipe, pair.macs, {}, width=pair.width, cached=("reference",)
  )


def losses(topology):
  """Temporaries of value and gradient of the sigmoid loss, by form."""
  mesh = mesh_of(topology)
  found = {}
  for name, form in (
    ("dense", objectives.DENSE),
    ("ring", objectives.ring_form(mesh)),
  ):
    loss = jax.jit(jax.value_and_grad(form.contrastive["sigmoid"]))
    found[name] = megabytes(loss.trace(embeddings(mesh, BATCH)))
  return found


def main():
  jax.config.update("jax_platforms", "cpu")  # Nothing runs; it compiles.
  temporaries, flops = sampler("v5e:16x16")
  step = step_flops()
  by_form = losses("v5e:2x4")
  result = {
    "sampler, v5e:16x16, temporaries of a chip in MB": {
      name: round(size, 1) for name, size in temporaries.items()
    },
    "sampler's FLOPs by its program": flops,
    "sampler's FLOPs by the ledger": step.parts["selection"],
    "share of an ACED-F1 step with a cached reference": round(
      flops / (step.total - step.parts["selection"] + flops), 5
    ),
    "sigmoid loss, v5e:2x4, temporaries of a chip in MB": {
      name: round(size, 1) for name, size in by_form.items()
    },
    "ring / dense": round(by_form["ring"] / by_form["dense"], 4),
  }
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
