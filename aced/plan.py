"""Tells what a config needs and costs on a pod, by compiling its step for it.

    python -m aced.plan --config configs/aced.py --topology v5e:16x16
    python -m aced.plan --config configs/acid.py --topology v5p:4x4x4 \\
        --examples 13e9 --mfu 0.4 --price 1.2 --output plan.json
    python -m aced.plan --config configs/acid.py:demo --topology local

Nothing is trained and no weights are read. A topology other than "local" needs
the extra `tpu`, and no TPU: the real step is compiled ahead of time by libtpu.
A config that does not fit is told what would make it fit, each change compiled
in its turn (minutes); `--nosuggest` leaves that out.
"""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from aced import config as config_lib
from aced.training import auto, chips, command, planning, startup
from aced.training.blueprint import Blueprint

DEFAULT_MFU = 0.4


def make_plan(
  config: Mapping[str, Any],
  topology: str,
  *,
  examples: float | None = None,
  mfu: float = DEFAULT_MFU,
  price: float | None = None,
  suggest: bool = True,
) -> dict[str, Any]:
  """Plans a run.

  Args:
    config: as training takes it.
    topology: "local", or such as "v5e:16x16".
    examples: trained in the whole run; the config's own if None.
    mfu: share of the chips' peak FLOP/s that is reached.
    price: of a chip-hour, in any currency; None leaves costs in chip-hours.
    suggest: whether to look for changes that make it fit, where it does not.

  Returns:
    A tree of plain values, ready for JSON; bytes, FLOPs and hours.

  Raises:
    ConfigError: the config or the topology is wrong.
    ValueError: sizes that the devices cannot carry.
  """
  for name, value in (("examples", examples), ("mfu", mfu), ("price", price)):
    if value is not None and not value > 0:
      raise config_lib.ConfigError(f"--{name}={value} must be above 0.")
  if mfu > 1:
    raise config_lib.ConfigError(f"--mfu={mfu} is a share: at most 1.")
  config = auto.fill(config_lib.resolve(config))
  plan = planning.draw_up(config, topology)
  say(f"compiling {config.name} for {topology}; for a pod, some minutes")
  compiled = planning.compile_step(plan)
  chip = chips.chip_of(plan.mesh.devices.flat[0])
  found = {
    "config": config.name,
    "topology": topology,
    "chip": chip.name,
    "chips": plan.mesh.size // chip.devices,
    "devices": plan.mesh.size,
    "mesh": dict(plan.mesh.shape),
    "memory": _memory(compiled, chip),
    "sizes": _sizes(plan),
    "program": {
      "flops_per_device": compiled.flops / plan.mesh.size,
      "collectives": {
        kind: {"count": moved.count, "bytes": moved.bytes}
        for kind, moved in compiled.collectives.items()
      },
    },
    "ledger": {
      "flops": plan.costs.parts,
      "shares": plan.costs.shares(),
      "relative_to_iid": plan.costs.relative,
    },
    "run": _run(plan, chip, examples, mfu, price),
  }
  if suggest and not compiled.fits:
    say("it does not fit; compiling what may help")
    found["suggestions"] = []
    for advice in planning.advise(config, topology):
      one = {
        "change": advice.change,
        "fits": bool(advice.compiled and advice.compiled.fits),
        "bytes": advice.compiled.total if advice.compiled else None,
        "problem": advice.problem,
      }
      say(f"{'fits' if one['fits'] else 'does not fit'}: {one['change']}")
      found["suggestions"].append(one)
  return found


def say(text: str) -> None:
  """Tells on standard error what takes its time."""
  print(text, file=sys.stderr, flush=True)


def _memory(compiled: planning.Compiled, chip: chips.Chip) -> dict[str, Any]:
  return {
    "use": compiled.use._asdict() if compiled.use else None,
    "needed": compiled.total,
    "usable": compiled.limit,
    "device": chip.memory,
    "fits": compiled.fits,
  }


def _sizes(plan: Blueprint) -> dict[str, Any]:
  recipe, count = plan.recipe, plan.mesh.size
  return {
    "batch": recipe.batch_size,
    "super_batch": recipe.super_batch,
    "filter_ratio": 1 - recipe.batch_size / recipe.super_batch,
    "batch_per_device": recipe.batch_size // count,
    "super_batch_per_device": recipe.super_batch // count,
    "chunks": recipe.num_chunks if recipe.method == "joint" else 1,
    "scope": recipe.scope,
    "loss_in_blocks": recipe.ring(plan.mesh),
  }


def _run(plan, chip, examples, mfu, price) -> dict[str, Any]:
  """What the whole run takes, by the ledger."""
  examples = examples or plan.total_steps * plan.recipe.batch_size
  steps = examples / plan.recipe.batch_size
  hours = None
  if chip.flops:
    speed = chip.flops * chip.devices * mfu
    hours = plan.costs.total * steps / speed / 3600
  return {
    "examples_trained": examples,
    "examples_read": steps * plan.recipe.super_batch,
    "steps": steps,
    "flops": plan.costs.total * steps,
    "mfu": mfu,
    "chip_hours": hours,
    "iid_chip_hours": hours and hours / plan.costs.relative,
    "wall_hours": hours and hours * chip.devices / plan.mesh.size,
    "price": price and hours and price * hours,
  }


