"""Stand-in until the real one is written."""

import json


def read_processor(folder):
  c = json.loads((folder / "preprocessor_config.json").read_text())
  return {
    "image_size": c["size"]["height"],
    "resize": {2: "bilinear", 3: "bicubic"}[c["resample"]],
    "mean": tuple(c["image_mean"]),
    "std": tuple(c["image_std"]),
  }
