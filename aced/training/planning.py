"""Compiling the step of a config for devices, and what would make it fit."""

import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from aced import config as config_lib
from aced import models
from aced.data import cache, sources, tokenizers
from aced.training import blueprint, chips, program, sharding, views
from aced.training.recipe import Recipe

# XLA keeps a little of the memory for itself (0.25 of 16 GiB on a v5e).
USABLE = 0.98
FSDP = 16  # Ways in which parameters are split where that is proposed.


class Use(NamedTuple):
  """Bytes of one chip's memory, by what they are for.

  Attributes:
    arguments: state, frozen models and one super-batch.
    prefetched: super-batches that wait for their turn on the device.
    outputs: beyond the state, which takes the place of the old one.
    temporaries: of the step.
    program: its code.
  """

  arguments: int
  prefetched: int
  outputs: int
  temporaries: int
  program: int


class Compiled(NamedTuple):
  """What compiling a step told.

  Attributes:
    use: of the memory, or None where the compiler gave up for want of it.
    total: bytes of one chip's memory that are needed, or None where the
      compiler gave up and did not say.
    limit: bytes that it has for a program.
    flops: of matrix products in a step of the program, on all chips, with what
      is computed again.
    collectives: by kind, of one chip.
  """

  use: Use | None
  total: int | None
  limit: int
  flops: float
  collectives: Mapping[str, program.Collective]

  @property
  def fits(self) -> bool:
    """Whether a chip has the memory."""
    return self.total is not None and self.total <= self.limit


class Advice(NamedTuple):
  """A change of a config, and what it does.

  Attributes:
    change: as it is written on the command line.
    compiled: the step with the change, or None if it cannot be.
    problem: why it cannot be.
  """

  change: str
  compiled: Compiled | None
  problem: str = ""


def draw_up(config: ConfigDict, topology: str) -> blueprint.Blueprint:
  """The blueprint of a resolved config on a topology.

  The data set is opened only where a duration is in epochs, weights never.

  Args:
    config: from `config.resolve`.
    topology: see `chips.devices`.

  Raises:
    ConfigError: the config or the topology is wrong.
    ValueError: sizes that the devices cannot carry.
  """
  mesh = sharding.make_mesh(config.mesh, chips.devices(topology))
  vocab_sizes = {
    view.labels: tokenizers.load(view.tokenizer, view.text_length).vocab_size
    for view in views.from_config(config).values()
  }
  epochs = config.total_epochs, config.optimizer.warmup_epochs
  size = len(sources.open_source(config.input.source)) if any(epochs) else 0
  return blueprint.draw_up(
    config, mesh, vocab_sizes, size, _cached_widths(config)
  )


def compile_step(plan: blueprint.Blueprint) -> Compiled:
  """Compiles the step of a blueprint for its devices."""
  state, frozen, batch = plan.shapes()
  where = jax.tree.map(lambda x: x.sharding, state)
  traced = plan.train_step(where).trace(state, frozen, batch)
  flops = float(program.flops(traced.jaxpr))
  chip = chips.chip_of(plan.mesh.devices.flat[0])
  limit = int(USABLE * chip.memory)
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if not _OUT_OF_MEMORY.search(str(error)):
      raise
    return Compiled(None, _needed(str(error)), limit, flops, {})
  memory = compiled.memory_analysis()
  use = Use(
    arguments=memory.argument_size_in_bytes,
    prefetched=plan.config.input.prefetch * _bytes_here(batch),
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    program=memory.generated_code_size_in_bytes,
  )
  moved = program.collectives(compiled.as_text())
  return Compiled(use, sum(use), limit, flops, moved)


