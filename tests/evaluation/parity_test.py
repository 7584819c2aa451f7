"""Zero-shot and retrieval numbers against those of the field's own tools."""

import contextlib
import types
from unittest import mock

import numpy as np
import pytest

from aced.evaluation import accuracy, class_embeddings
from aced.evaluation.retrieval import retrieval
from tests.models.formats import released

pytestmark = pytest.mark.parity

KS = (1, 5, 10)
WAYS = {"image_to_text": "text", "text_to_image": "image"}


def peer(module):
  """torch and a module of a peer."""
  return released.needs("torch", module)


@contextlib.contextmanager
def numbers_of_one_item_arrays(module):
  """Lets `float` read an array of one item, which NumPy 2.4 no longer does.

  The accuracy of both peers relies on it, and fails with this NumPy.
  """

  def number(x):
    return float(np.squeeze(x))

  with mock.patch.object(module, "float", number, create=True):
    yield module


class LookUp:
  """A model of torch whose inputs are numbers of rows of embeddings."""

  def __init__(self, zimg, ztxt):
    torch = peer("torch")[0]
    self.zimg, self.ztxt = torch.from_numpy(zimg), torch.from_numpy(ztxt)

  def encode_image(self, index):
    return self.zimg[index]

  def encode_text(self, index, normalize=False):
    found = self.ztxt[index]
    return found / found.norm(dim=-1, keepdim=True) if normalize else found

  def __call__(self, image):
    return {"image_features": self.zimg[image]}


def batches(labels, size):
  """`(numbers of images, labels)`; tensors unless labels are lists of texts."""
  torch = peer("torch")[0]
  index = torch.arange(len(labels))
  label = labels if isinstance(labels, list) else torch.from_numpy(labels)
  return [
    (index[k : k + size], label[k : k + size])
    for k in range(0, len(labels), size)
  ]


def normalised(z):
  """As the peers normalise, in float32."""
  torch = peer("torch")[0]
  return torch.nn.functional.normalize(torch.from_numpy(z), dim=-1).numpy()


def pairs(seed, n=60, d=24, captions=5, noise=2.4):
  """Pictures with one to `captions` captions, in the order of pictures."""
  rng = np.random.default_rng(seed)
  of = np.repeat(np.arange(n), rng.integers(1, captions + 1, n))
  zimg = rng.standard_normal((n, d))
  ztxt = zimg[of] + noise * rng.standard_normal((len(of), d))
  return normalised(np.float32(zimg)), normalised(np.float32(ztxt)), of


def their_hits(zimg, ztxt, of, batch_size=7):
  """`{(direction, k): hits}` of CLIP_benchmark."""
  torch, module = peer("clip_benchmark.metrics.zeroshot_retrieval")
  texts = [np.flatnonzero(of == k).tolist() for k in range(len(zimg))]
  found = module.evaluate(
    LookUp(zimg, ztxt),
    batches(texts, batch_size),
    torch.tensor,
    "cpu",
    amp=False,
    recall_k_list=KS,
  )
  queries = {"image_to_text": len(zimg), "text_to_image": len(ztxt)}
  return {
    (way, k): hits(found[f"{name}_retrieval_recall@{k}"], queries[way])
    for way, name in WAYS.items()
    for k in KS
  }


def our_hits(zimg, ztxt, of):
  found = retrieval(zimg, ztxt, of, KS)
  queries = {"image_to_text": len(zimg), "text_to_image": len(ztxt)}
  return {
    (way, k): hits(found[f"{way}/R@{k}"], queries[way])
    for way in WAYS
    for k in KS
  }


def hits(share, queries):
  """The whole number that a share is of, up to one rounding to float32."""
  count = round(share * queries)
  assert share == pytest.approx(count / queries, rel=1e-6)
  return count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("captions", [1, 5])
def test_retrieval_has_the_hits_of_clip_benchmark(seed, captions):
  # It multiplies in float32, with errors of 1e-7: that what decides a hit is as
  # near as that happens to one query in a million.
  made = pairs(seed, captions=captions)
  found = our_hits(*made)
  assert found == their_hits(*made)
  for way, queries in (("image_to_text", 60), ("text_to_image", len(made[2]))):
    assert 0.1 * queries < found[way, 1] < found[way, 10] < queries


def lattice(seed, n=40, captions=3):
  """Entries of 1/4 and -1/4: of length one, with exact sums and many ties."""
  rng = np.random.default_rng(seed)
  zimg = np.where(rng.random((n, 16)) < 0.5, -0.25, 0.25)
  of = np.repeat(np.arange(n), captions)
  flip = np.where(rng.random((len(of), 16)) < 0.3, -1.0, 1.0)
  return np.float32(zimg), np.float32(zimg[of] * flip), of


@pytest.mark.parametrize("seed", range(5))
def test_ties_of_clip_benchmark_lie_between_the_extremes(seed):
  # torch.topk leaves open which of equal items comes first; with us it is the
  # lower index.
  zimg, ztxt, of = lattice(seed)
  np.testing.assert_array_equal(zimg, normalised(zimg))
  similarity = np.int64(64 * zimg) @ np.int64(16 * ztxt).T
  ours, theirs = our_hits(zimg, ztxt, of), their_hits(zimg, ztxt, of)
  for way, own in (
    ("image_to_text", np.arange(len(zimg))[:, None] == of),
    ("text_to_image", of[:, None] == np.arange(len(zimg))),
  ):
    s = similarity if way == "image_to_text" else similarity.T
    best = np.where(own, s, -(10**6)).max(axis=1, keepdims=True)
    above = np.sum(s > best, axis=1)
    equal = np.sum((s == best) & ~own, axis=1)
    order = np.argsort(-s, axis=1, kind="stable")
    first = np.take_along_axis(own, order, axis=1).argmax(axis=1)
    lowest = {k: np.sum(above + equal < k) for k in KS}
    highest = {k: np.sum(above < k) for k in KS}
    assert lowest[1] + 2 < highest[1]  # Ties decide something here.
    for k in KS:
      assert lowest[k] <= theirs[way, k] <= highest[k]
      assert ours[way, k] == np.sum(first < k)


