"""Accuracy of answers to questions about pictures, as VQA counts it.

Antol et al., 2015 (arXiv 1505.00468) and Goyal et al., 2017 (arXiv 1612.00837);
rules and tables are those of the evaluation of VQA v2.0 (visualqa.org).
"""

import re
from collections.abc import Sequence

import numpy as np

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official call gives re.UNICODE, which is 32, where a count belongs.
_PERIODS = 32
_ARTICLES = frozenset(("a", "an", "the"))
_TO_TEN = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(n) for n, word in enumerate(_TO_TEN.split())}
_DIGITS["none"] = "0"
# Each is restored from every spelling that lacks one of its apostrophes.
_CONTRACTIONS = (
  "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't"
  " hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd"
  " it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't"
  " not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't"
  " shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've"
  " someone'll someone's something'd something'd've something'll that's there'd"
  " there'd've there're there's they'd they'd've they'll they're they've 'twas"
  " wasn't we'd've we've weren't what'll what're what's what've when's where'd"
  " where's where've who'd who'd've who'll who's who've why'll why're why's"
  " won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd"
  " you'd've you'll you're you've"
)
_RESTORED = {
  form[:place] + form[place + 1 :]: form
  for form in _CONTRACTIONS.split()
  for place, letter in enumerate(form)
  if letter == "'"
}
_RESTORED["somebody'd"] = "somebodyd"  # The table has this one reversed.


def normalise_answer(text: str) -> str:
  """An answer as the official VQA evaluation compares it.

  In its order: line breaks and tabs become spaces, and the ends are stripped;
  a mark of `; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !` goes if a space stands
  before or after it anywhere in the answer, or if a comma stands between two
  digits ("1,000"), and otherwise becomes a space; a period goes unless a digit
  follows; then words are lower-cased, "none" and "zero" to "ten" written in
  digits, "a", "an" and "the" left out, and the apostrophes of contractions
  restored ("dont" becomes "don't").

  Its oddities are kept, so that numbers agree: "somebody'd" loses its
  apostrophe; "Im" and "Ive", which its table has in capitals alone, never get
  theirs; periods after the first 32 stay.

  Args:
    text: an answer.

  Returns:
    Its normal form, which may be empty ("the" is).

  Raises:
    ValueError: `text` is not a string.
  """
  _check_text("text", text)
  text = before = _stripped(text)
  joined = _COMMA_IN_NUMBER.search(before)
  for mark in _MARKS:
    goes = joined or f"{mark} " in before or f" {mark}" in before
    text = text.replace(mark, "" if goes else " ")
  text = _PERIOD.sub("", text, count=_PERIODS)
  words = (_DIGITS.get(word, word) for word in text.lower().split())
  kept = (word for word in words if word not in _ARTICLES)
  return " ".join(_RESTORED.get(word, word) for word in kept)


def vqa_accuracy(
  predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> np.ndarray:
  """The VQA accuracy of each answer, against those of several people.

  The mean, over the sets that leave one person out, of
  `min(people who gave this answer / 3, 1)`: with ten people, 0.3, 0.6, 0.9
  and 1 for one, two, three and four who gave it.

  As in the official evaluation answers are normalised only where people
  differ. Where all gave one answer, it is compared as it is written but for
  spaces at its ends: "Yes" is no match for ten times "yes".

  The official sets have ten answers. The formula would give 1/3 at most with
  two of them, 2/3 with three and nothing with one: a single answer therefore
  counts 1 if both are equal when normalised, as in `exact_match`.

  Args:
    predictions: `n` answers.
    answers: of each question, the answers that people gave, one or more.

  Returns:
    `(n,)` float64, from 0 to 1; their mean is the accuracy.

  Raises:
    ValueError: inputs that are empty, no strings or do not fit together.
  """
  _check(predictions, answers)
  return np.array([_accuracy(p, a) for p, a in zip(predictions, answers)])


def exact_match(
  predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> np.ndarray:
  """Whether each answer equals any of the right ones, all of them normalised.

  Args:
    predictions: `n` answers.
    answers: of each question, one or more right answers.

  Returns:
    `(n,)` float64 of 1 and 0; their mean is the accuracy.

  Raises:
    ValueError: inputs that are empty, no strings or do not fit together.
  """
  _check(predictions, answers)
  return np.array([_matches(p, a) for p, a in zip(predictions, answers)])


def _matches(prediction, answers):
  prediction = normalise_answer(prediction)
  return float(any(normalise_answer(a) == prediction for a in answers))


def _accuracy(prediction, answers):
  if len(answers) == 1:
    return _matches(prediction, answers)
  plain = [_stripped(answer) for answer in answers]
  form = normalise_answer if len(set(plain)) > 1 else _stripped
  prediction = form(prediction)
  same = [form(answer) == prediction for answer in answers]
  given = sum(same)
  return sum(min((given - one) / 3, 1) for one in same) / len(same)


def _stripped(text: str) -> str:
  return text.replace("\n", " ").replace("\t", " ").strip()


def _check(predictions, answers):
  for name, rows in (("predictions", predictions), ("answers", answers)):
    _check_list(name, rows, "one entry for each question")
  if len(predictions) != len(answers):
    raise ValueError(
      f"{len(predictions)} predictions and {len(answers)} lists of answers;"
      " expected one of each for every question."
    )
  for i, (prediction, given) in enumerate(zip(predictions, answers)):
    _check_text(f"predictions[{i}]", prediction)
    _check_list(f"answers[{i}]", given, "not empty: leave out such questions")
    for j, answer in enumerate(given):
      _check_text(f"answers[{i}][{j}]", answer)


def _check_list(name, rows, expected):
  if not isinstance(rows, list | tuple) or not rows:
    raise ValueError(f"{name} is {rows!r}; expected a list, {expected}.")


def _check_text(name, text):
  if not isinstance(text, str):
    raise ValueError(f"{name} is {text!r}; expected a string, one answer.")
