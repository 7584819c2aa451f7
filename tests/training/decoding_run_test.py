"""Runs of a decoder: one learns to say what it sees, others are refused."""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from aced import config as config_lib
from aced import models
from aced.cache import write_cache
from aced.config import ConfigError
from aced.evaluation import generation, run_all
from aced.models import generate
from aced.models import params as params_lib
from aced.models.formats import read
from aced.plan import make_plan
from aced.train import train
from aced.training import decoding, encoders, program
from aced.training.checkpoints import CheckpointError
from aced.training.input import make_transform
from aced.training.preemption import Preempted
from aced.training.session import Session
from aced.training.tracker import METRICS_FILE, read_jsonl
from aced.training.workdir import WorkdirError
from tests.training.decoding_test import IMAGE, LENGTH, SIZE, TOWER

DECODER = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2}
STEPS = 80
COLOURS = {
  "red": (255, 0, 0),
  "green": (0, 255, 0),
  "blue": (0, 0, 255),
  "gray": (128, 128, 128),
}


def base(**changes):
  """A tiny config of a contrastive run, with `section__key` changes."""
  config = config_lib.default()
  config.batch_size, config.total_steps = 8, 3
  config.input.update(
    source="synthetic:train?size=64&image_size=16",
    image_size=SIZE,
    text_length=LENGTH,
  )
  config.student.image.update(IMAGE)
  config.student.text.update(TOWER)
  config.student.out_dim = (None, 16)
  config.log.update(every_steps=1, progress=False, report=False)
  plain = config_lib.to_plain(config)
  for key, value in changes.items():
    *sections, field = key.split("__")
    table = plain
    for section in sections:
      table = table[section]
    table[field] = value
  return plain


def decoded(where="random", **changes):
  """A tiny config of a decoder's run."""
  given = {
    "student__init": str(where),
    "decoder__model": DECODER,
    "input__source": "synthetic:train?size=64&image_size=16&asked=5",
    **changes,
  }
  return base(**given)


