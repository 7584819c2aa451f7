import dataclasses

import numpy as np
import pytest

import aced
from aced.config import ConfigError
from aced.export.__main__ import main
from aced.export.lengths import with_text_length
from tests.export.writing_test import npz_student


@pytest.mark.parametrize("length", [2, 5, 8, 12])
def test_positions_are_cut_or_filled_up_before_the_last(tmp_path, length):
  student = npz_student(tmp_path / "w.npz")
  found = with_text_length(student, length)
  old = student.params["txt"]["pos_embedding"][0]
  rows = [*old[:7], *[old[6]] * 4][: length - 1] + [old[7]]
  new = found.params["txt"]["pos_embedding"]
  np.testing.assert_array_equal(new, np.stack(rows)[None])
  assert found.text_length == length
  assert found.tokens(["a dog on a sofa"]).shape == (1, length)
  assert np.isfinite(
    found.logits(np.zeros((1, 8, 8, 3), np.uint8), ["a"])
  ).all()
  assert (found is student) == (length == 8)
  # The student itself is as it was.
  assert student.params["txt"]["pos_embedding"].shape == (1, 8, old.shape[1])


def test_what_cannot_be_cut(tmp_path):
  student = npz_student(tmp_path / "w.npz")
  with pytest.raises(ConfigError, match=r"--text_length=1 must be 2 or more"):
    with_text_length(student, 1)
  text = {**student.model.text, "pool_type": "argmax"}
  other = dataclasses.replace(student, model=student.model.clone(text=text))
  with pytest.raises(ConfigError, match="pool_type='argmax'"):
    with_text_length(other, 16)


def test_the_command(tmp_path, capsys):
  npz_student(tmp_path / "w.npz")
  args = [str(tmp_path / "w.npz"), "--tokenizer", "bytes", "--formats", "npz"]
  args += ["--text_length", "6", "--output", str(tmp_path / "out")]
  assert main(args) == 0
  assert "texts of 6 tokens in place of 8" in capsys.readouterr().err
  assert aced.load(tmp_path / "out" / "big_vision.npz").text_length == 6
