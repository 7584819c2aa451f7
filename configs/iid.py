"""IID: the baseline. Every pair that is read is trained on.

    python -m aced.train --config configs/iid.py:demo --workdir runs/iid
    python -m aced.train --config configs/iid.py:small --workdir runs/iid \\
        --config.input.source=jsonl:my_pairs.jsonl

Sizes: paper (the default), small, demo, smoke. With the demo's tokenizer (see
`aced.demo`) on its noisy scenes, three seeds gave a mean R@1 of 1.7%, 3.6% and
2.7% after 300 steps.
"""

from aced.presets import preset


def get_config(arg=None):
  config, _, _ = preset(arg)
  config.name = "iid"
  return config