def build(config):
  return decoding.build(config_lib.resolve(config))


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
  """Programs are compiled once: most of a run's time is that."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  """The workdir of an earlier run of ours, with two checkpoints."""
  workdir = tmp_path_factory.mktemp("encoder") / "run"
  train(base(total_steps=2, checkpoint__every_steps=1), workdir)
  return workdir


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
  """Pictures of one colour each, with captions and questions."""
  folder = tmp_path_factory.mktemp("coloured")
  lines = []
  for k, (name, value) in enumerate([*COLOURS.items()] * 2):
    pixels = np.full((SIZE, SIZE, 3), value, np.uint8)
    Image.fromarray(pixels).save(folder / f"{k}.png")
    questions = {"what color?": name, "is it blue?": "ny"[name == "blue"]}
    lines.append(
      {
        "image": f"{k}.png",
        "text": f"a {name} square on its own",
        "questions": [
          {"question": q, "answers": [a]} for q, a in questions.items()
        ],
      }
    )
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return f"jsonl:{path}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, encoder, coloured):
  """A run of a decoder that nothing disturbs: config, workdir, scores."""
  workdir = tmp_path_factory.mktemp("decoder") / "whole"
  config = decoded(
    f"{encoder}@1",
    total_steps=STEPS,
    input__source=coloured,
    optimizer__learning_rate=0.01,
    eval__every_steps=STEPS // 2,
    checkpoint__best="eval/answers/exact_match",
    log__report=True,
    evals={
      "captions": {"type": "captioning", "source": coloured, "batch_size": 5},
      "answers": {"type": "vqa", "source": coloured, "batch_size": 16},
      "off": {"type": "vqa", "source": ""},
    },
  )
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    scores = train(config, workdir)
  for part in ("decoder  ", "encoder (frozen)", "training", "1.00 times"):
    assert part in said.getvalue(), part
  config["log"]["report"] = False
  return config, workdir, scores


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


# The encoder.


def tokens_of(run, image):
  """Tokens of pictures, on one device."""
  tokens = jax.jit(functools.partial(decoding.picture_tokens, run.encoder))
  return tokens(jax.device_get(run.frozen["encoder"]), image)


def test_the_encoder_has_its_own_towers_whatever_the_config_says(encoder):
  for changes in (
    {
      "student__image": {"width": 8, "depth": 3, "patch_size": (4, 4)},
      "student__bias_init": -10.0,
      "student__out_dim": (None, 3),
    },
    {
      "student__variant": "ACED-F1",
      "student__image": {},
      "student__text": {},
      "student__model": "auto",
    },
  ):
    run = build(decoded(encoder, **changes))
    assert run.config.student.image.width == run.encoder.image["width"] == 16
    assert tuple(run.config.student.image.patch_size) == (8, 8)
    assert run.config.student.variant == "" and run.config.student.init
  image = np.random.default_rng(0).integers(
    0, 256, (3, SIZE, SIZE, 3), np.uint8
  )
  tokens = tokens_of(run, image)
  own = models.build({"image": IMAGE, "text": {**TOWER, "vocab_size": 258}})
  params = params_lib.load(encoder)
  want = jax.jit(own.apply)({"params": params}, image)[2]["img/encoded"]
  # One program is whole and one is taken in pieces.
  np.testing.assert_allclose(tokens, want, atol=1e-5)
  # What it resolves to is what resuming compares: it comes to itself.
  again = decoding.build(run.config)
  assert config_lib.differences(run.config, again.config) == []
  assert again.identities == run.identities


def test_pictures_of_another_size_are_resampled_with_a_warning(encoder, caplog):
  with caplog.at_level("WARNING", logger="absl"):
    run = build(decoded(encoder))
  assert "resampled" not in caplog.text
  with caplog.at_level("WARNING", logger="absl"):
    large = build(decoded(encoder, input__image_size=32))
  assert "saw pictures of 16 px, and sees 32 px" in caplog.text
  old, new = (
    np.asarray(x.frozen["encoder"]["img"]["pos_embedding"])
    for x in (run, large)
  )
  assert old.shape == (1, 4, 16) and new.shape == (1, 16, 16)
  # A corner of a bilinear 2 x 2 -> 4 x 4 is that of the smaller grid.
  grid = new.reshape(4, 4, 16)
  np.testing.assert_allclose(grid[::3, ::3].reshape(4, 16), old[0], atol=1e-6)
  mean = 0.75 * old[0, 0] + 0.25 * old[0, 1]
  np.testing.assert_allclose(grid[0, 1], mean, atol=1e-6)
  tokens = tokens_of(large, np.zeros((2, 32, 32, 3), np.uint8))
  assert tokens.shape == (2, 16, 16) and tokens.dtype == jnp.float32
  assert large.identities["frozen.encoder"] != run.identities["frozen.encoder"]


def test_a_random_encoder_is_warned_of(caplog):
  with caplog.at_level("WARNING", logger="absl"):
    run = build(decoded("random", student__image={**IMAGE, "pool_type": "tok"}))
  assert "the encoder has random weights" in caplog.text
  assert "txt" not in run.frozen["encoder"]
  # A class token sees the picture, and is none of its tokens.
  tokens = tokens_of(run, np.zeros((2, SIZE, SIZE, 3), np.uint8))
  assert tokens.shape == (2, 4, 16)
  assert not run.recipe.dropout  # Of which a run that moves is warned.
  dropped = decoded(decoder__model={**DECODER, "dropout": 0.1})
  assert build(dropped).recipe.dropout
  assert run.costs.parts["training"] == decoder_flops(4)
  assert run.costs.parts["encoder"] == 8 * 2 * tower_macs(5, patches=4)


def test_an_encoder_that_is_not_finite_is_refused(encoder, monkeypatch):
  def spoilt(where, read=encoders.read):
    found = read(where)
    params = copy.deepcopy(found.params)
    params["img"]["pos_embedding"][0, 0, 0] = np.nan
    params["txt"]["pos_embedding"][0, 0, 0] = np.nan
    return dataclasses.replace(found, params=params)

  monkeypatch.setattr(encoders, "read", spoilt)
  with pytest.raises(
    params_lib.ParamsError, match="1 parameters .* pos_embedding; name an earl"
  ):
    build(decoded(encoder))


def test_a_decoder_is_no_encoder(whole):
  _, workdir, _ = whole
  with pytest.raises(params_lib.ParamsError, match="decoder"):
    build(decoded(workdir))


# Costs, by hand.


def tower_macs(tokens, patches, width=16, hidden=16):
  """Of blocks and patches; no pooling, which tokens come before."""
  attention = 4 * tokens * width**2 + 2 * tokens**2 * width
  mlp = 2 * tokens * width * hidden
  return patches * (8 * 8 * 3) * width + attention + mlp


def decoder_flops(memory, batch=8):
  """Of a step: 2 FLOPs a product, thrice for forward and backward."""
  d, hidden, length, vocabulary = 32, 64, LENGTH - 1, 256 + 2 + 3
  own = 4 * length * d * d + 2 * length * length * d
  cross = 2 * length * d * d + 2 * memory * 16 * d + 2 * length * memory * d
  mlp = 2 * length * d * hidden
  return 2 * 3 * batch * (own + cross + mlp + length * d * vocabulary)


@pytest.mark.parametrize("size", [16, 32])
def test_costs(encoder, size):
  costs = build(decoded(encoder, input__image_size=size)).costs
  patches = (size // 8) ** 2
  assert costs.parts == {
    "training": decoder_flops(patches),
    "encoder": 8 * 2 * tower_macs(patches, patches),
  }
  assert costs.total == costs.iid == sum(costs.parts.values())
  assert costs.trained == 8 and costs.scored == 0


# What is written.


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


# What is refused.

VQA = {"type": "vqa", "source": "synthetic:val?size=8&image_size=16&asked=1"}
ZERO_SHOT = {"type": "zero_shot", "source": "synthetic:classes?size=8"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"student__init": ""}, r"config\.student\.init is empty"),
    ({"student__init": "/nowhere/at/all"}, "no weights at '/nowhere/at/all'"),
    (
      {
        "curation": {
          "method": "joint",
          "score": "hard",
          "filter_ratio": 0.5,
          "num_chunks": 2,
        }
      },
      r"config\.curation\.method='joint'",
    ),
    (
      {
        "curation__method": "independent",
        "curation__filter_ratio": 0.5,
        "curation__score": "hard",
      },
      r"config\.curation\.method='independent'",
    ),
    (
      {
        "frozen": {"one": {"init": "random"}},
        "distillation__weight": 1.0,
        "distillation__teachers": {"one": 1.0},
      },
      r"config\.distillation\.weight=1\.0",
    ),
    ({"frozen": {"one": {"init": "random"}}}, r"config.frozen names one"),
    (
      {"accumulation__microbatch": 8, "batch_size": 16},
      r"config\.accumulation\.microbatch=8",
    ),
    ({"decoder__tasks": ()}, "must be some of caption, vqa"),
    ({"decoder__tasks": ("caption", "vqaa")}, "must be some of caption, vqa"),
    (
      {
        "decoder__tasks": ("vqa",),
        "input__source": "synthetic:train?size=64&image_size=16",
      },
      r"config\.decoder\.tasks=\('vqa',\)",
    ),
    ({"decoder__model": {**DECODER, "widht": 3}}, "widht.*mean 'width'"),
    ({"decoder__model": {"width": 16}}, "decoder"),
    (
      {"decoder__model": {**DECODER, "vocab_size": 258}},
      r"config\.decoder\.model\.vocab_size=258 is less than the 261",
    ),
    (
      {"decoder__model": {**DECODER, "max_length": 47}},
      r"config\.decoder\.model\.max_length=47 is less than the 48",
    ),
    ({"input__text_length": 7}, "text_length=7 leaves no room"),
    ({"input__image_size": 20}, "does not divide into patches"),
    ({"batch_size": 12}, "batch_size=12 does not divide"),
    ({"batch_size": 128}, "larger than the data set"),
    ({"evals": {"x": ZERO_SHOT}}, r"config\.evals\.x\.type='zero_shot' is not"),
    (
      {"evals": {"x": {**ZERO_SHOT, "type": "retrieval"}}},
      r"config\.evals\.x\.type='retrieval' is not",
    ),
    ({"evals": {"x": {**VQA, "beams": 4}}}, r"config\.evals\.x\.beams"),
    (
      {"evals": {"x": VQA}, "checkpoint__best": "eval/y/exact_match"},
      r"checkpoint\.best='eval/y/exact_match'|names none of config\.evals",
    ),
  ],
)
def test_what_is_wrong_is_told_before_anything_is_made(
  encoder, tmp_path, changes, message
):
  config = decoded(encoder, **changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["captioning", "vqa"])
def test_a_contrastive_run_has_no_captions(tmp_path, kind):
  config = base(evals={"x": {**VQA, "type": kind}})
  with pytest.raises(ConfigError, match=rf"evals\.x\.type='{kind}' is not"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_plans_and_caches_are_of_students(encoder, tmp_path):
  config = decoded(encoder)
  with pytest.raises(ConfigError, match=r"config\.decoder trains a decoder"):
    make_plan(config, "local", suggest=False)
  with pytest.raises(ConfigError, match="reads no cached embeddings"):
    write_cache(config, "reference", tmp_path / "cache")
  assert not (tmp_path / "cache").exists()
