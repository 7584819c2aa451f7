"""Tiny models of other projects, with random weights, saved in their way."""

import contextlib
import json
import warnings

import numpy as np
import pytest

IMAGE, LENGTH, VOCAB = 16, 8, 50
TOWER = {
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
}
TEXT = TOWER | {
  "hidden_size": 24,
  "num_attention_heads": 3,
  "vocab_size": VOCAB,
  "max_position_embeddings": LENGTH,
  "bos_token_id": VOCAB - 2,
  "eos_token_id": VOCAB - 1,
}


@contextlib.contextmanager
def quiet():
  """Warnings of torch and others about themselves are not ours to mend."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


def needs(*packages):
  """Skips where the extra `parity` is not installed."""
  with quiet():
    return [
      pytest.importorskip(package, reason=f"{package} is of the extra `parity`")
      for package in packages
    ]


def spread(model, seed=0):
  """Moves every parameter, biases and norms too, which start at 0 and 1."""
  torch = needs("torch")[0]
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      size = 0.5 / max(parameter.shape[-1], 1) ** 0.5 if parameter.ndim else 0.3
      parameter.add_(size * noise)
  return model.eval()


def hugging_face(kind, folder, *, processor=True, **config):
  """Saves a SiglipModel, Siglip2Model or CLIPModel; returns it.

  Args:
    kind: "siglip", "siglip2" or "clip".
    folder: where to.
    processor: whether with `preprocessor_config.json`.
    **config: over the config of the whole model.
  """
  transformers = needs("torch", "transformers")[1]
  name = {"siglip": "Siglip", "siglip2": "Siglip2", "clip": "CLIP"}[kind]
  vision = {**TOWER, "patch_size": 8}
  if kind == "siglip2":
    vision["num_patches"] = (IMAGE // 8) ** 2
  else:
    vision["image_size"] = IMAGE
  text = dict(TEXT)
  if kind == "clip":
    config.setdefault("projection_dim", 20)
  else:
    text["projection_size"] = TOWER["hidden_size"]
  with quiet():
    made = getattr(transformers, f"{name}Config")(
      text_config=text, vision_config=vision, **config
    )
    model = spread(getattr(transformers, f"{name}Model")(made))
    model.save_pretrained(folder)
  if processor:
    write_processor(folder, kind)
  return model


def write_processor(folder, kind):
  """What says of pixels: CLIP's mean and spread, SigLIP's halves."""
  clip = kind == "clip"
  mean, std = ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
  content = {
    "image_processor_type": f"{'CLIP' if clip else 'Siglip'}ImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
    "image_mean": mean if clip else [0.5] * 3,
    "image_std": std if clip else [0.5] * 3,
    "resample": 3,
    "size": {"height": IMAGE, "width": IMAGE},
  }
  (folder / "preprocessor_config.json").write_text(json.dumps(content))


def inputs(n=5, seed=0):
  """`(uint8 pictures, ids)`; ids end with the highest one, and are padded."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (n, IMAGE, IMAGE, 3), np.uint8)
  ids = rng.integers(2, VOCAB - 2, (n, LENGTH))
  for row in ids:
    end = rng.integers(2, LENGTH)
    row[end:] = VOCAB - 1 if end % 2 else 0
    row[end] = VOCAB - 1
  return pixels, ids


def channels_first(pixels, mean=0.5, std=0.5):
  """Pictures as torch takes them: `(n, 3, h, w)`, normalised."""
  torch = needs("torch")[0]
  x = (pixels / 255.0 - np.asarray(mean)) / np.asarray(std)
  return torch.tensor(np.float32(x.transpose(0, 3, 1, 2)))


# A sum of float32 products comes out differently in torch and in XLA, by
# roundings of 6e-8 each that grow through two layers: measured 1e-6.
RELATIVE = 1e-4


def assert_close(ours, theirs):
  """Equal to `RELATIVE` of the largest."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  worst = np.abs(ours - theirs).max() / np.abs(theirs).max()
  assert worst < RELATIVE, worst
