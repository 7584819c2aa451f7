"""Hugging Face folders of students, as `transformers` loads them."""

import numpy as np
import pytest
from PIL import Image

import aced
from aced.data.tokenizers import load
from aced.export.hf_folder import PIPELINE, export_hf, pipeline_problem
from aced.export.lengths import with_text_length
from tests.export.hf_tokenizer_test import every_case, garbled, specs
from tests.export.writing_test import npz_student
from tests.models.formats import released
from tests.models.formats.reading_test import save
from tests.models.formats.released import assert_close

__all__ = ["specs"]  # A fixture.
# As users write them; the long ones are cut.
LABELS = (
  "cat",
  "A red CIRCLE on the left",
  "",
  "Ünïcödé ÉTÉ und Straße",
  "漢字 🙂 ภาษาไทย",
  "don't   say\t\"it's\"",
  "antidisestablishmentarianism " * 9,
  "漢字🙂é" * 40,
)

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"image__scan": True, "text__scan": True, "image__depth": 3},
    {"bias_init": None},
    {"text__width": 16, "text__mlp_dim": 20},
  ],
)
def test_transformers_gives_our_logits(tmp_path, fields):
  torch, transformers = released.needs("torch", "transformers")
  student = npz_student(tmp_path / "w.npz", **fields)
  export_hf(student, tmp_path / "hf")
  with released.quiet():
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
  assert type(model) is transformers.SiglipModel
  rng = np.random.default_rng(0)
  pictures = list(rng.integers(0, 256, (3, 8, 8, 3), np.uint8))
  texts = ["a cat", "a dog on a red sofa", "", "Grüße"]
  with released.quiet(), torch.no_grad():
    inputs = processor(
      text=texts,
      images=pictures,
      padding="max_length",
      truncation=True,
      return_tensors="pt",
    )
    theirs = model(**inputs).logits_per_image
  assert_close(student.logits(pictures, texts), theirs)
  again = aced.load(tmp_path / "hf")
  assert_close(again.logits(pictures, texts), theirs)


def scored(folder, picture, labels):
  """Scores of the pipeline that transformers has, by label."""
  (transformers,) = released.needs("torch", "transformers")[1:]
  with released.quiet():
    classify = transformers.pipeline(PIPELINE, model=str(folder))
    found = classify(Image.fromarray(picture), candidate_labels=list(labels))
  return {one["label"]: one["score"] for one in found}


def student_of(folder, spec, length):
  size = load(spec, length).vocab_size
  save(folder / "w.npz", text__vocab_size=size, text_length=length)
  return aced.load(folder / "w.npz", tokenizer=spec)


def picture(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


@every_case
def test_the_pipeline_gives_our_scores(specs, name, options, tmp_path):
  """At 64 tokens, with a tokenizer of any kind that a folder can have."""
  released.needs("torch", "transformers")
  export_hf(student_of(tmp_path, specs[name] + options, 64), tmp_path / "hf")
  again = aced.load(tmp_path / "hf")
  labels = [x for x in LABELS if name != "clip" or not garbled(x)]
  assert len(labels) > 6
  found = scored(tmp_path / "hf", picture(), labels)
  prompts = [f"This is a photo of {label}." for label in labels]
  (logits,) = again.logits([picture()], prompts)
  wanted = 1 / (1 + np.exp(-logits))
  assert np.ptp(wanted) > 0.002  # Much more than they may differ by.
  assert_close([found[label] for label in labels], wanted)


@pytest.mark.parametrize("length", [24, 80])
def test_the_pipeline_is_right_at_the_length_that_it_wants(tmp_path, length):
  student = with_text_length(student_of(tmp_path, "bytes", length), 64)
  export_hf(student, tmp_path / "hf")
  labels = [label for label in LABELS if label]
  prompts = [f"This is a photo of {label}." for label in labels]
  (logits,) = aced.load(tmp_path / "hf").logits([picture()], prompts)
  found = scored(tmp_path / "hf", picture(), labels)
  assert_close([found[label] for label in labels], 1 / (1 + np.exp(-logits)))


@pytest.mark.parametrize("length", [8, 24, 80])
def test_what_the_pipeline_does_to_other_lengths_is_what_we_say(
  specs, tmp_path, length
):
  """It fails, or is wrong; the model and the processor are right."""
  torch, transformers = released.needs("torch", "transformers")
  export_hf(student_of(tmp_path, "bytes", length), tmp_path / "hf")
  again, folder = aced.load(tmp_path / "hf"), tmp_path / "hf"
  assert again.text_length == length
  labels = [label for label in LABELS if label]
  prompts = [f"This is a photo of {label}." for label in labels]
  wanted = again.logits([picture()], prompts)
  problem = pipeline_problem(length)
  if length < 64:
    assert "would fail" in problem
    with pytest.raises(ValueError, match="Sequence length must be less"):
      scored(folder, picture(), labels)
  else:
    assert "would give wrong scores without an error" in problem
    found = scored(folder, picture(), labels)
    differ = [found[x] for x in labels] - 1 / (1 + np.exp(-wanted[0]))
    assert np.abs(differ).max() > 1e-3
  with released.quiet(), torch.no_grad():
    model = transformers.AutoModel.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    # As the card says, and where one forgets to.
    for given in ({"padding": "max_length", "truncation": True}, {}):
      inputs = processor(
        text=prompts, images=[picture()], return_tensors="pt", **given
      )
      assert inputs["input_ids"].shape[1] == length
      assert_close(wanted, model(**inputs).logits_per_image)
  with released.quiet():
    short = processor(text=["a"])["input_ids"]
  assert short == again.tokens(["a"]).tolist()
