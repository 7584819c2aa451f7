"""A student at another length of texts, for what takes no other."""

import dataclasses

import numpy as np

from aced.config import ConfigError
from aced.data.tokenizers import load_tokenizer
from aced.models.build import towers
from aced.pretrained import Pretrained


def with_text_length(student: Pretrained, length: int) -> Pretrained:
  """Returns a student whose position table of texts has another length.

  The last row stays last, for it is the one that is pooled. A longer table has
  copies of the last row but one before it; from a shorter one, the rows before
  the last are left out. This is another model: it was not trained so.

  Args:
    student: that pools the last position of its texts.
    length: tokens of a text, 2 or more.

  Raises:
    ConfigError: a length below 2, a student that pools otherwise or whose
      positions are not learnt, or a tokenizer that needs more.
  """
  if length == student.text_length:
    return student
  tower = towers(student.model).get("text")
  table = student.params.get("txt", {}).get("pos_embedding")
  if length < 2 or table is None or getattr(tower, "pool_type", "") != "last":
    raise ConfigError(
      f"--text_length={length} must be 2 or more, and needs a text tower with"
      " learnt positions that pools the last one; this one is"
      f" {type(tower).__name__} with pool_type="
      f"{getattr(tower, 'pool_type', None)!r}."
    )
  text = {**student.params["txt"], "pos_embedding": _fitted(table, length)}
  spec = student.tokenizer and student.tokenizer.spec
  return dataclasses.replace(
    student,
    weights=dataclasses.replace(student.weights, text_length=length),
    params={**student.params, "txt": text},
    tokenizer=load_tokenizer(spec, length) if spec else None,
  )


def _fitted(table: np.ndarray, length: int) -> np.ndarray:
  """Rows `(1, l, d)` of positions, cut or filled up before the last one."""
  rows, last = np.asarray(table)[:, :-1], np.asarray(table)[:, -1:]
  copies = np.repeat(rows[:, -1:], max(0, length - 1 - rows.shape[1]), axis=1)
  return np.concatenate([rows[:, : length - 1], copies, last], axis=1)
