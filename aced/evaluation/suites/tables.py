"""The suites that come with the package, and how their tasks are scored.

`stableeval` is a reconstruction of the 27 evaluations that the ACED paper
(arXiv 2411.18674) kept of 34 for being stable over seeds. Its list could not be
read: the appendix of 16 pages was not at hand. These 27, each by plain top-1
and the two of retrieval by the mean recall at 1 of both directions, average to
63.64, 67.90 and 69.83 over the published scores of MobileCLIP-S0, S1 and S2,
where the paper prints 63.6, 67.9 and 69.8. Of the 1,365 ways to complete a core
of 23 of them from DataComp's 38, one other fits within 0.05: CLEVR distance,
GTSRB, KITTI distance and Camelyon17 in the place of iWildCam, DTD,
PatchCamelyon and FMoW give 63.65, 67.88 and 69.84. Other lists fit too if a
task of the core is dropped.

`datacomp38` has the 38 of DataComp (arXiv 2304.14108), each by its metric
there, which is plain top-1 but for these:

* Mean per class, of Caltech-101, Aircraft, Flowers and Pets: the mean recall of
  the classes that occur among the labels.
* Macro F1, of iWildCam: the mean F1 of the classes that occur among the labels.
  A class that is only predicted has no term of its own.
* Worst group: the least accuracy of the groups that have pictures. The groups
  are GeoDE's 6 regions, by top-1; Dollar Street's 4 quarters of income, by
  top-5; and FMoW's regions, by top-1.
* Jaccard index, of WinoGAViL: the mean over the cues with 10 or 12 candidates
  of that between the pictures that go with the cue and as many that are nearest
  to "A CUE", or "An CUE" before a vowel, in lower case.

FMoW's region 5, Other, of 4 pictures of 22,108, is to be left out of the worst
group, as WILDS does. DataComp's code means to as well, but looks for the name
"Other" where it only has the number: its published scores count that region,
and where all of its 4 pictures are missed they are 0. MobileCLIP-S1 has 0.0
there, and would have 15.3. Scores of FMoW here are of the regions 0 to 4.

Two classes of one name, as "missile" and "sunglasses" of ImageNet or four of
iWildCam, always tie; the first is taken here, and either in DataComp's top-1.
"""

import dataclasses

from aced.evaluation.suites import tasks
from aced.evaluation.suites.task import Suite, Task

# FMoW's region "Other".
_OTHER = (5,)

STABLEEVAL: tuple[Task, ...] = (
  *tasks.IMAGENET,
  *tasks.SHIFTS,
  *tasks.OBJECTS,
  *tasks.SCENES,
  *tasks.CAPTIONS,
)

# Task -> what DataComp scores otherwise.
_DATACOMP = {
  "caltech101": {"metric": "mean_per_class"},
  "fgvc_aircraft": {"metric": "mean_per_class"},
  "flowers102": {"metric": "mean_per_class"},
  "pets": {"metric": "mean_per_class"},
  "iwildcam": {"metric": "macro_f1"},
  "fmow": {
    "metric": "worst_group_accuracy",
    "group_field": "metadata.0",
    "groups_left_out": _OTHER,
  },
  "geode": {"metric": "worst_group_accuracy", "group_field": "metadata.0"},
  "dollar_street": {"metric": "worst_group_top5", "group_field": "metadata.0"},
}

DATACOMP38: tuple[Task, ...] = tuple(
  dataclasses.replace(task, **_DATACOMP.get(task.name, {}))
  for task in (*STABLEEVAL, *tasks.OTHERS, tasks.WINOGAVIL)
)

SMOKE: tuple[Task, ...] = (
  Task(
    name="shapes",
    title="Shapes",
    group="drawn",
    kind="zero_shot",
    sources=("synthetic:classes?size=512",),
    records=512,
    metric="accuracy",
    num_classes=64,
    classes="synthetic",
    templates="synthetic",
    get="It is drawn by the package: there is nothing to get.",
  ),
  Task(
    name="scenes",
    title="Scenes",
    group="drawn",
    kind="retrieval",
    sources=("synthetic:test?size=512",),
    records=512,
    metric="mean/R@1",
    get="It is drawn by the package: there is nothing to get.",
  ),
)

SUITES = {
  suite.name: suite
  for suite in (
    Suite(
      "stableeval",
      STABLEEVAL,
      "A reconstruction of the 27 evaluations of the ACED paper, whose list"
      " could not be read; its average is that of the paper's if the list is.",
    ),
    Suite(
      "datacomp38",
      DATACOMP38,
      "DataComp's 38 evaluations by its metrics, but for FMoW's worst region,"
      " which here is never the 4 pictures of Other.",
    ),
    Suite("smoke", SMOKE, "Drawn pictures: whether all runs, not how good."),
  )
}
