"""What a task refuses, and the lists that it reads."""

import dataclasses

import pytest

from aced.config import ConfigError
from aced.evaluation import TEMPLATES, suites
from aced.evaluation.suites import task as task_lib
from aced.evaluation.suites.task import Task

FRUIT = Task(
  name="fruit",
  title="Fruit",
  group="mine",
  kind="zero_shot",
  sources=("jsonl:{data_dir}/fruit.jsonl",),
  records=3,
  metric="accuracy",
  num_classes=2,
  classes=("apple", "pear"),
  templates=("a {}.", "{}"),
)
CAPTIONS = Task(
  name="captions",
  title="Captions",
  group="mine",
  kind="retrieval",
  sources=("jsonl:{data_dir}/pairs.jsonl",),
  records=3,
  metric="mean/R@1",
)


def test_names_and_prompts_are_those_given():
  assert FRUIT.class_names == ("apple", "pear")
  assert FRUIT.prompts == ("a {}.", "{}")
  assert CAPTIONS.class_names is None and CAPTIONS.prompts == ()


def test_names_and_prompts_of_the_package():
  task = dataclasses.replace(
    FRUIT, num_classes=10, classes="stl10", templates="stl10"
  )
  assert task.class_names[:3] == ("airplane", "bird", "car")
  assert task.prompts == ("a photo of a {}.", "a photo of the {}.")


def test_names_may_come_with_the_data_and_prompts_have_a_default():
  task = dataclasses.replace(FRUIT, classes=None, templates=None)
  assert task.class_names is None and task.prompts == TEMPLATES
  task = dataclasses.replace(FRUIT, num_classes=0, classes=(), templates=())
  assert task.class_names == () and task.prompts == TEMPLATES


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"name": ""}, "task '': name='': expected a name"),
    ({"title": ""}, "task 'fruit': title=''"),
    ({"kind": "zeroshot"}, "kind='zeroshot': .* Did you mean 'zero_shot'?"),
    ({"metric": "acuracy"}, "metric='acuracy': .* Did you mean 'accuracy'?"),
    ({"metric": "mean/R@1"}, "metric='mean/R@1': zero_shot is scored by one"),
    ({"metric": "jaccard"}, "metric='jaccard': zero_shot is scored by one of"),
    ({"sources": ()}, "sources=.*at least one spec"),
    ({"sources": "jsonl:x.jsonl"}, "sources=.*expected a tuple"),
    ({"records": 0}, "records=0: expected the number of pictures"),
    ({"num_classes": 3}, "num_classes=3: there are 2 class names"),
    ({"classes": None, "num_classes": 0}, "num_classes=0: expected how many"),
    ({"classes": "stl10"}, "num_classes=2: there are 10 class names"),
    ({"classes": "stl11"}, "classes='stl11' is not a list .* mean 'stl10'"),
    ({"templates": "gtsr"}, "templates='gtsr' is not a list .* mean 'gtsrb'"),
    ({"templates": ("{}", "a photo")}, "templates=.*'a photo' has no '{}'"),
    ({"metric": "worst_group_accuracy"}, "group_field='': worst_group_accur"),
    ({"metric": "worst_group_top5"}, "group_field='': worst_group_top5 needs"),
    ({"groups_left_out": (5,)}, r"groups_left_out=\(5,\): there is no group"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(changed, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(FRUIT, **changed)


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"metric": "accuracy"}, "metric='accuracy': retrieval is scored by one"),
    ({"num_classes": 2}, "num_classes=2: retrieval has no classes"),
    ({"classes": ("a", "b")}, "classes=.*retrieval has no classes"),
    ({"templates": "stl10"}, "templates='stl10': retrieval has no classes"),
    ({"kind": "association"}, "metric='mean/R@1': association is scored by"),
  ],
)
def test_what_does_not_fit_retrieval_is_refused(changed, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CAPTIONS, **changed)


def test_every_metric_of_a_kind_is_taken():
  for metric in task_lib.METRICS["zero_shot"]:
    dataclasses.replace(FRUIT, metric=metric, group_field="metadata.0")
  for metric in task_lib.METRICS["retrieval"]:
    dataclasses.replace(CAPTIONS, metric=metric)
  for metric in task_lib.METRICS["association"]:
    dataclasses.replace(CAPTIONS, kind="association", metric=metric)


def test_suites_are_found_by_name():
  assert suites.names() == ("stableeval", "datacomp38", "smoke")
  assert suites.names("smoke") == ("shapes", "scenes")
  assert suites.suite("stableeval").tasks == suites.STABLEEVAL
  with pytest.raises(ConfigError, match="'stabl' is .* mean 'stableeval'?"):
    suites.suite("stabl")
