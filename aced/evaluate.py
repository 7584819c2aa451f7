"""Scores a model on a suite of tasks: one command, one table.

    python -m aced.evaluate --checkpoint runs/aced --suite smoke
    python -m aced.evaluate --checkpoint runs/aced@best \\
        --suite stableeval --data_dir evals

The checkpoint is a run of ours, an .npz file of big_vision or a folder of
Hugging Face or open_clip. Suites are stableeval, datacomp38, smoke (which needs
no data), or a file of your own; see docs/evaluation.md. Tasks whose data is not
there, or not whole, are named, with how to get it, and the average says over
how many tasks it is.

Killed and started again, it goes on with what is missing. Results, for tables
and for `python -m aced.evaluation.stability`, are in the folder that it names.
"""

import datetime
import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from tqdm import tqdm

from aced import evaluation
from aced.config import ConfigError
from aced.evaluation import results as results_lib
from aced.evaluation import suites
from aced.evaluation.latency import latency
from aced.evaluation.results import FILE, FORMAT, ResultsError
from aced.evaluation.running import Runner
from aced.files import write_json
from aced.models import costs
from aced.models import params as params_lib
from aced.pretrained import Pretrained, load
from aced.training import command, distributed, sharding, versions

MARKDOWN = "results.md"


class Model(NamedTuple):
  """A model on the devices.

  Attributes:
    loaded: from `aced.load`.
    name: for tables and folders.
    fingerprint: of its parameters.
    embed_image: `(n, h, w, 3)` -> `(n, d)`.
    embed_text: `(n, l)` -> `(n, d)`.
  """

  loaded: Pretrained
  name: str
  fingerprint: str
  embed_image: Any
  embed_text: Any


def evaluate(
  checkpoint: str,
  suite: str,
  data_dir: str = "",
  output: str = "",
  *,
  tokenizer: str = "",
  batch_size: int = 256,
  partial: bool = False,
  probe: bool = False,
  timed: bool = True,
  say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], pathlib.Path]:
  """Runs what can be run of a suite.

  Args:
    checkpoint: as `aced.load` takes it.
    suite: a name in `suites.SUITES`, or a .toml file.
    data_dir: where the tasks' data is.
    output: folder of the results; by default `evaluations/MODEL/SUITE`.
    tokenizer: the spec of the tokenizer, where the model does not say.
    batch_size: pictures at a time, of all processes together.
    partial: whether data sets that are not whole are run; their scores are
      shown and not averaged.
    probe: whether to add nearest neighbours and a linear probe, for tasks with
      training data.
    timed: whether the latency is measured.
    say: told what goes on.

  Returns:
    The results, as `aced.evaluation.results` has them, and their folder.

  Raises:
    ConfigError: the suite, the data or the tokenizer is wrong.
    ResultsError: the output folder holds results of something else.
    FileNotFoundError, ParamsError: the model cannot be loaded.
  """
  chosen = suites.suite(suite)
  check_folder(data_dir, chosen)
  model = place(checkpoint, tokenizer)
  where = output or f"evaluations/{model.name}/{chosen.name}"
  folder = pathlib.Path(where).expanduser()
  kept = distributed.by_first(lambda: claim(folder, model, chosen.name))
  found, skipped = look_for(chosen.tasks, data_dir, partial)
  distributed.agree("data", {one.task.name: one.spec for one in found})
  say(
    f"{chosen.name}: {len(found)} of {len(chosen.tasks)} tasks have their data;"
    f" results go to {folder}"
  )
  result = describe(model, chosen, timed) | {
    "tasks": {},
    "skipped": skipped,
    # Not of this run: kept for the next, and neither shown nor averaged.
    "earlier": kept,
  }
  with tqdm(
    total=sum(len(one.source) for one in found),
    unit=" pictures",
    unit_scale=True,
    disable=jax.process_index() != 0,
  ) as bar:
    runner = Runner(
      reading(model.loaded, model.fingerprint),
      model.embed_image,
      model.embed_text,
      model.loaded.transform,
      model.loaded.tokenizer,
      folder,
      data_dir,
      batch_size=batch_size,
      probe=probe,
      progress=bar.update,
      agree=distributed.agree,
    )
    for one in found:
      bar.set_description(one.task.title)
      run_one(runner, one, kept.get(one.task.name), result)
      write(folder, result, len(chosen.tasks))
  write(folder, result, len(chosen.tasks))
  if jax.process_index() == 0:
    runner.store.clear()
    (folder / MARKDOWN).write_text(results_lib.markdown(result), "utf-8")
  return result, folder


