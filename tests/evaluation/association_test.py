"""Associations against sets, and what an instance must be."""

import numpy as np
import pytest

from aced.evaluation import build
from aced.evaluation.association import Association, jaccard, prompt
from aced.evaluation.embed import Rows
from tests.evaluation import evaluators_test as tiny
from tests.models.formats import released

CUES = ("apple", "sky", "Ocean", "moss", "rust", "umbrella", "fog")


def tokenizer(texts):
  """Which cue a prompt is of."""
  prompts = [f"{'An' if c[0] in 'aeouO' else 'A'} {c.lower()}" for c in CUES]
  return np.array([[prompts.index(text)] for text in texts], np.int32)


def make(seed=0, sizes=(5, 6, 10, 12, 5, 10, 6), mixed=True):
  """Candidates of several instances, whose records stand in any order."""
  rng = np.random.default_rng(seed)
  records = []
  for k, size in enumerate(sizes):
    right = np.arange(size) < rng.integers(1, size // 2 + 1)
    records += [
      {"text": CUES[k], "instance": f"no. {k}", "associated": bool(one)}
      for one in rng.permutation(right)
    ]
  order = rng.permutation(len(records)) if mixed else range(len(records))
  return tiny.Source(records[k] for k in order)


def embeddings(seed, count, d=8):
  z = np.random.default_rng(seed).standard_normal((count, d))
  return np.float32(z / np.linalg.norm(z, axis=1, keepdims=True))


def measure(source, zimg, ztxt, kept=None, **options):
  """What is found where pictures and cues have these embeddings."""
  kept = np.arange(len(source)) if kept is None else kept
  evaluator = Association(source, tokenizer, None, **options)
  return evaluator.measure(
    Rows(zimg[kept], kept), lambda ids: ztxt[np.asarray(ids)[:, 0]]
  )


def by_sets(source, zimg, ztxt, left_out=()):
  """`{instance: Jaccard index}`, with sets, as the task is described."""
  found = {}
  for name in dict.fromkeys(record["instance"] for record in source):
    own = [k for k, r in enumerate(source) if r["instance"] == name]
    if set(own) & set(left_out):
      continue
    cue = ztxt[CUES.index(source[own[0]]["text"])]
    right = {k for k in own if source[k]["associated"]}
    nearest = sorted(own, key=lambda k: -np.dot(zimg[k], cue))
    picked = set(nearest[: len(right)])
    found[name] = len(picked & right) / len(picked | right)
  return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch_size", [2, 64])
def test_equals_sets(seed, batch_size):
  source = make(seed)
  zimg, ztxt = embeddings(seed, len(source)), embeddings(9, len(CUES))
  got = measure(source, zimg, ztxt, batch_size=batch_size)
  want = by_sets(source, zimg, ztxt)
  np.testing.assert_allclose(got.jaccard, list(want.values()), rtol=1e-12)
  assert got.clusters == len(CUES)
  assert 0 < np.mean(got.jaccard) < 1
  hard = [
    value
    for name, value in want.items()
    if sum(record["instance"] == name for record in source) >= 10
  ]
  assert len(hard) == 3
  assert got.metrics() == {
    "jaccard": pytest.approx(np.mean(list(want.values()))),
    "jaccard_hard": pytest.approx(np.mean(hard)),
  }


def test_an_instance_without_one_of_its_pictures_is_left_out():
  source = make()
  zimg, ztxt = embeddings(0, len(source)), embeddings(9, len(CUES))
  bad = [3, 20]
  assert source[3]["instance"] != source[20]["instance"]
  kept = np.delete(np.arange(len(source)), bad)
  got = measure(source, zimg, ztxt, kept)
  want = by_sets(source, zimg, ztxt, left_out=bad)
  assert got.clusters == len(CUES) - 2
  np.testing.assert_allclose(got.jaccard, list(want.values()), rtol=1e-12)
  first = [
    next(k for k, r in enumerate(source) if r["instance"] == name)
    for name in dict.fromkeys(record["instance"] for record in source)
  ]
  with pytest.raises(ValueError, match=r"Source\(tiny\): no instance has all"):
    measure(source, zimg, ztxt, np.delete(np.arange(len(source)), first))


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(20))
def test_index_of_scikit_learn(seed):
  # DataComp takes the last of an argsort; without ties it is the same.
  (metrics,) = released.needs("sklearn.metrics")
  rng = np.random.default_rng(seed)
  right = rng.random(rng.integers(5, 13)) < 0.4
  right[0] = True
  similarity = rng.standard_normal(len(right))
  picked = np.isin(
    np.arange(len(right)), np.argsort(similarity)[-right.sum() :]
  )
  want = metrics.jaccard_score(right, picked)
  assert jaccard(similarity, right) == pytest.approx(want, rel=1e-12)


