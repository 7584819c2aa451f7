"""IID: the baseline. Every pair that is read is trained on.

    python -m aced.train --config configs/iid.py:demo --workdir runs/iid
    python -m aced.train --config configs/iid.py:small --workdir runs/iid \\
        --config.input.source=jsonl:my_pairs.jsonl

Sizes: paper (the default), small, demo, smoke. What it should give is in the
README's table of the demo.
"""

from aced.presets import preset


def get_config(arg=None):
  config, _, _ = preset(arg)
  config.name = "iid"
  return config
