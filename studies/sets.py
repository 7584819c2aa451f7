"""The data sets that are studied."""

from studies.study import Study

BASE = {
  "batch_size": 64,
  "total_steps": 300,
  "eval.every_steps": 15,
  "log.every_steps": 10,
  "checkpoint.every_steps": 100,
  "optimizer.warmup_steps": 30,
  "curation.num_chunks": 8,
}

SCENES = Study(
  name="scenes",
  about="drawn scenes with captions, of which a share has faults of the web",
  pool="synthetic:train?size=20000&seed=0&noise={noise}",
  clean="synthetic:train?size=20000&seed=1&noise=0",
  base={
    **BASE,
    "total_steps": 600,
    "eval.every_steps": 30,
    "input.text_length": 16,
    "optimizer.learning_rate": 3e-4,
  },
  reference_base={
    "total_steps": 1000,
    "eval.every_steps": 500,
    "optimizer.learning_rate": 1e-3,
  },
  evals={
    "retrieval": {
      "type": "retrieval",
      "source": "synthetic:val?size=500",
      "batch_size": 500,
    },
  },
  metric="eval/retrieval/mean/R@1",
  noise=0.6,
  noises=(0.0, 0.3, 0.6),
  chance=1 / 500,
)

SIGNDIGITS = Study(
  name="signdigits",
  about="photographs of hands that sign a digit, with ten captions",
  pool="jsonl:{data}/pool.jsonl?noise={noise}",
  clean="jsonl:{data}/reference.jsonl?noise=0",
  base={
    **BASE,
    "input.text_length": 12,
    "optimizer.learning_rate": 1e-3,
  },
  # Of some 800 photographs: without crops it learns them by heart.
  reference_base={
    "total_steps": 2000,
    "eval.every_steps": 500,
    "input.crop_scale": (0.5, 1.0),
    "input.flip": True,
  },
  evals={
    "zero_shot": {
      "type": "zero_shot",
      "source": "jsonl:{data}/test.jsonl?label=name",
      "templates": ("a hand signing the digit {}",),
      "batch_size": 402,
    },
  },
  metric="eval/zero_shot/accuracy",
  noise=0.6,
  noises=(0.0, 0.3, 0.6),
  chance=1 / 10,
  files="signdigits",
  crops=7,
)

STUDIES = {study.name: study for study in (SCENES, SIGNDIGITS)}
