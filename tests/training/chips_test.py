"""Topologies by name, and what is known of chips."""

import importlib.util
from types import SimpleNamespace

import jax
import pytest

from aced.config import ConfigError
from aced.training import chips


def test_local_devices_are_those_at_hand():
  assert chips.devices("local") == jax.devices()
  chip = chips.chip_of(jax.devices()[0])
  # Eight devices share the memory of this machine.
  assert chip.name == "cpu" and 2**28 < chip.memory < 2**45


def test_unknown_topologies_are_refused_with_the_known_ones():
  message = r"v5e:8x16, v5e:16x16\. Did you mean 'v5e:16"
  with pytest.raises(ConfigError, match=message):
    chips.devices("v5e:16x17")


def test_the_extra_is_named_where_libtpu_is_missing(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: None if name == "libtpu" else find(name),
  )
  with pytest.raises(ConfigError, match=r'pip install -e "\.\[tpu\]"'):
    chips.devices("v5e:2x2")


def test_the_next_larger_slice():
  assert chips.larger("v5e:8x16") == "v5e:16x16"
  assert chips.larger("v5p:2x2x1") == "v5p:2x2x2"
  assert chips.larger("v5e:16x16") is None
  assert chips.larger("local") is None


@pytest.mark.parametrize(
  "kind, name",
  [
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU v4", "v4"),
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H200", "H200"),
  ],
)
def test_chips_by_device_kind(kind, name):
  on_tpu = kind.startswith("TPU")
  device = SimpleNamespace(
    device_kind=kind,
    platform="tpu" if on_tpu else "gpu",
    memory_stats=lambda: {"bytes_limit": 7},
  )
  found = chips.chip_of(device)
  # There are GPUs of one name with more memory and with less.
  assert found.name == name and (found.memory == 7) != on_tpu


def test_of_an_unknown_chip_the_memory_is_asked():
  device = SimpleNamespace(
    device_kind="new",
    platform="gpu",
    memory_stats=lambda: {"bytes_limit": 5},
  )
  assert chips.chip_of(device) == chips.Chip("new", 5, 0.0)
