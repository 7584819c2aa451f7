"""ACID: curation alone. The student learns from what is worth learning.

    python -m aced.train --config configs/acid.py:demo --workdir runs/acid \\
        --config.frozen.reference.init=runs/reference

Variants:
  learnability     H-ACID, the default: hard for the student, easy for the
                   reference; JEST where the reference is small
  easy_reference   I-ACID: easy for the reference
  hard             hard for the student; needs no reference
  independent      learnability of each pair alone, RHO-LOSS style

Each step reads 1 / (1 - filter_ratio) = 5 pairs for each one it trains on. In
the demo, learnability gave a mean R@1 of 12.0%, 18.3% and 11.4% for three
seeds.
"""

from aced.presets import preset

VARIANTS = ("learnability", "easy_reference", "hard", "independent")


def get_config(arg=None):
  config, variant, reference = preset(arg, VARIANTS)
  variant = variant or "learnability"
  config.name = f"acid_{variant}"
  independent = variant == "independent"
  config.curation.update(
    method="independent" if independent else "joint",
    score="learnability" if independent else variant,
    filter_ratio=0.8,
  )
  if variant != "hard":
    config.frozen.reference = reference
    config.curation.reference = "reference"
  return config
