"""Evaluators on a tiny source whose right answers are known."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data import records, transforms
from aced.evaluation import Evaluator, Retrieval, ZeroShot, build, run_all

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


class Source(list, records.Source):
  """Records in memory."""

  def __repr__(self):
    return "Source(tiny)"


def tokenizer(texts):
  """Which colour a text names: 1 to 3, or 0."""
  named = [[k for k, c in enumerate(COLOURS, 1) if c in t] for t in texts]
  return np.array([[k[0] if k else 0] for k in named], np.int32)


def embed_image(image):
  mean = np.asarray(image, np.float32).mean(axis=(1, 2))[:, ::-1]
  return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)


def embed_text(labels):
  return np.eye(4, dtype=np.float32)[np.asarray(labels)[:, 0]][:, 1:]


def picture(colour):
  file = io.BytesIO()
  Image.new("RGB", (8, 8), COLOURS[colour]).save(file, "PNG")
  return file.getvalue()


def make(colours=("red", "blue", "green", "blue", "red"), bad=()):
  return Source(
    {
      "image": b"not a picture" if k in bad else picture(colour),
      "text": [f"a {colour} square", f"all {colour}"],
      "label": colour,
      "hash": colour,
    }
    for k, colour in enumerate(colours)
  )


TRANSFORM = transforms.Transform(image_size=8)


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_zero_shot(batch_size):
  source = make()
  # One picture shows another class than its label says.
  source[1]["image"] = picture("green")
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, batch_size=batch_size)
  assert evaluator.class_names == ("blue", "green", "red")
  assert evaluator.run(embed_image, embed_text) == {
    "accuracy": 0.8,
    "mean_per_class": pytest.approx((0.5 + 1 + 1) / 3),
    "masked": 0.0,
  }


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_retrieval_with_equal_pictures(batch_size):
  options = {"ks": (1, 2), "batch_size": batch_size}
  alone = Retrieval(make(), tokenizer, TRANSFORM, **options)
  # Of the two red and the two blue pictures, the first wins the tie.
  metrics = alone.run(embed_image, embed_text)
  assert metrics["text_to_image/R@1"] == pytest.approx(3 / 5)
  assert metrics["text_to_image/R@2"] == 1.0
  grouped = Retrieval(
    make(), tokenizer, TRANSFORM, group_field="hash", **options
  )
  assert grouped.run(embed_image, embed_text)["mean/R@1"] == 1.0


@pytest.mark.parametrize("kind", [ZeroShot, Retrieval])
def test_unreadable_records_are_left_out_and_counted(kind):
  with_bad = make(("red", "blue", "green", "blue", "red"), bad=(0, 3))
  without = make(("blue", "green", "red"))
  got, want = (
    kind(source, tokenizer, TRANSFORM, batch_size=4).run(
      embed_image, embed_text
    )
    for source in (with_bad, without)
  )
  assert got.pop("masked") == 2.0
  assert want.pop("masked") == 0.0
  assert got == want


@pytest.mark.parametrize("kind", [ZeroShot, Retrieval])
@pytest.mark.parametrize("source", [make(("red",) * 3, bad=range(3)), make(())])
def test_nothing_to_evaluate_names_the_source(kind, source):
  evaluator = kind(source, tokenizer, TRANSFORM)
  with pytest.raises(
    ValueError, match=r"nothing to evaluate in Source\(tiny\)"
  ):
    evaluator.run(embed_image, embed_text)


def test_labels_must_be_there_and_known():
  source = make()
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, class_names=["blu", "red"])
  with pytest.raises(ValueError, match="'(blue|green)', which is not in"):
    evaluator.run(embed_image, embed_text)
  with pytest.raises(ValueError, match=r"record 0 of Source\(tiny\) has None"):
    ZeroShot(source, tokenizer, TRANSFORM, label_field="name")
  del source[2]["label"]
  evaluator = ZeroShot(source, tokenizer, TRANSFORM)
  with pytest.raises(ValueError, match=r"record 2 of Source\(tiny\) has None"):
    evaluator.run(embed_image, embed_text)


@pytest.fixture
def jsonl(tmp_path):
  for k, record in enumerate(make()):
    (tmp_path / f"{k}.png").write_bytes(record["image"])
  lines = [
    json.dumps(record | {"image": f"{k}.png"})
    for k, record in enumerate(make())
  ]
  path = tmp_path / "test.jsonl"
  path.write_text("\n".join(lines) + "\n")
  return f"jsonl:{path}"


def test_build_and_run_all(jsonl):
  tables = {
    "classes": {
      "type": "zero_shot",
      "source": jsonl,
      "templates": ["one {}"],
      "batch_size": 3,
    },
    "pairs": {"type": "retrieval", "source": jsonl, "group_field": "hash"},
  }
  built = [build(k, v, tokenizer, TRANSFORM) for k, v in tables.items()]
  assert all(isinstance(evaluator, Evaluator) for evaluator in built)
  assert [evaluator.name for evaluator in built] == ["classes", "pairs"]
  metrics = run_all(built, embed_image, embed_text)
  assert metrics["classes/accuracy"] == metrics["pairs/mean/R@1"] == 1.0
  assert metrics["pairs/masked"] == 0.0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"type": "zeroshot"}, r"x\.type='zeroshot'.*mean 'zero_shot'"),
    ({"type": None}, r"x\.type=None"),
    ({"templats": []}, r"x\.templats is not.*mean 'templates'"),
    ({"name": "y"}, r"x\.name is not a known key"),
    ({"templates": ["a photo"]}, r"x: template 'a photo' has no"),
    ({"batch_size": "256"}, r"x: batch_size='256'"),
    ({"class_names": "cat"}, r"x: class_names='cat'"),
    ({"label_field": "nam"}, r"x: ZeroShot needs a 'nam' in every record"),
    ({"type": "retrieval", "ks": (0,)}, r"x: ks=\(0,\)"),
    ({"type": "retrieval", "group_field": "h"}, r"x: Retrieval needs a 'h'"),
  ],
)
def test_build_refuses(jsonl, change, message):
  config = {"type": "zero_shot", "source": jsonl} | change
  with pytest.raises(ConfigError, match=message):
    build("x", config, tokenizer, TRANSFORM)


def test_build_needs_a_source():
  with pytest.raises(ConfigError, match=r"x\.source is missing"):
    build("x", {"type": "retrieval"}, tokenizer, TRANSFORM)


@pytest.mark.parametrize(
  ("kind", "source", "options"),
  [
    ("zero_shot", "signdigits/test.jsonl?label=name", {}),
    ("retrieval", "coco_cc/test.jsonl", {}),
    ("retrieval", "emoji/test_concept.jsonl", {"group_field": "pixel_hash"}),
  ],
)
def test_real_sets(shared_data, kind, source, options):
  config = {"type": kind, "source": f"jsonl:{shared_data}/{source}", **options}
  evaluator = build(kind, config, tokenizer, TRANSFORM)
  metrics = evaluator.run(embed_image, embed_text)
  assert metrics["masked"] == 0.0
  assert all(0.0 <= metrics[name] <= 1.0 for name in metrics)
