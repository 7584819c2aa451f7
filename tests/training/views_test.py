"""Models that see other pictures and tokens than the student."""

import functools

import jax
import numpy as np
import pytest

from aced import config as config_lib
from aced import models
from aced.data.cache import EmbeddingCache
from aced.data.tokenizers import load_tokenizer, train_sentencepiece
from aced.training import blueprint, views
from aced.training.build import build
from aced.training.embedding import embed
from tests.cache_test import make, with_cache
from tests.train_test import smoke


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  path = tmp_path_factory.mktemp("pieces") / "x.model"
  texts = [f"a {c} square and {n} circles" for c in "rgb" for n in range(9)]
  train_sentencepiece(texts, path, 40)
  return f"sentencepiece:{path}"


def seeing(repository, pieces, name="aced", variant="", **keys):
  config = smoke(repository, name, variant, **keys)
  config["frozen"]["reference"] |= {
    "image_size": 48,
    "tokenizer": pieces,
    "text_length": 12,
  }
  return config


def test_columns_are_shared_where_they_agree(repository):
  config = smoke(repository)
  table = config["frozen"]["reference"]
  config["frozen"] |= {
    "same": table,
    "large": table | {"image_size": 48},
    "bytes": table | {"tokenizer": "bytes", "text_length": 9},
    "both": table | {"image_size": 48, "text_length": 9},
  }
  names = "same", "large", "bytes", "both"
  config["distillation"] |= {
    "weight": 1.0,
    "teachers": dict.fromkeys(names, 1.0),
  }
  found = views.from_config(config_lib.resolve(config))
  size, length = config["input"]["image_size"], config["input"]["text_length"]
  assert found == {
    "": ("image", "labels", size, "bytes", length),
    "reference": ("image", "labels", size, "bytes", length),
    "same": ("image", "labels", size, "bytes", length),
    "large": ("image@48", "labels", 48, "bytes", length),
    "bytes": ("image", "labels@both", size, "bytes", 9),
    "both": ("image@48", "labels@both", 48, "bytes", 9),
  }
  assert set(found.extra(["same"])) == set()
  assert set(found.extra(["large", "both"])) == {"image@48", "labels@both"}


def test_each_model_sees_its_own(repository, pieces):
  run = build(seeing(repository, pieces, input__crop_scale=(0.5, 1.0)))
  with run.batches(0) as batches:
    batch, info = next(batches)
  assert batch["image@48"].shape[1:] == (48, 48, 3)
  assert batch["labels@reference"].shape[1:] == (12,)
  assert batch["image"].shape[1:] == (32, 32, 3)
  row = 5
  record = run.input.source[int(info["index"][row])]
  tokens = load_tokenizer(pieces, 12)([record["text"]])[0]
  np.testing.assert_array_equal(batch["labels@reference"][row], tokens)
  rng = np.random.default_rng((0, row))
  large = run.input.transform.views(record, (32, 48), rng)[1]
  np.testing.assert_array_equal(batch["image@48"][row], large)


@pytest.mark.parametrize(
  ("name", "variant"),
  [
    ("aced", ""),
    pytest.param("kd", "softmax", marks=pytest.mark.slow),
  ],
)
def test_a_step_is_that_of_the_embeddings(repository, pieces, name, variant):
  """The same as one that is handed the embeddings of the frozen model."""
  run = build(seeing(repository, pieces, name, variant))
  with run.batches(0) as batches:
    batch, _ = next(batches)
  state = run.init_state()
  step = run.train_step(jax.tree.map(lambda x: x.sharding, state))
  model, view = run.frozen_models["reference"], run.views["reference"]
  assert view.image == "image@48"

  @jax.jit
  def reference(params, batch):
    return embed(model, params, view.of(batch))

  known = reference(run.frozen["reference"], batch)
  handed = views.without_extra(batch) | {"cached": {"reference": known}}
  _, got = step(jax.tree.map(lambda x: x.copy(), state), run.frozen, batch)
  _, want = step(state, run.frozen, handed)
  # Compiled apart: sums of float32 in another order.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5),
    got,
    want,
  )


def test_costs_are_those_of_what_it_sees(repository, pieces):
  run = build(seeing(repository, pieces, "acid"))
  table = blueprint.model_config(run.config.frozen.reference, 40)
  macs = models.count(table, 48, 12).macs
  scored = run.recipe.super_batch
  assert run.costs.parts["reference scoring"] == 2 * macs * scored
  assert "frozen.reference.tokenizer" in run.identities


def test_a_cache_is_of_what_its_model_sees(repository, pieces, tmp_path):
  config = seeing(repository, pieces, "acid")
  make(config, tmp_path)
  run = build(with_cache(config, tmp_path))
  with run.batches(0) as batches:
    batch, info = next(batches)
  assert not any(views.is_extra(column) for column in batch)
  record = run.input.source[int(info["index"][0])]
  loose = build(seeing(repository, pieces, "acid"))
  seen = loose.input.seen(loose.views["reference"])
  pair = {
    "image": seen.transform(record)[None],
    "labels": seen.tokenizer([record["text"]]),
  }
  want = embed(
    loose.frozen_models["reference"], loose.frozen["reference"], pair
  )
  # bfloat16 keeps eight bits.
  got = np.asarray(batch["cached"]["reference"].zimg[0], np.float32)
  np.testing.assert_allclose(got, want.zimg[0], rtol=2**-8, atol=1e-6)
  assert EmbeddingCache(tmp_path).contents.identities["input.transform"] == (
    repr(seen.transform)
  )
  other = smoke(repository)
  with pytest.raises(ValueError, match=r"(?s)input.tokenizer.*input.transform"):
    build(with_cache(other, tmp_path))
