"""Cells are comparable: they differ in what their question says and no more."""

import pathlib

import pytest

from aced import config as config_lib
from studies import questions
from studies.sets import STUDIES
from studies.study import (
  METHODS,
  Cell,
  config_hash,
  configure,
  configure_reference,
)

WORKDIR = pathlib.Path("/somewhere/study")
# What a method is made of; everything else is the study's.
OF_THE_METHOD = ("name", "curation.", "distillation.", "frozen.")


def flat(study, cell):
  return config_lib.flatten(config_lib.resolve(configure(study, cell, WORKDIR)))


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_methods_differ_in_the_method_alone(study):
  base = flat(study, Cell("iid", study.noise, 0))
  for method in METHODS:
    other = flat(study, Cell(method, study.noise, 0))
    for line in config_lib.differences(base, other):
      assert line.startswith(OF_THE_METHOD), line
    assert other["batch_size"] == base["batch_size"]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("name", questions.ALL)
def test_cells_of_a_question_resolve_and_have_names_of_their_own(study, name):
  cells = questions.cells(study, [name], seeds=3)
  assert len({cell.name for cell in cells}) == len(cells) > 0
  for cell in cells:
    assert flat(study, cell)["seed"] == cell.seed
  hashes = {config_hash(configure(study, c, WORKDIR), WORKDIR) for c in cells}
  if name != "e":  # Its cells differ in devices too, which no config says.
    assert len(hashes) == len(cells)


def test_a_cell_that_two_questions_ask_for_is_run_once():
  study = STUDIES["scenes"]
  both = questions.cells(study, ["a", "c"], seeds=2)
  apart = [questions.cells(study, [name], seeds=2) for name in "ac"]
  assert len(both) == len(set(apart[0]) | set(apart[1])) < sum(map(len, apart))


def test_references_see_clean_pairs_of_their_own():
  study = STUDIES["scenes"]
  config = configure_reference(study, "larger", WORKDIR)
  pool = configure(study, Cell("iid", 0.6, 0), WORKDIR).input.source
  assert "noise=0" in config.input.source and "seed=1" in config.input.source
  assert "noise=0.6" in pool and "seed=0" in pool
  sizes = [
    configure_reference(study, size, WORKDIR).student.image.width
    for size in ("smaller", "equal", "larger")
  ]
  student = configure(study, Cell("iid", 0.6, 0), WORKDIR).student.image.width
  assert sizes[0] < sizes[1] == student < sizes[2]
  longer = configure_reference(study, "longer", WORKDIR)
  assert longer.total_steps == 3 * config.total_steps
  assert longer.student.image.width == student


def test_the_hash_knows_results_and_not_places():
  study, cell = STUDIES["scenes"], Cell("h_acid", 0.6, 0)

  def of(cell, workdir=WORKDIR, **log):
    config = configure(study, cell, workdir)
    config.log.update(log)
    return config_hash(config, workdir)

  assert of(cell) == of(cell, pathlib.Path("/elsewhere")) == of(cell, picks=3)
  assert of(cell) != of(Cell("h_acid", 0.6, 1))
  assert of(cell) != of(Cell("h_acid", 0.3, 0))
  assert of(cell) != of(Cell("h_acid", 0.6, 0, "equal"))
