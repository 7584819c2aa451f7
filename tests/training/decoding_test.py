"""LiT-Decoder: the step by hand, and a run that learns to say what it sees."""

import copy
import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aced import config as config_lib
from aced import models
from aced.cache import write_cache
from aced.config import ConfigError
from aced.data import open_source
from aced.data.prompts import Prompted, PromptTokenizer
from aced.data.tokenizers import load as load_tokenizer
from aced.evaluation import generation, run_all
from aced.models import generate
from aced.models import params as params_lib
from aced.models.formats import read
from aced.plan import make_plan
from aced.train import train
from aced.training import decoding, optimizer, sharding, state
from aced.training.checkpoints import CheckpointError
from aced.training.input import make_transform
from aced.training.preemption import Preempted
from aced.training.session import Session
from aced.training.tracker import METRICS_FILE, read_jsonl
from aced.training.workdir import WorkdirError

TOWER = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
IMAGE = {"patch_size": (8, 8), **TOWER}
DECODER = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2}
STEPS, SIZE, LENGTH = 80, 16, 48
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
    evals={
      "captions": {"type": "captioning", "source": coloured, "batch_size": 5},
      "answers": {"type": "vqa", "source": coloured, "batch_size": 16},
      "off": {"type": "vqa", "source": ""},
    },
  )
  return config, workdir, train(config, workdir)


# The step.


@pytest.mark.parametrize(
  ("row", "want"),
  [
    # Start 7, separator 8, end 9 and padding.
    ([7, 1, 2, 8, 3, 4, 9, 9], [0, 0, 0, 1, 1, 1, 0, 0]),
    ([7, 1, 2, 8, 3, 4, 9, 0], [0, 0, 0, 1, 1, 1, 0, 0]),
    ([7, 8, 3, 9, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]),
    ([7, 1, 8, 9, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]),
    ([7, 1, 1, 1, 8, 2, 2, 2], [0, 0, 0, 0, 1, 1, 1, 1]),  # Cut: no end.
    ([7, 1, 1, 1, 1, 1, 1, 8], [0, 0, 0, 0, 0, 0, 0, 1]),
    ([7, 1, 8, 2, 8, 3, 9, 3], [0, 0, 1, 1, 1, 1, 0, 0]),  # A second one.
    ([7, 1, 8, 2, 9, 3, 8, 3], [0, 0, 1, 1, 0, 0, 0, 0]),
    ([7, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]),
  ],
)
def test_written(row, want):
  got = decoding.written(jnp.array([row, [9] * 8]), 8, 9)
  assert got.dtype == bool
  np.testing.assert_array_equal(got[0], np.array(want, bool))
  assert not got[1].any()


def batch_of(size, seed=0, masked=()):
  """Noise for pictures, and texts of scenes; some of them too long."""
  rng = np.random.default_rng(seed)
  scenes = Prompted(
    open_source("synthetic:train?size=64&asked=5"), ("caption", "vqa")
  )
  texts = [rng.choice(scenes.fields(k)["text"]) for k in range(size - 1)]
  texts.append(texts[0] + " and so on" * 9)
  mask = np.ones(size, bool)
  mask[list(masked)] = False
  return {
    "image": rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8),
    "labels": Setup.tokenizer(
      [texts[k] if mask[k] else "" for k in range(size)]
    ),
    "_mask": mask,
  }


class Setup:
  """An encoder, a decoder and a step, on some devices."""

  tokenizer = PromptTokenizer(load_tokenizer("bytes", LENGTH))

  def __init__(self, devices=8, dropout=0.0, learning_rate=1e-2):
    self.mesh = sharding.make_mesh(
      {"data": -1, "fsdp": 1}, jax.devices()[:devices]
    )
    # The encoder was trained with dropout, and is looked at without.
    self.encoder = models.build(
      {"image": {**IMAGE, "dropout": 0.5}, "text": TOWER}
    )
    self.decoder = models.build_decoder(
      {
        **TOWER,
        "vocab_size": self.tokenizer.vocab_size,
        "max_length": LENGTH,
        "dropout": dropout,
      }
    )
    config = config_lib.default().optimizer
    config.learning_rate = learning_rate
    self.optimizer = optimizer.make_optimizer(
      config, warmup_steps=0, total_steps=1000
    )
    picture = jnp.zeros((1, SIZE, SIZE, 3))
    init = jax.jit(self.encoder.init)
    self.frozen = {"encoder": init(jax.random.key(1), picture)["params"]}
    self.step = decoding.DecoderStep(
      self.encoder,
      self.decoder,
      self.optimizer,
      (self.tokenizer.separator, self.tokenizer.eos),
      self.mesh,
    )
    self.jitted = jax.jit(self.step)

  def init(self, seed=0):
    def params(rng):
      tokens, memory = jnp.zeros((1, LENGTH), jnp.int32), jnp.zeros((1, 4, 16))
      return self.decoder.init(rng, tokens, memory)["params"]

    return state.create(
      params,
      self.optimizer,
      seed=seed,
      mesh=self.mesh,
      rules=((".*", "fsdp"),),
    )

  def put(self, batch):
    return jax.tree.map(
      lambda x: jax.device_put(x, sharding.rows(self.mesh, x.ndim)), batch
    )

  def take(self, current, batch):
    current, metrics = self.jitted(current, self.frozen, self.put(batch))
    return current, {k: float(v) for k, v in metrics.items()}


