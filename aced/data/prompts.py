"""Tasks told by a prompt, for a text decoder: captions, questions and answers.

A text to learn is a prompt and what is to follow it, with `SEPARATOR` between
them; a text without anything behind the separator is a prompt alone. As ids, a
row is start, prompt, `separator`, what follows, end, and padding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from aced.config import ConfigError
from aced.data.identity import SAMPLED
from aced.data.records import BadRecord, Record, Source, captions
from aced.data.sources.fields import texts
from aced.data.tokenizers.base import Tokenizer, listed, utf8

# The unit separator of ASCII. The first of a text counts: what follows a prompt
# may have it as well, and a question has a space in its place.
SEPARATOR = "\x1f"
CAPTION = "caption:"  # The prompt for a caption; a question is its own prompt.
TASKS = ("caption", "vqa")


class Prompted(Source):
  """The texts of a source as prompts and what is to follow them.

  Each task has the same share of a record's texts, whatever their numbers: the
  texts of the smaller one are there several times. A record without captions,
  or without questions, has the other task alone.

  Args:
    source: its records have captions as `text`, and questions as
      `questions_of` reads them.
    tasks: some of `TASKS`.

  Raises:
    ConfigError: a task that is not known.
  """

  def __init__(self, source: Source, tasks: Sequence[str]):
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
      raise ConfigError(
        f"tasks={tuple(tasks)} must be some of {', '.join(TASKS)}."
      )
    self.source, self.tasks = source, tuple(tasks)
    self.has_faults = source.has_faults

  def __len__(self):
    return len(self.source)

  def __repr__(self):
    return f"{self.source!r} for {'+'.join(self.tasks)}"

  def __getitem__(self, index):
    record = self.source[index]
    return record | {"text": self._texts(record)}

  def fields(self, index):
    """The record at `index` without its picture."""
    record = self.source.fields(index)
    return record | {"text": self._texts(record)}

  def where(self, index):
    """Where the record at `index` is stored."""
    return self.source.where(index)

  def damage(self):
    """What is wrong with whole files."""
    return self.source.damage()

  def check(self, *, all_tasks: bool = True) -> None:
    """Looks for every task in some records, spread over the source.

    Args:
      all_tasks: whether each must be there; else one that is not is told of.

    Raises:
      ConfigError: none of them has anything for a task that must be there, or
        for any.
    """
    places = np.linspace(0, len(self) - 1, min(SAMPLED, len(self)), dtype=int)
    records = [self.source.fields(int(k)) for k in np.unique(places)]
    there = [
      task for task in self.tasks if any(_asked(r, task) for r in records)
    ]
    lacking = [task for task in self.tasks if task not in there]
    if not lacking:
      return
    needed = {"caption": "a caption", "vqa": "a question with an answer"}
    problem = (
      f"none of {len(records)} records of {self.source!r} looked at has"
      f" {' or '.join(needed[task] for task in lacking)}"
    )
    if not there:
      raise ConfigError(
        f"config.decoder.tasks={self.tasks}: {problem}, so that there is"
        " nothing to learn; a caption is in the field text, a question in"
        " question and its answer in answer, or in questions, a list of both."
      )
    advice = f"--config.decoder.tasks=\"('{there[0]}',)\""
    if all_tasks:
      raise ConfigError(
        f"config.decoder.tasks={self.tasks} names {', '.join(lacking)}, and"
        f" {problem}; set {advice}, or name a source that has both."
      )
    logging.warning(
      "%s: %s is all that is learnt. %s says so.", problem, there[0], advice
    )

  def _texts(self, record: Record) -> list[str]:
    found = []
    if "caption" in self.tasks and record.get("text") is not None:
      found.append(
        [f"{CAPTION}{SEPARATOR}{text}" for text in _captions(record)]
      )
    if "vqa" in self.tasks:
      found.append(
        [
          f"{question}{SEPARATOR}{answer}"
          for question, answers in questions_of(record)
          for answer in answers
        ]
      )
    found = [texts for texts in found if texts]
    most = max(map(len, found), default=0)
    return [texts[k % len(texts)] for texts in found for k in range(most)]


class Asked(Source):
  """A record of each prompt: a picture stands there once for every question.

  Records have the prompt alone as their text, and `references`, a list of the
  texts that may follow it.

  Args:
    source: as of `Prompted`.
    task: one of `TASKS`.
    limit: records of `source` that are taken, 0 for all.

  Raises:
    ConfigError: no record has what the task is about, or `limit` is below 0.
  """

  def __init__(self, source: Source, task: str, limit: int = 0):
    if limit < 0:
      raise ConfigError(f"limit={limit} must be 0, for all, or above.")
    self.source, self.task = source, task
    count = min(len(source), limit or len(source))
    self._prompts = [
      (k, prompt, tuple(references))
      for k in range(count)
      for prompt, references in _asked(source.fields(k), task)
    ]
    if not self._prompts:
      missing = "a caption" if task == "caption" else "a question"
      raise ConfigError(
        f"none of the {count} records of {source!r} has {missing} for the task"
        f" {task!r}."
      )

  def __len__(self):
    return len(self._prompts)

  def __repr__(self):
    return f"{self.task} of {self.source!r}"

  def __getitem__(self, index):
    return self._record(index, self.source[self._prompts[index][0]])

  def fields(self, index):
    """The record at `index` without its picture."""
    return self._record(index, self.source.fields(self._prompts[index][0]))

  def where(self, index):
    """Where the record at `index` is stored."""
    return self.source.where(self._prompts[self._check(index)][0])

  def _record(self, index, record):
    _, prompt, references = self._prompts[self._check(index)]
    return record | {
      "text": f"{prompt}{SEPARATOR}",
      "references": list(references),
    }


class PromptTokenizer(Tokenizer):
  """Maps prompts and what follows them to `(n, length)` int32 ids.

  Three ids are added to those of another tokenizer: start, separator and end. A
  prompt that is too long is cut so that it leaves a quarter of the row, and the
  first one is told of. What follows
  it and is too long is cut without an end: it did not end there, and that is
  not to be learnt. The end fills up short rows, so that no id of a text does.

  Args:
    tokenizer: for the words on both sides.

  Raises:
    ConfigError: rows are too short to hold anything, or the tokenizer puts
      tokens around texts that belong around the whole.
  """

  sticky = False

  def __init__(self, tokenizer: Tokenizer):
    self.inner, self.spec = tokenizer, tokenizer.spec
    self.length, self.bos = tokenizer.length, tokenizer.vocab_size
    self.separator = self.bos + 1
    self.eos = self.pad = self.bos + 2
    self.vocab_size = self.bos + 3
    if self.length < 8:
      raise ConfigError(
        f"text_length={self.length} leaves no room for a prompt and an answer;"
        " set it to 8 or more."
      )
    if getattr(tokenizer, "special", False):
      raise self._error(
        "its file puts tokens of its own around every text, here around prompts"
        " and answers each; add the option special=0."
      )

  @property
  def content(self):
    """What the ids depend on, beside the length."""
    return b"prompts of " + self.inner.content

  def __call__(self, texts):
    """Returns the ids of `n` texts, `(n, length)` int32; raises as `listed`."""
    texts = listed("texts", texts)
    ids = np.full((len(texts), self.length), self.pad, np.int32)
    for row, text in zip(ids, texts, strict=True):
      prompt, _, rest = text.partition(SEPARATOR)
      tokens = [self.bos, *self._prompt(prompt), self.separator]
      if rest:
        tokens += [*self._tokens(rest), self.eos]
      tokens = tokens[: self.length]
      row[: len(tokens)] = tokens
    return ids

  def decode(self, ids):
    """Returns what follows the prompt in one row of ids."""
    ids = [int(i) for i in ids]
    if self.separator in ids:
      ids = ids[ids.index(self.separator) + 1 :]
    if self.eos in ids:
      ids = ids[: ids.index(self.eos)]
    return self._decode([i for i in ids if i < self.bos])

  def _prompt(self, text):
    """The ids of a prompt: as many whatever follows, as when nothing does."""
    tokens = self.inner._encode(utf8(text).decode("utf-8"))
    room = self.length - self.length // 4 - 2
    if len(tokens) > room:
      logging.log_first_n(
        logging.WARNING,
        "a prompt of %d tokens is cut to %d: %r; raise input.text_length (%d)",
        1,
        len(tokens),
        room,
        text,
        self.length,
      )
    return self.inner._cut(tokens, min(room, len(tokens)))

  def _tokens(self, text):
    tokens = self.inner._encode(utf8(text).decode("utf-8"))
    return self.inner._cut(tokens, len(tokens))

  def _encode(self, text):
    return self.inner._encode(text)

  def _decode(self, ids):
    return self.inner._decode(ids)


def questions_of(record: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
  """`(question, answers)` of a record.

  They stand in `questions`, a list of `{"question", "answers"}` or one of them,
  or in the record itself; `answers` is a list, or one is in `answer`. An answer
  is a text, a number, or as VQA's own files have it, `{"answer": text}`. None
  of another form are taken; `count_unread` counts them.
  """
  return list(filter(None, map(_question, _rows(record))))


def count_unread(record: Mapping[str, Any]) -> int:
  """How many of a record's questions have a form that is not taken."""
  asked = record.get("questions") or record.get("question") is not None
  return len(_rows(record)) - len(questions_of(record)) if asked else 0


def _rows(record):
  """What may be a question of a record, with its answers."""
  rows = record.get("questions")
  if isinstance(rows, Mapping):
    return [rows]
  return rows if rows and isinstance(rows, list | tuple) else [record]


def _question(row):
  """`(question, answers)` of a row; None where it has no such form."""
  question = row.get("question") if isinstance(row, Mapping) else None
  if not isinstance(question, str) or not question.strip():
    return None
  answers = row.get("answers", row.get("answer"))
  answers = answers if isinstance(answers, list | tuple) else [answers]
  good = list(filter(None, map(_answer, answers)))
  return (texts(question).replace(SEPARATOR, " "), good) if good else None


def _answer(given) -> str:
  """An answer as text; "" where it is none."""
  if isinstance(given, Mapping):
    given = given.get("answer")
  number = isinstance(given, int | float) and not isinstance(given, bool)
  if number and math.isfinite(given):
    return str(given)
  return texts(given) if isinstance(given, str) else ""


def _asked(record, task):
  """`(prompt, references)` of a record."""
  if task == "caption":
    texts = _captions(record)
    return [(CAPTION, texts)] if texts else []
  return questions_of(record)


def _captions(record):
  try:
    return captions(record)
  except BadRecord:
    return []
