"""Knowledge distillation on IID batches: Softmax-, Sigmoid- and Feature-KD.

    python -m aced.train --config configs/kd.py:demo --workdir runs/kd \\
        --config.frozen.reference.init=runs/reference

Variants: softmax (the default), sigmoid, feature. Costs one forward pass of the
teacher for every pair trained on. In the demo, Softmax-KD gave a mean R@1 of
8.3%, 12.9% and 11.7% for three seeds.
"""

from aced.presets import preset

# Of the size of the contrastive loss at the start of a run. The papers' own
# could not be read (their appendices were not at hand): sweep it.
WEIGHTS = {"softmax": 1.0, "sigmoid": 1.0, "feature": 1000.0}


def get_config(arg=None):
  config, variant, reference = preset(arg, tuple(WEIGHTS))
  variant = variant or "softmax"
  config.name = f"kd_{variant}"
  config.frozen.reference = reference
  config.distillation.update(loss=variant, weight=WEIGHTS[variant])
  config.distillation.teachers.reference = 1.0
  return config
