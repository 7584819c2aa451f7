"""The direction of imports, and what importing the package must not load."""

import ast
import subprocess
import sys

import pytest

# From the commands down; a module may import its own layer's package and what
# lies below. Names are those of top-level modules and packages of `aced`.
LAYERS = [
  {
    "train",
    "evaluate",
    "cache",
    "export",
    "plan",
    "report",
    "demo",
    "captioner",
  },
  {"reporting"},
  {"training", "evaluation", "bv", "pretrained"},
  {"data", "curation", "objectives", "models", "presets"},
  {"config"},
  {"contents", "embeddings", "files", "meshes", "pages"},
]
# `config` checks names against what curation and objectives offer.
EXCEPTIONS = {("config", "curation"), ("config", "objectives")}
ARRAYS_ONLY = ("curation", "objectives")
HEAVY = (
  "tensorflow",
  "torch",
  "transformers",
  "big_vision",
  "tensorflow_datasets",
)


def imports(path):
  """Every module that a file imports, `from a import b` as `a.b`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(repository):
  """`(part of aced, file, imported parts, imported modules)` of every file."""
  root = repository / "aced"
  for path in sorted(root.rglob("*.py")):
    part = path.relative_to(root).with_suffix("").parts[0]
    if part == "__init__":
      continue
    modules = list(imports(path))
    own = {
      m.split(".")[1]
      for m in modules
      if m.startswith("aced.") and not m.startswith("aced.__")
    }
    yield part, path, own, modules


def level(part):
  for depth, names in enumerate(LAYERS):
    if part in names:
      return depth
  pytest.fail(f"aced/{part} has no place in the layers; give it one")


def test_imports_run_one_way(repository):
  for part, path, own, _ in parts(repository):
    for other in own - {part}:
      allowed = level(other) >= level(part) or (part, other) in EXCEPTIONS
      assert allowed, f"{path} imports aced.{other}, which lies above it"


def test_curation_and_objectives_know_arrays_alone(repository):
  for part, path, own, modules in parts(repository):
    if part in ARRAYS_ONLY:
      assert own <= {part, "embeddings", "meshes"}, path
      outside = {m.split(".")[0] for m in modules} - {"aced", "jax"}
      assert outside <= set(sys.stdlib_module_names), path


def test_models_know_nothing_of_curation(repository):
  for part, path, own, _ in parts(repository):
    if part == "models":
      assert not own & {"curation", "objectives", "data"}, path


def test_only_bv_mentions_big_vision(repository):
  for part, path, _, modules in parts(repository):
    if part != "bv":
      assert not any(m.startswith("big_vision") for m in modules), path


def test_importing_the_package_loads_nothing_heavy():
  program = (
    "import sys, aced, aced.curation, aced.objectives, aced.train;"
    f"print([m for m in {HEAVY!r} if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"


def test_no_removed_jax_names(repository):
  removed = ("jax.tree_map", "pjit", "use_mesh", "jax.tree_util.tree_map(")
  for path in (repository / "aced").rglob("*.py"):
    for name in removed:
      assert name not in path.read_text(), f"{path} uses {name}"
