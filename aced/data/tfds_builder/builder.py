"""The TFDS builder of pairs: any source, stored as ArrayRecord.

    python -m aced.data.tfds_builder --data_dir=DATA --config='{
      "name": "mine",
      "splits": {"train": "webdataset:web/{0000..0099}.tar",
                 "test": "jsonl:pairs/test.jsonl"}}'

makes what `tfds:aced_pairs/mine:train?data_dir=DATA` opens, and TFDS too. It
has the flags of `tfds build`, and needs no TensorFlow. Where that is installed,
with apache-beam, mlcroissant and importlib-resources, which the command of TFDS
imports, this does the same:

    tfds build aced_pairs --imports=aced.data.tfds_builder \\
      --file_format=array_record --data_dir=DATA --config='{"name": "mine" ...}'

Pictures are stored as the bytes that they are, and records in the order of the
source. Those without a picture or a caption are dropped, and so are fields that
JSON cannot express; the file metadata.json beside the records counts them.

With `"beam": true` in the config, or `--beam_pipeline_options`, Apache Beam
reads and writes (`pip install -e ".[beam]"`, in an environment of its own). The
paths of the source and DATA must then mean the same to every worker: a shared
disk, or buckets. Where it runs is for the options to say, on one line; on the
machine itself where they do not:

    --beam_pipeline_options=runner=apache_beam.runners.portability.
        fn_api_runner.FnApiRunner,direct_running_mode=multi_processing,
        direct_num_workers=8
    --beam_pipeline_options=runner=DataflowRunner,project=P,region=R,
        temp_location=gs://B/tmp,sdk_container_image=IMAGE
    --beam_pipeline_options=runner=FlinkRunner,flink_master=HOST:8081,
        environment_type=DOCKER,environment_config=IMAGE
    --beam_pipeline_options=runner=SparkRunner,spark_master_url=spark://HOST,
        environment_type=DOCKER,environment_config=IMAGE

IMAGE is a Beam SDK container with aced installed in it. DirectRunner, which is
the default of Beam, downloads another runner, or else does what the first does.
"""

import collections
import dataclasses
import functools
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core import writer

from aced.config import ConfigError
from aced.data import identity
from aced.data.sources import open_source
from aced.data.sources.examples import EXTRA
from aced.data.sources.storage import is_remote
from aced.data.tfds_builder import reading

# What runs a pipeline here, with nothing to download.
_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


class BuildError(ConfigError):
  """A data set that cannot be built."""


@dataclasses.dataclass(eq=False)
class PairsConfig(tfds.core.BuilderConfig):
  """What to build; the keys of `--config`, beside those of every builder.

  Attributes:
    source: of the split "train", as `open_source` takes it.
    splits: split -> source, in the place of `source`.
    beam: whether Apache Beam is used also without options of a pipeline.
    verify: whether each picture is decoded, and dropped if it cannot be.
    shard_records: records of the source that go into a file; so many are in
      memory at a time. Beam has its own sizes.
  """

  source: str = ""
  splits: dict[str, str] = dataclasses.field(default_factory=dict)
  beam: bool = False
  verify: bool = False
  shard_records: int = 5_000

  def __post_init__(self):
    if not re.fullmatch(r"[\w.-]*[a-zA-Z_][\w.-]*", self.name):
      raise BuildError(
        f"--config: name={self.name!r} must be of letters, digits, - and _."
      )
    if bool(self.source) == bool(self.splits):
      raise BuildError(
        f"--config: {self.name!r} must have a source, such as"
        ' "jsonl:pairs/train.jsonl", or splits, such as {"train": SOURCE,'
        ' "test": SOURCE}, and not both.'
      )
    if self.shard_records < 1:
      raise BuildError(
        f"--config: shard_records={self.shard_records} must be above 0."
      )
    self.splits = self.splits or {"train": self.source}
    self.source = ""
    for split, spec in self.splits.items():
      if not re.fullmatch(r"\w+", split) or split == "all":
        raise BuildError(
          f"--config: split {split!r} must be of letters, digits and _, and not"
          ' "all", which TFDS has for all splits.'
        )
      if not isinstance(spec, str):
        raise BuildError(f"--config: split {split}: {spec!r} is no source.")


