"""The platforms that JAX may run on, and what is missing for one."""

import importlib.util
import pkgutil

import jax

from aced.config import ConfigError, did_you_mean

# What JAX calls them, and what is installed for each.
EXTRAS = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
_KNOWN = ("cpu", "cuda", "gpu", "rocm", "tpu")


def check() -> None:
  """Finds the devices, as the first computation would.

  Raises:
    ConfigError: `JAX_PLATFORMS` asks for what cannot be used here; says what
      is here, and what to install.
  """
  asked = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # The latter of no plugin.
    if not asked:
      raise
    raise ConfigError(_advice(asked, installed(), str(error))) from error


def installed() -> list[str]:
  """The platforms that JAX has the code for, whether or not they are here."""
  # A namespace without a module of its own, where nothing is installed in it.
  spec = importlib.util.find_spec("jax_plugins")
  where = spec.submodule_search_locations if spec else []
  plugins = " ".join(module.name for module in pkgutil.iter_modules(where))
  found = ["cpu", *(name for name in ("cuda", "rocm") if name in plugins)]
  return [*found, "tpu"] if importlib.util.find_spec("libtpu") else found


def _advice(asked, here, problem) -> str:
  lines = problem.strip().splitlines()
  missing = [name for name in asked.split(",") if name not in here]
  why = f" ({lines[0][:300]})" if lines and not missing else ""
  text = f"JAX_PLATFORMS={asked}: JAX cannot run on that here{why}."
  text += f" Installed for it is {', '.join(here)}."
  for name in missing:
    if name in EXTRAS:
      text += f' For {name}: pip install -e ".[{EXTRAS[name]}]".'
    elif name not in _KNOWN:
      text += f" {name!r} is no platform.{did_you_mean(name, _KNOWN)}"
  return f"{text} Without JAX_PLATFORMS it takes the best that is here."
