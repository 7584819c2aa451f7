"""The questions of docs/study.md, and the cells that answer each."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from studies.study import REFERENCES, Cell, Study


class Question(NamedTuple):
  """A question, and what answers it.

  Attributes:
    title: for plots and tables.
    cells: `(study, seed) -> cells`.
    by: what cells of one seed are told apart by in its plot.
  """

  title: str
  cells: Callable[[Study, int], Iterable[Cell]]


COMPARED = (
  "iid",
  "softmax_kd",
  "h_acid",
  "acidistill",
  "i_acid",
  "iidistill",
)
RATIOS = (0.5, 0.8, 0.9)
CHUNKS = (1, 2, 8, 16)
GAINS = (0.25, 1.0, 4.0, 16.0)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
WEIGHTS = (1.0, 4.0)
# Of a device that stands for many: each draws its quota from its own shard.
DEVICES = 4


def rates(study, seed):
  """The learning rate is tuned for the baseline alone."""
  for rate in RATES:
    change = ("optimizer.learning_rate", rate)
    changes = (change,) if rate != study.base[change[0]] else ()
    yield Cell("iid", study.noise, seed, changes=changes)


def weights(study, seed):
  """Lambda is chosen for both methods that it is of, and is one for all."""
  for method in ("softmax_kd", "acidistill"):
    for weight in WEIGHTS:
      change = ("distillation.weight", weight)
      changes = (change,) if weight != study.distill_weight else ()
      yield Cell(method, study.noise, seed, changes=changes)


def methods(study, seed):
  """Every method, at the share of noise of the other questions."""
  for method in COMPARED:
    yield Cell(method, study.noise, seed)


def noises(study, seed):
  """Every method, with less noise and with none."""
  for noise in study.noises:
    for method in COMPARED:
      yield Cell(method, noise, seed)


def references(study, seed):
  """Smaller than the student, equal, larger; and equal but taught longer."""
  for method in ("h_acid", "acidistill"):
    for reference in REFERENCES:
      yield Cell(method, study.noise, seed, reference)


def ratios(study, seed):
  """How much is thrown away."""
  yield Cell("iid", study.noise, seed)
  for ratio in RATIOS:
    changes = (("curation.filter_ratio", ratio),) if ratio != 0.8 else ()
    yield Cell("h_acid", study.noise, seed, changes=changes)


def samplers(study, seed):
  """Joint in more or fewer chunks, each pair alone, or any."""
  yield Cell("iid", study.noise, seed)
  yield Cell("independent", study.noise, seed)
  for chunks in CHUNKS:
    changes = (("curation.num_chunks", chunks),) if chunks != 8 else ()
    yield Cell("h_acid", study.noise, seed, changes=changes)


def scopes(study, seed):
  """One draw of all, or a quota of every device."""
  for scope in ("global", "per_device"):
    changes = (("curation.scope", scope),)
    yield Cell("h_acid", study.noise, seed, changes=changes, devices=DEVICES)


def gains(study, seed):
  """From a draw that is nearly uniform to one that is decided."""
  for gain in GAINS:
    changes = (("curation.gain", gain),) if gain != 1 else ()
    yield Cell("h_acid", study.noise, seed, changes=changes)
  greedy = (("curation.temperature", 0.0),)
  yield Cell("h_acid", study.noise, seed, changes=greedy)


def picked(study, seed):
  """What is in what is kept; no run of its own."""
  for method in ("iid", "i_acid", "h_acid", "acidistill"):
    yield Cell(method, study.noise, seed)


def cheap(study, seed):
  """Scoring in full, from a cache, and as Flexi-JEST does."""
  yield Cell("h_acid", study.noise, seed)
  yield Cell("h_acid", study.noise, seed, cached=False)
  for change in (("scoring.patch_size", 16), ("scoring.token_drop", 0.5)):
    yield Cell("h_acid", study.noise, seed, changes=(change,))


QUESTIONS = {
  "lr": Question("the learning rate of the baseline", rates),
  "lambda": Question("the weight of distillation", weights),
  "a": Question("which method", methods),
  "noise": Question("how much noise", noises),
  "b": Question("how large a reference", references),
  "c": Question("how much to filter", ratios),
  "d": Question("joint, independent or uniform", samplers),
  "e": Question("one draw, or a quota of every device", scopes),
  "f": Question("how strict a draw", gains),
  "g": Question("what is picked", picked),
  "h": Question("cached and cheap scoring", cheap),
}
# References that cells of a question need.
ALL = tuple(QUESTIONS)


def cells(study: Study, questions: Iterable[str], seeds: int) -> list[Cell]:
  """The cells of questions, each once: by question, then by seed."""
  found = (
    cell
    for name in questions
    for seed in range(seeds)
    for cell in QUESTIONS[name].cells(study, seed)
  )
  return list(dict.fromkeys(found))
