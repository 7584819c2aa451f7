"""A platform that is not here is named, with what is missing for it."""

import os
import subprocess
import sys

import jax
import pytest

from aced.config import ConfigError
from aced.training import platforms


def failing(monkeypatch, asked, error, here):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  monkeypatch.setattr(platforms, "installed", lambda: here)
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", asked)
  try:
    with pytest.raises(ConfigError) as told:
      platforms.check()
  finally:
    jax.config.update("jax_platforms", before)
  return str(told.value)


@pytest.mark.parametrize(
  ("asked", "extra"), [("cuda", "cuda"), ("gpu", "cuda"), ("tpu,cpu", "tpu")]
)
def test_what_to_install_is_told(monkeypatch, asked, extra):
  text = failing(monkeypatch, asked, AssertionError(), ["cpu"])
  assert text.startswith(f"JAX_PLATFORMS={asked}: JAX cannot run on that here.")
  assert "Installed for it is cpu." in text
  assert f'pip install -e ".[{extra}]"' in text


def test_what_is_installed_and_has_no_device_says_why(monkeypatch):
  error = RuntimeError("no CUDA-capable device is detected\nmore")
  text = failing(monkeypatch, "cuda", error, ["cpu", "cuda"])
  assert "(no CUDA-capable device is detected)" in text
  assert "pip install" not in text


def test_a_misspelt_platform_is_named(monkeypatch):
  text = failing(monkeypatch, "cuad", RuntimeError("unknown"), ["cpu"])
  assert "'cuad' is no platform. Did you mean 'cuda'?" in text


def test_what_nobody_asked_for_is_not_explained_away(monkeypatch):
  def devices():
    raise RuntimeError("broken")

  monkeypatch.setattr(jax, "devices", devices)
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", None)
  try:
    with pytest.raises(RuntimeError, match="broken"):
      platforms.check()
  finally:
    jax.config.update("jax_platforms", before)


def test_cpu_is_installed():
  assert platforms.installed()[0] == "cpu"
  platforms.check()


def test_a_command_tells_it_in_a_line(repository):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "aced.plan",
      "--config=configs/iid.py:smoke",
    ],
    capture_output=True,
    text=True,
    cwd=repository,
    env=os.environ | {"JAX_PLATFORMS": "cpux"},
    check=False,
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "ConfigError: JAX_PLATFORMS=cpux" in done.stderr
  assert "Did you mean 'cpu'?" in done.stderr
