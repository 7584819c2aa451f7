"""Hugging Face folders of students, as `transformers` loads them."""

import numpy as np
import pytest

import aced
from aced.export.hf_folder import export_hf
from tests.export.writing_test import npz_student
from tests.models.formats import released
from tests.models.formats.released import assert_close

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
