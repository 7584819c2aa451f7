"""What a task of a suite is, and the lists that come with the package."""

import dataclasses
import functools
import importlib.resources
import json
from typing import NamedTuple

from aced.config import did_you_mean
from aced.evaluation.zero_shot import TEMPLATES, check_templates

# Kind -> the metrics that it can be scored by.
METRICS = {
  "zero_shot": (
    "accuracy",
    "accuracy_top5",
    "mean_per_class",
    "macro_f1",
    "worst_group_accuracy",
    "worst_group_top5",
  ),
  "retrieval": tuple(
    f"{way}/R@{k}"
    for way in ("mean", "image_to_text", "text_to_image")
    for k in (1, 5, 10)
  ),
  "association": ("jaccard", "jaccard_hard"),
}
# Names of these in `METRICS` need to know the groups.
_OF_GROUPS = "worst_group_"


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set, and how a model is scored on it.

  Attributes:
    name: names rows and files, such as "imagenet1k".
    title: for tables, such as "ImageNet-1k".
    group: of tasks that belong together, such as "ImageNet shifts".
    kind: "zero_shot", "retrieval" or "association".
    sources: specs of `aced.data.open_source`, the first that opens is taken;
      "{data_dir}" stands for the user's folder. Labels of `webdataset:` are
      numbers of classes, those of `tfds:` names in the list of that data set:
      its i-th is the i-th class here, though it may be spelled otherwise.
    records: pictures of the test split, exactly; of an association, candidates.
    metric: one of `METRICS[kind]`.
    num_classes: how many there are; 0 where there are none, or where they are
      those of the source.
    classes: the class names, in the order of their numbers, or the name of the
      package's list of them; None: they come with the data, a line each in
      classnames.txt.
    templates: prompts with "{}" or "{c}" where the name of the class goes, or
      the name of the package's list; none are `aced.evaluation.TEMPLATES`.
    group_field: what holds a picture's group, for the metrics of the worst
      group; "metadata.0" is item 0 of the list `metadata`.
    groups_left_out: groups that do not count.
    train_sources: of the training split, as `sources`, where there is one.
    get: how to get the data, in words; "{data_dir}" as in `sources`.

  Raises:
    ValueError: an attribute that does not fit, by name.
  """

  name: str
  title: str
  group: str
  kind: str
  sources: tuple[str, ...]
  records: int
  metric: str
  num_classes: int = 0
  classes: str | tuple[str, ...] | None = None
  templates: str | tuple[str, ...] | None = None
  group_field: str = ""
  groups_left_out: tuple[int | str, ...] = ()
  train_sources: tuple[str, ...] = ()
  get: str = ""

  def __post_init__(self):
    self._check_kind()
    self._check_groups()
    if self.kind != "zero_shot":
      for field in ("num_classes", "classes", "templates"):
        if getattr(self, field):
          self._refuse(field, f"{self.kind} has no classes and no templates")
      return
    names = self.class_names
    if names is None and self.num_classes < 2:
      self._refuse("num_classes", "expected how many classes the data names")
    if names is not None and len(names) != self.num_classes:
      self._refuse(
        "num_classes", f"there are {len(names)} class names; make them agree"
      )
    try:
      check_templates(self.prompts)
    except ValueError as error:
      self._refuse("templates", str(error).removesuffix("."))

  @property
  def class_names(self) -> tuple[str, ...] | None:
    """The class names; None where they come with the data."""
    if isinstance(self.classes, str):
      return read_list("classes", self.classes)
    return self.classes

  @property
  def prompts(self) -> tuple[str, ...]:
    """Prompts, with "{}" where the name of the class goes."""
    if self.kind != "zero_shot":
      return ()
    if isinstance(self.templates, str):
      return read_list("templates", self.templates)
    return self.templates or TEMPLATES

  def _check_kind(self):
    for field in ("name", "title"):
      if not getattr(self, field):
        self._refuse(field, "expected a name")
    if self.kind not in METRICS:
      self._refuse("kind", f"expected one of {', '.join(METRICS)}", METRICS)
    known = METRICS[self.kind]
    if self.metric not in known:
      self._refuse(
        "metric", f"{self.kind} is scored by one of {', '.join(known)}", known
      )
    if not self.sources or isinstance(self.sources, str):
      self._refuse("sources", "expected a tuple of at least one spec")
    if self.records < 1:
      self._refuse("records", "expected the number of pictures, 1 or more")

  def _check_groups(self):
    of_groups = self.metric.startswith(_OF_GROUPS)
    if of_groups and not self.group_field:
      self._refuse("group_field", f"{self.metric} needs to know the groups")
    if self.groups_left_out and not self.group_field:
      self._refuse("groups_left_out", "there is no group_field to leave from")

  def _refuse(self, field, why, known=()):
    value = getattr(self, field)
    raise ValueError(
      f"task {self.name!r}: {field}={value!r}: {why}."
      f"{did_you_mean(value, known)}"
    )


class Suite(NamedTuple):
  """Tasks that are run together.

  Attributes:
    name: of the suite.
    tasks: in the order of tables.
    about: what a reader of its average should know.
  """

  name: str
  tasks: tuple[Task, ...]
  about: str = ""


@functools.cache
def read_list(kind: str, name: str) -> tuple[str, ...]:
  """Reads a list of the package.

  Args:
    kind: "classes" or "templates".
    name: of the file, without its ending.

  Raises:
    ValueError: there is no such list.
  """
  folder = importlib.resources.files("aced.evaluation.suites") / "data" / kind
  file = folder / f"{name}.json"
  if not file.is_file():
    known = sorted(
      entry.name.removesuffix(".json") for entry in folder.iterdir()
    )
    raise ValueError(
      f"{kind}={name!r} is not a list of the package; they are"
      f" {', '.join(known)}.{did_you_mean(name, known)}"
    )
  return tuple(json.loads(file.read_text("utf-8")))
