"""The model card: what a student is, how it was trained, what it scores."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import aced
from aced import models
from aced.models.params import count_params
from aced.models.two_towers import TwoTowers
from aced.pretrained import Pretrained
from aced.training.tracker import METRICS_FILE, read_jsonl

USE = {
  "hf": """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("hf")
processor = AutoProcessor.from_pretrained("hf")
inputs = processor(
  text=["a photo of a cat", "a photo of a dog"], images=picture,
  padding="max_length", truncation=True, return_tensors="pt",
)
logits = model(**inputs).logits_per_image
```""",
  "npz": """\
```python
import aced

model = aced.load("big_vision.npz", tokenizer="{tokenizer}")
model.classify(["cat.jpg"], ["cat", "dog"])
```""",
  "stablehlo": """\
```python
import sys

sys.path.append("stablehlo")
import loader  # Needs jax and flatbuffers.

zimg = loader.embed_images(pixels)  # uint8 (n, {size}, {size}, 3)
ztxt = loader.embed_texts(ids)  # int32 (n, {length})
logits = loader.scale * zimg @ ztxt.T + loader.bias
```""",
  "onnx": """\
```python
import onnxruntime

image = onnxruntime.InferenceSession("onnx/image.onnx")
text = onnxruntime.InferenceSession("onnx/text.onnx")
(zimg,) = image.run(None, {{"image": pixels}})  # uint8 (n, {size}, {size}, 3)
(ztxt,) = text.run(None, {{"labels": ids}})  # int32 (n, {length})
logits = {scale:.6g} * zimg @ ztxt.T + {bias:.6g}
```""",
}
TITLES = {
  "hf": "Hugging Face transformers",
  "npz": "big_vision and aced",
  "stablehlo": "StableHLO, with jax",
  "onnx": "ONNX",
}


def write(student: Pretrained, written: Sequence[Any]) -> str:
  """Returns the card in Markdown.

  Args:
    student: that was exported.
    written: of `writing.export`.
  """
  config = run_config(student)
  name = config.get("name") or student.weights.where.stem
  parts = [
    _header(written),
    f"# {name}",
    _summary(student, config),
    "## Use\n\n" + _use(student, written),
  ]
  if config:
    parts.append("## Training\n\n" + _training(student, config))
    parts.append("## Results\n\n" + _results(student))
  parts += [
    "## Size and cost\n\n" + _cost(student),
    "## Files\n\n" + _files(written),
  ]
  return "\n\n".join(parts) + "\n"


def run_config(student: Pretrained) -> dict[str, Any]:
  """The config of the run that a student is of, by flat names; {} of none."""
  if student.weights.step is None:
    return {}
  path = student.weights.where / "config.json"
  return json.loads(path.read_text("utf-8"))


def teachers(config: Mapping[str, Any]) -> dict[str, str]:
  """Name -> whence, of the frozen models that trained a student."""
  found = {}
  for key, value in config.items():
    if key.startswith("frozen.") and key.endswith((".init", ".cache")):
      name = key.split(".")[1]
      found[name] = value or found.get(name, "")
  return found


def method(config: Mapping[str, Any]) -> str:
  """The method of a run, in words."""
  curation = "no curation (IID)"
  if config["curation.method"] != "uniform":
    curation = (
      f"{config['curation.method']} selection by {config['curation.score']},"
      f" {config['curation.filter_ratio']:.0%} of each super-batch discarded"
    )
  if not config["distillation.weight"]:
    return curation
  batch = "the same" if config["distillation.batch"] == "curated" else "an IID"
  return (
    f"{curation}; {config['distillation.loss']} distillation on {batch} batch,"
    f" weight {config['distillation.weight']:g}"
  )


def _header(written):
  """What hubs read."""
  lines = ["---", "pipeline_tag: zero-shot-image-classification"]
  if any(one.name == "hf" for one in written):
    lines.append("library_name: transformers")
  return "\n".join([*lines, "tags: [image-text, siglip, aced]", "---"])


def _summary(student, config):
  text = (
    "A two-tower image-text model: pictures and captions meet in one space."
  )
  if config:
    text += f" It was trained with aced {aced.__version__}."
    left_out = teachers(config)
    if left_out:
      text += (
        " This is the student alone: the frozen models that it learnt from"
        f" ({', '.join(left_out)}) are not part of it, nor needed."
      )
  else:
    text += f" It was read from {student.weights.kind}."
  return text


def _use(student, written):
  values = {
    "size": student.image_size,
    "length": student.text_length,
    "tokenizer": student.tokenizer.spec if student.tokenizer else "...",
    "scale": student.scale,
    "bias": student.bias,
  }
  uses = (
    f"{TITLES[one.name]}:\n\n{USE[one.name].format(**values)}"
    for one in written
  )
  pictures = (
    f"Pictures are squashed to {student.image_size} x {student.image_size}"
    f" pixels, {student.transform.resize}, antialiased, without a crop; texts"
    f" are {student.text_length} tokens."
  )
  if student.tokenizer is not None:
    pictures += (
      " Ids of texts are those of `aced.data.tokenizers.load_tokenizer("
      f'"{student.tokenizer.spec}", {student.text_length})`'
    )
    pictures += (
      ", or of the tokenizer in `hf`."
      if any(one.name == "hf" for one in written)
      else "."
    )
  return "\n\n".join([pictures, *uses])


