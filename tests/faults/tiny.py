"""A config for runs that are killed: small, and with everything that draws.

    python -m aced.train --config tests/faults/tiny.py --workdir DIR

Crops, flips, dropout, a curated batch and an IID one for distillation: what a
run has to find again when it goes on.
"""

from configs import aced as aced_config


def get_config(arg=None):
  del arg
  config = aced_config.get_config("iidistill,smoke")
  config.total_steps = 24
  config.input.update(
    source="synthetic:train?size=400&noise=0.6&image_size=16",
    image_size=16,
    text_length=16,
    flip=True,
    crop_scale=(0.5, 1.0),
  )
  for table in (config.student, config.frozen.reference):
    table.image.update(width=16, mlp_dim=16, patch_size=(8, 8))
    table.text.update(width=16, mlp_dim=16)
    table.out_dim = (None, 16)
  config.student.text.dropout = 0.1
  del config.evals["zero_shot"]
  config.evals.retrieval.update(
    source="synthetic:val?size=64&image_size=16", batch_size=8
  )
  config.log.every_steps = 1
  config.checkpoint.every_steps = 3
  config.checkpoint.best = ""
  config.eval.every_steps = 12
  return config
