"""Zero-shot classification against its formula, class by class."""

import numpy as np
import pytest

from aced.evaluation import accuracy, class_embeddings


def tokenizer(texts):
  """The bytes of each text, padded with zeros."""
  rows = [list(text.encode())[:32] for text in texts]
  return np.array([row + [0] * (32 - len(row)) for row in rows], np.int32)


def embed_text(labels):
  """Some fixed, uneven function of the tokens; not normalised."""
  powers = np.stack([np.sin(labels * k).sum(axis=1) for k in (1, 2, 3)], axis=1)
  return np.asarray(powers + 0.1, np.float32)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_class_embedding_is_the_normalised_mean_of_normalised_prompts(
  batch_size,
):
  names = ["cat", "dog", "a {curly} thing"]
  templates = ["a photo of a {}.", "{}", "the {} of {}"]
  got = class_embeddings(embed_text, tokenizer, names, templates, batch_size)
  assert got.dtype == np.float32
  for row, name in zip(got, names, strict=True):
    mean = np.zeros(3)
    for prompt in (f"a photo of a {name}.", name, f"the {name} of {name}"):
      z = np.float64(embed_text(tokenizer([prompt])))[0]
      mean += z / np.sqrt(np.sum(z**2)) / 3
    # One rounding to float32.
    np.testing.assert_allclose(row, mean / np.sqrt(np.sum(mean**2)), rtol=1e-6)


def test_accuracy_equals_counting():
  rng = np.random.default_rng(0)
  classes = rng.standard_normal((8, 5)).astype(np.float32)
  labels = rng.choice([0, 1, 2, 5, 7], size=60, p=[0.6, 0.1, 0.1, 0.1, 0.1])
  zimg = (classes[labels] + 1.2 * rng.standard_normal((60, 5))).astype("f4")
  got = accuracy(zimg, classes, labels)
  order = np.argsort(-(np.float64(zimg) @ np.float64(classes).T), axis=1)
  right = order[:, 0] == labels
  per_class = [right[labels == c].mean() for c in (0, 1, 2, 5, 7)]
  assert got["accuracy"] == pytest.approx(right.mean())
  assert got["mean_per_class"] == pytest.approx(np.mean(per_class))
  top5 = (order[:, :5] == labels[:, None]).any(axis=1).mean()
  assert got["accuracy_top5"] == pytest.approx(top5)
  assert got["accuracy"] != pytest.approx(got["mean_per_class"])


def test_few_classes_have_no_top5_and_ties_go_to_the_first():
  got = accuracy(np.ones((4, 2)), np.ones((2, 2)), np.array([0, 0, 0, 1]))
  assert got == {
    "accuracy": 0.75,
    "mean_per_class": 0.5,
    # Of the first class 2 * 3 / (3 + 4), of the second nothing.
    "macro_f1": pytest.approx(3 / 7),
  }


@pytest.mark.parametrize(
  ("templates", "message"),
  [
    (["a photo"], "'a photo' has no '{}'"),
    ([], "at least one prompt"),
    ("a {}", "must be a list"),
    ([3], "template 3"),
  ],
)
def test_refuses_templates(templates, message):
  with pytest.raises(ValueError, match=message):
    class_embeddings(embed_text, tokenizer, ["cat"], templates)


def test_refuses_what_does_not_fit():
  z, classes = np.ones((3, 2)), np.ones((2, 2))
  with pytest.raises(ValueError, match="class_names is empty"):
    class_embeddings(embed_text, tokenizer, [])
  with pytest.raises(ValueError, match=r"labels holds 0\.\.2"):
    accuracy(z, classes, np.arange(3))
  with pytest.raises(ValueError, match="labels is float64"):
    accuracy(z, classes, np.zeros(3))
  with pytest.raises(ValueError, match="not finite"):
    accuracy(z * np.inf, classes, np.zeros(3, int))
