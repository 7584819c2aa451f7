"""Hands a student to the world.

    python -m aced.export runs/aced --output exported
    python -m aced.export runs/aced@best --output exported \\
        --formats hf,onnx --int8

Writes, into a folder that must not be there yet:

    hf          a SiglipModel of Hugging Face, with processor and tokenizer
    npz         big_vision's format
    stablehlo   programs of both towers, and a loader; it needs jax, flatbuffers
    onnx        graphs of both towers
    README.md   a model card

With npz, stablehlo and onnx go the tokenizer's model, and aced.json, by which
aced.load finds it. Each format is read again and compared with the student. Of
a run, the student alone is written: the models that taught it are not.
"""

import argparse
import sys
from collections.abc import Sequence

from aced.config import ConfigError
from aced.export import card
from aced.export.hf_folder import PIPELINE_LENGTH
from aced.export.lengths import with_text_length
from aced.export.writing import FORMATS, export
from aced.models.params import ParamsError
from aced.pretrained import load

WRONG = (ConfigError, ParamsError, OSError, ImportError, ValueError)
WRONG += (RuntimeError,)


def parser() -> argparse.ArgumentParser:
  """The command line."""
  found = argparse.ArgumentParser(
    prog="python -m aced.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  found.add_argument(
    "model",
    help="a run's workdir, with @STEP or @best; or other weights: an .npz file,"
    " a folder of Hugging Face or open_clip",
  )
  found.add_argument("--output", required=True, help="folder that is written")
  found.add_argument(
    "--formats",
    default=",".join(FORMATS),
    help="some of %(default)s, joined by commas",
  )
  found.add_argument(
    "--int8",
    action="store_true",
    help="matrices of stablehlo and onnx in eight bits, a quarter of the size;"
    " hf and npz stay in float32",
  )
  found.add_argument(
    "--text_length",
    type=int,
    default=0,
    help="tokens of a text, if others than the student's: its positions are cut"
    f" or filled up, which makes it another model. {PIPELINE_LENGTH} is what"
    " the pipeline of transformers wants; train with that where you can",
  )
  found.add_argument(
    "--tokenizer", default="", help="its spec, where the weights do not say"
  )
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  options = parser().parse_args(argv)
  try:
    student = load(options.model, tokenizer=options.tokenizer)
    say(f"{options.model} is {student.weights.kind}")
    left_out = card.teachers(card.run_config(student))
    if left_out:
      say(f"the student alone is written, without {', '.join(left_out)}")
    if options.text_length not in (0, student.text_length):
      say(
        f"texts of {options.text_length} tokens in place of"
        f" {student.text_length}: positions are cut or filled up, and scores"
        " are those of another model; evaluate it before you use it"
      )
      student = with_text_length(student, options.text_length)
    written = export(
      student,
      options.output,
      [name.strip() for name in options.formats.split(",") if name.strip()],
      int8=options.int8,
      say=say,
    )
  except WRONG as error:
    say(f"{type(error).__name__}: {error}")
    return 2
  except KeyboardInterrupt:
    say("interrupted; nothing was written")
    return 130
  for one in written:
    weights = "int8" if one.int8 else "float32"
    print(
      f"{one.name:10} {one.megabytes:9.1f} MB  {weights:8}"
      f" embeddings differ by {one.difference:.1g}"
    )
  print(f"written to {options.output}; README.md there says how to use it")
  return 0


def say(text: str) -> None:
  """Tells on standard error what goes on, or wrong."""
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
