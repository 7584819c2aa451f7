"""Runs of a decoder: one learns to say what it sees."""

import copy
import signal

import jax
import numpy as np
import pytest

from aced.evaluation import generation, run_all
from aced.models import generate
from aced.models import params as params_lib
from aced.models.formats import read
from aced.train import train
from aced.training import encoders, program
from aced.training.checkpoints import CheckpointError
from aced.training.input import make_transform
from aced.training.preemption import Preempted
from aced.training.session import Session
from aced.training.tracker import METRICS_FILE, read_jsonl
from aced.training.workdir import WorkdirError
from tests.training.decoders import (
  DECODER,
  STEPS,
  build,
  decoded,
  tokens_of,
)
from tests.training.decoding_test import LENGTH


def test_a_run_learns_to_say_what_it_sees(whole):
  config, workdir, scores = whole
  # Colours are to be known by the picture alone: a guess is right in 1 of 4.
  assert scores["eval/answers/exact_match"] == 1.0
  assert scores["eval/answers/accuracy"] == 1.0
  assert scores["eval/captions/bleu_4"] == pytest.approx(1.0)
  assert scores["eval/captions/cider_d"] > 5
  assert not [name for name in scores if "failed" in name or "off" in name]
  lines = read_jsonl(workdir / METRICS_FILE)
  losses = [line["loss"] for line in lines if "loss" in line]
  assert len(losses) == STEPS and losses[-1] < 0.2 < 2 < losses[0]
  tested = [x["step"] for x in lines if "eval/answers/exact_match" in x]
  assert tested == [STEPS // 2, STEPS]
  assert train(config, workdir) == scores  # Nothing is left but to evaluate.


def test_scores_are_those_of_the_saved_weights(whole, coloured):
  config, workdir, scores = whole
  run = build(config)
  params = params_lib.load(f"{workdir}@best")
  (write,) = run.evaluated()
  found = run_all(run.evaluators(), lambda rows: write(params, rows))
  assert {f"eval/{k}": v for k, v in found.items()} == scores
  # And not those of other weights, nor of other pictures.
  other = jax.device_get(run.init_state().params)
  (answers,) = (e for e in run.evaluators() if e.name == "answers")
  assert answers.run(lambda x: write(other, x))["exact_match"] < 0.5

  def blind(rows):
    return write(params, rows | {"image": np.zeros_like(rows["image"])})

  assert answers.run(blind)["exact_match"] <= 0.5


def test_the_encoder_stays_as_it_was(whole, encoder):
  config, workdir, _ = whole
  theirs = params_lib.flatten(params_lib.load(f"{encoder}@1"))
  run = build(config)
  ours = params_lib.flatten(jax.device_get(run.frozen["encoder"]))
  assert set(ours) == {k for k in theirs if not k.startswith("txt/")}
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name])
  # What is saved is the decoder, and no more.
  saved = params_lib.flatten(params_lib.load(workdir))
  assert saved.keys() == params_lib.flatten(run.init_state().params).keys()
  assert not {k for k in saved if k.startswith(("img", "encoder/"))}


@pytest.mark.slow
def test_a_stopped_run_comes_to_the_same_end(whole, tmp_path, monkeypatch):
  config, workdir, scores = whole
  took = Session.took

  def stopped(self, step, *args):
    took(self, step, *args)
    if step == STEPS // 2 - 3:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(Session, "took", stopped)
    with pytest.raises(Preempted):
      train(config, tmp_path)
  assert len(read_jsonl(tmp_path / METRICS_FILE)) < STEPS
  assert train(config, tmp_path) == scores
  ours, theirs = (
    params_lib.flatten(params_lib.load(w)) for w in (tmp_path, workdir)
  )
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
  curves = [
    {x["step"]: x["loss"] for x in read_jsonl(w / METRICS_FILE) if "loss" in x}
    for w in (tmp_path, workdir)
  ]
  assert curves[0] == curves[1] and len(curves[0]) == STEPS


def test_a_run_does_not_go_on_with_another_encoder(whole, encoder, monkeypatch):
  config, workdir, _ = whole
  other = copy.deepcopy(config)
  other["student"]["init"] = f"{encoder}@2"
  with pytest.raises(WorkdirError, match=r"student\.init: .*@1 -> .*@2"):
    train(other, workdir)
  # Nor where other weights have come to stand there.
  monkeypatch.setattr(encoders, "read", lambda where: read(f"{encoder}@2"))
  with pytest.raises(CheckpointError, match=r"frozen\.encoder"):
    train(config, workdir)


@pytest.mark.faults  # Half a minute of compiling.
def test_split_parameters_are_gathered_and_activations_stay():
  """Left alone, XLA sends seven times the parameters' bytes of activations."""
  config = decoded(
    batch_size=64, mesh__fsdp=4, decoder__model={**DECODER, "depth": 2}
  )
  run = build(config)
  first = run.init_state()
  with run.batches(0) as batches:
    batch, _ = next(batches)
  where = jax.tree.map(lambda x: x.sharding, first)
  step = run.train_step(where).lower(first, run.frozen, batch).compile()
  moved = program.collectives(step.as_text())
  size = sum(4 * x.size for x in jax.tree.leaves((first.params, run.frozen)))
  # Gathered forwards and backwards, and gradients reduced once.
  assert sum(kind.bytes for kind in moved.values()) < 4 * size


def test_writing_pads_rows_and_leaves_prompts_alone(whole):
  config, workdir, _ = whole
  run, params = build(config), params_lib.load(workdir)
  (write,) = run.evaluated()
  tokenizer = run.input.tokenizer
  transform = make_transform(run.config.input, train=False)
  source = generation.VQA(run.input.source.source, tokenizer, transform).source
  records = [source[k] for k in (3, 0, 14, 7, 9)]  # Five rows, eight devices.
  image = np.stack([transform(record, None) for record in records])
  labels = tokenizer([record["text"] for record in records])
  ids = np.asarray(write(params, {"image": image, "labels": labels}))
  assert ids.shape == (5, LENGTH) and ids.dtype == np.int32
  ends = (labels == tokenizer.separator).argmax(axis=1) + 1
  for row, given, end, record in zip(ids, labels, ends, records, strict=True):
    np.testing.assert_array_equal(row[:end], given[:end])
    assert tokenizer.decode(row) == record["references"][0]
    assert row[-1] == tokenizer.eos  # They are short.
  # The same on one device, and as beam search has it.
  memory = tokens_of(run, image)
  options = {"eos": tokenizer.eos, "pad": tokenizer.pad, "max_length": LENGTH}
  given = run.student, params, memory, labels, ends.astype(np.int32)
  np.testing.assert_array_equal(ids, generate.greedy(*given, **options))
  beams = run.writing.writer(num_beams=2, length_penalty=0.5)
  both = params, run.frozen["encoder"]
  np.testing.assert_array_equal(
    beams(both, {"image": image, "labels": labels}),
    generate.beam(*given, num_beams=2, length_penalty=0.5, **options)[0],
  )
