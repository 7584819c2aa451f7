"""What is surely not meant is found before the first step."""

import numpy as np
import pytest

from aced import config as config_lib
from aced.config import ConfigError
from aced.data.sources import open_source
from aced.data.tokenizers import load_tokenizer
from aced.train import train
from aced.training import sanity
from aced.training.build import build
from aced.training.session import make_evaluate, summary
from tests.train_test import smoke

RETRIEVAL = {"type": "retrieval", "source": "synthetic:val?size=16"}
ZERO_SHOT = {"type": "zero_shot", "source": "synthetic:classes?size=16"}


def evaluating(repository, best, **evals):
  config = smoke(repository, "iid", evals=evals, checkpoint__best=best)
  return make_evaluate(build(config))


@pytest.mark.parametrize(
  ("best", "told"),
  [
    ("eval/r/no/metric", "is none of the metrics of config.evals.r: "),
    ("eval/r/mean/R@2", "Did you mean 'eval/r/mean/R@"),
    ("r/mean/R@1", "Did you mean 'eval/r/mean/R@1'"),
    ("eval/z/acuracy", "Did you mean 'eval/z/accuracy'"),
    ("eval/z/worst_group_accuracy", "eval/z/macro_f1"),
  ],
)
def test_a_metric_that_no_evaluator_yields(repository, best, told):
  with pytest.raises(ConfigError, match=told) as error:
    evaluating(repository, best, r=RETRIEVAL, z=ZERO_SHOT)
  assert f"config.checkpoint.best={best!r}" in str(error.value)


def test_it_is_refused_before_a_workdir_is_made(repository, tmp_path):
  config = smoke(
    repository, "iid", evals={"r": RETRIEVAL}, checkpoint__best="eval/r/no"
  )
  with pytest.raises(ConfigError, match="best='eval/r/no' is none of"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_metrics_are_those_that_evaluators_yield(repository):
  config = smoke(repository, "iid", evals={"r": RETRIEVAL, "z": ZERO_SHOT})
  run = build(config)
  evaluators = {evaluator.name: evaluator for evaluator in run.evaluators()}
  scores = make_evaluate(run)(run.init_state(), 0)
  for name, evaluator in evaluators.items():
    prefix = f"eval/{name}/"
    found = {k.removeprefix(prefix) for k in scores if k.startswith(prefix)}
    assert found - {"masked"} == set(sanity.metrics_of(evaluator)), name


@pytest.mark.parametrize("ks", [(1,), (2, 7)])
def test_ranks_of_the_config_are_metrics(repository, ks):
  evals = {"r": {**RETRIEVAL, "ks": ks}}
  evaluating(repository, f"eval/r/mean/R@{ks[-1]}", **evals)


def test_the_best_of_what_is_off_is_told(repository, caplog):
  off = {**RETRIEVAL, "source": ""}
  evaluating(repository, "eval/r/mean/R@1", r=off, z=ZERO_SHOT)
  assert "no best checkpoint is kept" in caplog.text


def test_an_evaluator_without_records_is_refused(repository, tmp_path):
  (tmp_path / "empty.jsonl").write_text("")
  evals = {"r": {**RETRIEVAL, "source": f"jsonl:{tmp_path}/empty.jsonl"}}
  with pytest.raises(ValueError, match="empty.jsonl"):
    evaluating(repository, "", **evals)


def test_captions_that_cannot_be_told_apart_are_refused(repository):
  with pytest.raises(ConfigError, match=r"input\.text_length=2 .* captions"):
    build(smoke(repository, "iid", input__text_length=2))
  config = smoke(repository, "acid")
  config["frozen"]["reference"]["text_length"] = 2
  with pytest.raises(ConfigError, match=r"frozen\.reference\.text_length=2 "):
    build(config)


@pytest.mark.parametrize(("length", "refused"), [(2, True), (32, False)])
def test_captions_are_judged_by_their_rows(length, refused):
  source = open_source("synthetic:train?size=100")
  tokenizer = load_tokenizer("bytes", length)
  if refused:
    with pytest.raises(ConfigError, match="could not tell them apart"):
      sanity.check_captions("input", source, tokenizer, "bytes")
  else:
    sanity.check_captions("input", source, tokenizer, "bytes")


def test_captions_that_begin_alike_are_told(caplog):
  """A length that holds a short caption is not refused: data may be so."""

  class Alike:
    def __len__(self):
      return 64

    def fields(self, index):
      return {"text": f"a photograph of the thing of kind {index}"}

  sanity.check_captions("input", Alike(), load_tokenizer("bytes", 16), "bytes")
  assert "makes 1 different rows of tokens of 64" in caplog.text


def test_rules_that_name_no_parameter_are_told(caplog):
  config = config_lib.default()
  config.optimizer.learning_rate_rules = (("image/.*", 0.0), ("txt/.*", 0.5))
  names = ["img/embedding/kernel", "txt/Embed_0/embedding", "t"]
  sanity.warn_of_rules(config, names)
  (told,) = [record.getMessage() for record in caplog.records]
  assert "learning_rate_rules" in told and "'image/.*'" in told
  assert "img/embedding/kernel" in told


def test_a_run_that_is_over_before_it_logs_is_told(caplog):
  config = config_lib.default()
  sanity.warn_of_intervals(config, {"log": 10}, 3)
  assert not caplog.records  # Nobody asked for it.
  config.log.every_steps = 10
  sanity.warn_of_intervals(config, {"log": 10}, 3)
  assert "is 10 steps, and the run has 3" in caplog.text


def test_cider_has_one_scale():
  scores = {"eval/c/cider_d": 0.0334, "eval/r/mean/R@1": np.float64(0.5)}
  assert summary(7, scores) == "step 7: c/cider_d 0.033, r/mean/R@1 50.0%"
