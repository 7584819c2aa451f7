"""The model card: what a student is, how it was trained, what it scores."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import aced
from aced import models
from aced.export import carried, hf_tokenizer, names
from aced.export.hf_folder import PIPELINE, pipeline_problem
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

model = aced.load("big_vision.npz"{given})
model.classify(["cat.jpg"], ["cat", "dog"])
```""",
  "stablehlo": """\
```python
import sys

sys.path.append("stablehlo")
import loader  # Needs jax and flatbuffers.
{ids}
zimg = loader.embed_images(pixels)  # uint8 (n, {size}, {size}, 3)
ztxt = loader.embed_texts(ids)  # int32 (n, {length})
logits = loader.scale * zimg @ ztxt.T + loader.bias
```""",
  "onnx": """\
```python
import numpy
import onnxruntime
{ids}
image = onnxruntime.InferenceSession("onnx/image.onnx")
text = onnxruntime.InferenceSession("onnx/text.onnx")
(zimg,) = image.run(None, {{"image": pixels}})  # uint8 (n, {size}, {size}, 3)
(ztxt,) = text.run(None, {{"labels": ids}})  # int32 (n, {length})
logits = {scale:.6g} * zimg @ ztxt.T + {bias:.6g}
```""",
}
# Beside it where transformers can do that: see `hf_folder.pipeline_problem`.
PIPELINE_USE = """\
```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="hf")
classify(picture, candidate_labels=["cat", "dog"])
```"""
TEXTS = '["a photo of a cat", "a photo of a dog"]'
ONNX_IDS = f"""\
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("onnx/tokenizer.json")
tokenizer.encode_special_tokens = True  # The name of one in a text is text.
texts = {TEXTS}
ids = numpy.int32([tokenizer.encode(text).ids for text in texts])"""
ONNX_IDS_BY_ACED = f"""\
from aced.data import tokenizers

tokenizer = tokenizers.load("{{spec}}", {{length}})
ids = tokenizer({TEXTS})"""
NO_IDS = "\n# `ids` are of the tokenizer that the model was trained with."
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
  where = student.weights.where.resolve()
  name = config.get("name") or (where.name if where.is_dir() else where.stem)
  parts = [
    _header(student, written),
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


def _header(student, written):
  """What hubs read, and show code by."""
  lines = ["---"]
  if not pipeline_problem(student.text_length):
    lines.append(f"pipeline_tag: {PIPELINE}")
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
    "given": "" if student.tokenizer else ', tokenizer="..."',
    "scale": student.scale,
    "bias": student.bias,
  }
  about = (
    f"Pictures are squashed to {student.image_size} x {student.image_size}"
    f" pixels, {student.transform.resize}, antialiased, without a crop; texts"
    f" are {student.text_length} tokens."
  )
  return "\n\n".join([about, *(_use_of(s, student, values) for s in written)])


def _use_of(one, student, values):
  """How one format is used, and what is to be known of it."""
  code = USE[one.name].format(ids=_ids(one, student), **values)
  parts = [f"{TITLES[one.name]}:", code]
  if one.name == "hf" and not pipeline_problem(student.text_length):
    parts += ["Or in a pipeline:", PIPELINE_USE]
  return "\n\n".join([*parts, *one.notes])


def _ids(one, student):
  """Code that makes ids of texts for a program."""
  if student.tokenizer is None:
    return NO_IDS
  there = f"{one.name}/{hf_tokenizer.FILE}" in one.files
  if one.name == "stablehlo":
    needs = "tokenizers" if there else "aced"
    return f"\ntexts = {TEXTS}\nids = loader.tokenize(texts)  # Needs {needs}."
  if there:
    return ONNX_IDS
  spec = carried.spec_of(student.tokenizer).replace(":", f":{one.name}/", 1)
  return ONNX_IDS_BY_ACED.format(spec=spec, length=student.text_length)


def _training(student, config):
  step, batch = student.weights.step, config["batch_size"]
  ratio = config["curation.filter_ratio"]
  rows = {
    "method": method(config),
    "data": f"`{names.of_source(config['input.source'])}`",
    "steps": f"{step:,}",
    "batch": f"{batch:,}, from {round(batch / (1 - ratio)):,} loaded",
    "trained examples": f"{step * batch:,}",
    "contrastive loss": config["loss"],
    "learning rate": f"{config['optimizer.learning_rate']:g}",
    "weight decay": f"{config['optimizer.weight_decay']:g}",
    "tokenizer": f"`{names.of_tokenizer(config['input.tokenizer'])}`",
  }
  for name, where in teachers(config).items():
    rows[f"frozen model `{name}`"] = f"`{names.of_weights(where)}`"
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
