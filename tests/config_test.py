"""The configuration: defaults, checks, durations, differences."""

import importlib.util
import json

import pytest

from aced import config as config_lib
from aced.config import ConfigError, defaults, resolve, steps
from aced.config.checks import check_decoder

ALL = [
  (name, arg)
  for name, variants in {
    "iid": ("",),
    "reference": ("",),
    "kd": ("softmax", "sigmoid", "feature"),
    "acid": ("learnability", "easy_reference", "hard", "independent"),
    "aced": ("acidistill", "iidistill"),
  }.items()
  for variant in variants
  for arg in (variant, f"{variant},small", f"{variant},smoke")
]


def load(repository, name):
  path = repository / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"config_{name}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def curated(**changes):
  """A small curated config, with `section__key` changes."""
  config = {
    "batch_size": 16,
    "total_steps": 5,
    "frozen": {"reference": {"init": "random"}},
    "curation": {
      "method": "joint",
      "filter_ratio": 0.8,
      "num_chunks": 4,
      "reference": "reference",
    },
  }
  for key, value in changes.items():
    section, _, name = key.rpartition("__")
    table = config.setdefault(section, {}) if section else config
    table[name] = value
  return config


@pytest.mark.parametrize(("name", "arg"), ALL)
def test_every_config_resolves_and_survives_json(repository, name, arg):
  config = resolve(load(repository, name).get_config(arg))
  plain = json.loads(json.dumps(config_lib.to_plain(config)))
  assert config_lib.differences(config, resolve(plain)) == []


def test_every_config_says_its_command(repository):
  for path in (repository / "configs").glob("*.py"):
    assert f"--config configs/{path.name}:demo" in path.read_text()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"curatoin": {}}, "config.curatoin is not a known key.*'curation'"),
    (curated(curation__filter_ration=0.5), "Did you mean 'filter_ratio'"),
    ({"batch_size": "many"}, "batch_size='many' is of type str; expected int"),
    ({"curation": 3}, "config.curation=3 must be a table"),
    ({"loss": "sigmod"}, "Did you mean 'sigmoid'"),
    (curated(curation__filter_ratio=0.7), "not a whole number"),
    (curated(curation__filter_ratio=1.0), "share of the super-batch that is"),
    (curated(curation__num_chunks=5), "not divisible by num_chunks=5"),
    (curated(curation__method="uniform"), "set filter_ratio=0"),
    (curated(curation__reference=""), "needs a reference"),
    (curated(curation__reference="referenc"), "Did you mean 'reference'"),
    (curated(frozen__refrence={}), "is neither the reference nor a teacher"),
    (curated(frozen__reference={"int": "x"}), "frozen.reference.int is not"),
    (curated(curation__temperature=-1.0), "temperature=-1.0 must be 0 or more"),
    ({"checkpoint": {"keep_last": 0}}, "keep_last=0 must be above 0"),
    ({"checkpoint": {"best": "eval/nope/R@1"}}, "names none of config.evals"),
    ({"distillation": {"batch": "iid"}}, "needs curation"),
    ({"batch_size": None}, "batch_size=None is of type NoneType; expected int"),
    ({"input": {"text_length": 0}}, "text_length=0 must be above 0"),
    (
      {"optimizer": {"learning_rate": float("nan")}},
      "learning_rate=nan must be a number",
    ),
    ({"optimizer": {"b2": 1.0}}, r"optimizer\.b2=1\.0 must lie in \[0, 1\)"),
    ({"optimizer": {"mu_dtype": "float31"}}, "Did you mean 'float32'"),
    (
      {"optimizer": {"learning_rate_rules": ("img/.*", 0.0)}},
      "learning_rate_rules has the rule 'img/.*'; expected pairs",
    ),
    ({"sharding": (("(", "fsdp"),)}, r"sharding has the rule \['\('"),
    (
      curated(distillation={"weight": 1.0, "teachers": {"reference": "x"}}),
      "teachers.reference='x' must be its weight",
    ),
    (
      {"batch_size": 8, "distillation": {"weight": 1.0}},
      "needs a teacher",
    ),
  ],
)
def test_what_is_wrong_is_named(config, message):
  with pytest.raises(ConfigError, match=message):
    resolve({"batch_size": 16, **config})


