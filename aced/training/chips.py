"""Chips, and the devices of a pod that is not here."""

import importlib.util
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from aced.config import ConfigError, did_you_mean

GIB = 2**30
LOCAL = "local"


class Chip(NamedTuple):
  """One accelerator, by its maker's data sheet.

  Attributes:
    name: as people say it.
    memory: bytes of one device.
    flops: peak FLOP/s of dense bfloat16 products of one device; 0 is not known.
    devices: that JAX makes of one chip.
  """

  name: str
  memory: int
  flops: float
  devices: int = 1


# By a part of `device_kind`, the first that matches.
CHIPS = {
  "TPU v6 lite": Chip("v6e", 32 * GIB, 918e12),
  "TPU v5 lite": Chip("v5e", 16 * GIB, 197e12),
  "TPU v5": Chip("v5p", 95 * GIB, 459e12),
  # Ahead of time it is compiled for as two cores with half of all each.
  "TPU v4": Chip("v4", 16 * GIB, 137.5e12, devices=2),
  "H200": Chip("H200", 141 * 10**9, 989e12),
  "H100": Chip("H100", 80 * GIB, 989e12),
  "A100": Chip("A100", 40 * GIB, 312e12),
}
# For libtpu, which is to compile: not to look for chips and for the machine it
# is on, nor to keep others from them.
_COMPILE_ONLY = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v4-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
  *("8x8x16", "8x16x16"),
)
# Slices that are sold, smallest first, of each generation.
SLICES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


def known() -> list[str]:
  """Names of all topologies."""
  return [f"{name}:{size}" for name, sizes in SLICES.items() for size in sizes]


def larger(topology: str) -> str | None:
  """The next larger slice of the same generation, if there is one."""
  generation, _, size = topology.partition(":")
  sizes = SLICES.get(generation, ())
  after = sizes[sizes.index(size) + 1 :] if size in sizes else ()
  return f"{generation}:{after[0]}" if after else None


def devices(topology: str) -> Sequence[jax.Device]:
  """The devices of a topology, to compile for; "local" has those at hand.

  Args:
    topology: "local", or a generation and the shape of a slice, such as
      "v5e:16x16". The program is compiled by the libtpu wheel; no TPU is used.

  Raises:
    ConfigError: it is not known, or libtpu is not installed.
  """
  if topology == LOCAL:
    return jax.devices()
  if topology not in known():
    generation = topology.partition(":")[0]
    sizes = [f"{generation}:{size}" for size in SLICES.get(generation, ())]
    names = [LOCAL, *(sizes or known())]
    raise ConfigError(
      f"topology {topology!r} is not known; it is one of {', '.join(names)}."
      f"{did_you_mean(topology, names)}"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(
      f"topology {topology!r} needs the TPU compiler, which is not installed:"
      ' pip install -e ".[tpu]" (it runs on any x86-64 Linux machine).'
    )
  for name, value in _COMPILE_ONLY.items():
    os.environ.setdefault(name, value)
  single = {"chips_per_host_bounds": [1, 1, 1]} if ":1x1" in topology else {}
  return topologies.get_topology_desc(
    platform="tpu", topology_name=topology, **single
  ).devices


def chip_of(device: jax.Device) -> Chip:
  """What a device is; of one that is not in `CHIPS`, its memory alone."""
  kind = device.device_kind
  chip = next((c for part, c in CHIPS.items() if part in kind), None)
  if device.platform == "cpu":
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip("cpu", memory // jax.local_device_count(), 0.0)
  if device.platform == "tpu" and chip:
    return chip
  # There are cards of one name with more memory and with less.
  limit = (device.memory_stats() or {}).get("bytes_limit", 0)
  if chip is None:
    return Chip(kind, limit, 0.0)
  return chip._replace(memory=limit) if limit else chip
