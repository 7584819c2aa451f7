"""Nothing that is loaded from a disk or a network is unpickled or executed.

First all code is read for what could do so; then hostile files are opened.
"""

import ast
import builtins
import io
import json
import os
import pathlib
import pickle

import numpy as np
import pytest

from aced.data import cache
from aced.data.records import SourceError
from aced.data.sources import open_source
from aced.data.tokenizers import load_tokenizer
from aced.files import seal
from aced.models import params
from aced.training import workdir
from tests.data.sources.tar_test import archive, pairs

FOLDERS = ("aced", "configs", "benchmarks", "examples", "studies")

# Modules whose loading runs what a file says, and what of them does.
PICKLES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib")
LOADERS = ("load", "loads", "Unpickler")
REFUSED = {
  *(f"{module}.{name}" for module in PICKLES for name in LOADERS),
  *(f"marshal.{name}" for name in ("load", "loads")),
  *(f"shelve.{name}" for name in ("open", "Shelf", "DbfilenameShelf")),
  *(f"yaml.{name}" for name in ("load", "load_all", "Loader")),
  *(f"yaml.unsafe_{name}" for name in ("load", "load_all")),
  *(f"yaml.full_{name}" for name in ("load", "load_all")),
  *(f"yaml.{name}" for name in ("UnsafeLoader", "FullLoader")),
  *(f"runpy.run_{name}" for name in ("path", "module")),
  *(f"subprocess.get{name}" for name in ("output", "statusoutput")),
  "importlib.util.spec_from_file_location",
  "jax.experimental.serialize_executable.deserialize_and_load",
  "os.popen",
  "os.system",
  "pandas.read_pickle",
  "shutil.unpack_archive",
  "torch.load",
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
# Of anything: which archive it is called of cannot be seen.
METHODS = {"extract", "extractall"}
# Keywords whose value must be False, and be seen to be.
FALSE = {"allow_pickle", "trust_remote_code", "shell"}

# What is allowed: (file, function, what it uses).
EXCEPTIONS = {
  # An exception of a process of the run, on its way to its parent: as all that
  # multiprocessing sends. No data set has a part in it.
  ("aced/data/workers.py", "_packed", "pickle.loads"),
  ("aced/data/workers.py", "_unpacked", "pickle.loads"),
  # Names of a constant table, refused if they are not in it.
  ("aced/config/__init__.py", "__getattr__", "importlib.import_module"),
  ("aced/data/__init__.py", "__getattr__", "importlib.import_module"),
  # One of `COMMANDS`: argparse knows no others.
  ("aced/data/__main__.py", "main", "importlib.import_module"),
  # Our own config files, of the demo.
  ("aced/demo.py", "load_config", "importlib.util.spec_from_file_location"),
  # A constant of the module: big_vision's trainer, which is installed.
  ("benchmarks/big_vision.py", "load_trainer", "importlib.import_module"),
  ("benchmarks/big_vision.py", "commit", "importlib.import_module"),
  # The loader that was written a moment ago, to see whether it works.
  (
    "aced/export/writing.py",
    "_embed_stablehlo",
    "importlib.util.spec_from_file_location",
  ),
  # A module of big_vision, which the user's config names: its own way.
  ("aced/bv/compat.py", "module", "importlib.import_module"),
  # A package that a tokenizer's class names: "tokenizers" or "ftfy".
  (
    "aced/data/tokenizers/base.py",
    "Tokenizer._package",
    "importlib.import_module",
  ),
}


class Checker(ast.NodeVisitor):
  """Finds what code uses that can run code of a file.

  Names are followed through imports (`import numpy as np`), not through
  variables that hold a module, nor through `getattr`.

  Attributes:
    found: `(function, what it uses)`, in order.
  """

  def __init__(self):
    self.found: list[tuple[str, str]] = []
    self._names: dict[str, str] = {}
    self._inside: list[str] = []

  def visit_Import(self, node):
    for alias in node.names:
      top = alias.name.partition(".")[0]
      self._names[alias.asname or top] = alias.name if alias.asname else top

  def visit_ImportFrom(self, node):
    for alias in node.names:
      full = f"{node.module}.{alias.name}"
      self._names[alias.asname or alias.name] = full
      if full in REFUSED or (alias.name == "*" and node.module in PICKLES):
        self._add(full)

  def visit_FunctionDef(self, node):
    self._inside.append(node.name)
    self.generic_visit(node)
    self._inside.pop()

  visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef

  def visit_Name(self, node):
    self._look(node)

  def visit_Attribute(self, node):
    self._look(node)
    self.generic_visit(node)

  def visit_Call(self, node):
    name = self._name(node.func) or ""
    given = {word.arg: word.value for word in node.keywords}
    for word in FALSE & given.keys():
      if not _is_constant(given[word], False):
        self._add(f"{word}=")
    if name == "numpy.load" and "allow_pickle" not in given:
      self._add("numpy.load")
    if name == "importlib.import_module" and not _is_text(node.args[0]):
      self._add(name)
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
      self._add(f".{node.func.attr}")
    self.generic_visit(node)

  def _look(self, node):
    """Notes a name that must not be used at all, called or not."""
    name = self._name(node)
    if name in REFUSED or name in BUILT_IN:
      self._add(name)

  def _name(self, node) -> str | None:
    """The full name of a name or an attribute of one: "numpy.load"."""
    if isinstance(node, ast.Name):
      return self._names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
      before = self._name(node.value)
      return before and f"{before}.{node.attr}".removeprefix("builtins.")
    return None

  def _add(self, what):
    self.found.append((".".join(self._inside), what))


def _is_constant(node, value):
  return isinstance(node, ast.Constant) and node.value is value


def _is_text(node):
  return isinstance(node, ast.Constant) and isinstance(node.value, str)


def check(source):
  checker = Checker()
  checker.visit(ast.parse(source))
  return checker.found


def test_no_code_loads_what_can_run(repository):
  found = {
    (path.relative_to(repository).as_posix(), *use)
    for folder in FOLDERS
    for path in (repository / folder).rglob("*.py")
    for use in check(path.read_text(encoding="utf-8"))
  }
  assert found - EXCEPTIONS == set(), (
    "these can run code of whoever wrote a file; read data as JSON or plain"
    " arrays (allow_pickle=False)"
  )
  assert EXCEPTIONS - found == set(), "these exceptions are used no more"


@pytest.mark.parametrize(
  ("source", "want"),
  [
    ("import pickle\npickle.load(f)", "pickle.load"),
    ("import pickle as p\nlater = p.loads", "pickle.loads"),
    ("import pickle\nclass A(pickle.Unpickler): pass", "pickle.Unpickler"),
    ("from pickle import loads as read", "pickle.loads"),
    ("from pickle import *", "pickle.*"),
    ("import cPickle\ncPickle.loads(x)", "cPickle.loads"),
    ("import dill\ndill.load(f)", "dill.load"),
    ("import cloudpickle\ncloudpickle.loads(x)", "cloudpickle.loads"),
    ("import joblib\njoblib.load(f)", "joblib.load"),
    ("import shelve\nshelve.open(f)", "shelve.open"),
    ("import marshal\nmarshal.loads(x)", "marshal.loads"),
    ("import numpy as np\nnp.load(f)", "numpy.load"),
    ("from numpy import load\nload(f)", "numpy.load"),
    ("import numpy\nnumpy.load(f, allow_pickle=True)", "allow_pickle="),
    ("import numpy as np\nnp.load(f, allow_pickle=may)", "allow_pickle="),
    ("import torch\ntorch.load(f, weights_only=True)", "torch.load"),
    ("import pandas as pd\npd.read_pickle(f)", "pandas.read_pickle"),
    ("import yaml\nyaml.load(f)", "yaml.load"),
    ("import yaml\nyaml.unsafe_load(f)", "yaml.unsafe_load"),
    ("import yaml\nyaml.full_load(f)", "yaml.full_load"),
    ("eval(x)", "eval"),
    ("exec(x)", "exec"),
    ("compile(x, '', 'exec')", "compile"),
    ("import builtins\nbuiltins.eval(x)", "eval"),
    ("__import__(name)", "__import__"),
    ("import importlib\nimportlib.import_module(x)", "importlib.import_module"),
    (
      "from importlib import import_module as get\nget(f'{a}.b')",
      "importlib.import_module",
    ),
    (
      "import importlib.util\nimportlib.util.spec_from_file_location(a, b)",
      "importlib.util.spec_from_file_location",
    ),
    ("import runpy\nrunpy.run_path(x)", "runpy.run_path"),
    ("import subprocess\nsubprocess.run(x, shell=True)", "shell="),
    ("import subprocess\nsubprocess.Popen(x, shell=1)", "shell="),
    ("import subprocess\nsubprocess.getoutput(x)", "subprocess.getoutput"),
    ("import os\nos.system(x)", "os.system"),
    ("from os import system", "os.system"),
    ("import tarfile\ntarfile.open(f).extractall()", ".extractall"),
    ("with open_tar(f) as tar:\n  tar.extract(m)", ".extract"),
    ("import zipfile\nzipfile.ZipFile(f).extractall(x)", ".extractall"),
    ("import shutil\nshutil.unpack_archive(f)", "shutil.unpack_archive"),
    ("load_dataset(x, trust_remote_code=True)", "trust_remote_code="),
  ],
)
def test_the_check_finds(source, want):
  assert want in [what for _, what in check(source)]
  body = "\n".join(f"    {line}" for line in source.splitlines())
  inside = (
    f"class A:\n  def f(self):\n{body.replace('import *', 'import load')}"
  )
  assert any(where.startswith("A.f") for where, _ in check(inside))


@pytest.mark.parametrize(
  "source",
  [
    "import pickle\npickle.dumps(x)",
    "import numpy as np\nnp.load(f, allow_pickle=False)",
    "import re\nre.compile(x)\nstep.lower().compile()",
    "import yaml\nyaml.safe_load(f)",
    "import importlib\nimportlib.import_module('tokenizers')",
    "import subprocess\nsubprocess.run([x], shell=False)",
    "import json\njson.loads(x)\nmodel.eval()",
  ],
)
def test_the_check_lets_pass(source):
  assert not check(source)


# Hostile files. What they would run makes a folder.


class Bomb:
  """Makes a folder when it is unpickled."""

  def __init__(self, marker):
    self.marker = str(marker)

  def __reduce__(self):
    return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
  """The folder that must not be there in the end."""
  path = tmp_path / "executed"
  yield path
  assert not path.exists(), "code of a file was run"


@pytest.fixture
def bomb(marker):
  """A pickle that makes the marker; tried, so that its absence says much."""
  content = pickle.dumps(Bomb(marker))
  pickle.loads(content)
  marker.rmdir()
  return content


def files(folder):
  return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def test_weights_that_hold_a_pickled_object(tmp_path, marker):
  path = tmp_path / "weights.npz"
  hostile = np.empty(1, object)
  hostile[0] = Bomb(marker)
  np.savez(path, good=np.ones(3), w=hostile)
  with pytest.raises(params.ParamsError, match="holds pickled objects"):
    params.load(path)


@pytest.mark.parametrize("name", ["weights.npz", "weights.npz:img"])
def test_weights_that_are_a_pickle(tmp_path, bomb, name):
  (tmp_path / "weights.npz").write_bytes(bomb)
  with pytest.raises(params.ParamsError, match="not a whole .npz"):
    params.load(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
  "name", ["x.pkl", "x.pyd", "x.PKL", "000001.json.pickle", "../x.pt"]
)
def test_shards_with_a_pickle_are_refused(tmp_path, bomb, name):
  path = tmp_path / "shards" / "0.tar"
  path.parent.mkdir()
  path.write_bytes(archive([*pairs(2), (name, bomb)]))
  with pytest.raises(SourceError, match="a pickle: loading one can run any"):
    open_source(f"webdataset:{path}")


def test_pickles_by_another_name_are_bytes(tmp_path, bomb):
  path = tmp_path / "0.tar"
  members = [("1.jpg", bomb), ("1.txt", b"one"), ("1.npy", bomb)]
  members += [("2.jpg", b"x"), ("2.txt", bomb), ("2.json", bomb)]
  path.write_bytes(archive(members))
  source = open_source(f"webdataset:{path}")
  assert source[0] == {"image": bomb, "text": "one"}
  assert source[1]["image"].cause == "bad_line"


def test_members_outside_their_folder_are_read_and_never_written(tmp_path):
  path = tmp_path / "a" / "b" / "0.tar"
  path.parent.mkdir(parents=True)
  evil = ("../../evil", f"{tmp_path}/absolute", "../b/0")
  members = [
    (f"{key}.{kind}", b"data") for key in evil for kind in ("jpg", "txt")
  ]
  path.write_bytes(archive([*members, *pairs(2)]))
  before = files(tmp_path)
  source = open_source(f"webdataset:{path}")
  records = [source[k] for k in range(len(source))]
  assert records[:3] == [{"image": b"data", "text": "data"}] * 3
  assert "evil.jpg" in source.where(0)
  new = files(tmp_path) - before
  assert new and all(name.startswith("a/b/.aced_index") for name in new)


def test_an_index_of_shards_that_holds_a_pickle_is_made_anew(
  tmp_path, marker, bomb
):
  path = tmp_path / "0.tar"
  path.write_bytes(archive(pairs(3)))
  open_source(f"webdataset:{path}")
  (members,) = tmp_path.rglob("members.npy")
  hostile = np.empty(9, object)
  hostile[0] = Bomb(marker)
  file = io.BytesIO()
  np.save(file, hostile, allow_pickle=True)
  for content in (file.getvalue(), bomb):
    members.write_bytes(content)
    assert len(open_source(f"webdataset:{path}")) == 3
    assert members.read_bytes() not in (content, bomb)


HOSTILE = "!!python/object/apply:os.mkdir ['{0}']"
CODE = "__import__('os').mkdir('{0}')"


@pytest.mark.parametrize("text", [HOSTILE, CODE, "${{{0}}}", "{{{{{0}}}}}"])
def test_texts_in_the_config_of_a_run_are_texts(tmp_path, marker, text):
  text = text.format(marker)
  config = {"seed": 0, "input": {"source": "jsonl:a"}}
  workdir.claim(tmp_path, config)
  began = {"seed": 0, "input.source": text}
  (tmp_path / workdir.FILE).write_text(json.dumps(began))
  seal(tmp_path / "checkpoints" / "1")
  with pytest.raises(workdir.WorkdirError) as error:
    workdir.claim(tmp_path, config)
  assert f"input.source: {text} -> jsonl:a" in str(error.value)
  same = {"seed": 0, "input": {"source": text}}
  assert workdir.claim(tmp_path, same) == []


def test_a_config_of_a_run_that_is_no_json_is_refused(tmp_path, marker, bomb):
  for content in (HOSTILE.format(marker).encode(), bomb):
    (tmp_path / workdir.FILE).write_bytes(content)
    with pytest.raises(ValueError):
      workdir.claim(tmp_path, {"seed": 0})


@pytest.mark.parametrize("kind", ["hf", "sentencepiece", "clip"])
def test_tokenizers_that_are_a_pickle_are_refused(tmp_path, bomb, kind):
  pytest.importorskip("tokenizers")
  path = tmp_path / "tokenizer.json"
  path.write_bytes(bomb)
  with pytest.raises(ValueError, match=f"tokenizer '{kind}:"):
    load_tokenizer(f"{kind}:{path}", 16)


def test_a_cache_whose_description_is_a_pickle_is_refused(tmp_path, bomb):
  (tmp_path / cache.FILE).write_bytes(bomb)
  with pytest.raises(cache.CacheError, match="is not what"):
    cache.EmbeddingCache(tmp_path)


def test_entries_of_a_cache_that_are_pickles_are_bytes(tmp_path, bomb):
  # As long as an embedding, and so taken for one.
  width = len(bomb) + len(bomb) % 2
  contents = cache.Contents({"model": "m"}, 2, 2, width // 4 or 1, 1.0, 0.0)
  (tmp_path / cache.FILE).write_text(json.dumps(contents._asdict()))
  size = contents.width * cache.DTYPE.itemsize
  long = bomb + bytes(-len(bomb) % (2 * size))
  cache.write_shard(tmp_path, 0, contents, [long, bomb])
  found = cache.EmbeddingCache(tmp_path)
  zimg, _, usable = found.read([0, 1], [0, 0])
  assert usable[0] and zimg[0].tobytes() == long[:size]
  cache.shard_path(tmp_path, 0, 1).write_bytes(bomb)
  with pytest.raises(cache.CacheError, match="missing or cut short"):
    cache.EmbeddingCache(tmp_path)


def test_data_sets_of_hugging_face_with_code_beside_them(
  tmp_path, marker, bomb, monkeypatch
):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(
    datasets.config, "HF_DATASETS_CACHE", pathlib.Path(tmp_path / "cache")
  )
  folder = tmp_path / "evil"
  folder.mkdir()
  (folder / "evil.py").write_text(CODE.format(marker))
  (folder / "train.pkl").write_bytes(bomb)
  with pytest.raises(SourceError, match="hf:"):
    open_source(f"hf:{folder}:train")


# TFDS imports the module of every class that is named in `features.json`. Where
# the data lie below the folder that a command was started in, that may be a
# file that came with them.
@pytest.mark.filterwarnings("ignore:label.. is deprecated")
def test_features_of_tfds_with_a_class_of_their_own(tmp_path, monkeypatch):
  ran = tmp_path / "executed"
  folder = tmp_path / "downloads" / "photos" / "1.0.0"
  folder.mkdir(parents=True)
  (folder.parent / "evil.py").write_text(CODE.format(ran))
  features = {"pythonClassName": "downloads.photos.evil.Feature"}
  features["featuresDict"] = {"features": {}}
  (folder / "features.json").write_text(json.dumps(features))
  info = {"name": "photos", "version": "1.0.0", "fileFormat": "array_record"}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(SourceError):
    open_source(f"tfds:{folder}:train")
  assert not ran.exists(), "code of a data set was run"


def test_no_name_that_the_check_refuses_is_misspelt():
  assert all(hasattr(builtins, name) for name in BUILT_IN)
  for name in sorted(REFUSED):
    module, _, attribute = name.rpartition(".")
    if module in ("pickle", "marshal", "shelve", "runpy", "os", "shutil"):
      assert hasattr(__import__(module), attribute), name
