"""The step of a decoder, against the same thing done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import config as config_lib
from aced import models
from aced.data import open_source
from aced.data.prompts import Prompted, PromptTokenizer
from aced.data.tokenizers import load as load_tokenizer
from aced.models import params as params_lib
from aced.training import decoding, optimizer, sharding, state

TOWER = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
IMAGE = {"patch_size": (8, 8), **TOWER}
SIZE, LENGTH = 16, 48


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

  def __init__(self, devices, dropout=0.0):
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
    config.learning_rate = 1e-2
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
  return Setup(devices=1)


def by_hand(setup, params, batch):
  """The loss and the accuracy, token by token, in float64."""
  image = batch["image"].astype(np.float32) / 127.5 - 1.0
  labels = batch["labels"]
  memory = jax.jit(
    lambda params: setup.encoder.apply({"params": params}, image)[2]
  )(setup.frozen["encoder"])["img/encoded"]
  assert memory.shape == (len(labels), (SIZE // 8) ** 2, 16)
  logits = jax.jit(setup.decoder.apply)(
    {"params": params}, labels[:, :-1], memory
  )
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


def test_the_encoder_stays_as_it_is_unless_it_is_among_what_is_trained(setup):
  current, batch = setup.init(), batch_of(16)
  params = jax.device_get(current.params)
  assert "encoder" not in params
  after, metrics = setup.take(current, batch)
  assert after.params.keys() == params.keys()
  along = {**params, "encoder": jax.device_get(setup.frozen["encoder"])}
  assert decoding.apart(params, setup.frozen) == (
    params,
    setup.frozen["encoder"],
  )
  rest, encoder = decoding.apart(along, {})
  assert rest == params and encoder is along["encoder"]
  # Trained along, all that tokens come of moves, and the decoder as before.
  trained = current.replace(params=along, opt_state=setup.optimizer.init(along))
  moved, with_encoder = jax.jit(setup.step)(trained, {}, batch)
  # Another program of the same sums.
  assert float(with_encoder["loss"]) == pytest.approx(metrics["loss"], rel=1e-6)
  assert with_encoder["norm/gradient"] > metrics["norm/gradient"]
  for name, value in params_lib.flatten(moved.params["encoder"]).items():
    still = np.array_equal(value, params_lib.flatten(along["encoder"])[name])
    # What pools tokens takes no part; a bias of keys changes no softmax.
    if name.startswith(("img/MAPHead_0", "t", "b")) or "key/bias" in name:
      continue
    assert not still, name


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
  found = []
  for each in (setup, Setup(devices=8)):
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


def test_dropout_is_the_decoders_and_drawn_anew_each_step(setup):
  batch = batch_of(16)
  dropped = Setup(devices=1, dropout=0.5)
  first = dropped.init()
  once = dropped.take(first, batch)[1]
  assert dropped.take(first, batch)[1] == once
  later = first.replace(step=first.step + 1)
  assert dropped.take(later, batch)[1]["loss"] != once["loss"]
  assert setup.take(setup.init(), batch)[1]["loss"] != once["loss"]