@pytest.fixture(scope="module")
def setup():
  return Setup()


def by_hand(setup, params, batch):
  """The loss and the accuracy, token by token, in float64."""
  image = batch["image"].astype(np.float32) / 127.5 - 1.0
  out = setup.encoder.apply({"params": setup.frozen["encoder"]}, image)[2]
  memory, labels = out["img/encoded"], batch["labels"]
  assert memory.shape == (len(labels), (SIZE // 8) ** 2, 16)
  logits = setup.decoder.apply({"params": params}, labels[:, :-1], memory)
  logits = np.asarray(logits, np.float64)
  losses, right = [], []
  for row, ids in enumerate(labels.tolist()):
    if not batch["_mask"][row]:
      continue
    begins = ids.index(setup.tokenizer.separator)
    for place in range(begins, LENGTH - 1):
      of_next = logits[row, place]
      target = ids[place + 1]
      losses.append(np.log(np.exp(of_next).sum()) - of_next[target])
      right.append(of_next.argmax() == target)
      if target == setup.tokenizer.eos:
        break
  return np.mean(losses), np.mean(right), len(losses)


def test_the_loss_is_the_mean_over_the_tokens_behind_the_prompts(setup):
  batch = batch_of(16, masked=(2, 11))
  current = setup.init()
  # Behind a few steps some of the tokens are right.
  for _ in range(8):
    current, _ = setup.take(current, batch)
  loss, accuracy, count = by_hand(setup, jax.device_get(current.params), batch)
  after, metrics = setup.take(current, batch)
  assert 100 < count < 14 * LENGTH and 0 < accuracy < 1
  # float32 logits, and a mean over some hundred tokens.
  assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
  assert metrics["token_accuracy"] == pytest.approx(accuracy, rel=1e-6)
  assert metrics["data/masked"] == pytest.approx(2 / 16)
  assert int(after.step) == 9 and metrics["guard/skipped"] == 0


def test_a_cut_text_is_learnt_to_the_end_of_its_row(setup):
  batch = batch_of(8)
  assert setup.tokenizer.eos not in batch["labels"][-1]
  read = batch["labels"][:, :-1]
  ends = setup.tokenizer.separator, setup.tokenizer.eos
  learnt = np.asarray(decoding.written(read, *ends))
  ended = (read == setup.tokenizer.eos).any(axis=1)
  assert learnt[-1, -1] and not learnt[ended, -1].any() and ended.any()


def test_masked_rows_change_nothing(setup):
  first = setup.init()
  found = []
  for seed in (1, 2):
    batch = batch_of(16, masked=(0, 7, 15))
    other = batch_of(16, seed=seed + 5)
    for name in ("image", "labels"):
      batch[name][[0, 7, 15]] = other[name][[0, 7, 15]]
    found.append(setup.take(first, batch))
  (one, one_metrics), (two, two_metrics) = found
  assert one_metrics == two_metrics
  for a, b in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  # A row that counts does change it.
  batch["image"][1] += 40
  assert setup.take(first, batch)[1]["loss"] != one_metrics["loss"]


def test_a_batch_of_masked_rows_alone_teaches_nothing(setup):
  first = setup.init()
  after, metrics = setup.take(first, batch_of(16, masked=range(16)))
  assert metrics["loss"] == metrics["norm/gradient"] == 0.0
  assert metrics["token_accuracy"] == 0.0 and metrics["guard/skipped"] == 0.0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))


def test_the_encoder_gets_no_gradient(setup):
  current, batch = setup.init(), setup.put(batch_of(8))

  def loss(frozen, params):
    return setup.step(current.replace(params=params), frozen, batch)[1]["loss"]

  encoder, decoder = jax.jit(jax.grad(loss, (0, 1)))(
    setup.frozen, current.params
  )
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(encoder))
  assert all(np.asarray(x).any() for x in jax.tree.leaves(decoder))
  # Nor is it in the state, where an optimiser could find it.
  assert current.params.keys() == decoder.keys()


def test_the_loss_falls_on_a_fixed_batch(setup):
  current, batch, losses = setup.init(), batch_of(16), []
  for _ in range(30):
    current, metrics = setup.take(current, batch)
    losses.append(metrics["loss"])
  # Begins near that of a uniform guess; texts of bytes are mostly letters.
  assert losses[0] == pytest.approx(np.log(setup.tokenizer.vocab_size), abs=1)
  assert losses[-1] < 0.6 * losses[0]
  assert metrics["token_accuracy"] > 0.1


