"""What a run of a decoder refuses."""

import pytest

from aced.cache import write_cache
from aced.config import ConfigError
from aced.plan import make_plan
from aced.train import train
from tests.training.decoders import (
  DECODER,
  base,
  decoded,
)

VQA = {"type": "vqa", "source": "synthetic:val?size=8&image_size=16&asked=1"}
ZERO_SHOT = {"type": "zero_shot", "source": "synthetic:classes?size=8"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"student__init": ""}, r"config\.student\.init is empty"),
    ({"student__init": "/nowhere/at/all"}, "no weights at '/nowhere/at/all'"),
    (
      {
        "curation": {
          "method": "joint",
          "score": "hard",
          "filter_ratio": 0.5,
          "num_chunks": 2,
        }
      },
      r"config\.curation\.method='joint'",
    ),
    (
      {
        "curation__method": "independent",
        "curation__filter_ratio": 0.5,
        "curation__score": "hard",
      },
      r"config\.curation\.method='independent'",
    ),
    (
      {
        "frozen": {"one": {"init": "random"}},
        "distillation__weight": 1.0,
        "distillation__teachers": {"one": 1.0},
      },
      r"config\.distillation\.weight=1\.0",
    ),
    ({"frozen": {"one": {"init": "random"}}}, r"config.frozen names one"),
    (
      {"accumulation__microbatch": 8, "batch_size": 16},
      r"config\.accumulation\.microbatch=8",
    ),
    (
      {
        "decoder__tasks": ("caption", "vqa"),
        "input__source": "synthetic:train?size=64&image_size=16",
      },
      r"names vqa, and none of 64 records .*tasks=\"\('caption',\)",
    ),
    ({"decoder__tasks": ("caption", "vqaa")}, "must be some of caption, vqa"),
    (
      {
        "decoder__tasks": ("vqa",),
        "input__source": "synthetic:train?size=64&image_size=16",
      },
      r"config\.decoder\.tasks=\('vqa',\)",
    ),
    ({"decoder__model": {**DECODER, "widht": 3}}, "widht.*mean 'width'"),
    ({"decoder__model": {"width": 16}}, "decoder"),
    (
      {"decoder__model": {**DECODER, "vocab_size": 258}},
      r"config\.decoder\.model\.vocab_size=258 is less than the 261",
    ),
    (
      {"decoder__model": {**DECODER, "max_length": 47}},
      r"config\.decoder\.model\.max_length=47 is less than the 48",
    ),
    ({"input__text_length": 7}, "text_length=7 leaves no room"),
    ({"input__image_size": 20}, "does not divide into patches"),
    ({"batch_size": 12}, "batch_size=12 does not divide"),
    ({"batch_size": 128}, "larger than the data set"),
    ({"evals": {"x": ZERO_SHOT}}, r"config\.evals\.x\.type='zero_shot' is not"),
    (
      {"evals": {"x": {**ZERO_SHOT, "type": "retrieval"}}},
      r"config\.evals\.x\.type='retrieval' is not",
    ),
    ({"evals": {"x": {**VQA, "beams": 4}}}, r"config\.evals\.x\.beams"),
    (
      {"evals": {"x": VQA}, "checkpoint__best": "eval/y/exact_match"},
      r"checkpoint\.best='eval/y/exact_match'|names none of config\.evals",
    ),
  ],
)
def test_what_is_wrong_is_told_before_anything_is_made(
  encoder, tmp_path, changes, message
):
  config = decoded(encoder, **changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["captioning", "vqa"])
def test_a_contrastive_run_has_no_captions(tmp_path, kind):
  config = base(evals={"x": {**VQA, "type": kind}})
  with pytest.raises(ConfigError, match=rf"evals\.x\.type='{kind}' is not"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_plans_and_caches_are_of_students(encoder, tmp_path):
  config = decoded(encoder)
  with pytest.raises(ConfigError, match=r"config\.decoder trains a decoder"):
    make_plan(config, "local", suggest=False)
  with pytest.raises(ConfigError, match="reads no cached embeddings"):
    write_cache(config, "reference", tmp_path / "cache")
  assert not (tmp_path / "cache").exists()