def reading(loaded: Pretrained, fingerprint: str) -> str:
  """Names all of a model and its preprocessing that embeddings depend on."""
  config = json.dumps(loaded.weights.config, sort_keys=True, default=repr)
  return f"{fingerprint}, {config}, {loaded.transform!r}"


def run_one(
  runner: Runner,
  found: suites.Found,
  before: Mapping[str, Any] | None,
  result: dict[str, Any],
) -> None:
  """Runs a task; one that fails is named among those that were not run."""
  name = found.task.name
  try:
    result["tasks"][name] = runner.run(found, before)
  except (ValueError, OSError) as error:
    if jax.process_count() > 1:  # The others are in the middle of it.
      raise
    reason = f"failed: {type(error).__name__}: {error}"
    result["skipped"][name] = {"reason": reason, "get": "", "failed": True}


def write(folder: pathlib.Path, result: dict[str, Any], of: int) -> None:
  """Writes the results file, with the average of what there is so far."""
  result["average"] = results_lib.average(result["tasks"], of)
  result["earlier"] = {
    name: entry
    for name, entry in result["earlier"].items()
    if name not in result["tasks"]
  }
  if jax.process_index() == 0:
    write_json(folder / FILE, result)


def check_folder(data_dir: str, chosen: suites.Suite) -> None:
  """Refuses a folder of data that is not there."""
  if not any("{data_dir}" in s for t in chosen.tasks for s in t.sources):
    return
  if not data_dir:
    raise ConfigError(
      f"suite {chosen.name} reads its data from a folder; name it with"
      " --data_dir. What to put there is told for every task that is missing."
    )
  if not pathlib.Path(data_dir).expanduser().is_dir():
    raise ConfigError(
      f"--data_dir={data_dir} is no folder; name the one that holds the tasks'"
      " data, or make it and run this again to be told what to put there."
    )
  # Which end the folder's name within the spec of a source.
  options = any("={data_dir}" in s for t in chosen.tasks for s in t.sources)
  for letter in "?&" if options else "?":
    if letter in data_dir:
      raise ConfigError(
        f"--data_dir={data_dir} has a {letter!r}, which ends the name of a"
        " folder in the spec of a source; give it another name, or a link."
      )


def place(checkpoint: str, tokenizer: str) -> Model:
  """Loads a model onto all devices.

  Raises:
    ConfigError: it has no tokenizer, and so nothing to compare pictures with.
  """
  loaded = load(checkpoint, tokenizer=tokenizer)
  if loaded.tokenizer is None:
    loaded.tokens([])  # Says what to do.
  mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
  params = jax.device_put(loaded.params, sharding.replicated(mesh))
  images, texts = (
    functools.partial(function, params)
    for function in evaluation.embedders(loaded.model, mesh)
  )
  name = re.sub(r"[^\w.@-]+", "-", str(checkpoint).rstrip("/")).strip("-.")
  if loaded.weights.step is not None:
    name = re.sub(r"@(\d+|best)$", "", name) + f"@{loaded.weights.step}"
  return Model(
    loaded, name, params_lib.fingerprint(loaded.params), images, texts
  )


def claim(
  folder: pathlib.Path, model: Model, suite: str
) -> dict[str, Mapping[str, Any]]:
  """The tasks that earlier runs of the same have done, name -> entry.

  Raises:
    ResultsError: the folder holds results of another model or suite.
  """
  try:
    before = results_lib.read(folder / FILE)
  except FileNotFoundError:
    return {}
  for what, there, here in (
    ("suite", before["suite"], suite),
    ("model", before["model"]["fingerprint"], model.fingerprint),
  ):
    if there != here:
      raise ResultsError(
        f"{folder / FILE} holds results of another {what} ({there}, and this"
        f" is {here}); name another folder with --output, or remove it."
      )
  return before.get("earlier", {}) | before["tasks"]


