"""Where metrics go: JSON lines always, and other services where asked for."""

import errno
import json
import math
import numbers
import os
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from aced.config import ConfigError, did_you_mean, flatten
from aced.files import whole

METRICS_FILE = "metrics.jsonl"

# JSON has no such numbers; as strings they are valid, and `float` reads them.
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


class Tracker(ABC):
  """Keeps the metrics of a run; a context manager that closes itself."""

  @abstractmethod
  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Keeps scalar `metrics` of the training step `step`."""

  def flush(self) -> None:
    """Writes what waits, as far as it can be."""
    return None

  @abstractmethod
  def close(self) -> None:
    """Writes what is left; closing twice is harmless."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class JsonLines(Tracker):
  """One JSON object a line: `{"step": 10, "loss": 3.2, ...}`.

  Every line is flushed as it is written; those that cannot be, on a disk that
  is full, are kept and written with a later one. A number that is not finite is
  the string "NaN", "Infinity" or "-Infinity"; `read_jsonl` turns it back.

  Args:
    path: the file; its folder is made where it is missing.
    resume_step: the step a run goes on from. Later lines, and a last line cut
      short when the run was killed, are removed in one atomic replacement, so
      that the file ends up as that of a run never killed. None: a new run,
      which must not find lines of another.
    active: False writes and touches nothing; for processes but the first.
    again: lines of `resume_step` with a metric whose name begins so are
      removed as well, since they will be written again.

  Raises:
    FileExistsError: a new run, and the file holds metrics already.
    ValueError: a line that is not JSON, except for a cut last one.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    resume_step: int | None = None,
    active: bool = True,
    again: str = "",
  ):
    self._file, self._waiting = None, []
    if not active:
      return
    path = self._path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size:
      if resume_step is None:
        raise FileExistsError(
          f"{path} holds the metrics of another run; choose another workdir,"
          " or resume that run."
        )
      _drop_after(path, resume_step, again)
    self._file = path.open("ab", buffering=0)

  def log(self, step, metrics):
    """Writes one line."""
    if self._file is None:
      return
    line = {"step": int(step)} | {k: _jsonable(v) for k, v in _scalars(metrics)}
    self._waiting.append(json.dumps(line, allow_nan=False) + "\n")
    self._write()

  def flush(self):
    """Tries again to write the lines that wait."""
    if self._waiting:
      self._write()

  def close(self):
    """Closes the file."""
    if self._file is not None:
      if self._waiting and not self._write():
        logging.warning(
          "%d lines of %s are lost", len(self._waiting), self._path
        )
      self._file.close()
      self._file = None

  def _write(self) -> bool:
    """Writes the lines that wait, all or none; whether it could."""
    data = "".join(self._waiting).encode()
    end = self._file.seek(0, os.SEEK_END)
    try:
      if self._file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
      self._file.truncate(end)
      if len(self._waiting) == 1:
        logging.warning("%s: %s; its lines wait", self._path, error)
      return False
    self._waiting.clear()
    return True


class TensorBoard(Tracker):
  """Scalars for TensorBoard, written by tensorboardX.

  Args:
    directory: where the event file goes.
    resume_step: the step a run goes on from; TensorBoard hides later points
      that were written before.
    active: False writes nothing.

  Raises:
    ModuleNotFoundError: tensorboardX is not installed.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    resume_step: int | None = None,
    active: bool = True,
  ):
    self._writer = None
    if not active:
      return
    try:
      import tensorboardX
    except ImportError as error:
      raise _not_installed("tensorboardX", "tensorboard") from error
    self._writer = tensorboardX.SummaryWriter(
      str(directory),
      purge_step=None if resume_step is None else resume_step + 1,
    )

  def log(self, step, metrics):
    """Adds a point to every metric's curve."""
    if self._writer is not None:
      for name, value in _scalars(metrics):
        self._writer.add_scalar(name, value, int(step))

  def close(self):
    """Flushes and closes the event file."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None


class WandB(Tracker):
  """A run of Weights & Biases, continued where the workdir has one.

  Metrics are drawn over `step`. The service cannot take points back: steps
  that a killed run repeats are there twice.

  Args:
    project: the project of the run.
    directory: the workdir; the run's id is kept in its file `wandb_id`.
    config: what the service shows as the config of the run.
    active: False sends nothing.

  Raises:
    ModuleNotFoundError: wandb is not installed.
  """

  def __init__(
    self,
    project: str,
    directory: str | os.PathLike,
    config: Mapping[str, Any] | None = None,
    active: bool = True,
  ):
    self._run = None
    if not active:
      return
    try:
      import wandb
    except ImportError as error:
      raise _not_installed("wandb", "wandb") from error
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    known = directory / "wandb_id"
    self._run = wandb.init(
      project=project,
      dir=str(directory),
      config=dict(config or {}),
      id=known.read_text(encoding="utf-8") if known.exists() else None,
      resume="allow",
    )
    known.write_text(self._run.id, encoding="utf-8")
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def log(self, step, metrics):
    """Sends one row."""
    if self._run is not None:
      self._run.log({"step": int(step)} | dict(_scalars(metrics)))

  def close(self):
    """Waits until everything is sent."""
    if self._run is not None:
      self._run.finish()
      self._run = None


class Trackers(Tracker):
  """Several trackers as one; one that fails is told of once and tried again."""

  def __init__(self, trackers: Iterable[Tracker]):
    self.trackers = tuple(trackers)
    self._failed: set[Tracker] = set()

  def log(self, step, metrics):
    """Logs to each, fetching what is still on devices once."""
    metrics = dict(_scalars(metrics))
    self._each(lambda tracker: tracker.log(step, metrics))

  def flush(self):
    """Flushes each."""
    self._each(lambda tracker: tracker.flush())

  def close(self):
    """Closes each."""
    self._each(lambda tracker: tracker.close())

  def _each(self, call):
    for tracker in self.trackers:
      try:
        call(tracker)
      except Exception as error:  # Of a service: a run does not depend on it.
        if tracker not in self._failed:
          logging.warning(
            "%s failed, and the run goes on without it: %s: %s",
            type(tracker).__name__,
            type(error).__name__,
            error,
          )
        self._failed.add(tracker)


TRACKERS = {
  "tensorboard": lambda workdir, resume_step, config, active: TensorBoard(
    workdir / "tensorboard", resume_step, active
  ),
  "wandb": lambda workdir, resume_step, config, active: WandB(
    config.get("name", "aced"), workdir, flatten(config), active
  ),
}


def make_tracker(
  names: Sequence[str],
  workdir: str | os.PathLike,
  resume_step: int | None = None,
  config: Mapping[str, Any] | None = None,
  active: bool | None = None,
  again: str = "",
) -> Tracker:
  """Returns JSON lines in `workdir/metrics.jsonl`, and the trackers named.

  Args:
    names: of `TRACKERS`.
    workdir: the folder of the run.
    resume_step: as of `JsonLines`.
    config: the resolved config; `name` is the project of Weights & Biases.
    active: whether this process writes; None: the first one alone does.
    again: as of `JsonLines`.

  Raises:
    ConfigError: a name that is not known.
    ModuleNotFoundError: a tracker that is not installed.
  """
  for name in names:
    if name not in TRACKERS:
      raise ConfigError(
        f"config.log.trackers names {name!r}; it is one of"
        f" {', '.join(TRACKERS)}.{did_you_mean(name, TRACKERS)}"
      )
  active = jax.process_index() == 0 if active is None else active
  workdir = pathlib.Path(workdir)
  # The services first: one that is missing must not leave a file behind.
  others = [
    TRACKERS[name](workdir, resume_step, config or {}, active) for name in names
  ]
  lines = JsonLines(workdir / METRICS_FILE, resume_step, active, again)
  return Trackers([lines, *others])


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads what `JsonLines` wrote, leaving out a last line cut short.

  Args:
    path: the file.

  Returns:
    A dict a line: `step`, and metrics as numbers, not finite ones included.

  Raises:
    ValueError: a line that is not a JSON object with a step.
  """
  return [
    {k: float(v) if v in _NOT_FINITE else v for k, v in line.items()}
    for _, line in _lines(path)
  ]


