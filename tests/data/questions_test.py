"""Questions about scenes, each answered anew from what is in the scene."""

import collections
import json
import pickle
import re

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data import drawing, open_source, questions
from aced.data.faults import DUPLICATE, NONE
from aced.data.records import SourceError
from aced.data.synthetic import SPLITS, Scenes

COUNT = 2_000
WORDS = ["zero", "one", "two", "three"]


@pytest.fixture(scope="module")
def scenes():
  """2,000 scenes of each split, without pictures, asked all that can be."""
  return {
    split: [Scenes(COUNT, split=split, asked=5).fields(k) for k in range(COUNT)]
    for split in SPLITS
  }


def pairs(records):
  """`(record, question, answer)` of all records."""
  for record in records:
    for found in record["questions"]:
      assert found.keys() == {"question", "answers"}
      (answer,) = found["answers"]
      yield record, found["question"], answer


def named(thing):
  return f"{thing['colour']} {thing['shape']}"


def singular(word):
  return {"crosses": "cross"}.get(word, word.removesuffix("s"))


def how_many(record, word):
  return {WORDS[sum(o["shape"] == singular(word) for o in record["objects"])]}


def colour_of(record, shape):
  if shape == "background":
    return {record["background"]}
  return {o["colour"] for o in record["objects"] if o["shape"] == shape}


def shape_of(record, colour):
  return {o["shape"] for o in record["objects"] if o["colour"] == colour}


def beside(record, where, name):
  """What stands on a side of an object, by the places of both."""
  (it,) = (o for o in record["objects"] if named(o) == name)
  axis, sign = {
    "to the left of": ("x", -1),
    "to the right of": ("x", 1),
    "above": ("y", -1),
    "below": ("y", 1),
  }[where]
  # Objects of a relation are half a picture apart.
  return {
    named(o) for o in record["objects"] if sign * (o[axis] - it[axis]) > 0.25
  }


# Sort -> how it is asked, and what the answer is.
SORTS = {
  "count": (r"how many (\w+)\?", how_many),
  "background": (r"what color is the (background)\?", colour_of),
  "colour": (r"what color is the (?!background)(\w+)\?", colour_of),
  "shape": (r"what shape is (\w+)\?", shape_of),
  "beside": (
    r"what is (to the left of|to the right of|above|below) the (\w+ \w+)\?",
    beside,
  ),
}


def read(question):
  """The sort of a question and what it asks for."""
  found = {
    sort: match.groups()
    for sort, (pattern, _) in SORTS.items()
    if (match := re.fullmatch(pattern, question))
  }
  ((sort, given),) = found.items()  # Of one sort, and of no other.
  return sort, given


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_the_only_right_one(scenes, split):
  checked = collections.Counter()
  for record, question, answer in pairs(scenes[split]):
    sort, given = read(question)
    assert SORTS[sort][1](record, *given) == {answer}, (question, record)
    checked[sort] += 1
  sorts = set(SORTS) - ({"beside"} if split == "classes" else set())
  assert set(checked) == sorts and min(checked.values()) > 500


@pytest.mark.parametrize("split", SPLITS)
def test_no_answer_is_given_by_half_of_a_sort(scenes, split):
  answers = collections.defaultdict(collections.Counter)
  for _, question, answer in pairs(scenes[split]):
    answers[read(question)[0]][answer] += 1
  for sort, counts in answers.items():
    assert max(counts.values()) < 0.5 * counts.total(), (sort, counts)
  assert set(answers["count"]) == set(WORDS)
  assert set(answers["colour"]) == set(drawing.COLOURS)
  assert set(answers["shape"]) == set(drawing.SHAPES)
  assert set(answers["background"]) == set(drawing.BACKGROUNDS)


def test_the_words_of_a_question_do_not_give_its_answer_away(scenes):
  """Nor does any question, asked in the same words, in most cases."""
  answers = collections.defaultdict(collections.Counter)
  for _, question, answer in pairs(scenes["train"] + scenes["val"]):
    answers[question][answer] += 1
  often = {q: c for q, c in answers.items() if c.total() >= 100}
  assert len(often) > 20
  for question, counts in often.items():
    # Three standard errors of a share of a half among a hundred.
    assert max(counts.values()) < 0.65 * counts.total(), (question, counts)


def test_what_is_counted_is_there_or_not(scenes):
  there = [
    bool(how_many(record, read(question)[1][0]) - {"zero"})
    for record, question, _ in pairs(scenes["train"])
    if read(question)[0] == "count"
  ]
  # Six in ten, and four standard errors of 2,000.
  assert np.mean(there) == pytest.approx(0.6, abs=0.044)


