"""Evaluators of a decoder, by a function that knows what it is to write."""

import io

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data import records, transforms
from aced.data.prompts import CAPTION, PromptTokenizer
from aced.data.tokenizers import load
from aced.evaluation import captioning, generation, run_all
from aced.evaluation.evaluators import build as build_contrastive

LENGTH = 40
TOKENIZER = PromptTokenizer(load("bytes", LENGTH))
TRANSFORM = transforms.Transform(image_size=8)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Source(list, records.Source):
  """Records in memory."""

  def __repr__(self):
    return "Source(tiny)"


def picture(colour):
  file = io.BytesIO()
  Image.new("RGB", (8, 8), COLOURS[colour]).save(file, "PNG")
  return file.getvalue()


def record(colour, *questions, text=None):
  return {
    "image": picture(colour),
    "text": text or [f"a {colour} square on its own", f"all of it is {colour}"],
    "questions": [{"question": q, "answers": list(a)} for q, *a in questions],
  }


def make(bad=()):
  """Pictures with two, none, one and three questions."""
  found = Source(
    [
      record("red", ("what color?", "red"), ("is it blue?", "no")),
      record("green"),
      record("blue", ("what color?", "Blue.", "the blue", "azure")),
      record("red", ("what color?", "red"), ("how many?", "1"), ("a?", "b")),
    ]
  )
  for k in bad:
    found[k]["image"] = b"not a picture"
  return found


def writer(answer):
  """A `generate` that writes what `answer(colour, prompt)` says."""
  seen = []

  def generate(rows):
    assert set(rows) == {"image", "labels"}
    image, labels = rows["image"], rows["labels"]
    assert image.shape == (len(labels), 8, 8, 3) and image.dtype == np.uint8
    seen.append(len(labels))
    ids = np.full((len(labels), LENGTH), TOKENIZER.pad, np.int32)
    for row, pixels, given in zip(ids, image, labels, strict=True):
      given = given.tolist()
      end = given.index(TOKENIZER.separator) + 1
      prompt = TOKENIZER.inner.decode(given[1 : end - 1])
      text = answer(list(COLOURS)[pixels[0, 0].argmax()], prompt)
      new = [*text.encode()]
      row[:end] = given[:end]
      row[end : end + len(new)] = np.array(new, np.int32) + 2
    return ids

  generate.seen = seen
  return generate


RIGHT = {
  ("red", "what color?"): "red",
  ("red", "is it blue?"): "no",
  ("blue", "what color?"): "blue",
  ("red", "how many?"): "one",
  ("red", "a?"): "b",
}


def right(colour, prompt):
  return RIGHT.get((colour, prompt), "?")


