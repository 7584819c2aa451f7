"""Evaluators on a tiny source whose right answers are known."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data import pipeline, records, transforms
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
    # Blue is found once of twice, and green once too often.
    "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3),
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


def grouped(groups, shown, bad=(), key="group"):
  """Squares that are red by their labels, and shown in red ("r") or blue."""
  source = make(("red",) * len(groups), bad)
  for k, (record, group) in enumerate(zip(source, groups, strict=True)):
    record[key] = group
    if k not in bad:
      record["image"] = picture({"r": "red", "b": "blue"}[shown[k]])
  return source


def worst(source, **options):
  options = {"group_field": "group", "class_names": ["blue", "red"]} | options
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, batch_size=3, **options)
  metrics = evaluator.run(embed_image, embed_text)
  return metrics.get("worst_group_accuracy"), metrics["accuracy"]


@pytest.mark.parametrize("groups", ["xxyyzz", [0, 0, 10, 10, 2, 2]])
def test_worst_group(groups):
  got = worst(grouped(groups, "rrrbrr"))
  assert got == (0.5, pytest.approx(5 / 6))
  assert worst(grouped(groups, "bbbbbb")) == (0.0, 0.0)


def test_groups_are_those_of_the_pictures_that_could_be_read():
  # Without the first picture, each stands a row above where it stood.
  source = grouped("xyyyz", "rrrrb", bad=(0,))
  assert worst(source) == (0.0, 0.75)
  # Where all of a group is gone, it is not the worst.
  source = grouped("xxyyzz", "rrrbbb", bad=(4, 5))
  assert worst(source) == (0.5, 0.75)


@pytest.mark.parametrize("left_out", [5, "5"])
@pytest.mark.parametrize("number", [int, str])
def test_groups_left_out_are_pictures_all_the_same(left_out, number):
  source = grouped([number(k) for k in (3, 3, 5, 5, 4)], "rbbbr")
  assert worst(source) == (0.0, 0.4)
  assert worst(source, groups_left_out=[left_out]) == (0.5, 0.4)


def test_without_a_picture_of_a_group_there_is_no_worst():
  source = grouped("xyyy", "rrrr", bad=(0,))
  assert worst(source, groups_left_out=["y"]) == (None, 1.0)
  with pytest.raises(ValueError, match=r"'group' has none but the .*'x', 'y'"):
    worst(source, groups_left_out=["x", "y"])


def test_worst_of_the_first_five():
  # With seven classes, of which none but three look like anything.
  names = ["p", "q", "blue", "s", "t", "green", "red"]
  source = grouped("xxyy", "rbrr")
  evaluator = ZeroShot(
    source, tokenizer, TRANSFORM, class_names=names, group_field="group"
  )
  metrics = evaluator.run(embed_image, embed_text)
  # Where it is blue, all that are equally far and stand before are nearer.
  assert metrics["worst_group_accuracy"] == 0.5
  assert metrics["worst_group_top5"] == 0.5 < metrics["accuracy_top5"] == 0.75
  few = ZeroShot(source, tokenizer, TRANSFORM, group_field="group")
  assert "worst_group_top5" not in few.run(embed_image, embed_text)


def test_a_dotted_field_is_an_item_of_a_list():
  groups = [[7, "x"], [7, "x"], [7, "y"], [8, "y"]]
  source = grouped(groups, "rbrb", key="meta")
  assert worst(source, group_field="meta.1") == (0.5, 0.5)
  assert worst(source, group_field="meta.0") == (0.0, 0.5)
  # A field of that name goes first.
  for record in source:
    record["meta.0"] = "one"
  assert worst(source, group_field="meta.0") == (0.5, 0.5)
  for field in ("meta", "meta.", "meta.2", "meta.-1", "meta.x", "label.0"):
    message = f"needs a '{field}' in every record, and record 0"
    with pytest.raises(ValueError, match=message):
      worst(source, group_field=field)


@pytest.mark.parametrize(
  "numbers", [(2, 0, 1, 0, 2), ("2", " 0\n", "1", "0", 2)]
)
def test_labels_may_be_numbers_in_the_place_of_names(numbers):
  source = make()
  for record, number in zip(source, numbers, strict=True):
    record["label"] = number
  options = {
    "class_names": ["blue", "green", "red"],
    "label_names": ["0", "1", "2"],
  }
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, **options)
  np.testing.assert_array_equal(evaluator.labels, [2, 0, 1, 0, 2])
  assert evaluator.run(embed_image, embed_text)["accuracy"] == 1.0
  source[4]["label"] = 3
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, **options)
  with pytest.raises(ValueError, match="class '3', .* in label_names, 3 of"):
    evaluator.check()


def test_records_may_call_classes_otherwise_than_prompts_do():
  source = make(("red", "blue"))
  for record, label in zip(source, ("blue", "n01"), strict=True):
    record["label"] = label
  options = {"class_names": ["blue", "red"], "label_names": ["n01", "blue"]}
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, **options)
  np.testing.assert_array_equal(evaluator.labels, [1, 0])
  assert evaluator.class_names == ("blue", "red")
  assert evaluator.run(embed_image, embed_text)["accuracy"] == 1.0


def told(evaluator, caplog):
  """What the first run of an evaluator warns of; a second one says no more."""
  for _ in range(2):
    evaluator.run(embed_image, embed_text)
  return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_labels_that_are_numbers_are_warned_of_once(caplog):
  source = make(("blue", "green", "red"))
  for k, record in enumerate(source):
    record["label"] = k
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, name="mine")
  (warning,) = told(evaluator, caplog)
  assert warning.startswith("mine: the labels are numbers without names")
  assert evaluator.unnamed and evaluator.class_names == ("0", "1", "2")
  named = ZeroShot(source, tokenizer, TRANSFORM, class_names=list(COLOURS))
  assert not named.unnamed
  assert named.run(embed_image, embed_text)["accuracy"] == 1.0


def test_captions_that_are_missing_are_counted_and_named(caplog):
  source = make(("red", "blue", "green", "blue"))
  source[1]["text"], source[3]["text"] = None, ["", " "]
  (missing, copies) = told(Retrieval(source, tokenizer, TRANSFORM), caplog)
  assert "2 of 4 pictures have no caption, first record 1 of" in missing
  assert "1 of 4 pictures are embedded as an earlier one is" in copies
  assert "record 3 of Source(tiny)" in copies


def test_captions_of_several_lines_are_counted_and_named(caplog):
  source = make(("red", "blue", "green"))
  source[1]["text"] = "a blue square\nall blue\n"
  source[2]["text"] = ["all green\n", "a green\r\nsquare"]
  evaluator = Retrieval(source, tokenizer, TRANSFORM)
  (warning,) = told(evaluator, caplog)
  assert "captions of 2 records have several lines, first record 1" in warning
  assert "lines=1" in warning
  # Each is the one caption that its source says it is.
  assert len(evaluator.captions[0]) == 2 + 1 + 2


def test_copies_are_not_told_of_where_a_field_knows_them(caplog):
  assert not told(
    Retrieval(make(), tokenizer, TRANSFORM, group_field="hash"), caplog
  )
  (warning,) = told(Retrieval(make(), tokenizer, TRANSFORM), caplog)
  assert "2 of 5 pictures" in warning and "group_field" in warning


def test_templates_may_be_those_of_published_lists():
  for template in ("a {} square", "a {c} square"):
    evaluator = ZeroShot(make(), tokenizer, TRANSFORM, templates=[template])
    assert evaluator.run(embed_image, embed_text)["accuracy"] == 1.0
  with pytest.raises(ValueError, match="has no '{}' for the name"):
    ZeroShot(make(), tokenizer, TRANSFORM, templates=["a {label}"])


def test_a_name_twice_is_two_classes_that_labels_must_tell_apart():
  names = ["red", "blue", "red"]
  source = make(("red", "red"))
  with pytest.raises(ValueError, match="'red' is the name of more than one"):
    ZeroShot(source, tokenizer, TRANSFORM, class_names=names)
  for record, label in zip(source, (0, 2), strict=True):
    record["label"] = label
  options = {"class_names": names, "label_names": ["0", "1", "2"]}
  evaluator = ZeroShot(source, tokenizer, TRANSFORM, **options)
  # Of equal classes the first is nearest.
  assert evaluator.run(embed_image, embed_text)["accuracy"] == 0.5


@pytest.mark.parametrize(
  ("kind", "change", "options"),
  [
    (ZeroShot, {"label": None}, {}),
    (ZeroShot, {"label": "pink"}, {"class_names": list(COLOURS)}),
    (ZeroShot, {"hash": None}, {"group_field": "hash"}),
    (ZeroShot, {"hash": 0.5}, {"group_field": "hash"}),
    (ZeroShot, {}, {"group_field": "hash", "groups_left_out": list(COLOURS)}),
    (Retrieval, {"hash": None}, {"group_field": "hash"}),
  ],
)
def test_what_is_wrong_is_told_before_pictures_are_embedded(
  kind, change, options
):
  def embed(rows):
    pytest.fail("something was embedded")

  source = make()
  source[4] |= change
  evaluator = kind(source, tokenizer, TRANSFORM, **options)
  for run in (evaluator.check, lambda: evaluator.run(embed, embed)):
    with pytest.raises(ValueError, match=r"Source\(tiny\)"):
      run()


@pytest.mark.parametrize("kind", [ZeroShot, Retrieval])
def test_a_run_is_the_measure_of_its_images(kind):
  source = make(bad=(1,))
  evaluator = kind(source, tokenizer, TRANSFORM, batch_size=2)
  evaluator.check()
  images = evaluator.images(embed_image)
  np.testing.assert_array_equal(images.index, [0, 2, 3, 4])
  outcome = evaluator.measure(images, embed_text)
  assert outcome.clusters == 4
  want = evaluator.run(embed_image, embed_text)
  assert outcome.metrics() | {"masked": 1.0} == want
  if kind is ZeroShot:
    np.testing.assert_array_equal(outcome.arrays()["index"], [0, 2, 3, 4])


def test_captions_hang_on_the_pictures_that_could_be_read():
  # Rows are counted without the picture that could not, and without its texts.
  source = make(("red", "blue", "green"), bad=(0,))
  source[1]["text"] = ["a blue square", "all blue", "only blue"]
  evaluator = Retrieval(source, tokenizer, TRANSFORM, batch_size=2)
  found = evaluator.measure(evaluator.images(embed_image), embed_text)
  np.testing.assert_array_equal(found.text_index, [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(found.image_index, [0, 1])
  assert found.clusters == 2
  # Both pictures are green now: the first is found, with its three captions.
  source[1]["image"] = source[2]["image"]
  found = evaluator.measure(evaluator.images(embed_image), embed_text)
  for weights, want in (((1, 1), 0.6), ((2, 0), 1.0), ((0, 2), 0.0)):
    got = found.metrics(np.array(weights))["text_to_image/R@1"]
    assert got == pytest.approx(want)


def test_readers_end_where_a_model_fails(monkeypatch):
  closed, close = [], pipeline.Batches.close

  def noted(self):
    closed.append(self)
    close(self)

  def fails(rows):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(pipeline.Batches, "close", noted)
  with pytest.raises(RuntimeError, match="out of memory") as caught:
    ZeroShot(make(), tokenizer, TRANSFORM).run(fails, embed_text)
  # And not when the traceback, which holds them, is let go.
  assert closed and caught.traceback


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
    ({"batch_size": "256"}, r"x\.batch_size='256' is of"),
    ({"class_names": "cat"}, r"x\.class_names='cat' is of"),
    ({"class_names": ["cat", "cat"]}, r"x: 'cat' is the name of more than"),
    ({"label_names": ["0", "1"]}, r"x: 2 label_names and 0 class_names"),
    ({"group_field": "h"}, r"x: ZeroShot needs a 'h' in every record"),
    ({"group_field": "hash.0"}, r"x: ZeroShot needs a 'hash\.0' in every"),
    ({"groups_out": []}, r"x\.groups_out is not.*mean 'groups_left_out'"),
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
