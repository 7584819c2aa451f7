"""Data: sources of pairs, pictures, tokens, and batches of them on devices."""

import importlib

# Public name -> the module that has it. They are loaded when first used:
# reading a source needs neither jax arrays nor grain, and a module that is run
# as a command must not be imported before.
_MODULES = {
  "CacheError": "cache",
  "EmbeddingCache": "cache",
  "BadRecords": "devices",
  "to_devices": "devices",
  "inject": "faults",
  "eval_batches": "pipeline",
  "eval_captions": "pipeline",
  "record_index": "pipeline",
  "superbatches": "pipeline",
  "CAUSES": "records",
  "BadRecord": "records",
  "Source": "records",
  "SourceError": "records",
  "open_source": "sources",
  "Scenes": "synthetic",
  "class_names": "synthetic",
  "Tokenizer": "tokenizers",
  "load_tokenizer": "tokenizers",
  "train_sentencepiece": "tokenizers",
  "Transform": "transforms",
  "decode": "decoding",
  "resize": "transforms",
}
__all__ = sorted(_MODULES)


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
  return getattr(module, name)


def __dir__():
  return sorted({*globals(), *__all__})
