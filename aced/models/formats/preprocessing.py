"""How a released model wants its pictures, as its folder says."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from aced import contents
from aced.models.trees import ParamsError

FILE = "preprocessor_config.json"
NESTED = "processor_config.json"  # Where transformers 5 writes it, as a part.
# Pillow's codes, for those filters that we have; the others are told by name.
RESIZE = {2: "bilinear", 3: "bicubic"}
FILTERS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}
# What transformers takes for a key that is left out, by the type of processor.
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
DEFAULTS: dict[str, dict[str, Any]] = {
  "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3, **_HALF},
  "Siglip2": {"patch_size": 16, "max_num_patches": 256, "resample": 2, **_HALF},
  "CLIP": {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
  },
}
# Steps that are done here, or need not be: ours are RGB, and of the size.
STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
STEPS += ("do_convert_rgb",)
_SUFFIXES = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")


def read_processor(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads the preprocessing of a Hugging Face folder of SigLIP or CLIP.

  CLIP's processor brings the shorter side to size and cuts the middle out; ours
  squashes pictures, so only square ones come out alike. SigLIP 2's own, which
  packs as many patches as fit a picture's shape, is read as the square with as
  many.

  Args:
    folder: with `preprocessor_config.json`, or `processor_config.json` with an
      `image_processor` in it.

  Returns:
    `image_size`, pixels along a side; `resize`, "bilinear" or "bicubic"; and
    `mean` and `std`, three floats each, of pixels in 0 to 1: the model sees
    `(pixel / 255 - mean) / std`.

  Raises:
    FileNotFoundError: there is neither file.
    ParamsError: another filter or shape of picture, or a file that is damaged.
  """
  path, given = _read(pathlib.Path(folder))
  kind = given.get("image_processor_type", given.get("feature_extractor_type"))
  found = _defaults(str(kind or "")) | given
  scale = found.get("rescale_factor", 1 / 255)
  if not found.get("do_rescale", True) or not math.isclose(
    scale, 1 / 255, rel_tol=1e-4
  ):
    raise ParamsError(
      f"{path}: rescale_factor={scale} and"
      f" do_rescale={found.get('do_rescale', True)}; only pixels that are"
      " divided by 255 can be read."
    )
  odd = [k for k, v in found.items() if k.startswith("do_") and v]
  odd = [k for k in odd if k not in STEPS]
  if odd:
    raise ParamsError(
      f"{path}: {odd[0]}={found[odd[0]]!r} is not done here; expected none but"
      f" {', '.join(STEPS)}."
    )
  # A size of two sides is squashed to; cutting the same out changes nothing.
  cut = found.get("do_center_crop") and found.get("size") != found.get(
    "crop_size"
  )
  warn_of_shape(path, "cut out of the middle" if cut else "")
  try:
    moments = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if found.get("do_normalize", True):
      moments = {k: _three(found[f"image_{k}"]) for k in moments}
    return {
      "image_size": _side(found),
      "resize": _resize(path, found["resample"]),
      **moments,
    }
  except (KeyError, TypeError, ValueError) as error:
    if isinstance(error, ParamsError):
      raise
    raise ParamsError(
      f"{path} does not say how pictures are made for the model ({error!r});"
      " expected size, resample, image_mean and image_std, as processors of"
      f" {', '.join(DEFAULTS)} write them."
    ) from error


def warn_of_shape(path: pathlib.Path, shape: str) -> None:
  """Warns of pictures that came to the model in another shape than here.

  Args:
    path: of the file that says so.
    shape: how theirs became squares, "" where they were squashed as ours are.
  """
  if shape:
    logging.warning(
      "%s: pictures that are no squares were %s there; here they are squashed,"
      " and are embedded otherwise. Cut them first where that matters.",
      path,
      shape,
    )


def _read(folder: pathlib.Path) -> tuple[pathlib.Path, Mapping[str, Any]]:
  """The file, and the table in it that tells of pictures."""
  for name in (FILE, NESTED):
    path = folder / name
    try:
      found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
      continue
    except ValueError as error:
      found = contents.not_json(path, error)
      raise ParamsError(f"{path} {found}.") from error
    if name == NESTED and isinstance(found, dict):
      found = found.get("image_processor")
      if found is None:
        continue
    if not isinstance(found, dict):
      raise ParamsError(f"{path} is no table of options.")
    return path, found
  raise FileNotFoundError(
    f"{folder} has no {FILE}, and no {NESTED} with an image_processor: what"
    " size, filter, mean and spread of pixels the model wants is not known."
    " Copy it from where the model comes from."
  )


def _defaults(kind: str) -> Mapping[str, Any]:
  """Those of a type such as "CLIPImageProcessorFast"."""
  for suffix in _SUFFIXES:
    kind = kind.removesuffix(suffix)
  return DEFAULTS.get(kind, {})


def _side(found: Mapping[str, Any]) -> int:
  if "max_num_patches" in found:
    grid = math.isqrt(found["max_num_patches"])
    if grid * grid != found["max_num_patches"]:
      raise ValueError(f"max_num_patches={found['max_num_patches']}, no square")
    return grid * found["patch_size"]
  size = found["crop_size" if found.get("do_center_crop") else "size"]
  if isinstance(size, dict):
    sides = {size[k] for k in size if size[k] is not None}
    if len(sides) != 1 or not size.keys() <= {
      "height",
      "width",
      "shortest_edge",
    }:
      raise ValueError(f"size={size}, no square")
    (size,) = sides
  if not isinstance(size, int) or isinstance(size, bool) or size < 1:
    raise ValueError(f"size={size}")
  return size


def _resize(path: pathlib.Path, code: Any) -> str:
  if code not in RESIZE:
    raise ParamsError(
      f"{path}: resample={code!r} ({FILTERS.get(code, 'no filter of Pillow')})"
      " is not done here; expected"
      f" {' or '.join(f'{k} ({v})' for k, v in RESIZE.items())}."
    )
  return RESIZE[code]


def _three(values: Any) -> tuple[float, ...]:
  values = tuple(
    map(float, values if isinstance(values, list) else [values] * 3)
  )
  if len(values) != 3:
    raise ValueError(f"{len(values)} numbers, one for each of three colours")
  return values
