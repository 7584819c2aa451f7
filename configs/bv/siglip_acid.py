"""SigLIP with ACID in big_vision's trainer: a config of big_vision's, for us.

    git clone https://github.com/google-research/big_vision
    PYTHONPATH=big_vision python -m aced.bv.trainer \\
        --config configs/bv/siglip_acid.py --workdir runs/bv_acid

Twelve steps on drawn scenes, within a minute on a laptop: it shows that all
parts work, not that anything is learnt. Variants, after a colon:
  acid    curation by a reference; the default
  aced    the reference teaches as well
  siglip  none of it: what big_vision's own trainer does
For a real run set `data`, `model_init` of the reference and the sizes.
"""

from ml_collections import ConfigDict

import aced.bv

aced.bv.register()

VARIANTS = ("acid", "aced", "siglip")


def towers(width, heads):
  """Fields of big_vision's two towers, tiny ones."""
  shape = {"width": width, "depth": 1, "mlp_dim": 4 * width}
  shape |= {"num_heads": heads, "scan": True}
  return {
    "image": {"patch_size": (16, 16), "pool_type": "map", **shape},
    "text": {"vocab_size": 258, **shape},
    "out_dim": (None, width),
    "temperature_init": 10.0,
    "bias_init": -4.0,
  }


def get_config(arg=None):
  variant = arg or "acid"
  if variant not in VARIANTS:
    raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}.")
  config = ConfigDict()
  config.seed = 0
  config.total_steps = 12
  config.log_training_steps = 4
  config.ckpt_steps = 6

  config.input = {}
  config.input.batch_size = 16  # Trained on; 80 are loaded at 0.8.
  source = "synthetic:train?size=400&noise=0.6"
  config.input.data = {"name": "bv:aced", "source": source}
  keep = 'keep("image", "labels", "_mask", "fault")'
  config.input.pp = (
    f'aced_decode(32)|aced_tokenize("bytes", 64)|value_range(-1, 1)|{keep}'
  )
  config.pp_modules = ["ops_general", "ops_image"]

  config.model_name = "proj.image_text.two_towers"
  config.model = towers(32, 2)

  config.optax_name = "aced.scale_by_adam"
  config.lr = 1e-3
  config.wd = 1e-4
  config.grad_clip_norm = 1.0
  config.schedule = {"decay_type": "cosine", "warmup_steps": 2}

  config.mesh = [("data", -1)]
  config.sharding_strategy = [(".*", 'aced_fsdp(axis="data")')]
  config.sharding_rules = [("act_batch", "data")]

  evaluator = {"tokenizer": "bytes", "text_length": 64, "image_size": 32}
  evaluator["log_steps"] = 12
  config.evals = {}
  config.evals.retrieval = {
    "type": "aced.retrieval",
    "source": "synthetic:val?size=64",
    **evaluator,
  }
  config.evals.zero_shot = {
    "type": "aced.zero_shot",
    "source": "synthetic:classes?size=64",
    **evaluator,
  }

  if variant == "siglip":
    return config
  config.curation = {
    "method": "joint",
    "score": "learnability",
    "filter_ratio": 0.8,
    "num_chunks": 4,
    "reference": "large",
  }
  config.reference = {
    "large": {
      "model_name": "proj.image_text.two_towers",
      "model": towers(48, 2),
      # Of a model that knows nothing; for a real one, the path of its .npz.
      "model_init": "random",
    }
  }
  if variant == "aced":
    config.teachers = {"large": {"weight": 1.0}}
  return config
