"""Our preprocessing as the files that transformers reads."""

import os
import pathlib

from aced.config import ConfigError, did_you_mean
from aced.files import write_json

FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's codes.


def write_processor(
  folder: str | os.PathLike, *, image_size: int, resize: str
) -> None:
  """Writes `preprocessor_config.json` and `processor_config.json`.

  Beside a tokenizer, they make of the folder a SiglipProcessor: pictures are
  squashed to a square and pixels go to -1 to 1, as in training.

  Of the same decoded picture, `Transform` and the processor make the same
  pixels, but for rounding: by at most 3 of 255, and 0.2 in the mean, where
  torchvision resizes for transformers or libvips for us, and by none where both
  have Pillow do it. Ours decodes JPEG faster and rougher: another 1 in the
  mean, and up to 8. One of twice the wanted size or more is decoded at a
  fraction of its size, unless `shrink=False`; of fine detail that can be some
  tens in single pixels, as at 32 px in photos.

  Args:
    folder: is made if it is not there.
    image_size: pixels along a side.
    resize: "bilinear" or "bicubic", as `Transform` has it.

  Raises:
    ConfigError: another way to resize, or no size.
    OSError: a file cannot be written.
  """
  if resize not in RESAMPLE:
    raise ConfigError(
      f"resize={resize!r} is not known; it is one of {', '.join(RESAMPLE)}."
      f"{did_you_mean(resize, RESAMPLE)}"
    )
  if image_size < 1:
    raise ConfigError(f"image_size={image_size} must be 1 or above.")
  processor = {"processor_class": "SiglipProcessor"}
  content = {
    **processor,
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": image_size, "width": image_size},
    "resample": RESAMPLE[resize],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
  }
  folder = pathlib.Path(folder)
  for name, table in zip(FILES, (content, processor), strict=True):
    write_json(folder / name, table)