def test_instances_that_are_left_out_are_counted_and_named():
  source = make(mixed=False)
  evaluator = Association(source, tokenizer, None)
  kept = np.delete(np.arange(len(source)), [5, 8, 11])
  (note,) = evaluator.notes(Rows(np.zeros((len(kept), 1)), kept))
  assert note.startswith("2 of 7 instances") and note.endswith("cue 'sky'")
  every = np.arange(len(source))
  assert not evaluator.notes(Rows(np.zeros((len(every), 1)), every))


def test_of_equal_candidates_the_first_is_picked():
  right = np.array([False, True, True, False])
  assert jaccard(np.ones(4), right) == pytest.approx(1 / 3)
  assert jaccard(np.ones(4), right[::-1].copy()) == pytest.approx(1 / 3)
  assert jaccard(np.ones(2), np.array([True, False])) == 1.0


@pytest.mark.parametrize(
  ("cue", "text"),
  [("Apple", "An apple"), ("sky", "A sky"), ("UFO", "An ufo"), ("8", "A 8")],
)
def test_prompt(cue, text):
  assert prompt(cue) == text


@pytest.mark.parametrize("side", ["zimg", "ztxt"])
def test_a_diverged_model_is_not_a_perfect_one(side):
  # What is not a number sorts last, and the right ones stand first here.
  source = make(mixed=False)
  source.sort(key=lambda record: not record["associated"])
  z = {"zimg": embeddings(0, len(source)), "ztxt": embeddings(1, len(CUES))}
  z[side][:] = np.nan
  with pytest.raises(ValueError, match=f"{side} has values that are not fin"):
    measure(source, **z)


def colours(**changes):
  """Two instances of real pictures; the cue is the colour of the right one."""
  records = tiny.make(("red", "blue", "green", "blue", "red", "green"))
  for k, record in enumerate(records):
    cue = ("red", "blue")[k // 3]
    record |= {"instance": k // 3, "text": cue}
    record["associated"] = int(record["label"] == cue)
  for key, value in changes.items():
    records[4][key] = value
  return records


def evaluator(source):
  return Association(source, tiny.tokenizer, tiny.TRANSFORM, batch_size=4)


def test_pictures_are_picked():
  assert evaluator(colours()).run(tiny.embed_image, tiny.embed_text) == {
    "jaccard": 1.0,
    "masked": 0.0,
  }
  # The second instance's right one is now another than that of its colour.
  source = colours(associated=True)
  source[3]["associated"] = False
  got = evaluator(source).run(tiny.embed_image, tiny.embed_text)
  assert got["jaccard"] == 0.5
  source = colours(image=b"no picture")
  got = evaluator(source).run(tiny.embed_image, tiny.embed_text)
  assert got == {"jaccard": 1.0, "masked": 1.0}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"text": "green"}, r"instance 1 of .* has the cues \['blue', 'green'\]"),
    ({"text": ["green", "blue"]}, r"has the cues \['blue', 'green'\]"),
    ({"text": " "}, r"\['blue'\], 1 candidates without one"),
    ({"text": None}, r"\['blue'\], 1 candidates without one"),
    ({"instance": 7}, "instance 7 .* and 0 pictures that go"),
    ({"instance": None}, "needs a 'instance' in every record, and record 4"),
    ({"associated": "yes"}, "record 4 .* has 'yes'"),
  ],
)
def test_wrong_records_are_told_before_pictures_are_embedded(changes, message):
  def embed_image(image):
    pytest.fail("a picture was embedded")

  with pytest.raises(ValueError, match=message):
    evaluator(colours(**changes)).run(embed_image, tiny.embed_text)


def test_fields_are_looked_for_at_once():
  with pytest.raises(ValueError, match="needs a 'cue' in every record"):
    Association(colours(), tokenizer, None, instance_field="cue")
  with pytest.raises(ValueError, match="needs a 'right' in every record"):
    Association(colours(), tokenizer, None, associated_field="right")


def test_nothing_to_evaluate():
  with pytest.raises(ValueError, match="nothing to evaluate in Source"):
    evaluator(tiny.Source()).run(tiny.embed_image, tiny.embed_text)


def test_is_built_from_a_config(tmp_path):
  lines = []
  for k, record in enumerate(colours()):
    (tmp_path / f"{k}.png").write_bytes(record.pop("image"))
    lines.append(record | {"image": f"{k}.png"})
  path = tmp_path / "test.jsonl"
  path.write_text("".join(tiny.json.dumps(line) + "\n" for line in lines))
  config = {"type": "association", "source": f"jsonl:{path}"}
  built = build("x", config, tiny.tokenizer, tiny.TRANSFORM)
  found = built.run(tiny.embed_image, tiny.embed_text)
  assert built.name == "x" and found["jaccard"] == 1.0
