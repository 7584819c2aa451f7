"""VQA accuracy against sums by hand and over every set that leaves one out."""

import itertools

import numpy as np
import pytest

from aced.evaluation.vqa import exact_match, normalise_answer, vqa_accuracy

# Worked out by hand from the official rules, in the order of the rules.
NORMAL = {
  "yes": "yes",
  "  Yes \n": "yes",
  "red\tand\nblue": "red and blue",
  # A mark beside a space goes; one between letters becomes a space; and where
  # it stands beside a space once, it goes everywhere.
  "red, blue": "red blue",
  "red,blue": "red blue",
  "red,blue, green": "redblue green",
  "t-shirt": "t shirt",
  "a t-shirt -": "tshirt",
  "yes!": "yes",
  "what? no": "what no",
  "black/white": "black white",
  "black / white": "black white",
  "x/-y-z": "x y z",
  "(left)": "left",
  'the "stop" sign': "stop sign",
  "snow_board@home": "snow board home",
  "a+b=c": "b c",
  "dog's": "dog's",
  "12:30": "12:30",
  "$5 & 10%": "$5 & 10%",
  # With a comma between digits, every mark goes and leaves no space.
  "1,000": "1000",
  "1,000-2,000": "10002000",
  "1, 2": "1 2",
  "1,a": "1",
  # A period goes unless a digit follows.
  "2.5": "2.5",
  "U.S.": "us",
  ".5": ".5",
  "5.": "5",
  "...": "",
  "." * 40: "." * 8,
  # Words for digits, up to ten and whole; articles.
  "Two dogs": "2 dogs",
  "none": "0",
  "zero": "0",
  "TEN": "10",
  "eleven": "eleven",
  "twenty-one": "twenty 1",
  "the one on an a": "1 on",
  "The": "",
  "": "",
  # Apostrophes come back, after case and articles.
  "Dont": "don't",
  "it isnt the one": "it isn't 1",
  "couldntve": "couldntve",
  "couldnt've": "couldn't've",
  "5 oclock": "5 o'clock",
  "twas": "'twas",
  "yalld've": "yalld've",
  "y'alld've": "y'all'd've",
  "somebody'd": "somebodyd",
  "Im": "im",
  "shed": "shed",
}
TEN = ["yes"] * 4 + ["no"] * 3 + ["maybe"] * 2 + ["red"]


def by_subsets(prediction, answers):
  """The mean over every set of all people but one, as itertools makes them."""
  right = normalise_answer(prediction)
  sets = itertools.combinations(
    [normalise_answer(a) for a in answers], len(answers) - 1
  )
  return np.mean(
    [min(1, sum(a == right for a in others) / 3) for others in sets]
  )


@pytest.mark.parametrize(("text", "normal"), NORMAL.items())
def test_normal_form(text, normal):
  assert normalise_answer(text) == normal


def test_accuracy_by_the_number_of_people():
  got = vqa_accuracy(["yes", "no", "maybe", "red", "dog"], [TEN] * 5)
  # Of ten sets of nine: four give 1 in every set; three, 2/3 in three sets;
  # two, 1/3 in two sets and 2/3 in eight; one, nothing in one set.
  want = [1, (3 * 2 / 3 + 7) / 10, (2 / 3 + 8 * 2 / 3) / 10, 9 / 3 / 10, 0]
  np.testing.assert_allclose(got, want, rtol=1e-15)
  np.testing.assert_allclose(got, [1, 0.9, 0.6, 0.3, 0], rtol=1e-15)
  assert got.dtype == np.float64 and got.shape == (5,)


@pytest.mark.parametrize("people", [2, 3, 4, 5, 10, 13])
def test_accuracy_equals_the_mean_over_subsets(people):
  rng = np.random.default_rng(people)
  forms = [
    "Yes",
    "yes.",
    "two",
    "2",
    "the 2",
    "dont",
    "don't",
    "a red one",
    "1",
  ]
  predictions, answers = [], []
  for _ in range(200):
    kinds = rng.choice(forms, size=rng.integers(2, 6), replace=False).tolist()
    # The first two differ as written, so that all are normalised.
    given = kinds[:2] + rng.choice(kinds, size=people - 2).tolist()
    answers.append([given[i] for i in rng.permutation(people)])
    predictions.append(str(rng.choice(kinds)))
  got = vqa_accuracy(predictions, answers)
  want = [by_subsets(p, a) for p, a in zip(predictions, answers)]
  # Means of at most thirteen float64 numbers, in another order.
  np.testing.assert_allclose(got, want, rtol=1e-12)
  assert 0 < got.mean() < 1
  moved = [[a[i] for i in rng.permutation(people)] for a in answers]
  np.testing.assert_allclose(vqa_accuracy(predictions, moved), got, rtol=1e-12)


@pytest.mark.parametrize(("people", "best"), [(2, 1 / 3), (3, 2 / 3), (4, 1.0)])
def test_most_that_few_people_can_give(people, best):
  assert vqa_accuracy(["yes"], [["yes"] * people]) == pytest.approx(best)


def test_answers_are_normalised_only_where_people_differ():
  same, differ = ["two"] * 10, ["two"] * 9 + ["2"]
  predictions = ["two", "2", " two\n", "Two"]
  np.testing.assert_array_equal(
    vqa_accuracy(predictions, [same] * 4), [1, 0, 1, 0]
  )
  np.testing.assert_array_equal(vqa_accuracy(predictions, [differ] * 4), 1)
  # Spaces at the ends are no difference.
  spaced = ["two"] * 9 + ["two "]
  np.testing.assert_array_equal(
    vqa_accuracy(predictions, [spaced] * 4), [1, 0, 1, 0]
  )


def test_a_single_answer_counts_whole():
  predictions, answers = ["Two.", "cat", "the"], [["2"], ["dog"], [""]]
  np.testing.assert_array_equal(vqa_accuracy(predictions, answers), [1, 0, 1])


def test_exact_match():
  predictions = ["A dog!", "cats", "1,000", "no"]
  answers = [["cat", "dog"], ["cat"], ["1000"], TEN]
  got = exact_match(predictions, answers)
  np.testing.assert_array_equal(got, [1, 0, 1, 1])
  assert got.dtype == np.float64
  # One who agrees is enough here, where accuracy wants four of ten.
  assert vqa_accuracy(["red"], [TEN]) == pytest.approx(0.3)
  np.testing.assert_array_equal(exact_match(["red"], [TEN]), 1)


@pytest.mark.parametrize("metric", [vqa_accuracy, exact_match])
@pytest.mark.parametrize(
  ("predictions", "answers", "message"),
  [
    ([], [], r"predictions is \[\]"),
    (["a"], [], r"answers is \[\]"),
    ("a", [["a"]], "predictions is 'a'"),
    (["a"], [["a"], ["b"]], "1 predictions and 2 lists"),
    (["a"], [[]], r"answers\[0\] is \[\].*leave out"),
    (["a"], ["a"], r"answers\[0\] is 'a'"),
    ([2], [["2"]], r"predictions\[0\] is 2; expected a string"),
    (["2"], [["2", 2]], r"answers\[0\]\[1\] is 2"),
  ],
)
def test_refuses(metric, predictions, answers, message):
  with pytest.raises(ValueError, match=message):
    metric(predictions, answers)


def test_refuses_what_is_no_text():
  with pytest.raises(ValueError, match="text is 3; expected a string"):
    normalise_answer(3)
