import json

import pytest

from aced.data.pipeline import superbatches
from aced.data.records import SourceError
from aced.data.sources import open_source
from aced.data.sources.mixture import components
from aced.data.tokenizers import load_tokenizer
from aced.data.transforms import Transform


@pytest.fixture
def files(tmp_path):
  def write(name, count):
    path = tmp_path / f"{name}.jsonl"
    lines = (json.dumps({"text": f"{name}{k}"}) for k in range(count))
    path.write_text("\n".join(lines))
    return path

  return {"a": write("a", 30), "b": write("b", 10), "c": write("c", 7)}


def texts(source):
  return [source.fields(k)["text"] for k in range(len(source))]


def test_without_weights_it_is_one_after_the_other(files):
  source = open_source(f"mixture:jsonl:{files['a']}?limit=3;jsonl:{files['b']}")
  assert texts(source) == ["a0", "a1", "a2", *(f"b{k}" for k in range(10))]
  assert source.where(4).endswith("b.jsonl")


@pytest.mark.parametrize(
  ("weights", "counts"),
  # 30 / 3 is as 10 / 1; then b is read three times; then a is the one repeated.
  [((3, 1), (30, 10)), ((1, 1), (30, 30)), ((6, 1), (60, 10))],
)
def test_shares_are_those_of_the_weights(files, weights, counts):
  parts = zip(weights, ("a", "b"), strict=True)
  spec = ";".join(f"{w}*{files[name]}" for w, name in parts)
  found = texts(open_source(f"mixture:{spec}"))
  for name, count, size in zip("ab", counts, (30, 10), strict=True):
    own = [text for text in found if text[0] == name]
    assert own == [f"{name}{k % size}" for k in range(count)]


def test_every_record_is_there_whatever_the_weights(files):
  weights = {"a": 0.1, "b": 0.37, "c": 1e1}
  spec = ";".join(f"{w}*jsonl:{files[k]}" for k, w in weights.items())
  found = texts(open_source(f"mixture:{spec}"))
  assert len(set(found)) == 47
  shares = [sum(t[0] == name for t in found) / len(found) for name in "abc"]
  want = [w / 10.47 for w in weights.values()]
  assert shares == pytest.approx(want, abs=1 / len(found))


def test_faults_of_one_part_are_known(files):
  spec = f"mixture:synthetic:?size=20&noise=0.5;jsonl:{files['a']}"
  source = open_source(spec)
  assert source.has_faults
  with superbatches(
    source,
    load_tokenizer("bytes", 8),
    Transform(8),
    batch_size=50,
    seed=0,
    num_steps=1,
  ) as batches:
    batch = next(batches)
  known = batch["index"] < 20
  assert (batch["fault"][known] >= 0).all()
  assert (batch["fault"][~known] == -1).all()


@pytest.mark.parametrize(
  ("where", "message"),
  [
    ("", "must be WEIGHT"),
    ("a.jsonl;", "must be WEIGHT"),
    ("0*a.jsonl", "the weight 0 must be a number above 0"),
    ("1.2.3*a.jsonl", "the weight 1.2.3 must"),
    ("1*a.jsonl;mixture:b.jsonl", "has no mixture in it"),
  ],
)
def test_what_is_no_mixture(where, message):
  with pytest.raises(SourceError, match=message):
    components(where)


def test_weights_of_all_or_of_none(files):
  with pytest.raises(SourceError, match="weights of all its parts"):
    open_source(f"mixture:2*jsonl:{files['a']};jsonl:{files['b']}")


def test_a_part_that_cannot_be_opened_is_named(files):
  with pytest.raises(SourceError, match=r"nosuch.jsonl"):
    open_source(f"mixture:jsonl:{files['a']};jsonl:nosuch.jsonl")
