"""What a run says before its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from aced import config as config_lib
from aced.training.build import Run


def report(run: Run, state: Any, batch: Any, compiled: Any) -> str:
  """The start-up report: what will run, on what, and what it will cost.

  Args:
    run: from `build`.
    state: the state, on the devices.
    batch: a super-batch, on the devices.
    compiled: the compiled step, for its memory and FLOPs.
  """
  return sections(
    {
      "config": _config(run),
      "devices": _devices(run),
      "parameters": _parameters(run, state),
      "batch": _batch(batch),
      "super-batch": _arithmetic(run),
      "compiled step": _compiled(compiled),
      "cost of a step": _costs(run),
    }
  )


def sections(parts: Mapping[str, Sequence[str]]) -> str:
  """Lines under titles, as text for the terminal."""
  lines = []
  for title, body in parts.items():
    lines.append(f"── {title} ".ljust(72, "─"))
    lines += [f"  {line}" for line in body]
  return "\n".join(lines)


def _config(run):
  base = config_lib.flatten(config_lib.default())
  flat = config_lib.flatten(run.config)
  width = max(map(len, flat))
  return [
    f"{'*' if base.get(key) != value else ' '} {key:{width}} {value}"
    for key, value in flat.items()
    if value is not None
  ] + ["  (* differs from the default; keys that are not set are left out)"]


def _devices(run):
  device = run.mesh.devices.flat[0]
  shape = ", ".join(f"{axis}={n}" for axis, n in run.mesh.shape.items())
  return [
    f"{run.mesh.size} x {device.device_kind} ({device.platform}),"
    f" {jax.process_count()} process(es), mesh {shape}"
  ]


def _parameters(run, state):
  def line(name, tree, note=""):
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    return f"{name:24} {count:>14,}{note}"

  lines = [line(run.TRAINED, state.params)]
  lines += [
    line(
      f"{name} (frozen)",
      tree,
      f"   fingerprint {run.identities[f'frozen.{name}']}",
    )
    for name, tree in run.frozen.items()
  ]
  lines += [
    f"{name + ' (frozen)':24} embeddings are read from {found.path},"
    f" fingerprint {found.fingerprint}"
    for name, found in run.caches.items()
  ]
  return lines


def _batch(batch):
  flat = jax.tree_util.tree_leaves_with_path(batch)
  return [
    f"{jax.tree_util.keystr(path, simple=True, separator='/'):24}"
    f" {x.dtype!s:8} {tuple(x.shape)}"
    for path, x in flat
  ]


def _arithmetic(run):
  recipe = run.recipe
  trained = recipe.batch_size * run.total_steps
  lines = [
    f"{run.total_steps:,} steps x b = {recipe.batch_size:,} pairs"
    f" = {trained:,} trained pairs"
  ]
  if recipe.accumulates:
    lines.append(
      f"its gradient in {recipe.batch_size // recipe.microbatch} pieces of"
      f" {recipe.microbatch:,}"
    )
  if recipe.ring(run.mesh):
    lines.append("the loss block by block, its logits are never whole")
  if not recipe.curated:
    return [*lines, "no curation: every pair that is read is trained on"]
  ratio = 1 - recipe.batch_size / recipe.super_batch
  scored = recipe.super_batch * run.total_steps
  lines.append(
    f"super-batch B = {recipe.super_batch:,}, filter ratio {ratio:.3g}:"
    f" {scored:,} scored pairs, {scored / len(run.input.source):.2f} epochs"
  )
  if recipe.method == "joint":
    lines.append(
      f"{recipe.num_chunks} chunks of {recipe.batch_size // recipe.num_chunks},"
      f" scope {recipe.scope}"
    )
  if recipe.scoring.cheap:
    lines.append(f"scored at {_cheap(recipe.scoring)}")
  return lines


def _cheap(scoring):
  """How cheap scoring looks at pictures."""
  parts = {
    "resolution": scoring.resolution,
    "patches of": scoring.patch_size,
    "token_drop": scoring.token_drop,
  }
  text = ", ".join(f"{name} {value}" for name, value in parts.items() if value)
  return f"{text}; {scoring.cotrain:.0%} of each batch trains so too"


def _compiled(compiled):
  memory = compiled.memory_analysis()
  lines = []
  if memory is not None:
    parts = {
      "arguments": memory.argument_size_in_bytes,
      "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
    }
    text = ", ".join(f"{k} {v / 1e6:,.1f} MB" for k, v in parts.items())
    lines.append(f"memory per device: {text}")
  flops = (compiled.cost_analysis() or {}).get("flops")
  if flops:
    lines.append(
      f"FLOPs per device by XLA, loops counted once: {flops / 1e9:,.2f} G"
    )
  return lines


def _costs(run):
  costs = run.costs
  lines = [
    f"{name:24} {flops / 1e9:>14,.2f} GFLOPs {costs.shares()[name]:6.1%}"
    for name, flops in costs.parts.items()
  ]
  return [*lines, f"{costs.relative:.2f} times an IID step of this student"]
