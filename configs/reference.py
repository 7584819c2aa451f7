"""A reference: the larger model, trained IID on the best data you have.

    python -m aced.train --config configs/reference.py:demo \\
        --workdir runs/reference

`configs/kd.py`, `acid.py` and `aced.py` take it by
`--config.frozen.reference.init=runs/reference`. Curation is as good as its
reference: train it on clean, well-matched pairs, or give a released SigLIP
checkpoint instead. Sizes: paper, small, demo, smoke; in the last two, whose
data is built in, it takes clean pairs and 5/3 of its students' steps. The
demo's gave a mean R@1 of 39.0%.
"""

from aced.presets import preset


def get_config(arg=None):
  config, _, reference = preset(arg)
  config.name = "reference"
  config.student.update(
    {k: v for k, v in reference.items() if k in config.student and k != "init"}
  )
  config.student.variant = ""
  if config.total_steps:
    # Trained once and used often, so longer than its students.
    config.total_steps = 5 * config.total_steps // 3
  config.input.source = config.input.source.replace("noise=0.6", "noise=0")
  return config
