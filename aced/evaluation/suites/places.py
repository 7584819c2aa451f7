"""Where the data of a task may stand, in folders as publishers name them."""

from aced.evaluation.suites.task import Task

# Options of shards: labels are numbers of classes, and no text is used.
LABELS = "?text=cls&label=cls"
GROUPS = f"{LABELS}&metadata=npy"


def _shards(folder: str, options: str = LABELS) -> str:
  return f"webdataset:{{data_dir}}/wds_{folder}/test/*.tar{options}"


def _tfds(data: str) -> str:
  return f"tfds:{data}?data_dir={{data_dir}}/tfds&text=label&label=label"


def _download(owner: str, folder: str) -> str:
  # The training split, where there is one, is many times larger.
  return (
    f"hf download {owner}/wds_{folder} --repo-type dataset --exclude"
    f" 'train/*' --local-dir {{data_dir}}/wds_{folder}"
  )


def classification(
  name: str,
  title: str,
  group: str,
  records: int,
  num_classes: int,
  *,
  shards: str | None = "",
  datacomp: str = "",
  tfds: str = "",
  options: str = LABELS,
  classes: str | None = "",
  templates: str = "imagenet1k",
) -> Task:
  """A task of classification, scored by plain top-1.

  Args:
    name: of the task, and of what is not named below.
    title: for tables.
    group: of the suite.
    records: pictures.
    num_classes: how many.
    shards: CLIP_benchmark's folder after "wds_"; None: it has none.
    datacomp: DataComp's folder between "wds_" and "_test"; by default the same.
    tfds: name/config and split of TFDS.
    options: of the shards.
    classes: the list of class names; None: it comes with the data.
    templates: the list of prompts.
  """
  shards = name if shards == "" else shards
  ours = f"{datacomp or shards}_test"
  sources = [] if shards is None else [_shards(shards, options)]
  sources.append(_shards(ours, options))
  if tfds:
    sources.append(_tfds(tfds))
  get = (
    _download("djghosh", ours)
    if shards is None
    else _download("clip-benchmark", shards)
  )
  return Task(
    name=name,
    title=title,
    group=group,
    kind="zero_shot",
    sources=tuple(sources),
    records=records,
    metric="accuracy",
    num_classes=num_classes,
    classes=name if classes == "" else classes,
    templates=templates,
    get=get,
  )


def captions(name: str, title: str, records: int, tfds: str = "") -> Task:
  """A task of retrieval, scored by the mean recall at 1 of both directions.

  Args:
    name: of the task, and of CLIP_benchmark's folder after "wds_".
    title: for tables.
    records: pictures.
    tfds: name/config and split of TFDS.
  """
  # DataComp's copies need a loading script, which `datasets` no longer runs.
  spec = f"tfds:{tfds}?data_dir={{data_dir}}/tfds&text=captions/text"
  return Task(
    name=name,
    title=title,
    group="retrieval",
    kind="retrieval",
    sources=(_shards(name, "?text=txt"), *((spec,) if tfds else ())),
    records=records,
    metric="mean/R@1",
    get=_download("clip-benchmark", name),
  )
