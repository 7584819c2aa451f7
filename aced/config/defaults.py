"""Every key of a config, with its default."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

DURATIONS = ("steps", "examples", "epochs", "percent")


def default() -> ConfigDict:
  """Returns a config with every key: an IID run on the built-in data set."""
  config = ConfigDict()
  config.name = "aced"
  config.seed = 0
  config.batch_size = 1024  # b: pairs trained on in each step.
  config.loss = "sigmoid"  # The contrastive loss: sigmoid or softmax.
  config.loss_form = "auto"  # dense, ring (block by block), or auto, by size.
  config.update(durations("total", percent=False))

  config.input = _input()
  config.student = model()
  # name -> `frozen_model`, with `init` saying whence its weights come.
  # Frozen models are never trained, saved or given to the optimiser.
  config.frozen = ConfigDict()

  config.curation = ConfigDict()
  config.curation.method = "uniform"  # joint, independent or uniform.
  config.curation.score = "learnability"  # learnability, easy_reference, hard.
  config.curation.filter_ratio = 0.0  # Share of the super-batch *discarded*.
  config.curation.num_chunks = 16
  config.curation.gain = 1.0
  config.curation.temperature = 1.0
  config.curation.reference = ""  # A name in `frozen`.
  # global: the best of the super-batch; per_device: a quota of each device's.
  config.curation.scope = "global"
  config.curation.kernel = "xla"  # xla, or pallas: one fused kernel.

  config.distillation = ConfigDict()
  config.distillation.loss = "softmax"  # softmax, sigmoid or feature.
  config.distillation.weight = 0.0  # lambda; 0 is no distillation.
  config.distillation.teachers = ConfigDict()  # name in `frozen` -> weight.
  config.distillation.batch = "curated"  # curated, or iid (IIDistill).

  config.decoder = _decoder()
  config.scoring = _scoring()
  config.accumulation = ConfigDict()
  # Examples of one forward and backward pass, on all devices together; the
  # gradient is that of the whole batch all the same, up to what dropout and
  # cheap scoring draw. 0 is all of them.
  config.accumulation.microbatch = 0

  config.optimizer = _optimizer()

  config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # -1: what is left.
  # First match wins: (regex of the parameter's name, "replicate" or "fsdp").
  config.sharding = ((".*", "fsdp"),)
  config.frozen_sharding = ((".*", "fsdp"),)

  config.checkpoint = ConfigDict()
  config.checkpoint.update(durations("every", percent=True))
  config.checkpoint.keep_last = 2  # One more, should the newest be damaged.
  # Those of steps that are multiples of this stay for good; none by default.
  config.checkpoint.update(durations("keep_every", percent=True))
  # The evaluation metric, larger is better, whose best step is kept as well.
  config.checkpoint.best = ""
  # How long the last one is tried again where it cannot be saved.
  config.checkpoint.patience_seconds = 600.0

  # name -> evaluator: {"type": "zero_shot" or "retrieval", "source": ...}.
  config.evals = ConfigDict()
  config.eval = ConfigDict()
  config.eval.update(durations("every", percent=True))

  config.log = ConfigDict()
  config.log.update(durations("every", percent=True))
  config.log.trackers = ()  # Beside JSON lines: "tensorboard", "wandb".
  config.log.progress = True  # The progress bar.
  config.log.report = True  # The start-up report.
  # Times in a run that what curation kept and dropped is written down.
  config.log.picks = 6
  config.log.page = True  # report.html, at the end of the run.
  config.guards = _guards()
  return lock(config)


def lock(config: ConfigDict) -> ConfigDict:
  """Locks every table but those whose keys are free."""
  config.lock()
  for table in (config.frozen, config.evals, config.distillation.teachers):
    table.unlock()
  for table in (config.student.image, config.student.text):
    table.unlock()
  config.decoder.model.unlock()
  return config


def _input() -> ConfigDict:
  """What is read, and how it becomes arrays."""
  config = ConfigDict()
  config.source = "synthetic:train"
  config.image_size = 32
  config.resize = "bilinear"  # bilinear or bicubic, antialiased.
  config.crop_scale = ()  # (least, most) area of a random resized crop.
  config.flip = False
  config.tokenizer = "bytes"
  config.text_length = 64
  # Whether JPEGs may be decoded at a fraction of their size, no smaller than
  # what is wanted: faster, and fine detail differs by a level or two of 255.
  config.shrink = True
  config.num_threads = 2  # That read, where no processes do.
  config.num_workers = 0  # Processes; 0 reads in threads of this one.
  config.prefetch = 2  # Super-batches kept ready, on the host and on devices.
  # How long one record may take before it is named, and its process ended.
  config.stall_seconds = 60.0
  return config


def model() -> ConfigDict:
  """A model: its kind, its towers and its initial weights."""
  config = ConfigDict()
  # two_towers; "family:name" of another package; or "auto": what the weights in
  # `init` say, in the place of the fields below.
  config.model = "two_towers"
  config.variant = ""  # A named pair, such as ACED-F1, instead of both towers.
  # Fields of the towers, checked by the model: width, depth, variant, ...
  config.image = ConfigDict(convert_dict=True)
  config.text = ConfigDict(convert_dict=True)
  config.out_dim = ()  # Width of (image head or None, text head).
  config.temperature_init = 10.0
  config.bias_init = placeholder(float)
  config.init = ""  # A checkpoint or .npz to start from; "" is random.
  return config


def frozen_model() -> ConfigDict:
  """A frozen model: as `model`, and what it sees in the place of the student.

  0 and "" are what `input` says.
  """
  config = model()
  config.cache = ""  # The folder of its embeddings, from `aced.cache`.
  config.image_size = 0
  config.tokenizer = ""
  config.text_length = 0
  return config


def _decoder() -> ConfigDict:
  """A text decoder that is trained on the frozen student (LiT-Decoder)."""
  config = ConfigDict()
  # Fields of `models.decoder.Decoder`; without any, the student is trained.
  config.model = ConfigDict(convert_dict=True)
  # What is learnt, each in equal parts: "caption" and "vqa"; () is both, as far
  # as the data have them.
  config.tasks = ()
  config.freeze = True  # The encoder; or it is trained along (a captioner).
  return config


def _scoring() -> ConfigDict:
  """How the super-batch is embedded to be scored (Flexi-JEST)."""
  config = ConfigDict()
  # Examples embedded at a time, on all devices together; 0 is all of them.
  config.microbatch = 0
  config.patch_size = 0  # Of the image tower, in pixels; 0 is its own.
  config.resolution = 0  # Of the pictures, in pixels; 0 is input.image_size.
  config.token_drop = 0.0  # Share of the patch tokens that are left out.
  # With any of these: share of each trained batch embedded in the same way.
  config.cotrain = 0.5
  # Whether the reference is scored so too; it should have been trained so.
  config.reference = False
  return config


def _guards() -> ConfigDict:
  """When a run stops, and when it warns; none changes what is learnt."""
  config = ConfigDict()
  # Steps in a row whose loss or gradient is not finite, which change nothing;
  # one more ends the run.
  config.skip_limit = 10
  # Alarms; 0 turns one off. A loss so many times the median of those before.
  config.loss_spike = 3.0
  # An effective sample size of a draw (candidates) that stays below this.
  config.least_candidates = 1.5
  # The same records chosen again and again, judged over so many epochs.
  config.repeat_epochs = 8
  # Stacks of all threads are dumped where a step takes so many times the
  # median of those before, and at least so long.
  config.stall_factor = 10.0
  config.stall_seconds = 30.0
  return config


def _optimizer() -> ConfigDict:
  """Adam with decoupled weight decay, as the papers use it."""
  config = ConfigDict()
  config.learning_rate = 1e-3
  config.weight_decay = 1e-4
  config.b1 = 0.9
  config.b2 = 0.95
  config.eps = 1e-8
  config.clip = 1.0  # Global norm of the gradient; 0 is no clipping.
  config.decay = "cosine"  # cosine, linear or constant.
  config.update(durations("warmup", percent=True))
  # First match wins: (regex of the parameter's name, multiplier). A learning
  # rate multiplier of 0 freezes the parameter.
  config.learning_rate_rules = ()
  config.weight_decay_rules = ((".*/kernel", 1.0), (".*", 0.0))
  config.mu_dtype = "float32"
  return config


def durations(prefix: str, *, percent: bool) -> dict[str, Any]:
  """Returns empty keys `{prefix}_{unit}`, of which one is to be set."""
  units = DURATIONS if percent else DURATIONS[:-1]
  return {
    f"{prefix}_{u}": placeholder(float if u in ("epochs", "percent") else int)
    for u in units
  }