def test_one_and_eight_devices_are_the_same(setup):
  alone, found = Setup(devices=1), []
  for each in (alone, setup):
    current, seen = each.init(), []
    for k in range(3):
      current, metrics = each.take(current, batch_of(16, k, masked=(k,)))
      seen.append(metrics)
    found.append(seen)
  for one, eight in zip(*found, strict=True):
    assert one.keys() == eight.keys()
    for name in one:
      # The same sums in another order, and Adam's division by their roots.
      assert one[name] == pytest.approx(eight[name], rel=1e-4, abs=1e-5), name


def test_dropout_is_the_decoders_and_drawn_anew_each_step():
  setup, batch = Setup(devices=1, dropout=0.5, learning_rate=0.0), batch_of(8)
  first = setup.init()
  after, once = setup.take(first, batch)
  assert setup.take(first, batch)[1] == once
  assert setup.take(after, batch)[1]["loss"] != once["loss"]
  assert once["loss"] != by_hand(setup, first.params, batch)[0]


# The run.


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
    if step == STEPS // 2 + 3:
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
  monkeypatch.setattr(decoding, "read", lambda where: read(f"{encoder}@2"))
  with pytest.raises(CheckpointError, match=r"frozen\.encoder"):
    train(config, workdir)


def test_the_report_names_what_is_trained_and_what_is_not(
  encoder, tmp_path, capsys
):
  config = decoded(encoder, total_steps=1, log__report=True)
  assert train(config, tmp_path) == {}
  text = capsys.readouterr().err
  for part in ("decoder  ", "encoder (frozen)", "training", "GFLOPs"):
    assert part in text, part


# The encoder.


def test_the_encoder_has_its_own_towers_whatever_the_config_says(encoder):
  for changes in (
    {"student__image": {"width": 8, "depth": 3, "patch_size": (4, 4)}},
    {"student__variant": "ACED-F1", "student__image": {}, "student__text": {}},
    {"student__model": "auto"},
    {"student__bias_init": -10.0, "student__out_dim": (None, 3)},
  ):
    run = build(decoded(encoder, **changes))
    assert run.config.student.image.width == run.encoder.image["width"] == 16
    assert tuple(run.config.student.image.patch_size) == (8, 8)
    assert run.config.student.variant == "" and run.config.student.init
  image = np.random.default_rng(0).integers(
    0, 256, (3, SIZE, SIZE, 3), np.uint8
  )
  tokens = decoding.picture_tokens(run.encoder, run.frozen["encoder"], image)
  own = models.build({"image": IMAGE, "text": {**TOWER, "vocab_size": 258}})
  params = params_lib.load(encoder)
  want = own.apply({"params": params}, image)[2]["img/encoded"]
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
  tokens = decoding.picture_tokens(
    large.encoder, large.frozen["encoder"], np.zeros((2, 32, 32, 3), np.uint8)
  )
  assert tokens.shape == (2, 16, 16) and tokens.dtype == jnp.float32
  assert large.identities["frozen.encoder"] != run.identities["frozen.encoder"]


def test_a_random_encoder_is_warned_of(caplog):
  with caplog.at_level("WARNING", logger="absl"):
    run = build(decoded("random", student__image={**IMAGE, "pool_type": "tok"}))
  assert "the encoder has random weights" in caplog.text
  assert "txt" not in run.frozen["encoder"]
  # A class token sees the picture, and is none of its tokens.
  tokens = decoding.picture_tokens(
    run.encoder, run.frozen["encoder"], np.zeros((2, SIZE, SIZE, 3), np.uint8)
  )
  assert tokens.shape == (2, 4, 16)
  assert run.costs.parts["training"] == decoder_flops(4)
  assert run.costs.parts["encoder"] == 8 * 2 * tower_macs(5, patches=4)


def test_an_encoder_that_is_not_finite_is_refused(encoder, monkeypatch):
  def spoilt(where, read=decoding.read):
    found = read(where)
    params = copy.deepcopy(found.params)
    params["img"]["pos_embedding"][0, 0, 0] = np.nan
    params["txt"]["pos_embedding"][0, 0, 0] = np.nan
    return dataclasses.replace(found, params=params)

  monkeypatch.setattr(decoding, "read", spoilt)
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
  memory = decoding.picture_tokens(
    run.encoder, jax.device_get(run.frozen["encoder"]), image
  )
  options = {"eos": tokenizer.eos, "pad": tokenizer.pad, "max_length": LENGTH}
  given = run.student, params, memory, labels, ends.astype(np.int32)
  np.testing.assert_array_equal(ids, generate.greedy(*given, **options))
  beams = run.writer(num_beams=2, length_penalty=0.5)
  np.testing.assert_array_equal(
    beams(params, {"image": image, "labels": labels}),
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
    ({"frozen": {"one": {"init": "random"}}}, r"config\.frozen\.one"),
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
  with pytest.raises(ConfigError, match="'reference' is not in config.frozen"):
    write_cache(config, "reference", tmp_path / "cache")
  assert not (tmp_path / "cache").exists()
