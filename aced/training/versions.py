"""What code a run is made of."""

import functools
import hashlib
import pathlib
import platform
from importlib import metadata

import aced

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "numpy",
  "grain",
  "orbax-checkpoint",
)


@functools.cache
def code() -> dict[str, str]:
  """Name -> version, of this package and of those that results depend on.

  That of `aced` has a digest of its source behind it, so that a file changed on
  one host is found.
  """
  found = {"aced": f"{aced.__version__} ({_digest()})"}
  found["python"] = platform.python_version()
  for name in PACKAGES:
    found[name] = metadata.version(name)
  return found


def _digest() -> str:
  root = pathlib.Path(aced.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(str(path.relative_to(root)).encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]