def _training(student, config):
  step, batch = student.weights.step, config["batch_size"]
  ratio = config["curation.filter_ratio"]
  rows = {
    "method": method(config),
    "data": f"`{config['input.source']}`",
    "steps": f"{step:,}",
    "batch": f"{batch:,}, from {round(batch / (1 - ratio)):,} loaded",
    "trained examples": f"{step * batch:,}",
    "contrastive loss": config["loss"],
    "learning rate": f"{config['optimizer.learning_rate']:g}",
    "weight decay": f"{config['optimizer.weight_decay']:g}",
    "tokenizer": f"`{config['input.tokenizer']}`",
  }
  for name, where in teachers(config).items():
    rows[f"frozen model `{name}`"] = f"`{where}`"
  return _table(("setting", "value"), rows.items())


def _results(student):
  path = student.weights.where / METRICS_FILE
  lines = read_jsonl(path) if path.exists() else []
  scored = [
    line
    for line in lines
    if line["step"] <= student.weights.step
    and any(key.startswith("eval/") for key in line)
  ]
  if not scored:
    return "The run evaluated nothing."
  last = scored[-1]
  shown = {
    key.removeprefix("eval/"): value
    for key, value in last.items()
    if key.startswith("eval/") and not key.endswith("masked")
  }
  rows = ((key, f"{100 * value:.2f}%") for key, value in shown.items())
  note = f"Of the run's own evaluation at step {last['step']:,}.\n\n"
  return note + _table(("metric", "score"), rows)


def _cost(student):
  rows = {
    "parameters": f"{count_params(student.params) / 1e6:.2f} M",
    "picture": f"{student.image_size} px",
    "text": f"{student.text_length} tokens",
  }
  if isinstance(student.model, TwoTowers):
    cost = models.count(
      student.weights.config, student.image_size, student.text_length
    )
    rows |= {
      "image tower": f"{cost.image.macs / 1e9:.3f} GMACs",
      "text tower": f"{cost.text.macs / 1e9:.3f} GMACs",
      "a pair": f"{cost.macs / 1e9:.3f} GMACs",
      "embedding": f"{cost.width} wide",
    }
  note = "One multiply-accumulate is two FLOPs; matrix products alone count."
  return _table(("what", "value"), rows.items()) + f"\n\n{note}"


def _files(written):
  rows = (
    (
      f"`{pathlib.PurePath(one.files[0]).parts[0]}`",
      f"{one.megabytes:.1f}",
      "int8" if one.int8 else "float32",
      f"{one.difference:.1g}",
    )
    for one in written
  )
  note = (
    "*difference*: the largest of an embedding's numbers from the student's,"
    " relative to the largest, on pictures and texts of noise."
  )
  head = "format", "MB", "weights", "difference"
  return _table(head, rows) + f"\n\n{note}"


def _table(head, rows):
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