class AcedPairs(tfds.core.ShardBasedBuilder, tfds.core.GeneratorBasedBuilder):
  """Pairs of any source; see the module.

  Features: `image`, encoded bytes; `text`, the captions; `json`, every other
  field of the record, since fields may vary from one record to the next.
  """

  # TFDS sorts what a GeneratorBasedBuilder yields, for which it needs
  # TensorFlow beyond a gigabyte; a ShardBasedBuilder knows no pipelines of
  # Beam that are longer than a list of shards. So it is one of the two.
  name = "aced_pairs"
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "image, text, json."}
  # TFDS makes configs only of the class of those that a builder has.
  BUILDER_CONFIGS: ClassVar = [
    PairsConfig(
      name="scenes",
      description="Drawn scenes: an example that needs no data.",
      source="synthetic:train?size=1000",
    )
  ]
  # Or TFDS looks for checksums of downloads, with a package that may be absent.
  code_path = None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Image-text pairs, gathered by aced.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "text": tfds.features.Sequence(tfds.features.Text()),
          EXTRA: tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),
    )

  def download_and_prepare(self, *, download_config=None, **kwargs) -> None:
    """Builds the data set, unless it is there.

    Args:
      download_config: as TFDS has it; nothing is downloaded.
      **kwargs: as TFDS has them.

    Raises:
      BuildError: one of that name is there and was built from something else,
        or a split has no record that can be used.
      SourceError: a source cannot be opened.
    """
    mode = getattr(download_config, "download_mode", None)
    if self.is_prepared() and not (mode and mode.overwrite_dataset):
      self._check_same()
    super().download_and_prepare(download_config=download_config, **kwargs)

  def _check_same(self):
    built = {
      split: found["spec"]
      for split, found in (self.info.metadata or {}).get("splits", {}).items()
    }
    if built != self.builder_config.splits:
      raise BuildError(
        f"{self.data_dir} was built from {built}, not from"
        f" {self.builder_config.splits}; give the config another name, or"
        " --overwrite it."
      )

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    self._given = download_config
    self._sources = {
      split: open_source(spec)
      for split, spec in self.builder_config.splits.items()
    }
    self._counts = collections.defaultdict(collections.Counter)
    base = tfds.core.ShardBasedBuilder
    if self._uses_beam(download_config):
      base = tfds.core.GeneratorBasedBuilder
      if not download_config.beam_options and not download_config.beam_runner:
        download_config = dataclasses.replace(
          download_config, beam_runner=_RUNNER
        )
    base._download_and_prepare(self, dl_manager, download_config)
    self._tell()

  def _uses_beam(self, given) -> bool:
    """Whether Beam is used, which must then be installed."""
    if not (
      self.builder_config.beam or given.beam_options or given.beam_runner
    ):
      return False
    check_beam()
    return True

  def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, list]:
    del dl_manager
    size = self.builder_config.shard_records
    return {
      split: [
        functools.partial(
          reading.examples,
          source,
          span,
          self.builder_config.verify,
          functools.partial(self._count, split),
        )
        for span in reading.spans(0, self._records(split), size)
      ]
      for split, source in self._sources.items()
    }

  def _count(self, split, what):
    self._counts[split][what] += 1

  def _split_generators(self, dl_manager) -> Mapping[str, Any]:
    del dl_manager
    return {split: self._generate_examples(split) for split in self._sources}

  def _generate_examples(self, split) -> Any:
    """The pipeline of a split."""
    return reading.beam_examples(
      self.builder_config.splits[split],
      split,
      self._records(split),
      self.builder_config.verify,
    )

  def _process_pipeline_result(self, pipeline_result) -> None:
    self._counts.update(reading.counted(pipeline_result))

  def _records(self, split) -> int:
    """Records of a source that are read."""
    most, there = self._given.max_examples_per_split, len(self._sources[split])
    return there if most is None else min(most, there)

  def _tell(self):
    """Writes down what the splits were made of, and what was dropped."""
    for split, source in self._sources.items():
      spec, counts = self.builder_config.splits[split], self._counts[split]
      if not self.info.splits[split].num_examples:
        raise BuildError(
          f"no record of {spec} can be used: {dict(counts)}. Name the fields of"
          " picture and caption."
        )
      found = {"spec": spec, "source": identity.of_source(source)}
      for kind in ("dropped", "left_out"):
        found[kind] = {
          what.removeprefix(f"{kind}/"): number
          for what, number in sorted(counts.items())
          if what.startswith(f"{kind}/")
        }
        if found[kind]:
          logging.warning("%s: %s: %s", split, kind, found[kind])
      self.info.metadata.setdefault("splits", {})[split] = found

  def _example_writer(self) -> writer.ExampleWriter:
    return _ExampleWriter(self.info.file_format)


class _ExampleWriter(writer.ExampleWriter):
  """Writes to buckets too, which the writer of ArrayRecord cannot reach."""

  def write(self, path, examples):
    """Writes a file, here first where it is to be in a bucket."""
    if not is_remote(str(path)):
      return super().write(path, examples)
    with tempfile.TemporaryDirectory() as folder:
      here = epath.Path(folder) / epath.Path(path).name
      positions = super().write(here, examples)
      with here.open("rb") as file, epath.Path(path).open("wb") as there:
        shutil.copyfileobj(file, there)
    return positions


def check_beam() -> None:
  """Refuses to use Beam where it is not installed.

  Raises:
    BuildError: it is not.
  """
  try:
    import apache_beam as _  # noqa: F401
  except ImportError as error:
    raise BuildError(
      f"Apache Beam is asked for, and cannot be imported ({error}): pip install"
      " -e '.[beam]', in an environment of its own, or leave out beam and"
      " --beam_pipeline_options."
    ) from error
