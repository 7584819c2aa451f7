"""Keys that nobody reads are refused, and none of big_vision's configs."""

import importlib
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from aced.bv import compat, keys, tables
from aced.config import ConfigError

TRAINER = "trainers/proj/image_text/siglip.py"
ONE = {"data": {"name": "bv:aced", "source": "x"}, "pp": "", "batch_size": 8}
TWO = {
  "batch_size": 8,
  "data": {"a": 0.7, "b": 3},
  "a": {"data": {"name": "x"}, "pp": "decode", "shuffle_buffer_size": 9},
  "b": {"data": {"name": "y", "split": "train"}, "pp": "decode"},
}


def check(**given):
  keys.check(ConfigDict({"input": ONE, **given}))


def without(table, *names):
  return {k: v for k, v in table.items() if k not in names}


@pytest.mark.parametrize(
  "given",
  [
    {key: None for key in (*keys.THEIRS, *keys.OURS) if key != "input"},
    {"init_shapes": [(1, 2)], "init_types": ["int32"]},
    {"input": ONE | {"prefetch": 4, "pack": None, "tfdata": {}}},
    {"input": ONE | {"cache_raw": True, "pre_filter_fn": len}},
    {"input": TWO},
    {"input": TWO | {"keep_only": ("image",), "thread_pool_size": 2}},
    # Weights of 0 are left out, and need no description.
    {"input": TWO | {"data": {"a": 1, "b": 0, "c": 0}}},
    {"input": TWO | {"data": {"a": 1}}},
  ],
)
def test_what_is_read_is_let_pass(given):
  check(**given)


@pytest.mark.parametrize(
  ("key", "words"),
  [
    ("curaton", "config.curaton is known neither .*Did you mean 'curation'"),
    ("Curation", "config.Curation is known neither .*'curation'"),
    ("curations", "'curation'"),
    ("teachres", "config.teachres .*'teachers'"),
    ("teacher", "config.teacher .*'teachers'"),
    ("refrence", "config.refrence .*'reference'"),
    ("references", "'reference'"),
    ("sharding_strateg", "'sharding_strategy'"),
    ("log_trainig_steps", "'log_training_steps'"),
    ("total_step", "'total_steps'"),
    ("ema_decay", "config.ema_decay is known neither"),
    ("zzz", "config.zzz is known neither .*would be ignored. Rename"),
    ("distillation", "config.distillation .*with each of config.teachers"),
    ("frozen", "config.reference and config.teachers"),
    ("mixup", "config.mixup is not a key here: it has no meaning"),
    ("init_head_bias", "config.init_head_bias"),
  ],
)
def test_a_key_that_nobody_reads_is_refused_by_name(key, words):
  with pytest.raises(ConfigError, match=words):
    check(**{key: {}})
  # Beside curation as well.
  with pytest.raises(ConfigError, match=words):
    check(curation={"method": "uniform"}, **{key: {}})


@pytest.mark.parametrize(
  ("table", "words"),
  [
    (None, "config.input=None must be a table"),
    (without(ONE, "batch_size"), "config.input.batch_size=None"),
    (ONE | {"batch_size": 8.0}, "batch_size=8.0 must be a number of pairs"),
    (ONE | {"batch_size": 0}, "batch_size=0"),
    (without(ONE, "data"), "config.input.data=None must be a table"),
    (ONE | {"data": "bv:aced"}, "config.input.data='bv:aced' must be a table"),
    (ONE | {"data": [ONE["data"]]}, r"data=\[.*to mix several.*weights"),
    (ONE | {"data": {}}, "must be a table"),
    (ONE | {"data": {"nam": "x"}}, "config.input.data.nam='x'.*weight"),
    (ONE | {"shufle_buffer_size": 9}, "shufle_.*'shuffle_buffer_size'"),
    (ONE | {"curation": {}}, "config.input.curation is not a key"),
    (ONE | {"keep_only": ("image",)}, "config.input.keep_only"),
    (without(TWO, "b"), "data.b=3 names no data set"),
    (TWO | {"data": {"aa": 1, "b": 1}}, "config.input.aa .*Did you mean 'a'"),
    (TWO | {"data": {"a": -1, "b": 1}}, "config.input.data.a=-1"),
    (TWO | {"data": {"a": 0, "b": 0}}, "all weights are 0"),
    (TWO | {"pp": "decode"}, "config.input.pp: .*config.input.a, config"),
    (TWO | {"shuffle_buffer_size": 9}, "stands with each"),
    (TWO | {"b": TWO["b"] | {"batch_size": 4}}, "config.input.b.batch_size"),
    (TWO | {"fetch": 3}, "config.input.fetch .*'prefetch'"),
  ],
)
def test_what_the_input_pipeline_does_not_read_is_refused(table, words):
  with pytest.raises(ConfigError, match=words):
    check(input=table)


def test_tables_of_ours_are_read_only_once_the_keys_are_known():
  config = ConfigDict({"input": ONE, "curaton": {"method": "joint"}})
  with pytest.raises(ConfigError, match="config.curaton"):
    tables.read(config)


@pytest.fixture
def clone(bv):
  return pathlib.Path(bv.utils.__file__).parent


@pytest.mark.big_vision
def test_all_that_their_trainer_reads_is_known(clone):
  """The names are read off the sources, so that a newer one would be told."""
  config = r"\bconfig(?:\.get\(\"|\[\"|\.)(\w+)"
  text = (clone / TRAINER).read_text() + (clone / "optax.py").read_text()
  found = set(re.findall(config, text))
  found -= {"get", "update", "parse_flags_with_absl", "set_visible_devices"}
  found -= {"weight_decay", "optim"}  # Told to be deprecated.
  assert "model_init" in found
  assert found - {*keys.THEIRS, *keys.HINTS} == set()
  durations = re.findall(r'get_steps\("(\w+)"|u\.steps\("(\w+)"', text)
  for name in {a or b for a, b in durations}:
    assert f"{name}_steps" in keys.THEIRS
  text = (clone / "input_pipeline.py").read_text()
  text = text[text.index("def training(") : text.index("def make_for_infer")]
  for name in re.findall(r'(?:input_config|dataset)\.get\("(\w+)"', text):
    assert name in {*keys.DATASET, *keys.MIXTURE}
  given = text[text.index("per_pipeline_configs = (") :].split(")")[0]
  assert set(re.findall(r'"(\w+)"', given)) < set(keys.PIPELINE)


@pytest.mark.big_vision
def test_no_config_of_their_trainer_is_refused(clone):
  folder = clone / "configs" / "proj" / "image_text"
  seen = []
  for path in sorted(folder.glob("*.py")):
    name = f"big_vision.configs.proj.image_text.{path.stem}"
    module = importlib.import_module(name)
    if "trainers.proj.image_text.siglip" not in path.read_text():
      continue
    for arg in (None, "runlocal", "img=L/16,txt=bert_large,init=a/b.npz"):
      config = module.get_config(arg)
      keys.check(config)
      assert tables.read(config).plain
      # Ours go beside them.
      config.curation = {"method": "joint", "score": "hard"}
      config.curation.filter_ratio = 0.5
      assert tables.read(config).recipe.curated
    seen.append(path.stem)
  assert "siglip_lit_coco" in seen


def test_our_example_is_known(repository):
  from tests.config_test import load

  try:
    compat.find()
  except ModuleNotFoundError as error:
    pytest.skip(str(error))
  module = load(repository, "bv/siglip_acid")
  for variant in module.VARIANTS:
    keys.check(module.get_config(variant))