@pytest.mark.parametrize("seed", range(3))
def test_ties_within_a_picture_do_not_matter(seed):
  zimg, ztxt, of = pairs(seed, n=30)
  # All captions of a picture are the same: whichever comes first is a hit.
  ztxt = ztxt[np.searchsorted(of, of)]
  ours, theirs = our_hits(zimg, ztxt, of), their_hits(zimg, ztxt, of)
  assert ours["image_to_text", 1] == theirs["image_to_text", 1]
  for k in KS:
    assert ours["text_to_image", k] == theirs["text_to_image", k]


NAMES = [f"thing {k}" for k in range(9)]
TEMPLATES = ("a photo of a {}.", "the {}", "{} in the snow")


def classes(seed, count=9, n=211, d=12, absent=()):
  """Prompts' embeddings, images and labels, of uneven classes."""
  rng = np.random.default_rng(seed)
  prompts = rng.standard_normal((count, len(TEMPLATES), d))
  prompts += 2 * rng.standard_normal((count, 1, d))
  share = 1.0 / np.arange(1, count + 1)
  share[list(absent)] = 0.0
  labels = rng.choice(count, n, p=share / share.sum())
  zimg = prompts.mean(axis=1)[labels] + 2.5 * rng.standard_normal((n, d))
  scale = rng.uniform(0.5, 3.0, (count, len(TEMPLATES), 1))
  flat = np.float32(prompts * scale).reshape(-1, d)
  return normalised(np.float32(zimg)), flat, labels


def prompt_numbers(texts):
  """The row of each prompt in the embeddings of `classes`."""
  known = [t.replace("{}", name) for name in NAMES for t in TEMPLATES]
  return np.array([known.index(text) for text in texts])


def our_classes(ztxt):
  return class_embeddings(
    lambda labels: ztxt[np.asarray(labels)[:, 0]],
    lambda texts: prompt_numbers(texts)[:, None].astype(np.int32),
    NAMES,
    TEMPLATES,
  )


def tensor_of(texts):
  return peer("torch")[0].from_numpy(prompt_numbers(texts))


def clip_benchmarks_classes(model):
  module = peer("clip_benchmark.metrics.zeroshot_classification")[1]
  templates = [t.replace("{}", "{c}") for t in TEMPLATES]
  return module.zero_shot_classifier(
    model, tensor_of, NAMES, templates, "cpu", amp=False
  )


def open_clips_classes(model):
  module = peer("open_clip.zero_shot_classifier")[1]
  return module.build_zero_shot_classifier(
    model, tensor_of, NAMES, TEMPLATES, num_classes_per_batch=4
  )


@pytest.mark.parametrize("build", [clip_benchmarks_classes, open_clips_classes])
def test_class_embeddings(build):
  zimg, ztxt, _ = classes(0)
  theirs = build(LookUp(zimg, ztxt)).numpy().T
  # Means and norms of unit vectors in float32, ours in float64.
  np.testing.assert_allclose(our_classes(ztxt), theirs, rtol=0, atol=3e-7)


class Loader(list):
  """Batches that know the names of their classes."""

  dataset = types.SimpleNamespace(classes=NAMES)


def clip_benchmarks_accuracy(model, labels):
  """Top 1, top 5 and the mean per class of CLIP_benchmark."""
  module = peer("clip_benchmark.metrics.zeroshot_classification")[1]
  templates = [t.replace("{}", "{c}") for t in TEMPLATES]
  with numbers_of_one_item_arrays(module):
    found = module.evaluate(
      model,
      Loader(batches(labels, 50)),
      tensor_of,
      NAMES,
      templates,
      "cpu",
      amp=False,
    )
  return tuple(found[k] for k in ("acc1", "acc5", "mean_per_class_recall"))


def open_clips_accuracy(model, labels):
  """Top 1 and top 5 of open_clip's own evaluation."""
  module = peer("open_clip_train.zero_shot")[1]
  args = types.SimpleNamespace(device="cpu", precision="fp32", batch_size=50)
  classifier = open_clips_classes(model)
  with numbers_of_one_item_arrays(module):
    return module.run(model, classifier, batches(labels, 50), args)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
  "evaluate", [clip_benchmarks_accuracy, open_clips_accuracy]
)
def test_zero_shot_has_the_accuracy_of(evaluate, seed):
  # Hits over pictures, in float64 with all: equal to the last digit. Theirs are
  # of float32 products, see above.
  zimg, ztxt, labels = classes(seed)
  found = evaluate(LookUp(zimg, ztxt), labels)
  got = accuracy(zimg, our_classes(ztxt), labels)
  names = ("accuracy", "accuracy_top5", "mean_per_class")
  assert tuple(got[name] for name in names)[: len(found)] == found
  assert 0.2 < got["mean_per_class"] != got["accuracy"] < 0.95


# It warns of classes that are predicted and occur nowhere, which it leaves out.
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("absent", [(), (0, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_mean_per_class_is_balanced_accuracy(seed, absent):
  (metrics,) = released.needs("sklearn.metrics")
  zimg, ztxt, labels = classes(seed, absent=absent)
  embedding = our_classes(ztxt)
  predicted = (np.float64(zimg) @ np.float64(embedding).T).argmax(axis=1)
  want = metrics.balanced_accuracy_score(labels, predicted)
  assert accuracy(zimg, embedding, labels)["mean_per_class"] == want