def _lines(path):
  """Yields `(text, object)` of every whole line."""
  text = pathlib.Path(path).read_text(encoding="utf-8")
  for number, line in enumerate(text.splitlines(keepends=True), start=1):
    if not line.endswith("\n"):
      return  # The run was killed while it wrote this.
    try:
      parsed = json.loads(line)
      parsed["step"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path}, line {number}: {line[:60]!r} is not a JSON object with a"
        " step; mend or remove that line."
      ) from error
    yield line, parsed


def _drop_after(path, step, again):
  """Replaces the file by its lines up to `step`, at once or not at all.

  Those of that step itself that have a metric beginning with `again` go too.
  """

  def stays(line):
    repeated = again and any(name.startswith(again) for name in line)
    return line["step"] < step or (line["step"] == step and not repeated)

  kept = "".join(text for text, line in _lines(path) if stays(line))
  with whole(path) as part, part.open("w", encoding="utf-8") as file:
    file.write(kept)
    file.flush()
    os.fsync(file.fileno())


def _scalars(metrics):
  """Yields `(name, int or float)`, refusing what is not one number."""
  for name, value in metrics.items():
    if name == "step":
      raise ValueError(
        "a metric may not be called 'step', which is what the others are"
        " logged at; give it another name."
      )
    if not isinstance(value, numbers.Number):
      value = _item(name, np.asarray(value))
    whole = isinstance(value, numbers.Integral)
    yield name, int(value) if whole else float(value)


def _item(name, value):
  """Returns the one number of an array; bfloat16 is of kind "V" in numpy."""
  if value.size != 1 or value.dtype.kind not in "biufV":
    raise ValueError(
      f"metric {name!r} is {value.dtype} of shape {value.shape}; expected one"
      " number: reduce it before it is logged."
    )
  return value.item() if value.dtype.kind in "biu" else float(value.reshape(()))


def _jsonable(value):
  """Returns a finite number, or the string that stands for it."""
  if math.isfinite(value):
    return value
  if math.isnan(value):
    return "NaN"
  return "Infinity" if value > 0 else "-Infinity"


def _not_installed(package, extra):
  return ModuleNotFoundError(
    f"config.log.trackers asks for {package}, which is not installed; run"
    f' `pip install -e ".[{extra}]"` or take it out of the list.'
  )
