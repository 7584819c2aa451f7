"""Every key of a config can be set on the command line, and no other."""

import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.config import ConfigError, defaults
from aced.evaluation.evaluators import EVALUATORS, fields_of
from aced.evaluation.generation import GENERATORS
from aced.models import saved as saved_lib
from aced.models.build import TOWERS, field_types, plain_type
from aced.models.decoder import Decoder
from aced.training import keys, planning
from aced.training.tracker import METRICS_FILE, read_jsonl
from tests.config_test import load
from tests.train_test import command

# Of each type, what is written and what is read.
SAMPLES = {
  int: ("7", 7),
  float: ("0.25", 0.25),
  bool: ("True", True),
  str: ("007", "007"),
  tuple: ("('a', (1, None))", ["a", [1, None]]),
}
PRINT = (
  "import json\n"
  "from absl import flags\n"
  "from aced import config\n"
  "from aced.training import command\n"
  "def show():\n"
  "  print(json.dumps(config.flatten(flags.FLAGS.config)))\n"
  "command.define_flags(ours=True)\n"
  "command.run(show)\n"
)


def parsed(repository, *arguments, file="configs/aced.py:smoke"):
  """`(exit code, flat config or what is said)` of a command."""
  done = subprocess.run(
    [sys.executable, "-c", PRINT, f"--config={file}", *arguments],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    return done.returncode, done.stderr
  return 0, json.loads(done.stdout)


def every_key():
  """Key -> its type, of all that a config may hold."""

  def walk(table, where):
    for key in table:
      if isinstance(table.get(key), ConfigDict):
        yield from walk(table[key], f"{where}{key}.")
      else:
        yield f"{where}{key}", table.get_type(key)

  found = dict(walk(config_lib.default(), ""))
  for name in ("reference", "teacher"):
    found |= dict(walk(defaults.frozen_model(), f"frozen.{name}."))
    found[f"distillation.teachers.{name}"] = float
  for model in ("student", "frozen.reference", "frozen.teacher"):
    for tower, module in TOWERS.items():
      for key, hint in field_types(module).items():
        found[f"{model}.{tower}.{key}"] = plain_type(hint)
  for key, hint in field_types(Decoder).items():
    found[f"decoder.model.{key}"] = plain_type(hint)
  kinds = {**EVALUATORS, **GENERATORS}
  for name, kind in {**kinds, "new": EVALUATORS["retrieval"]}.items():
    found |= {f"evals.{name}.type": str, f"evals.{name}.source": str}
    for key, hint in fields_of(kind).items():
      found[f"evals.{name}.{key}"] = plain_type(hint)
  return found


def test_every_key_can_be_set_and_has_its_type(repository):
  types = every_key()
  assert len(types) > 250 and set(types.values()) == set(SAMPLES)
  code, found = parsed(
    repository,
    *(f"--config.{key}={SAMPLES[kind][0]}" for key, kind in types.items()),
  )
  assert code == 0, found
  for key, kind in types.items():
    assert found[key] == SAMPLES[kind][1], key
    assert type(found[key]) is type(SAMPLES[kind][1]), key


def test_numbers_and_none_where_a_file_has_another_type(repository, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "def get_config():\n"
    "  return {\n"
    "    'total_steps': 5,\n"
    "    'student': {'image': {'dropout': 0, 'mlp_dim': None}},\n"
    "    'evals': {'a': {'type': 'retrieval', 'group_field': None}},\n"
    "  }\n"
  )
  code, found = parsed(
    repository,
    "--config.total_steps=None",
    "--config.total_epochs=2",
    "--config.student.image.dropout=0.1",
    "--config.student.image.mlp_dim=64",
    "--config.student.image.scan",
    "--noconfig.log.page",
    "--config.evals.a.group_field=photo",
    '--config.evals["b-c"].type=retrieval',
    "--config.distillation.teachers.big=1",
    file=str(path),
  )
  assert code == 0, found
  assert found["total_steps"] is None and found["total_epochs"] == 2.0
  assert found["student.image.dropout"] == 0.1
  assert found["student.image.mlp_dim"] == 64
  assert found["student.image.scan"] is True and found["log.page"] is False
  assert found["evals.a.group_field"] == "photo"
  assert found["evals.b-c.type"] == "retrieval"
  assert found["distillation.teachers.big"] == 1.0


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("curatoin.method", r"config\.curatoin is not .*mean 'curation'\?"),
    ("batch_siez", r"config\.batch_siez is not .*mean 'batch_size'\?"),
    ("student.image.dtpye_mm", r"image\.dtpye_mm is not .*mean 'dtype_mm'\?"),
    ("student.txt.causal", r"config\.student\.txt is not .*mean 'text'\?"),
    ("decoder.model.dept", r"decoder\.model\.dept is not .*mean 'depth'\?"),
    ("frozen.reference.innit", r"frozen\.reference\.innit .*mean 'init'\?"),
    ("frozen.new.image.remta", r"frozen\.new\.image\.remta .*mean 'remat'\?"),
    ("evals.retrieval.batch_sise", r"retrieval\.batch_sise .*'batch_size'\?"),
    ("evals.retreival.batch_size", r"no 'retreival' .*mean 'retrieval'\?"),
    ("evals.new.source", r"no 'new' .*needs --config\.evals\.new\.type"),
    ("batch_size.x", r"config\.batch_size=16 is no table"),
    ("evals.a-b.type", r"--config\.evals\.a-b\.type is no key"),
  ],
)
def test_a_key_that_is_not_known_is_refused_by_name(repository, name, message):
  config = load(repository, "aced").get_config("smoke")
  with pytest.raises(ConfigError, match=message):
    keys.complete(config, [name])


