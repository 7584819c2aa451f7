"""Evaluators of both projects on one train state: the same numbers."""

import warnings

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from aced import evaluation
from aced.bv.towers import Towers
from aced.data import load_tokenizer, open_source
from aced.data.transforms import Transform
from tests.bv.models_test import random_like

pytestmark = [
  pytest.mark.big_vision,
  # TFDS reads its folders by functions that importlib.resources has replaced.
  pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COUNT, LENGTH = 64, 56
SCENES = f"synthetic:val?size={COUNT}"
OURS = {"tokenizer": "bytes", "text_length": LENGTH, "image_size": 32}
PP_TEXT = f'aced_tokenize("bytes", {LENGTH}, inkey="texts", outkey="labels")'
THEIRS = {"pp_img": "value_range(-1, 1)", "pp_txt": PP_TEXT}


@pytest.fixture
def state(bv, fields):
  """`(predict, train_state)` of big_vision's model, as our trainer has them."""
  from big_vision.models.proj.image_text.two_towers import Model

  model = Towers(Model(**ConfigDict(fields)))
  image, text = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, LENGTH), int)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text)
  params = random_like(shapes["params"])

  def predict(train_state, batch):
    return model.apply(
      {"params": train_state["params"]},
      batch.get("image"),
      batch.get("labels"),
    )

  return predict, {"params": params, "opt": ()}


def run(bv, state, name, **table):
  """The metrics of an evaluator as big_vision's trainers build and run it."""
  predict, train_state = state
  config = ConfigDict({"evals": {name: {**table, "log_steps": 1}}})
  config.batch_size_eval = 16
  ((found, evaluator, steps, prefix),) = bv.evaluators.from_config(
    config,
    {"predict": predict},
    devices=np.array(jax.devices()),
    get_steps=lambda key, table: table["log_steps"],
  )
  assert (found, steps, prefix) == (name, 1, f"{name}/")
  return {k: float(v) for k, v in evaluator.run(train_state)}


def ours(state, kind, source, **fields):
  """The same by our own classes, without big_vision."""
  predict, train_state = state
  evaluator = evaluation.EVALUATORS[kind](
    open_source(source),
    load_tokenizer("bytes", LENGTH),
    Transform(32),
    **fields,
  )

  @jax.jit
  def image(rows):
    return predict(train_state, {"image": rows})[0]

  @jax.jit
  def text(rows):
    return predict(train_state, {"labels": rows})[1]

  return evaluator.run(image, text)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory, bv):
  """The scenes as a data set of TFDS, as its tools write one."""
  import tensorflow_datasets as tfds

  folder = tmp_path_factory.mktemp("tfds")
  source = open_source(SCENES)
  records = [source[k] for k in range(len(source))]
  names = sorted({record["background"] for record in records})

  class Scenes(tfds.core.GeneratorBasedBuilder):
    """Drawn scenes with a class and a caption."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "captions": {"text": tfds.features.Sequence(tfds.features.Text())},
            "label": tfds.features.ClassLabel(names=names),
          }
        )
      )

    def _split_generators(self, dl_manager):
      return {"val": self._generate_examples()}

    def _generate_examples(self):
      for k, record in enumerate(records):
        yield (
          k,
          {
            "image": record["image"],
            "captions": {"text": [record["text"]]},
            "label": record["background"],
          },
        )

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    Scenes(data_dir=folder).download_and_prepare()
  return folder, names


def test_ours_run_in_their_trainers(bv, state):
  found = run(bv, state, "scenes", type="aced.retrieval", source=SCENES, **OURS)
  assert found == ours(state, "retrieval", SCENES)
  templates = ["a {}", "{}"]
  found = run(
    bv,
    state,
    "classes",
    type="aced.zero_shot",
    source=SCENES,
    label_field="background",
    templates=templates,
    **OURS,
  )
  assert found == ours(
    state,
    "zero_shot",
    SCENES,
    templates=templates,
    label_field="background",
  )


def test_a_wrong_key_is_told_by_name(bv, state):
  with pytest.raises(ValueError, match="sorce"):
    run(bv, state, "scenes", type="aced.retrieval", sorce=SCENES, **OURS)


def test_their_retrieval_finds_what_ours_does(bv, state, tfds_folder):
  folder, _ = tfds_folder
  found = run(
    bv,
    state,
    "coco",
    type="proj.image_text.retrieval",
    dataset="scenes",
    data_dir=str(folder),
    split="val",
    txt_name=("captions", "text"),
    **THEIRS,
  )
  want = ours(state, "retrieval", SCENES)
  for k in (1, 5, 10):
    assert found[f"img2txt_recall@{k}"] == want[f"image_to_text/R@{k}"]
    assert found[f"txt2img_recall@{k}"] == want[f"text_to_image/R@{k}"]
  assert 0 < want["mean/R@10"] < 1


def test_their_classifier_finds_what_ours_does(bv, state, tfds_folder):
  folder, names = tfds_folder
  found = run(
    bv,
    state,
    "zero",
    type="proj.image_text.discriminative_classifier",
    dataset_names=["scenes"],
    dataset_overrides={},  # By default it has some for ImageNet.
    data_dir=str(folder),
    split="val",
    class_names=names,
    prompt_templates="class_name_only",
    **THEIRS,
  )
  want = ours(
    state,
    "zero_shot",
    SCENES,
    templates=["{}"],
    label_field="background",
    class_names=names,
  )
  assert 0 < want["accuracy"] < 1
  assert found == {"scenes_accuracy": pytest.approx(want["accuracy"])}
