"""A student as a Hugging Face folder, which `transformers` loads.

model = transformers.SiglipModel.from_pretrained(folder)
processor = transformers.AutoProcessor.from_pretrained(folder)
"""

import pathlib
from typing import Any

import numpy as np

from aced import files
from aced.config import ConfigError
from aced.export import fits
from aced.export.hf_processor import write_processor
from aced.export.hf_tokenizer import write_tokenizer
from aced.models.build import towers
from aced.models.formats import hf, layout, tensors
from aced.models.params import unstack_layers
from aced.models.variants import expand_image, expand_text
from aced.pretrained import Pretrained

# The tokens to which the pipeline "zero-shot-image-classification" of
# transformers 5.24 pads and cuts the texts of every SigLIP. It neither asks the
# tokenizer nor follows `tokenizer_kwargs`.
PIPELINE = "zero-shot-image-classification"
PIPELINE_LENGTH = 64


def pipeline_problem(text_length: int) -> str:
  """What keeps a student from the pipeline, in words; "" if nothing does.

  Args:
    text_length: tokens of its texts.
  """
  if text_length == PIPELINE_LENGTH:
    return ""
  shorter = text_length < PIPELINE_LENGTH
  outcome = "fail" if shorter else "give wrong scores without an error"
  return (
    f"transformers' pipeline {PIPELINE!r} pads texts to {PIPELINE_LENGTH}"
    f" tokens, and this model takes {text_length}: it would {outcome}. Use"
    " AutoModel and AutoProcessor instead, which are right. Students trained"
    f" with input.text_length={PIPELINE_LENGTH} work in the pipeline too, and"
    f" so does an export with --text_length {PIPELINE_LENGTH}, which is another"
    " model than the student."
  )


def export_hf(student: Pretrained, folder: pathlib.Path) -> None:
  """Writes config, weights, processor and tokenizer.

  Args:
    student: to be written. A model without a bias, trained with softmax, gets
      one of zero, which changes no probability.
    folder: made if it is not there.

  Raises:
    ConfigError: the format cannot express the student, or its tokenizer; or it
      has none.
    ImportError: safetensors or tokenizers are not installed.
  """
  fits.check(student.model, "hf")
  student.tokens([])  # Says so where there is no tokenizer.
  folder.mkdir(parents=True, exist_ok=True)
  config = config_of(student)
  params = unstack_layers(student.params)
  params.setdefault("b", np.zeros(1, np.float32))
  rules = hf.siglip_rules(config["vision_config"], config["text_config"])
  tensors.write(folder / hf.WEIGHTS, layout.write(params, list(rules)))
  write_processor(
    folder, image_size=student.image_size, resize=student.transform.resize
  )
  try:
    write_tokenizer(student.tokenizer, folder)
  except ConfigError as error:
    raise ConfigError(
      f"format 'hf' cannot have this tokenizer: {error} Leave 'hf' out of"
      " --formats: the others carry the tokenizer as it is."
    ) from error
  files.write_json(folder / hf.CONFIG, config)


def config_of(student: Pretrained) -> dict[str, Any]:
  """The `config.json` of a SiglipModel that computes what the student does."""
  found = towers(student.model)
  image, text = expand_image(found["image"]), expand_text(found["text"])
  names = {ours: theirs for theirs, ours in reversed(hf.ACTIVATIONS.items())}
  ids = {
    f"{name}_token_id": getattr(student.tokenizer, name)
    for name in ("bos", "eos", "pad")
  }

  def tower(shape, fields):
    return {
      "hidden_size": shape.width,
      "intermediate_size": shape.mlp_dim,
      "num_hidden_layers": shape.depth,
      "num_attention_heads": shape.num_heads,
      "hidden_act": names[fields.activation],
      "layer_norm_eps": fields.norm_eps,
      "attention_dropout": 0.0,
    }

  return {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "initializer_factor": 1.0,
    "vision_config": {
      "model_type": "siglip_vision_model",
      **tower(image, found["image"]),
      "image_size": student.image_size,
      "num_channels": 3,
      "patch_size": image.patch_size[0],
      "vision_use_head": True,
    },
    "text_config": {
      "model_type": "siglip_text_model",
      **tower(text, found["text"]),
      **ids,
      "max_position_embeddings": student.text_length,
      "projection_size": found["text"].num_classes,
      "vocab_size": found["text"].vocab_size,
    },
  }
