"""Associations: which pictures go with a cue (WinoGAViL, arXiv 2207.12576)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aced.data import pipeline
from aced.evaluation import embed
from aced.evaluation.evaluator import Evaluator, read_field
from aced.evaluation.outcomes import Associated
from aced.evaluation.retrieval import check_finite

_VOWELS = tuple("aeiou")


class Association(Evaluator):
  """Picks the pictures that go with a cue among an instance's candidates.

  A record is a candidate: a picture, the cue as its text, and the fields below.
  As many pictures as are associated are picked, the nearest to the cue. An
  instance of which a picture cannot be read is left out whole.

  Args:
    source: of the candidates.
    tokenizer: maps texts to token ids.
    transform: makes a picture of a record, as in training.
    batch_size: rows embedded at a time, of all processes together.
    instance_field: the field that holds the name of the instance.
    associated_field: that tells whether the picture is one of the right ones.

  Raises:
    ValueError: no such field.
  """

  def __init__(
    self,
    source: Any,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    transform: Callable[..., Any],
    *,
    batch_size: int = 256,
    instance_field: str = "instance",
    associated_field: str = "associated",
    name: str = "association",
  ):
    super().__init__(source, tokenizer, transform, batch_size)
    self.name = name
    for field, types in (
      (instance_field, (str, int)),
      (associated_field, (bool, int)),
    ):
      read_field(source, field, types, "Association", limit=1)
    self.instance_field = instance_field
    self.associated_field = associated_field

  def check(self):
    """Reads the instances and their cues."""
    _ = self._instances

  def notes(self, images):
    """On instances that are left out."""
    read = np.isin(np.arange(len(self.source)), images.index)
    instances, cues = self._instances
    left = [k for k, (own, _) in enumerate(instances) if not read[own].all()]
    if not left:
      return []
    return [
      f"{len(left):,} of {len(instances):,} instances have a picture that could"
      f" not be read, and are left out, first that of the cue {cues[left[0]]!r}"
    ]

  def measure(self, images, embed_text) -> Associated:
    """Picks the pictures of every cue."""
    instances, cues = self._instances
    row = np.full(len(self.source), -1)
    row[images.index] = np.arange(len(images.index))
    whole = [
      (cue, records, right)
      for cue, (records, right) in zip(cues, instances, strict=True)
      if (row[records] >= 0).all()
    ]
    if not whole:
      raise ValueError(
        f"nothing to evaluate in {self.source!r}: no instance has all of its"
        " pictures."
      )
    batches = embed.text_batches(
      [prompt(cue) for cue, *_ in whole], self.tokenizer, self.batch_size
    )
    ztxt = embed.embed_texts(embed_text, batches).z
    # What is not a number sorts last, which may well be right.
    check_finite("zimg", images.z)
    check_finite("ztxt", ztxt)
    scores = [
      jaccard(images.z[row[records]] @ z, right)
      for z, (_, records, right) in zip(ztxt, whole, strict=True)
    ]
    sizes = [len(records) for _, records, _ in whole]
    return Associated(np.array(scores), np.array(sizes))

  @functools.cached_property
  def _instances(self):
    """`(records, whether each is right)` of every instance, and the cues."""

    def values(field, types):
      return read_field(self.source, field, types, "Association")

    names = values(self.instance_field, (str, int))
    right = np.array(values(self.associated_field, (bool, int)), bool)
    texts, owners = pipeline.eval_captions(self.source)
    cues_of = [set() for _ in names]
    for owner, text in zip(owners.tolist(), texts, strict=True):
      cues_of[owner].add(text)
    records = {}
    for k, name in enumerate(names):
      records.setdefault(name, []).append(k)
    found, cues = [], []
    for name, own in records.items():
      told = set.union(*(cues_of[k] for k in own))
      bare = sum(not cues_of[k] for k in own)
      if len(told) != 1 or bare or not right[own].any():
        raise ValueError(
          f"instance {name!r} of {self.source!r} has the cues {sorted(told)},"
          f" {bare} candidates without one, and {right[own].sum()} pictures"
          " that go with it; expected one cue, the same for all candidates,"
          " and at least one picture."
        )
      found.append((np.array(own), right[own]))
      cues.append(told.pop())
    return found, cues


def jaccard(similarity: np.ndarray, right: np.ndarray) -> float:
  """Jaccard index of the `right.sum()` nearest candidates and the right ones.

  Args:
    similarity: `(c,)` of the candidates to the cue; of equal ones the first.
    right: `(c,)` bool.
  """
  picked = np.zeros(len(right), bool)
  picked[np.argsort(-similarity, kind="stable")[: right.sum()]] = True
  return float((picked & right).sum() / (picked | right).sum())


def prompt(cue: str) -> str:
  """The cue with its article, as DataComp writes it."""
  cue = cue.lower()
  return f"{'An' if cue.startswith(_VOWELS) else 'A'} {cue}"
