import json

import pytest
from absl import logging

from aced.models.formats.preprocessing import read_processor
from aced.models.trees import ParamsError

HALF = (0.5, 0.5, 0.5)
# As in the folders of the released models.
SIGLIP = {
  "do_normalize": True,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.5, 0.5, 0.5],
  "image_processor_type": "SiglipImageProcessor",
  "image_std": [0.5, 0.5, 0.5],
  "processor_class": "SiglipProcessor",
  "resample": 3,
  "rescale_factor": 0.00392156862745098,
  "size": {"height": 256, "width": 256},
}
CLIP = {
  "crop_size": 224,
  "do_center_crop": True,
  "do_normalize": True,
  "do_resize": True,
  "feature_extractor_type": "CLIPFeatureExtractor",
  "image_mean": [0.48145466, 0.4578275, 0.40821073],
  "image_std": [0.26862954, 0.26130258, 0.27577711],
  "resample": 3,
  "size": 224,
}
CLIP_MOMENTS = {
  "mean": (0.48145466, 0.4578275, 0.40821073),
  "std": (0.26862954, 0.26130258, 0.27577711),
}


def write(folder, content, name="preprocessor_config.json"):
  (folder / name).write_text(json.dumps(content))


def without(table, *names):
  return {k: v for k, v in table.items() if k not in names}


@pytest.mark.parametrize(
  ("content", "want"),
  [
    (SIGLIP, (256, "bicubic", HALF, HALF)),
    (SIGLIP | {"resample": 2}, (256, "bilinear", HALF, HALF)),
    (SIGLIP | {"image_mean": 0.4}, (256, "bicubic", (0.4,) * 3, HALF)),
    (
      SIGLIP | {"do_normalize": False},
      (256, "bicubic", (0.0,) * 3, (1.0,) * 3),
    ),
    ({"image_processor_type": "SiglipImageProcessorFast"},)
    + ((224, "bicubic", HALF, HALF),),
    (
      {
        "image_processor_type": "Siglip2ImageProcessorFast",
        "patch_size": 16,
        "max_num_patches": 576,
      },
      (384, "bilinear", HALF, HALF),
    ),
    (CLIP, (224, "bicubic", *CLIP_MOMENTS.values())),
    (
      CLIP
      | {
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
      },
      (336, "bicubic", *CLIP_MOMENTS.values()),
    ),
    (
      {"image_processor_type": "CLIPImageProcessor"},
      (224, "bicubic", *CLIP_MOMENTS.values()),
    ),
    (
      CLIP | {"do_center_crop": False, "size": {"shortest_edge": 240}},
      (240, "bicubic", *CLIP_MOMENTS.values()),
    ),
  ],
)
def test_reads(tmp_path, content, want):
  names = ("image_size", "resize", "mean", "std")
  write(tmp_path, content)
  assert read_processor(tmp_path) == dict(zip(names, want, strict=True))
  # As transformers 5 saves a processor.
  (tmp_path / "preprocessor_config.json").unlink()
  write(tmp_path, {"image_processor": content}, "processor_config.json")
  assert read_processor(tmp_path) == dict(zip(names, want, strict=True))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (SIGLIP | {"resample": 1}, r"resample=1 \(lanczos\) is not.*2 \(bilinear"),
    (SIGLIP | {"resample": 0}, r"\(nearest\)"),
    (SIGLIP | {"resample": "x"}, r"'x' \(no filter of Pillow\)"),
    (SIGLIP | {"size": {"height": 256, "width": 128}}, "no square"),
    (SIGLIP | {"size": {"longest_edge": 256}}, "no square"),
    (SIGLIP | {"size": 0}, "size=0"),
    (SIGLIP | {"image_mean": [0.5, 0.5]}, "2 numbers, one for each"),
    (SIGLIP | {"image_std": "x"}, "does not say how"),
    (SIGLIP | {"rescale_factor": 1}, "rescale_factor=1 and"),
    (SIGLIP | {"do_rescale": False}, "do_rescale=False; only"),
    (without(SIGLIP, "image_processor_type", "size"), r"KeyError\('size'\)"),
    ({"max_num_patches": 250, "resample": 2, **SIGLIP}, "=250, no square"),
    (SIGLIP | {"do_flip_channel_order": True}, "do_flip_channel_order=True is"),
    (
      SIGLIP | {"do_pad": True},
      "do_pad=True is not done here; expected none b",
    ),
    ([], "is no table of options"),
  ],
)
def test_refuses_by_name(tmp_path, content, message):
  write(tmp_path, content)
  with pytest.raises(
    ParamsError, match=f"(?s)preprocessor_config.json.*{message}"
  ):
    read_processor(tmp_path)


def test_steps_that_change_nothing_may_be_set(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  write(tmp_path, SIGLIP)
  want = read_processor(tmp_path)
  steps = {"do_convert_rgb": True, "do_resize": False, "do_pad": None}
  write(tmp_path, SIGLIP | steps | {"do_flip_channel_order": False})
  assert read_processor(tmp_path) == want
  assert not caplog.records


def test_pictures_that_were_cut_are_told_of(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  write(tmp_path, {"image_processor_type": "CLIPImageProcessor"})
  read_processor(tmp_path)
  assert "no squares were cut out of the middle there; here they are" in (
    caplog.text
  )


def test_refuses_files_that_are_missing_or_damaged(tmp_path):
  with pytest.raises(FileNotFoundError, match="no preprocessor_config.json"):
    read_processor(tmp_path)
  write(tmp_path, {"processor_class": "X"}, "processor_config.json")
  with pytest.raises(FileNotFoundError, match="with an image_processor"):
    read_processor(tmp_path)
  (tmp_path / "preprocessor_config.json").write_text("{")
  with pytest.raises(ParamsError, match="is not JSON"):
    read_processor(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["Siglip", "CLIP"])
def test_defaults_are_those_of_transformers(tmp_path, kind):
  transformers = pytest.importorskip(
    "transformers", reason="has the defaults; of the extra `parity`"
  )
  pytest.importorskip("torchvision", reason="resizes for transformers")
  theirs = getattr(transformers, f"{kind}ImageProcessor")()
  write(tmp_path, {"image_processor_type": f"{kind}ImageProcessor"})
  found = read_processor(tmp_path)
  assert found["mean"] == tuple(theirs.image_mean)
  assert found["std"] == tuple(theirs.image_std)
  assert found["resize"] == {2: "bilinear", 3: "bicubic"}[int(theirs.resample)]
  theirs.save_pretrained(tmp_path)
  assert read_processor(tmp_path) == found