@pytest.mark.parametrize("batch_size", [1, 4, 6, 64])
def test_questions_and_answers(batch_size):
  evaluator = generation.VQA(
    make(), TOKENIZER, TRANSFORM, batch_size=batch_size
  )
  generate = writer(right)
  # Of three people two said "blue", once normalised: of each two of the three,
  # one or two agree with it.
  accuracy = (5 + np.mean([1 / 3, 1 / 3, 2 / 3])) / 6
  assert evaluator.run(generate) == {
    "accuracy": pytest.approx(accuracy),
    "exact_match": 1.0,
    "masked": 0.0,
  }
  size = min(batch_size, 6)
  assert generate.seen == [size] * -(-6 // size)
  # Half of the questions, and those that are answered with the question.
  for answer, want in (
    (lambda colour, prompt: "red", 2 / 6),
    (lambda colour, prompt: "", 0.0),
    (lambda colour, prompt: prompt, 0.0),
    (lambda colour, prompt: right(colour, prompt) + " it is", 0.0),
  ):
    metrics = evaluator.run(writer(answer))
    assert metrics["exact_match"] == pytest.approx(want)
    assert metrics["accuracy"] <= want


def test_what_was_written_stands_in_the_order_of_the_questions():
  evaluator = generation.VQA(make(bad=(2,)), TOKENIZER, TRANSFORM, batch_size=4)
  texts, index = evaluator.write(writer(lambda colour, prompt: prompt[::-1]))
  asked = [evaluator.source.fields(k)["text"][:-1] for k in range(6)]
  assert index.tolist() == [0, 1, 3, 4, 5]
  assert texts == [asked[k][::-1] for k in index]


def test_ids_may_be_arrays_of_another_kind_and_end_anywhere():
  evaluator = generation.VQA(make(), TOKENIZER, TRANSFORM)

  def generate(rows):
    ids = writer(right)(rows)
    ids[ids == TOKENIZER.pad] = 77  # Garbage behind the end.
    for row, whole in zip(ids, writer(right)(rows), strict=True):
      row[whole.tolist().index(TOKENIZER.eos)] = TOKENIZER.eos
    return ids.astype(np.int64)

  assert evaluator.run(generate)["exact_match"] == 1.0


@pytest.mark.parametrize("kind", [generation.VQA, generation.Captioning])
def test_pictures_that_cannot_be_read_are_left_out_and_counted(kind):
  def answer(colour, prompt):
    return right(colour, prompt) if prompt != CAPTION else f"{colour} square"

  got = kind(make(bad=(0,)), TOKENIZER, TRANSFORM, batch_size=4)
  want = kind(Source(make()[1:]), TOKENIZER, TRANSFORM)
  found, expected = got.run(writer(answer)), want.run(writer(answer))
  # A picture counts once for each of its questions.
  assert found.pop("masked") == (2.0 if kind is generation.VQA else 1.0)
  assert expected.pop("masked") == 0.0
  assert found == expected and found


@pytest.mark.parametrize("kind", [generation.VQA, generation.Captioning])
def test_nothing_to_evaluate_names_the_source(kind):
  evaluator = kind(make(bad=range(4)), TOKENIZER, TRANSFORM)
  with pytest.raises(ValueError, match=r"nothing to evaluate.*Source\(tiny\)"):
    evaluator.run(writer(right))
  with pytest.raises(ConfigError, match=r"none of the 0 records"):
    kind(Source(), TOKENIZER, TRANSFORM)


def test_captions():
  source = make()
  evaluator = generation.Captioning(source, TOKENIZER, TRANSFORM, batch_size=3)
  metrics = evaluator.run(writer(lambda c, prompt: f"a {c} square on its own"))
  references = [r["text"] for r in source]
  words = [f"a {c} square on its own" for c in ("red", "green", "blue", "red")]
  assert metrics == {
    **captioning.caption_metrics(words, references),
    "masked": 0.0,
  }
  # Each is a reference, word by word.
  assert metrics["bleu_4"] == pytest.approx(1.0)
  worse = evaluator.run(writer(lambda c, prompt: "a red square on its own"))
  assert worse["cider_d"] < metrics["cider_d"] and worse["bleu_4"] < 1
  none = evaluator.run(writer(lambda c, prompt: ""))
  assert none["cider_d"] == 0.0


def test_captions_longer_than_a_row_are_still_the_references():
  long = " ".join(["very"] * 30) + " red"
  source = Source([record("red", text=long), record("blue", text="a b c d")])
  evaluator = generation.Captioning(source, TOKENIZER, TRANSFORM)
  assert evaluator.source.fields(0)["references"] == [long]
  assert evaluator.run(writer(lambda *_: "very red"))["bleu_4"] < 0.1


@pytest.mark.parametrize(("limit", "count"), [(1, 2), (2, 2), (3, 3), (0, 6)])
def test_limit_counts_records(limit, count):
  evaluator = generation.VQA(make(), TOKENIZER, TRANSFORM, limit=limit)
  assert len(evaluator.source) == count
  assert evaluator.run(writer(right))["exact_match"] == 1.0


SOURCE = "synthetic:val?size=8&asked=2&image_size=16"


def test_built_from_tables_and_run_with_others():
  tables = {
    "captions": {"type": "captioning", "source": SOURCE, "batch_size": 4},
    "few": {"type": "vqa", "source": SOURCE, "limit": 3},
  }
  built = [
    generation.build(name, table, TOKENIZER, TRANSFORM)
    for name, table in tables.items()
  ]
  assert [e.name for e in built] == ["captions", "few"]
  assert "vqa of synthetic:val" in repr(built[1]) and "VQA" in repr(built[1])
  assert len(built[0].source) == 8 and len(built[1].source) == 6
  scores = run_all(built, writer(lambda colour, prompt: "red"))
  assert {name.split("/")[0] for name in scores} == set(tables)
  assert scores["few/masked"] == 0.0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"type": "zero_shot"}, r"x\.type='zero_shot'.*one of captioning, vqa"),
    ({"type": "retrieval"}, r"x\.type='retrieval'.*one of captioning, vqa"),
    ({"type": "vqq"}, r"x\.type='vqq'.*mean 'vqa'"),
    ({"type": None}, r"x\.type=None"),
    ({"limt": 3}, r"x\.limt is not.*mean 'limit'"),
    ({"name": "y"}, r"x\.name is not a known key"),
    ({"batch_size": 0}, r"x: batch_size=0"),
    ({"batch_size": "4"}, r"x\.batch_size='4' is of type str"),
    ({"limit": -1}, r"x: limit=-1"),
    ({"source": "synthetic:val?size=8"}, r"x: none of the 8 .* a question"),
    ({"source": "synthetic:vale"}, "Did you mean 'val'"),
  ],
)
def test_build_refuses(change, message):
  table = {"type": "vqa", "source": SOURCE} | change
  with pytest.raises(ConfigError, match=message):
    generation.build("x", table, TOKENIZER, TRANSFORM)


def test_build_needs_a_source_and_its_own_kind_of_run():
  with pytest.raises(ConfigError, match=r"x\.source is missing"):
    generation.build("x", {"type": "vqa"}, TOKENIZER, TRANSFORM)
  for kind in generation.GENERATORS:
    table = {"type": kind, "source": SOURCE}
    with pytest.raises(ConfigError, match=rf"x\.type='{kind}' is not known"):
      build_contrastive("x", table, TOKENIZER, TRANSFORM)