@pytest.mark.parametrize(
  ("argument", "told"),
  [
    ("--config.student.image.dtpye_mm=x", "Did you mean 'dtype_mm'?"),
    ("--config.batch_size=many", "--config.batch_size=many: invalid literal"),
    ("--config.student.image.dropout=much", "could not convert string to flo"),
    ("--config.evals.retrieval.batch_size=x", "batch_size=x: invalid literal"),
    ("--config.student.text.causal=maybe", "Non-boolean argument"),
  ],
)
def test_what_is_wrong_is_told_in_a_line(repository, argument, told):
  code, text = parsed(repository, argument)
  assert code == 1 and told in text and argument.split("=")[0][9:] in text
  assert "Traceback" not in text and len(text.splitlines()) <= 3


@pytest.mark.parametrize(
  ("file", "told"),
  [
    ("configs/aced.py:smokee", "Did you mean 'smoke'?"),
    ("configs/acde.py:smoke", "there is no file 'configs/acde.py'"),
  ],
)
def test_a_config_that_cannot_be_read_is_told_in_a_line(repository, file, told):
  code, text = parsed(repository, file=file)
  assert code == 1 and told in text
  assert "Traceback" not in text and len(text.splitlines()) <= 3


def test_what_a_plan_advises_is_taken(repository):
  config = config_lib.resolve(load(repository, "aced").get_config("demo"))
  changes = planning._changes(config, "local")
  pairs = {k: v for change in changes.values() for k, v in change.items()}
  assert {"student.image.remat", "student.text.scan"} <= pairs.keys()
  assert {"scoring.microbatch", "accumulation.microbatch"} <= pairs.keys()
  assert "frozen.reference.cache" in pairs
  code, found = parsed(
    repository, *planning.as_flags(pairs), file="configs/aced.py:demo"
  )
  assert code == 0, found
  assert {key: found[key] for key in pairs} == pairs


@pytest.mark.slow
def test_a_run_takes_fields_of_towers_and_a_new_evaluator(repository, tmp_path):
  code, text = command(
    repository,
    "--config=configs/iid.py:smoke",
    f"--workdir={tmp_path}",
    "--config.total_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.student.image.dtype_mm=bfloat16",
    "--config.student.image.remat=full",
    "--config.student.image.dropout=0.1",
    "--config.student.text.causal=True",
    "--config.evals.zero_shot.source=",
    "--config.evals.retrieval.batch_size=32",
    "--config.evals.new.type=retrieval",
    "--config.evals.new.source=synthetic:val?size=16",
    "--config.evals.new.ks=(2,)",
    "--config.checkpoint.best=eval/new/mean/R@2",
    "--config.log.page=False",
  )
  assert code == 0, text
  told = json.loads((tmp_path / "config.json").read_text())
  assert told["student.image.dtype_mm"] == "bfloat16"
  scores = read_jsonl(tmp_path / METRICS_FILE)[-1]
  assert {"eval/new/mean/R@2", "eval/retrieval/mean/R@1"} <= set(scores)
  assert saved_lib.find_checkpoint(f"{tmp_path}@best")[1] == 2