DECODER = {"model": {"width": 16, "depth": 1, "num_heads": 2}}


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"decoder": {"modle": {}}}, r"config\.decoder\.modle .*mean 'model'"),
    ({"decoder": {"model": 3}}, r"config\.decoder\.model=3"),
    ({"decoder": {"model": {"width": "x"}}}, None),
    (curated(decoder=DECODER), r"config\.curation\.method='joint' .*'uniform'"),
    (
      {
        "frozen": {"teacher": {"init": "random"}},
        "distillation": {"weight": 0.5, "teachers": {"teacher": 1.0}},
      },
      r"config\.distillation\.weight=0\.5 .* must be 0\.0",
    ),
    (
      {"accumulation": {"microbatch": 8}},
      r"config\.accumulation\.microbatch=8 .* must be 0",
    ),
    (
      {"frozen": {"one": {"init": "random"}}},
      r"config.frozen names one",
    ),
  ],
)
def test_a_decoder_is_trained_on_nothing_but_what_is_read(config, message):
  config = {"batch_size": 16, "total_steps": 5, "decoder": DECODER} | config
  if message is None:  # The model checks its fields, when it is built.
    assert resolve(config).decoder.model.width == "x"
    return
  with pytest.raises(ConfigError, match=message):
    resolve(config)


def test_a_frozen_model_that_nothing_uses_is_refused_by_the_decoder_as_well():
  config = resolve({"batch_size": 16, "total_steps": 5, "decoder": DECODER})
  config.frozen.one = defaults.frozen_model()
  with pytest.raises(ConfigError, match=r"config\.frozen names one; a decoder"):
    check_decoder(config)


def test_the_table_of_a_decoder_is_free_and_survives_json():
  config = resolve({"total_steps": 5, "decoder": {**DECODER, "tasks": ["vqa"]}})
  config.decoder.model.dropout = 0.5
  with pytest.raises(AttributeError, match="task"):
    config.decoder.task = ("vqa",)
  again = json.loads(json.dumps(config_lib.to_plain(config)))
  assert config_lib.differences(config, resolve(again)) == []
  assert resolve(again).decoder.tasks == ("vqa",)
  assert not config_lib.default().decoder.model


def test_setting_an_unknown_key_of_a_config_raises_where_it_is_written():
  with pytest.raises(AttributeError, match="filter_ratio"):
    config_lib.default().curation.filter_ration = 0.5
  with pytest.raises(TypeError):
    config_lib.default().batch_size = "many"


def test_durations():
  sizes = {"batch_size": 10, "data_size": 100, "total_steps": 400}
  assert steps("total", {"total_steps": 7}, **sizes) == 7
  assert steps("total", {"total_examples": 70}, **sizes) == 7
  assert steps("total", {"total_epochs": 1.5}, **sizes) == 15
  assert steps("every", {"every_percent": 5}, **sizes) == 20
  assert steps("every", {"every_examples": 3}, **sizes) == 1
  assert steps("every", {}, default=9, **sizes) == 9
  with pytest.raises(ConfigError, match="none of them"):
    steps("total", {}, **sizes)
  with pytest.raises(ConfigError, match="exactly one of total_steps"):
    steps("total", {"total_steps": 1, "total_epochs": 1}, **sizes)
  with pytest.raises(ConfigError, match="total_examples=3 is 0.3 steps"):
    steps("total", {"total_examples": 3}, **sizes)


@pytest.mark.parametrize(
  ("prefix", "given", "message"),
  [
    (
      "every",
      {"every_steps": 0},
      r"config\.log\.every_steps=0 must be above 0",
    ),
    ("every", {"every_percent": 200.0}, "a share of the run: at most 100"),
    ("keep_every", {"keep_every_steps": 0}, "keep_every_steps=0 must be above"),
    ("total", {"total_steps": 0}, "total_steps=0 must be above 0"),
    ("total", {"total_epochs": float("nan")}, "total_epochs=nan must be above"),
    ("warmup", {"warmup_steps": -1}, "warmup_steps=-1 must be 0 or more"),
  ],
)
def test_durations_that_no_run_has(prefix, given, message):
  sizes = {"batch_size": 10, "data_size": 100, "total_steps": 400}
  with pytest.raises(ConfigError, match=message):
    steps(prefix, given, **sizes, where="log.")
  assert steps("warmup", {"warmup_steps": 0}, **sizes) == 0


def test_differences():
  old, new = {"a": {"b": 1, "c": (1, 2)}, "d": 2}, {"a": {"b": 3, "c": [1, 2]}}
  assert config_lib.differences(old, new) == ["a.b: 1 -> 3", "d: 2 -> (absent)"]
