"""LiT-Decoder: a text decoder on a frozen student writes captions and answers.

    python -m aced.train --config configs/lit_decoder.py:encoder,smoke \\
        --workdir runs/encoder
    python -m aced.train --config configs/lit_decoder.py:smoke \\
        --workdir runs/decoder --config.student.init=runs/encoder
"""

from aced.presets import preset, size_and_variant


def get_config(arg=None):
  size, variant = size_and_variant(arg, ("encoder",))
  config, _, _ = preset(size)
  config.name = variant or "lit_decoder"
  if variant: return config
  config.student.update(variant="", init="random")
  config.decoder.model = {"width": 64, "depth": 2, "num_heads": 4, "scan": True}
  config.total_steps = 1500
  config.batch_size = 64
  config.input.update(source="synthetic:train?size=50000&asked=5", text_length=96)
  config.optimizer.update(learning_rate=2e-3, warmup_steps=50)
  config.log.every_steps = 100
  config.evals = {
    "captioning": {"type": "captioning", "source": "synthetic:val?size=256", "batch_size": 128},
    "vqa": {"type": "vqa", "source": "synthetic:val?size=256&asked=5", "batch_size": 128},
  }
  config.checkpoint.best = ""
  return config
