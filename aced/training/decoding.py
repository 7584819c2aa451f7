"""LiT-Decoder (arXiv 2303.17376): a text decoder trained on a frozen encoder.

A run of `config.decoder` differs from others in its models and its step: the
encoder of `config.student.init` embeds pictures into tokens and never changes;
a decoder learns to write what follows a prompt. Several tasks, captions and
questions, are told apart by the prompt.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.data import sources
from aced.data.prompts import TASKS, Prompted, PromptTokenizer
from aced.evaluation import embed, generation
from aced.models import costs, decoder, generate, placement, variants
from aced.models import params as params_lib
from aced.models.build import towers
from aced.training import blueprint, ledger, sharding, state
from aced.training import build as build_lib
from aced.training.encoders import ENCODER, load_encoder
from aced.training.input import make_transform, open_input
from aced.training.recipe import Recipe
from aced.training.step import advance, data_metrics
from aced.training.views import STUDENT, View, Views


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderStep:
  """`train_step(state, frozen, batch) -> (state, metrics)`, pure, for jit.

  The loss is the mean over the tokens behind the prompts of their negative
  log-likelihood, in nats.

  Attributes:
    encoder: embeds pictures, with the parameters `frozen["encoder"]`.
    decoder: is trained.
    optimizer: of `make_optimizer`.
    ends: ids of the separator and of the end of a text.
    mesh: over whose devices rows are split.
  """

  encoder: nn.Module
  decoder: decoder.Decoder
  optimizer: optax.GradientTransformation
  ends: tuple[int, int]
  mesh: jax.sharding.Mesh

  def __call__(
    self, state: state.TrainState, frozen: Any, batch: Mapping[str, Any]
  ) -> tuple[state.TrainState, dict[str, jax.Array]]:
    """Takes one step."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def loss(params):
      params, encoder = apart(params, frozen)
      with placement.rows_over(self.mesh):
        memory = picture_tokens(self.encoder, encoder, batch["image"])
        memory = sharding.shard_rows(memory, self.mesh)
        return self.loss(params, memory, batch["labels"], batch["_mask"], rng)

    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    metrics |= data_metrics(batch, batch, None)
    return advance(state, self.optimizer, gradients, metrics)

  def loss(
    self,
    params: Any,
    memory: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    rng: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, and its parts by name.

    Args:
      params: of the decoder.
      memory: `(n, m, dm)`, the tokens of the pictures.
      labels: `(n, l)` integers: start, prompt, separator, text, end, padding.
      mask: `(n,)` bool; False rows do not count.
      rng: of dropout.
    """
    read, following = labels[:, :-1], labels[:, 1:]
    logits = self.decoder.apply(
      {"params": params}, read, memory, train=True, rngs={"dropout": rng}
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, following)
    weights = written(read, *self.ends) & mask[:, None]
    total = jnp.maximum(weights.sum(), 1)
    loss = (nll * weights).sum() / total
    right = (logits.argmax(-1) == following) & weights
    return loss, {"loss": loss, "token_accuracy": right.sum() / total}


def apart(params: Any, frozen: Any) -> tuple[Any, Any]:
  """Parameters of the decoder, and of the encoder.

  Args:
    params: that are trained; those of the encoder are among them where it is
      trained along.
    frozen: those of the encoder, where it is not.
  """
  if ENCODER not in params:
    return params, frozen[ENCODER]
  rest = {name: value for name, value in params.items() if name != ENCODER}
  return rest, params[ENCODER]


def written(read: jax.Array, separator: int, end: int) -> jax.Array:
  """Where the token that follows is to be learnt: behind the prompt.

  Args:
    read: `(n, l)` integers, what the decoder reads.
    separator: the id that ends a prompt.
    end: the id that ends a text.

  Returns:
    `(n, l)` bool.
  """
  begun = jnp.cumsum(read == separator, axis=1) > 0
  ended = jnp.cumsum(read == end, axis=1) > 0
  return begun & ~ended


def picture_tokens(encoder: nn.Module, params: Any, image: jax.Array):
  """Tokens of pictures, `(n, m, d)` float32, before they are pooled."""
  out = encoder.apply({"params": params}, image, None, train=False)[2]
  return out["img/encoded"].astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderRun(build_lib.Run):
  """A run whose trained model is a decoder; `student` is that decoder."""

  TRAINED = "decoder"

  # The parameters of an encoder that is trained along, before the first step.
  initial: Mapping[str, Any]

  @property
  def encoder(self) -> nn.Module:
    """What embeds pictures."""
    return self.frozen_models[ENCODER]

  @property
  def costs(self) -> ledger.Ledger:
    """FLOPs of a step: the encoder forward, the decoder forward and back."""
    image, text = self._macs()
    b, whole = self.recipe.batch_size, 1 + ledger.BACKWARD
    parts = {
      "training": 2.0 * whole * text * b,
      ENCODER: 2.0 * (1 if self.config.decoder.freeze else whole) * image * b,
    }
    return ledger.Ledger(parts, sum(parts.values()), trained=b, scored=0)

  def _macs(self):
    view = self.views[STUDENT]
    # Pooling and what follows it have no part in tokens; a class token has.
    tower = towers(self.encoder)["image"].clone(num_classes=None)
    classed = tower.pool_type == "tok"
    if not classed:
      tower = tower.clone(pool_type="none")
    image = costs.count_image(tower, view.image_size)
    text = costs.count_decoder(
      self.student,
      image.tokens - classed,
      tower_width(tower),
      view.text_length - 1,
    )
    return image.macs, text.macs

  def init_student(self, rng: jax.Array) -> Any:
    """Random parameters of the decoder."""
    view = self.views[STUDENT]
    picture = jnp.zeros((1, view.image_size, view.image_size, 3))
    memory = jax.eval_shape(
      lambda rng: self._memory(rng, picture), jax.random.key(0)
    )
    memory = jnp.zeros(memory.shape, memory.dtype)
    tokens = jnp.zeros((1, view.text_length - 1), jnp.int32)
    return self.student.init(rng, tokens, memory)["params"]

  def _memory(self, rng, picture):
    params = self.encoder.init(rng, picture, None)["params"]
    return picture_tokens(self.encoder, params, picture)

  def init_state(self) -> state.TrainState:
    """The state before the first step, on the devices."""
    return state.create(
      self.init_params,
      self.optimizer,
      seed=self.config.seed,
      mesh=self.mesh,
      rules=self.config.sharding,
      given=None if self.config.decoder.freeze else dict(self.initial),
    )

  def train_step(self, shardings: state.TrainState) -> Any:
    """The step, jitted; it takes over the buffers of the state."""
    tokenizer = self.input.tokenizer
    step = DecoderStep(
      self.encoder,
      self.student,
      self.optimizer,
      (tokenizer.separator, tokenizer.eos),
      self.mesh,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

  def evaluators(self) -> list[generation.Generation]:
    """The evaluators of `config.evals`; an empty source turns one off."""
    transform = make_transform(self.config.input, train=False)
    return [
      generation.build(name, table.to_dict(), self.input.tokenizer, transform)
      for name, table in self.config.evals.items()
      if table.get("source") != ""
    ]

  def evaluated(self) -> tuple[Any, ...]:
    """`generate(params, rows)`: what the evaluators know the model by."""
    write = self.writing.writer()
    return (lambda params, rows: write(apart(params, self.frozen), rows),)

  @property
  def writing(self) -> "Writing":
    """The models, and how they write."""
    return Writing(self.encoder, self.student, self.input.tokenizer, self.mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Writing:
  """An encoder and a decoder, and how they write.

  Attributes:
    encoder: embeds pictures.
    decoder: writes.
    tokenizer: of prompts.
    mesh: over whose devices rows are split.
  """

  encoder: nn.Module
  decoder: decoder.Decoder
  tokenizer: PromptTokenizer
  mesh: jax.sharding.Mesh

  def writer(self, num_beams: int = 1, length_penalty: float = 0.0) -> Any:
    """Returns `write(params, rows) -> ids`, `(n, l)` int32.

    Its `params` are `(those of the decoder, those of the encoder)`, its rows
    `image` `(n, h, w, 3)` and `labels` `(n, l)`, prompts of `tokenizer`.

    Args:
      num_beams: of beam search; 1 is greedy.
      length_penalty: of beam search, see `generate.beam`.

    Raises:
      ValueError: as `generate.beam`, also where one beam makes no use of it.
    """
    generate.check_search(self.decoder, num_beams, length_penalty)
    options = {
      "eos": self.tokenizer.eos,
      "pad": self.tokenizer.pad,
      "max_length": self.tokenizer.length,
      "mesh": self.mesh,
    }
    write_all = generate.greedy
    if num_beams != 1:
      options |= {"num_beams": num_beams, "length_penalty": length_penalty}
      write_all = generate.beam

    def write(params, rows):
      params, frozen = params
      memory = picture_tokens(self.encoder, frozen, rows["image"])
      ends = rows["labels"] == self.tokenizer.separator
      lengths = jnp.argmax(ends, axis=1).astype(jnp.int32) + 1
      found = write_all(
        self.decoder, params, memory, rows["labels"], lengths, **options
      )
      return found if num_beams == 1 else found[0]

    return embed.split_rows(write, self.mesh)


def tower_width(tower: nn.Module) -> int:
  """Width of the tokens of an image tower."""
  return variants.expand_image(tower).width


def build(config: ConfigDict) -> DecoderRun:
  """Builds the objects of a resolved config with a decoder.

  Raises:
    ConfigError: the config is wrong, or at odds with the data or the devices.
    ValueError: a source, a tokenizer or weights are wrong; says how.
  """
  mesh = sharding.make_mesh(config.mesh)
  recipe = Recipe.from_config(config)
  recipe.check(mesh)
  asked = bool(config.decoder.tasks)
  config = config_lib.complete(config)
  config.decoder.tasks = config.decoder.tasks or TASKS
  source = Prompted(
    sources.open_source(config.input.source), config.decoder.tasks
  )
  source.check(all_tasks=asked)
  build_lib.check_size(config, recipe, source)
  inputs = open_input(config, source)
  tokenizer = PromptTokenizer(inputs.tokenizer)
  inputs = dataclasses.replace(inputs, tokenizers={View().labels: tokenizer})
  config, encoder, params = load_encoder(config)
  view = View(
    image_size=config.input.image_size,
    tokenizer=config.input.tokenizer,
    text_length=config.input.text_length,
  )
  total_steps = config_lib.steps(
    "total", config, batch_size=recipe.batch_size, data_size=len(source)
  )
  fingerprint = params_lib.fingerprint(params)
  placed = jax.device_put(
    params, sharding.by_rules(params, config.frozen_sharding, mesh)
  )
  model = make_decoder(config, tokenizer.vocab_size)
  return DecoderRun(
    config=config,
    mesh=mesh,
    recipe=dataclasses.replace(recipe, dropout=model.dropout > 0),
    student=model,
    frozen_models={ENCODER: encoder},
    views=Views({STUDENT: view, ENCODER: view}),
    cached={},
    optimizer=blueprint.make_optimizer(config, len(source), total_steps),
    total_steps=total_steps,
    input=inputs,
    frozen={ENCODER: placed} if config.decoder.freeze else {},
    initial={} if config.decoder.freeze else {ENCODER: placed},
    caches={},
    identities={f"frozen.{ENCODER}": fingerprint, **inputs.identities()},
    every=build_lib.intervals(config, recipe, len(source), total_steps),
  )


def make_decoder(config: ConfigDict, vocab_size: int) -> decoder.Decoder:
  """The decoder of a resolved config.

  Raises:
    ConfigError: it has fewer ids, or positions, than texts have.
    ValueError: a field that is wrong.
  """
  fields = {k: v for k, v in config.decoder.model.items() if v not in ((), "")}
  length = config.input.text_length
  model = decoder.build_decoder(
    {"vocab_size": vocab_size, "max_length": length, **fields}
  )
  for name, least in (("vocab_size", vocab_size), ("max_length", length)):
    if getattr(model, name) < least:
      raise config_lib.ConfigError(
        f"config.decoder.model.{name}={getattr(model, name)} is less than the"
        f" {least} of the texts; leave it out."
      )
  return model