@pytest.mark.parametrize("asked", [1, 3])
def test_sorts_are_balanced(asked):
  scenes = Scenes(COUNT, asked=asked)
  records = [scenes.fields(k) for k in range(COUNT)]
  counts = collections.Counter(read(q)[0] for _, q, _ in pairs(records))
  assert counts.total() == asked * COUNT
  shares = {sort: n / COUNT for sort, n in counts.items()}
  # Sides are asked of scenes of two objects alone, 45 % of them, and then each
  # of the sorts is as likely; colours and shapes are missing from few scenes.
  assert shares.pop("beside") == pytest.approx(0.45 * asked / 5, abs=0.04)
  assert max(shares.values()) < 1.25 * min(shares.values())


def test_questions_of_a_scene_are_of_different_sorts(scenes):
  for split in SPLITS:
    for record in scenes[split]:
      sorts = [read(found["question"])[0] for found in record["questions"]]
      assert len(set(sorts)) == len(sorts) <= 5
      assert {"count", "background"} <= set(sorts)
      assert ("beside" in sorts) == ("relation" in record)


def test_ambiguous_questions_are_not_asked():
  thing = {"size": "small", "texture": "solid", "x": 0.5}
  record = {
    "objects": [
      thing | {"colour": "red", "shape": "circle", "y": 0.26},
      thing | {"colour": "blue", "shape": "circle", "y": 0.74},
    ],
    "background": "white",
    "relation": "above",
  }
  asked = {
    found["question"]
    for seed in range(200)
    for found in questions.about(record, 5, str(seed))
  }
  # Not "what color is the circle?", of which there are two.
  shapes = [s for s in drawing.SHAPES if s != "circle"]
  assert asked == {
    "what shape is red?",
    "what shape is blue?",
    "what is above the blue circle?",
    "what is below the red circle?",
    "what color is the background?",
    "how many circles?",
    *(f"how many {questions.plural(shape)}?" for shape in shapes),
  }
  # Two things of one name leave no side to ask for.
  record["objects"][1]["colour"] = "red"
  for seed in range(50):
    for found in questions.about(record, 5, str(seed)):
      assert not re.fullmatch(SORTS["beside"][0], found["question"])


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_and_captions_are_the_same_whether_asked_or_not(split):
  plain, asked = (Scenes(60, 2, 24, split, n) for n in (0, 5))
  for k in reversed(range(60)):
    record = asked[k]
    assert record.pop("questions") and "questions" not in plain.fields(k)
    np.testing.assert_equal(record, plain[k])
    fields = asked.fields(k)
    assert json.loads(json.dumps(fields)) == fields
    assert fields == {**plain.fields(k), "questions": asked[k]["questions"]}


def test_depend_on_seed_split_and_index_alone():
  def draw(scenes, order=range(40)):
    found = {int(k): scenes.fields(k)["questions"] for k in order}
    return [found[k] for k in range(40)]

  first = draw(Scenes(50, 1, asked=3))
  again = pickle.loads(pickle.dumps(Scenes(99, 1, 64, asked=3)))
  assert draw(again, reversed(np.arange(40))) == first
  for other in (
    Scenes(50, 2, asked=3),
    Scenes(50, 1, split="val", asked=3),
    Scenes(50, 1, split="test", asked=3),
  ):
    assert sum(a == b for a, b in zip(draw(other), first, strict=True)) < 4
  # Fewer questions are the first of more.
  fewer = draw(Scenes(50, 1, asked=1))
  assert fewer == [found[:1] for found in first]


def test_train_and_val_draw_apart(scenes):
  """Not the same sorts in the same order, about other scenes."""
  train, val = (
    [[read(f["question"])[0] for f in r["questions"]] for r in scenes[split]]
    for split in ("train", "val")
  )
  same = [a == b for a, b in zip(train, val, strict=True)]
  # At most one in 24 orders of four, and four standard errors of 2,000.
  assert np.mean(same) < 1 / 24 + 0.018


def test_the_option_of_a_source():
  spec = "synthetic:val?size=8&seed=3&asked=2"
  source = open_source(spec)
  assert len(source[5]["questions"]) == 2 and "asked=2" in repr(source)
  np.testing.assert_equal(source[5], Scenes(8, 3, split="val", asked=2)[5])
  assert "asked" not in repr(open_source("synthetic:val?size=8"))
  with pytest.raises(SourceError, match="asked=-1 must be 0 or above"):
    Scenes(8, asked=-1)
  with pytest.raises(ConfigError, match="asked"):
    open_source("synthetic:val?asked=-1")
  # There are not more than five.
  assert len(Scenes(8, asked=99)[0]["questions"]) <= 5


def test_faults_swap_captions_and_leave_questions():
  clean = open_source("synthetic:train?size=200&asked=5")
  noisy = open_source("synthetic:train?size=200&asked=5&noise=0.5")
  swapped = 0
  for k in range(200):
    record = noisy.fields(k)
    if record["fault"] == DUPLICATE:
      continue  # Another record in everything, its questions too.
    assert record["questions"] == clean.fields(k)["questions"]
    swapped += record["fault"] != NONE
  assert swapped > 50


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_plurals(shape):
  assert singular(questions.plural(shape)) == shape != questions.plural(shape)