def advise(config: ConfigDict, topology: str) -> Iterator[Advice]:
  """Yields changes that may make a config fit, each of them compiled.

  They come one by one and then together, from what costs nothing to what costs
  most: scoring in microbatches, parameters split over chips, recomputing
  activations, accumulating gradients, a cached reference, more chips.
  """
  changes = _changes(config, topology)
  for name, change in changes.items():
    yield _try(config, topology, {name: change})
  free = {k: v for k, v in changes.items() if k in _TOGETHER}
  if len(free) > 1:
    yield _try(config, topology, free)
  if "cache" in changes and free:
    yield _try(config, topology, {**free, "cache": changes["cache"]})
  bigger = chips.larger(topology)
  if bigger:
    found = _try(config, bigger, {})
    yield found._replace(change=f"--topology {bigger}")


_TOGETHER = ("scoring", "fsdp", "remat", "accumulation")


def _changes(config, topology) -> dict[str, Any]:
  """Name -> `{key: value}` of the changes that a config does not have yet."""
  recipe = Recipe.from_config(config)
  count = len(chips.devices(topology))
  found = {}
  size = _microbatch(recipe.batch_size, recipe.super_batch, count)
  if recipe.curated and not recipe.scoring.microbatch and size:
    found["scoring"] = {"scoring.microbatch": size}
  ways = math.gcd(count, FSDP)
  if config.mesh.fsdp == 1 and ways > 1:
    found["fsdp"] = {"mesh.data": -1, "mesh.fsdp": ways}
  towers = "image", "text"
  if any(config.student[tower].get("remat") != "full" for tower in towers):
    found["remat"] = {
      f"student.{tower}.{key}": value
      for tower in towers
      for key, value in (("remat", "full"), ("scan", True))
    }
  size = _microbatch(recipe.batch_size // 4, recipe.batch_size, count)
  if not recipe.microbatch and size:
    found["accumulation"] = {"accumulation.microbatch": size}
  uncached = [n for n in recipe.frozen if not config.frozen[n].cache]
  augmented = config.input.flip or config.input.crop_scale
  if uncached and not augmented:
    found["cache"] = {f"frozen.{name}.cache": "FOLDER" for name in uncached}
  return found


def _microbatch(most, whole, count) -> int:
  """The largest size up to `most` that divides the whole and the devices."""
  sizes = range(count, most + 1, count)
  return max((k for k in sizes if whole % k == 0 and k < whole), default=0)


def as_flags(changes: Mapping[str, Any]) -> list[str]:
  """Changes of a config, `{key: value}`, as the command line takes them."""
  return [f"--config.{key}={value}" for key, value in changes.items()]


def _try(config, topology, changes) -> Advice:
  """Compiles a config with changes."""
  pairs = {k: v for change in changes.values() for k, v in change.items()}
  text = " ".join(as_flags(pairs))
  plain = config_lib.to_plain(config)
  for key, value in pairs.items():
    *path, last = key.split(".")
    table = plain
    for part in path:
      table = table[part]
    table[last] = value
  try:
    plan = draw_up(config_lib.resolve(plain), topology)
    return Advice(text, compile_step(plan))
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    return Advice(text, None, str(error).splitlines()[0])


def _cached_widths(config) -> dict[str, int]:
  """Widths of cached embeddings: of the cache, or else as the model says."""
  found = {}
  for name in Recipe.from_config(config).frozen:
    table = config.frozen[name]
    if not table.cache:
      continue
    if pathlib.Path(table.cache, cache.FILE).exists():
      found[name] = cache.read_contents(table.cache).width
    else:  # It may yet be made.
      model = blueprint.model_config(table, vocab_size=1)
      view = views.from_config(config)[name]
      cost = models.count(model, view.image_size, view.text_length)
      found[name] = cost.width
  return found


def _bytes_here(batch) -> int:
  """Bytes of a batch's shapes on one device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(batch)
  )


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


def _needed(message: str) -> int | None:
  """Bytes that a compilation says it would have needed."""
  found = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
  if found:
    return int(float(found[1]) * _UNITS[found[2]])
  found = re.search(r"allocating (\d+) bytes", message)
  return int(found[1]) if found else None