def look_for(
  tasks: Sequence[suites.Task], data_dir: str, partial: bool
) -> tuple[list[suites.Found], dict[str, dict[str, Any]]]:
  """The tasks whose data is there, those of one data set together.

  Returns:
    What was found, and `{name: {"reason", "get", "refused"}}` of the others.
  """
  found, skipped = [], {}
  folder = str(pathlib.Path(data_dir).expanduser()) if data_dir else ""
  for task in tasks:
    one = suites.find(task, folder, partial=partial)
    if isinstance(one, suites.Missing):
      skipped[task.name] = {
        "reason": one.reason,
        "get": task.get.replace("{data_dir}", folder),
        "refused": one.refused,
      }
    else:
      found.append(one)
  order = {one.spec: k for k, one in reversed(list(enumerate(found)))}
  return sorted(found, key=lambda one: order[one.spec]), skipped


def describe(model: Model, chosen: suites.Suite, timed: bool) -> dict[str, Any]:
  """What the results are of, and what the model costs."""
  loaded = model.loaded
  cost = costs.count(
    loaded.weights.config, loaded.image_size, loaded.text_length
  )
  sizes = loaded.image_size, loaded.text_length
  device = jax.devices()[0]
  return {
    "format": FORMAT,
    "suite": chosen.name,
    "about": chosen.about,
    "model": {
      "name": model.name,
      "where": str(loaded.weights.where),
      "kind": loaded.weights.kind,
      "step": loaded.weights.step,
      "fingerprint": model.fingerprint,
      "params": cost.params,
      "gmacs": cost.macs / 1e9,
      "image_gmacs": cost.image.macs / 1e9,
      "text_gmacs": cost.text.macs / 1e9,
      "image_size": loaded.image_size,
      "text_length": loaded.text_length,
      "latency": latency(loaded.model, loaded.params, *sizes) if timed else {},
    },
    "device": f"{jax.device_count()} x {device.device_kind}",
    "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    "versions": versions.code(),
  }


def main() -> None:
  """Runs the command; exits with 1 where something `went_wrong`."""
  values = flags.FLAGS

  def say(text):
    if jax.process_index() == 0:
      print(text, file=sys.stderr, flush=True)

  result, folder = evaluate(
    values.checkpoint,
    values.suite,
    values.data_dir,
    values.output,
    tokenizer=values.tokenizer,
    batch_size=values.batch_size,
    partial=values.partial,
    probe=values.probe,
    timed=values.latency,
    say=say,
  )
  if jax.process_index() == 0:
    for line in results_lib.skipped_lines(result):
      print(line)
    table = results_lib.table if result["tasks"] else results_lib.average_line
    print(table(result))
    print(f"written: {folder / FILE} and {folder / MARKDOWN}")
  if went_wrong(result, own=values.suite not in suites.SUITES):
    sys.exit(1)


def went_wrong(result: Mapping[str, Any], own: bool) -> bool:
  """Whether a task failed, or none was run.

  Args:
    result: of `evaluate`.
    own: whether the suite is one's own: then data that is there and does not
      fit is a mistake in it.
  """
  bad = ("failed", "refused") if own else ("failed",)
  wrong = any(one.get(b) for one in result["skipped"].values() for b in bad)
  return wrong or not result["tasks"]


if __name__ == "__main__":
  command.define_flags(config=False, together=True)
  flags.DEFINE_string("checkpoint", None, "The model, as aced.load takes it.")
  flags.DEFINE_string("suite", "stableeval", "A suite, or a .toml file of one.")
  flags.DEFINE_string("data_dir", "", "Folder of the tasks' data.")
  flags.DEFINE_string("output", "", "Folder of the results.")
  flags.DEFINE_string("tokenizer", "", "Its spec, where the model has none.")
  flags.DEFINE_integer("batch_size", 256, "Pictures at a time.")
  flags.DEFINE_bool("partial", False, "Run data sets that are not whole, too.")
  flags.DEFINE_bool("probe", False, "Add nearest neighbours, a linear probe.")
  flags.DEFINE_bool("latency", True, "Measure the latency.")
  flags.mark_flag_as_required("checkpoint")
  command.run(main)
