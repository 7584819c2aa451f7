"""A trained text decoder, ready to write: `aced.load_captioner(where)`.

import aced

captioner = aced.load_captioner("runs/decoder")
captioner.caption(["cat.jpg", "dog.jpg"])
captioner.answer(["cat.jpg"], ["what color is the cat?"], num_beams=4)
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aced.data import tokenizers
from aced.data.prompts import CAPTION, SEPARATOR, PromptTokenizer
from aced.data.tokenizers.base import listed
from aced.evaluation.embed import pad_rows
from aced.models import params as params_lib
from aced.models import saved, trees
from aced.models.params import ParamsError
from aced.pretrained import check_list, pictures
from aced.training import blueprint, decoding, encoders, sharding, workdir
from aced.training.input import make_transform

BATCH = 64  # Pictures that are written about at a time.


@dataclasses.dataclass(frozen=True, eq=False)
class Captioner:
  """An encoder and the decoder that was trained on it.

  Attributes:
    where: the run of the decoder.
    step: of its checkpoint.
    writing: the models, and how they write.
    params: of the decoder.
    frozen: of the encoder.
    transform: makes a picture of a record.
  """

  where: pathlib.Path
  step: int
  writing: decoding.Writing
  params: Mapping[str, Any]
  frozen: Mapping[str, Any]
  transform: Any
  # How many beams, and their penalty -> the program that writes so.
  _writers: dict = dataclasses.field(default_factory=dict, repr=False)

  def __repr__(self):
    count = trees.count_params(self.params) / 1e6
    return (
      f"Captioner({str(self.where)!r}, step {self.step}, a decoder of"
      f" {count:.1f} M parameters, {self.transform.image_size} px)"
    )

  def caption(
    self,
    images: Iterable[Any],
    *,
    num_beams: int = 1,
    length_penalty: float = 0.0,
  ) -> list[str]:
    """Writes a caption of each picture.

    Args:
      images: paths, encoded bytes, `(h, w, 3)` uint8 arrays or Pillow images.
      num_beams: of beam search; 1 is greedy.
      length_penalty: of beam search, see `aced.models.generate.beam`.

    Raises:
      BadRecord: a picture cannot be decoded.
      OSError: one cannot be read.
      ValueError: a number of beams or a penalty that is out of range.
    """
    check_list("images", images)
    images = list(images)
    return self.write(
      images, [CAPTION] * len(images), num_beams, length_penalty
    )

  def answer(
    self,
    images: Iterable[Any],
    questions: Iterable[str],
    *,
    num_beams: int = 1,
    length_penalty: float = 0.0,
  ) -> list[str]:
    """Answers a question about each picture.

    Args:
      images: as of `caption`.
      questions: one for each picture.
      num_beams: as of `caption`.
      length_penalty: as of `caption`.

    Raises:
      ValueError: as `caption`, or pictures and questions differ in number.
    """
    return self.write(images, questions, num_beams, length_penalty)

  def write(
    self,
    images: Iterable[Any],
    prompts: Iterable[str],
    num_beams: int = 1,
    length_penalty: float = 0.0,
  ) -> list[str]:
    """Writes what follows a prompt, for each picture; raises as `answer`."""
    check_list("images", images)
    images, prompts = list(images), listed("prompts", prompts)
    if len(prompts) != len(images):
      raise ValueError(
        f"{len(images)} pictures and the prompts {prompts!r:.60}; give a list"
        " of one text, such as a question, for each picture."
      )
    tokenizer = self.writing.tokenizer
    pixels = pictures(images, self.transform)
    labels = tokenizer(
      [f"{prompt.replace(SEPARATOR, ' ')}{SEPARATOR}" for prompt in prompts]
    )
    write = self._writer(num_beams, float(length_penalty))
    size, texts = min(BATCH, max(len(pixels), 1)), []
    for k in range(0, len(pixels), size):
      # A row of padding has no prompt of its own: it has the first one's.
      rows = {
        "image": pad_rows(pixels[k : k + size], size),
        "labels": np.resize(labels[k : k + size], (size, labels.shape[1])),
      }
      ids = np.asarray(write((self.params, self.frozen), rows))
      texts += [tokenizer.decode(row) for row in ids[: len(pixels) - k]]
    return texts

  def _writer(self, num_beams, length_penalty):
    key = num_beams, length_penalty
    if key not in self._writers:
      self._writers[key] = self.writing.writer(*key)
    return self._writers[key]


def load_captioner(
  where: str | os.PathLike, *, encoder: str | os.PathLike = ""
) -> Captioner:
  """Loads the decoder of a run, and the encoder that it was trained on.

  Args:
    where: the workdir, perhaps with "@STEP" or "@best" behind it.
    encoder: where the encoder is by now; "" is where the run says, which may be
      a path from the folder that it was started in.

  Raises:
    FileNotFoundError: no run, no such checkpoint, or no encoder is there.
    ParamsError: the run has no decoder, is damaged, or the encoder in its place
      is another one by now.
  """
  where = os.fspath(where)
  folder, step = saved.find_checkpoint(where)
  config = workdir.config_of(folder.parent)
  if not config.decoder.model:
    raise ParamsError(
      f"{where} is the run of a student, which writes nothing; aced.load loads"
      " it, and configs/lit_decoder.py trains a decoder on it."
    )
  params = saved.load_checkpoint(where)
  if config.decoder.freeze:
    config.student.init = os.fspath(encoder) or config.student.init
    tower, frozen = _load_encoder(config)
    _check_encoder(folder / str(step), config.student.init, frozen)
    params = {**params, encoders.ENCODER: frozen}
  else:
    tower = blueprint.build_model(config.student, vocab_size=1)
  params, frozen = decoding.apart(params, {})
  tokenizer = PromptTokenizer(
    tokenizers.load_tokenizer(config.input.tokenizer, config.input.text_length)
  )
  writing = decoding.Writing(
    tower,
    decoding.make_decoder(config, tokenizer.vocab_size),
    tokenizer,
    sharding.make_mesh({"data": -1, "fsdp": 1}),
  )
  return Captioner(
    where=folder.parent,
    step=step,
    writing=writing,
    params=params,
    frozen=frozen,
    transform=make_transform(config.input, train=False),
  )


def _load_encoder(config):
  """The encoder that a run names, and its parameters."""
  try:
    return encoders.load_encoder(config)[1:]
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"the decoder's encoder: {error} Say where it is by now, as"
      " load_captioner(..., encoder=PATH); a relative path is looked for from"
      f" {os.getcwd()}."
    ) from error


def _check_encoder(checkpoint, init, params):
  """Raises ParamsError if the encoder is not the one of the training."""
  metadata = checkpoint / "metadata" / "metadata"
  told = json.loads(metadata.read_text("utf-8"))["identities"]
  expected = told[f"frozen.{encoders.ENCODER}"]
  found = params_lib.fingerprint(params)
  if found != expected:
    raise ParamsError(
      f"the decoder of {checkpoint} was trained on an encoder of fingerprint"
      f" {expected}, and {init} holds {found}; put back what was there, or"
      " train a decoder on what is there now."
    )