def render(plan: Mapping[str, Any]) -> str:
  """A plan as text for the terminal."""
  mesh = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
  count = f"{plan['chips']} x {plan['chip']}"
  if plan["devices"] != plan["chips"]:
    count += f" of {plan['devices']} devices"
  parts = {
    f"{plan['config']} on {plan['topology']}": [f"{count}, mesh {mesh}"],
    "super-batch": _size_lines(plan["sizes"]),
    "memory of a device": _memory_lines(plan["memory"]),
    "program": _program_lines(plan["program"]),
    "cost of a step": _ledger_lines(plan["ledger"]),
    "the whole run": _run_lines(plan["run"]),
  }
  if plan.get("suggestions"):
    parts["what would make it fit"] = _suggestion_lines(plan["suggestions"])
  return startup.sections(parts)


def _size_lines(sizes):
  form = "block by block" if sizes["loss_in_blocks"] else "dense"
  lines = [
    f"B = {sizes['super_batch']:,} scored, {sizes['super_batch_per_device']:,}"
    " on each device",
    f"b = {sizes['batch']:,} trained on, {sizes['batch_per_device']:,} on each"
    f" device; loss {form}",
  ]
  if sizes["filter_ratio"]:
    lines.append(
      f"filter ratio {sizes['filter_ratio']:.3g}, {sizes['chunks']} chunks of"
      f" {sizes['batch'] // sizes['chunks']:,}, scope {sizes['scope']}"
    )
  return lines


def _memory_lines(memory):
  lines = []
  if memory["use"] is None:
    lines.append("the compiler gave up for want of memory")
  else:
    lines += [f"{name:24} {_gb(size)}" for name, size in memory["use"].items()]
  total = _gb(memory["device"]).strip()
  verdict, needed = "fits" if memory["fits"] else "DOES NOT FIT", "not told"
  if memory["needed"]:
    needed = _gb(memory["needed"])
    verdict += f": {memory['needed'] / memory['usable']:.0%} of what is usable"
  return [
    *lines,
    f"{'needed':24} {needed}",
    f"{f'usable of {total}':24} {_gb(memory['usable'])}",
    verdict,
  ]


def _program_lines(found):
  lines = [
    f"{'FLOPs of a device':24} {_si(found['flops_per_device'], 'FLOP')}"
    "   (matrix products, recomputed ones too)"
  ]
  for kind, moved in sorted(found["collectives"].items()):
    lines.append(
      f"{kind:24} {_si(moved['bytes'], 'B')}   {moved['count']:,} times"
    )
  return lines


def _ledger_lines(ledger):
  lines = [
    f"{name:24} {_si(flops, 'FLOP')} {ledger['shares'][name]:8.1%}"
    for name, flops in ledger["flops"].items()
  ]
  relative = ledger["relative_to_iid"]
  return [*lines, f"{relative:.2f} times an IID step of this student"]


def _run_lines(run):
  lines = [
    f"{run['examples_trained']:,.0f} examples trained on,"
    f" {run['examples_read']:,.0f} read, {run['steps']:,.0f} steps",
    f"{run['flops']:.2e} FLOPs",
  ]
  if run["chip_hours"] is None:
    return [*lines, "chip-hours: the peak FLOP/s of this device is not known"]
  lines.append(
    f"{_short(run['chip_hours'])} chip-hours at an MFU of {run['mfu']:.0%}"
    f" ({_short(run['wall_hours'])} hours); IID:"
    f" {_short(run['iid_chip_hours'])}"
  )
  if run["price"]:
    lines.append(f"price {_short(run['price'])}")
  return lines


def _suggestion_lines(suggestions):
  lines = []
  for one in suggestions:
    verdict = "fits" if one["fits"] else "does not fit"
    size = f", {_gb(one['bytes']).strip()}" if one["bytes"] else ""
    problem = f": {one['problem']}" if one["problem"] else ""
    lines += [f"{verdict}{size}{problem}", f"    {one['change']}"]
  return lines


def _si(number, unit):
  """A number with a unit of its size: 4.05 GB, 189.85 TFLOP."""
  for prefix in ("", "k", "M", "G", "T", "P"):
    if number < 1000 or prefix == "P":
      break
    number /= 1000
  return f"{number:9.2f} {prefix}{unit}"


def _gb(size):
  return _si(size, "B")


def _short(number):
  """Whole from 10 on, with two digits below."""
  return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def main() -> None:
  """Runs the command."""
  values = flags.FLAGS
  output = pathlib.Path(values.output) if values.output else None
  if output and not output.parent.is_dir():
    raise FileNotFoundError(
      f"--output={output}: there is no folder {output.parent}; make it."
    )
  if values.topology != chips.LOCAL:
    # Or JAX would look for the chips that are compiled for.
    jax.config.update("jax_platforms", "cpu")
  found = make_plan(
    config_lib.to_plain(values.config),
    values.topology,
    examples=values.examples,
    mfu=values.mfu,
    price=values.price,
    suggest=values.suggest,
  )
  text = json.dumps(found, indent=2)
  print(text if values.json else render(found))
  if output:
    output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  command.define_flags(ours=True)
  flags.DEFINE_string("topology", chips.LOCAL, "local, or such as v5e:16x16.")
  flags.DEFINE_float("examples", None, "Trained in the whole run.")
  flags.DEFINE_float("mfu", DEFAULT_MFU, "Share of peak FLOP/s reached.")
  flags.DEFINE_float("price", None, "Of a chip-hour.")
  flags.DEFINE_string("output", None, "JSON file to write.")
  flags.DEFINE_bool("json", False, "Print JSON in place of the table.")
  flags.DEFINE_bool("suggest", True, "Look for what would make it fit.")
  command.run(main)
