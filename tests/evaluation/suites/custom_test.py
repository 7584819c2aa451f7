import pytest

from aced.config import ConfigError
from aced.evaluation.suites import suite

GOOD = """
name = "mine"
about = "A few pictures."

[[tasks]]
name = "fruit"
kind = "zero_shot"
source = "jsonl:{data_dir}/fruit.jsonl?label=kind"
train = "jsonl:{data_dir}/train.jsonl?label=kind"
records = 12
metric = "mean_per_class"
class_names = ["kiwi", "plum"]
templates = ["a {} in a shop"]

[[tasks]]
name = "photos"
kind = "retrieval"
source = "jsonl:photos.jsonl"
records = 3
"""


@pytest.fixture
def write(tmp_path):
  def write(text):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return str(path)

  return write


def test_a_suite_of_ones_own(write):
  name, (fruit, photos), about = suite(write(GOOD))
  assert (name, about) == ("mine", "A few pictures.")
  assert fruit.class_names == ("kiwi", "plum") and fruit.num_classes == 2
  assert fruit.prompts == ("a {} in a shop",)
  assert fruit.train_sources == ("jsonl:{data_dir}/train.jsonl?label=kind",)
  assert photos.metric == "mean/R@1" and photos.title == "photos"


def test_its_name_is_that_of_the_file_where_it_has_none(write):
  text = GOOD.replace('name = "mine"', "", 1)
  assert suite(write(text)).name == "suite"


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("records = 12", "record = 12", "'record' is not a key .* Did you mean"),
    ("records = 12", 'records = "12"', "records='12' must be of type int"),
    ("records = 12", "records = true", "records=True must be of type int"),
    ("records = 12", "records = 0", "expected the number of pictures"),
    ("records = 12", "", "lacks records"),
    ('kind = "zero_shot"', 'kind = "zeroshot"', "kind='zeroshot'"),
    ("mean_per_class", "mean_per_clas", "Did you mean 'mean_per_class'"),
    ("a {} in", "a thing in", "has no '{}'"),
    ('name = "photos"', 'name = "fruit"', "several tasks of the name 'fruit'"),
    ("name = ", "title == ", "is no TOML"),
    ('about = "', 'abuot = "', "'abuot' is not a key of a suite"),
  ],
)
def test_refuses_by_name(write, old, new, message):
  with pytest.raises(ConfigError, match=message):
    suite(write(GOOD.replace(old, new, 1)))


def test_refuses_what_is_no_suite(write, tmp_path):
  with pytest.raises(ConfigError, match=r"has no \[\[tasks\]\]"):
    suite(write('name = "none"'))
  with pytest.raises(ConfigError, match="No such file"):
    suite(str(tmp_path / "other.toml"))
  with pytest.raises(ConfigError, match="Did you mean 'stableeval'"):
    suite("stable_eval")
