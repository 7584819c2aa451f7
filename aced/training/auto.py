"""Models whose config is what their weights say: `model="auto"`.

    --config.frozen.reference.model=auto \\
    --config.frozen.reference.init=path/of/siglip

The towers are those of the weights in `init`; what the config says of how they
are run (`RUNNING`) stays. A frozen model also sees pictures and tokens as it
was trained to, where its config does not say otherwise.
"""

from typing import Any

from absl import logging
from ml_collections import ConfigDict

from aced import config as config_lib
from aced.models.formats import read
from aced.pretrained import find_tokenizer

AUTO = "auto"
# How a tower is run, which changes none of its parameters.
RUNNING = ("dtype_mm", "remat", "scan", "dropout", "token_drop")


def fill(config: ConfigDict) -> ConfigDict:
  """Writes out every model that is "auto".

  Args:
    config: resolved.

  Returns:
    The config, complete; the same where no model is "auto".

  Raises:
    ConfigError: a model has no `init`, or weights without a tokenizer.
    FileNotFoundError, ParamsError: the weights cannot be read.
  """
  tables = {"student": config.student}
  tables |= {f"frozen.{name}": table for name, table in config.frozen.items()}
  if not any(table.model == AUTO for table in tables.values()):
    return config
  plain = config_lib.to_plain(config)
  for name, table in tables.items():
    if table.model == AUTO:
      top, *inside = name.split(".")
      target = plain[top][inside[0]] if inside else plain[top]
      target |= _written_out(
        name, config_lib.to_plain(table), config.input.resize
      )
  return config_lib.resolve(plain)


def _written_out(
  name: str, table: dict[str, Any], resize: str
) -> dict[str, Any]:
  """A table of a model, as its weights have it."""
  if table["init"] in ("", "random"):
    raise config_lib.ConfigError(
      f"config.{name}.model='auto' reads the model off its weights; name them"
      f" in config.{name}.init (it is {table['init']!r})."
    )
  weights = read(table["init"])
  found = {"variant": "", "bias_init": None, **weights.config}
  for tower in ("image", "text"):
    given = table.get(tower) or {}
    kept = {key: given[key] for key in RUNNING if key in given}
    found[tower] = {**weights.config[tower], **kept}
  if name != "student":
    found |= {
      "image_size": table["image_size"] or weights.image_size,
      "text_length": table["text_length"] or weights.text_length,
      "tokenizer": table["tokenizer"] or find_tokenizer(weights),
    }
    if not found["tokenizer"]:
      raise config_lib.ConfigError(
        f"config.{name}.init={table['init']} does not say which tokenizer its"
        f" texts want; give it in config.{name}.tokenizer."
      )
    if weights.resize not in ("", resize):
      logging.warning(
        "config.%s was trained on pictures resized by %s; here they are by %s,"
        " as config.input.resize says.",
        name,
        weights.resize,
        resize,
      )
  return found
