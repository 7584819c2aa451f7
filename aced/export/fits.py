"""What each format can express of our towers; what it cannot, by option."""

from typing import Any

from aced.config import ConfigError
from aced.models.build import towers
from aced.models.formats.hf import ACTIVATIONS
from aced.models.two_towers import TwoTowers

# Format -> "tower.field" -> the values that it can express.
HF = {
  "image.pool_type": ("map",),
  "image.num_classes": (None, 0),
  "image.posemb": ("learn",),
  "image.pre_norm": (False,),
  "image.token_drop": (0.0,),
  "image.activation": tuple(ACTIVATIONS.values()),
  "text.pool_type": ("last",),
  "text.causal": (False,),
  "text.activation": tuple(ACTIVATIONS.values()),
}
BIG_VISION = {
  "image.posemb": ("learn", "sincos2d"),
  "image.pre_norm": (False,),
  "image.token_drop": (0.0,),
  "image.activation": ("gelu_tanh",),
  "image.norm_eps": (1e-6,),
  "text.pool_type": ("last", "map"),  # A file does not tell the others.
  "text.activation": ("gelu_tanh",),
  "text.norm_eps": (1e-6,),
  "text.causal": (False,),
}
ONNX = {"image.pool_type": ("map", "gap", "tok")}
LIMITS = {"hf": HF, "npz": BIG_VISION, "onnx": ONNX}


def check(model: Any, name: str) -> None:
  """Refuses a model that a format cannot express.

  Args:
    model: to be exported.
    name: of the format; one without limits takes every model.

  Raises:
    ConfigError: naming the options and what the format has for them.
  """
  limits = LIMITS.get(name)
  if limits is None:
    return
  if not isinstance(model, TwoTowers):
    raise ConfigError(
      f"format {name!r} expresses our 'two_towers' alone, not a"
      f" {type(model).__name__}; format 'stablehlo' takes any model."
    )
  found = towers(model)
  problems = []
  for option, values in limits.items():
    tower, field = option.split(".")
    value = getattr(found[tower], field)
    if value not in values:
      known = " or ".join(map(repr, values))
      problems.append(f"  {option}={value!r}; it has {known}")
  if name == "hf" and not found["text"].num_classes:
    problems.append("  out_dim: no head of the text tower; it has one always")
  if problems:
    raise ConfigError(
      f"format {name!r} cannot express this student:\n"
      + "\n".join(problems)
      + "\nChoose another of --formats; 'stablehlo' takes every student."
    )
