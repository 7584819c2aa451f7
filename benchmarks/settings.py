"""What bf16, remat, scan and donation do to the papers' step, by compiling it.

Settles the defaults in `aced/presets.py`: H-ACID of ACED-F1 with a cached
reference, B=163,840, compiled for v5e:16x16 with one setting of `BASE` changed
at a time. Seconds are of compilation on this machine, in one run.

    python -m benchmarks.settings     # needs the extra `tpu`; a quarter-hour
"""

import json
import time

import jax

from aced import config as config_lib
from aced.training import planning, program
from configs import acid

TOPOLOGY = "v5e:16x16"
BASE = {"dtype_mm": "bfloat16", "scan": True, "remat": "full"}
SETTINGS = {
  "base": {},
  "float32": {"dtype_mm": "float32"},
  "remat none": {"remat": "none"},
  "remat dots_saveable": {"remat": "dots_saveable"},
  "no scan": {"scan": False},
}


def blueprint(changes):
  """The papers' step with both towers changed."""
  config = acid.get_config()
  config.frozen.reference.cache = "of any folder"
  for tower in (config.student.image, config.student.text):
    tower.update({**BASE, **changes})
  return planning.draw_up(config_lib.resolve(config), TOPOLOGY)


def measure(changes, donate=True):
  """Gigabytes of a chip, FLOPs of the program, seconds to compile."""
  plan = blueprint(changes)
  state, frozen, batch = plan.shapes()
  where = jax.tree.map(lambda x: x.sharding, state)
  step = plan.train_step(where)
  if not donate:
    step = jax.jit(step.__wrapped__, out_shardings=(where, None))
  start = time.perf_counter()
  traced = step.trace(state, frozen, batch)
  compiled = traced.lower().compile()
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    "temporaries GB": round(memory.temp_size_in_bytes / 1e9, 2),
    "state, batch and outputs GB": round(
      (memory.argument_size_in_bytes + outputs) / 1e9, 2
    ),
    "TFLOPs of a chip": round(program.flops(traced.jaxpr) / 256e12, 3),
    "compiled in seconds": round(seconds),
  }


def main():
  jax.config.update("jax_platforms", "cpu")  # Nothing runs; it compiles.
  result = {}
  for name, changes in SETTINGS.items():
    try:
      result[name] = measure(changes)
    except jax.errors.JaxRuntimeError as error:
      result[name] = str(error).splitlines()[0][:200]
  result["no donation"] = measure({}, donate=False)
  print(json.dumps(result, indent=2))


if __name__ == "__main__":
  main()
