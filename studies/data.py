"""Splits a real set into what references, students and tests see."""

import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from aced.config import ConfigError
from aced.files import write_json

# Share of the training records that are the reference's own.
REFERENCE_SHARE = 0.5
# Least and most of the area of a picture that a crop shows.
CROP_AREA = (0.5, 1.0)
DONE = "split.json"


def side(record: Mapping[str, Any]) -> str:
  """Which side a training record is on: by its picture, so always the same.

  Records whose pictures are equal, by `pixel_hash`, are on one side.
  """
  key = record.get("pixel_hash", record["image"])
  byte = hashlib.sha256(str(key).encode()).digest()[0]
  return "reference" if byte < 256 * REFERENCE_SHARE else "pool"


def split(
  source: pathlib.Path, target: pathlib.Path, crops: int = 0
) -> dict[str, int]:
  """Copies a set of `train.jsonl` and `test.jsonl` into three files.

  Args:
    source: the folder of the set.
    target: for `reference.jsonl`, `pool.jsonl`, `test.jsonl` and pictures.
    crops: records of the pool beside each picture that show a random crop of
      it, perhaps mirrored. A few hundred pictures are learnt by heart without,
      and crops that are made beforehand can be cached.

  Returns:
    The records of each.

  Raises:
    ConfigError: the set is not there.
  """
  done = target / DONE
  if done.exists():
    return json.loads(done.read_text("utf-8"))
  for name in ("train.jsonl", "test.jsonl"):
    if not (source / name).is_file():
      raise ConfigError(
        f"{source / name} is not there; give the folder that holds the real"
        " sets by --data."
      )
  counts = {}
  parts = {"test": _read(source / "test.jsonl")}
  for record in _read(source / "train.jsonl"):
    parts.setdefault(side(record), []).append(record)
  for name, records in parts.items():
    for record in records:
      picture = target / record["image"]
      picture.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(source / record["image"], picture)
    if name == "pool":
      records += [new for old in records for new in _crops(target, old, crops)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (target / f"{name}.jsonl").write_text(lines, "utf-8")
    counts[name] = len(records)
  write_json(done, counts)
  return counts


def _crops(folder, record, count):
  """Records like one whose pictures are crops of its own, written beside it."""
  path = pathlib.PurePath(record["image"])
  seed = hashlib.sha256(str(path).encode()).digest()
  rng = np.random.default_rng(list(seed))
  with Image.open(folder / path) as file:
    picture = file.convert("RGB")
  for k in range(count):
    name = path.with_name(f"{path.stem}_crop{k}.jpg")
    found = _crop(picture, rng)
    found.save(folder / name, "JPEG", quality=95, subsampling=0)
    yield {**record, "image": str(name)}


def _crop(picture, rng):
  """A random crop of one picture."""
  least, most = CROP_AREA
  share = math.sqrt(rng.uniform(least, most))
  size = [max(1, round(share * side)) for side in picture.size]
  left, top = (
    int(rng.integers(0, side - own + 1))
    for side, own in zip(picture.size, size, strict=True)
  )
  found = picture.crop((left, top, left + size[0], top + size[1]))
  mirrored = rng.random() < 0.5
  return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else found


def _read(path: pathlib.Path) -> Iterable[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
