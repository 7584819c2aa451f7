import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from aced import evaluate as evaluate_lib
from aced.config import ConfigError
from aced.evaluate import evaluate, went_wrong
from aced.evaluation import results, running
from aced.evaluation.results import ResultsError
from tests.models.formats.reading_test import save

SUITE = """
[[tasks]]
name = "tones"
kind = "zero_shot"
source = "jsonl:{data_dir}/tones.jsonl?label=tone"
train = "jsonl:{data_dir}/tones.jsonl?label=tone"
records = 9
class_names = ["dark", "middling", "light"]

[[tasks]]
name = "captions"
kind = "retrieval"
source = "jsonl:{data_dir}/tones.jsonl?label=tone"
records = 9
"""


def run(*args, say=lambda line: None, **options):
  return evaluate(*map(str, args), timed=False, say=say, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A tiny two-tower model with random weights."""
  path = tmp_path_factory.mktemp("model") / "student.npz"
  save(path, text__vocab_size=258, text_length=16)
  return path


@pytest.fixture
def data(tmp_path):
  """A suite of two tasks on the same nine pictures."""
  folder = tmp_path / "data"
  folder.mkdir()
  lines = []
  for k in range(9):
    name = f"{k}.png"
    pixels = np.random.default_rng(k).integers(0, 85, (16, 16, 3), np.uint8)
    Image.fromarray(pixels + np.uint8(85 * (k % 3))).save(folder / name)
    texts = [f"caption {k}", f"another of {k}"]
    tone = ("dark", "middling", "light")[k % 3]
    lines.append({"image": name, "text": texts, "tone": tone})
  write_lines(folder, lines)
  (tmp_path / "suite.toml").write_text(SUITE)
  return folder


def write_lines(folder, lines):
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "tones.jsonl").write_text(text)


def test_a_suite_is_run_and_written(model, data, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  result, folder = run(model, "suite.toml", data, tokenizer="bytes")
  assert folder.parts[0] == "evaluations" and folder.name == "suite"
  assert results.read(folder / "results.json") == result
  tones = result["tasks"]["tones"]
  assert (tones["evaluated"], tones["masked"]) == (9, 0)
  assert tones["low"] <= tones["score"] <= tones["high"]
  with np.load(folder / tones["outcomes"]) as file:
    assert file["right"].mean() == tones["score"]
    assert file["index"].tolist() == list(range(9))
  with np.load(folder / "outcomes/captions.npz") as file:
    assert len(file["text_rank"]) == 18
  assert result["average"] == {
    "score": np.mean([t["score"] for t in result["tasks"].values()]),
    "tasks": 2,
    "of": 2,
  }
  assert "tones" in (folder / "results.md").read_text()
  assert not (folder / "embeddings").exists()


def test_pictures_that_cannot_be_read_are_no_whole_set(model, data, tmp_path):
  (data / "8.png").write_bytes(b"no picture")
  given = model, tmp_path / "suite.toml", data, tmp_path / "o"
  result, _ = run(*given, tokenizer="bytes")
  tones = result["tasks"]["tones"]
  assert (tones["evaluated"], tones["masked"]) == (8, 1)
  assert any("1 pictures could not be read" in note for note in tones["notes"])
  assert tones["partial"] and result["average"]["tasks"] == 0


def test_labels_are_part_of_what_is_resumed(model, data, tmp_path):
  given = model, tmp_path / "suite.toml", data, tmp_path / "o"
  first, _ = run(*given, tokenizer="bytes")
  path = data / "tones.jsonl"
  path.write_text(path.read_text().replace('"dark"', '"light"'))
  again, _ = run(*given, tokenizer="bytes")
  first, again = (r["tasks"]["tones"]["identity"] for r in (first, again))
  assert first != again
  # Data that is gone for a while costs no score that was there.
  path.rename(tmp_path / "elsewhere")
  gone, _ = run(*given, tokenizer="bytes")
  assert not gone["tasks"] and set(gone["earlier"]) == {"tones", "captions"}
  (tmp_path / "elsewhere").rename(path)
  back, _ = run(*given, tokenizer="bytes")
  assert back["tasks"]["tones"]["identity"] == again and not back["earlier"]


def test_pictures_of_two_tasks_are_embedded_once(
  model, data, tmp_path, monkeypatch
):
  seen = count_pictures(monkeypatch)
  run(model, tmp_path / "suite.toml", data, tmp_path / "o", tokenizer="bytes")
  assert sum(seen) == 9


def count_pictures(monkeypatch, after=None):
  """Counts embedded pictures; the process is killed after so many batches."""
  seen, place = [], evaluate_lib.place

  def counted(*args):
    placed = place(*args)

    def embed(rows):
      if after is not None and len(seen) >= after:
        raise KeyboardInterrupt
      seen.append(len(rows))
      return placed.embed_image(rows)

    return placed._replace(embed_image=embed)

  monkeypatch.setattr(evaluate_lib, "place", counted)
  return seen


def test_killed_it_goes_on_with_what_is_missing(
  model, data, tmp_path, monkeypatch
):
  in_threes = functools.partial(running.Store, part_records=3)
  monkeypatch.setattr(running, "Store", in_threes)
  given = model, tmp_path / "suite.toml", data, tmp_path / "o"
  options = {"tokenizer": "bytes", "batch_size": 8}
  with monkeypatch.context() as patch:
    whole, _ = run(*given[:3], tmp_path / "whole", **options)
    count_pictures(patch, after=2)
    with pytest.raises(KeyboardInterrupt):
      run(*given, **options)
  seen = count_pictures(monkeypatch)
  again, folder = run(*given, **options)
  assert len(seen) == 1  # Two parts of three were done.
  assert without_time(again) == without_time(whole)
  seen.clear()
  third, _ = run(*given, **options)
  assert not seen and third["tasks"] == again["tasks"]
  # A task that is another one by now is run again.
  text = SUITE.replace('"dark"', '"very dark"')
  (tmp_path / "suite.toml").write_text(text)
  other, _ = run(*given, **options)
  assert list(other["tasks"]) == ["captions"]
  assert "which is not in" in other["skipped"]["tones"]["reason"]
  assert other["average"]["tasks"] == 1 and folder.exists()


def without_time(result):
  return {
    name: {k: v for k, v in task.items() if k != "seconds"}
    for name, task in result["tasks"].items()
  }


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_scores_do_not_hang_on_batches_and_devices(
  model, data, tmp_path, monkeypatch, devices
):
  given = model, tmp_path / "suite.toml", data
  options = {"tokenizer": "bytes"}
  want, _ = run(*given, tmp_path / "a", batch_size=64, **options)
  make = jax.make_mesh
  monkeypatch.setattr(
    evaluate_lib.sharding,
    "make_mesh",
    lambda sizes: make(
      (devices, 1),
      ("data", "fsdp"),
      axis_types=(jax.sharding.AxisType.Auto,) * 2,
      devices=jax.devices()[:devices],
    ),
  )
  for size in (1, 4, 7):
    found, _ = run(*given, tmp_path / f"{size}", batch_size=size, **options)
    assert without_time(found) == without_time(want)


def test_real_sets(model, shared_data, tmp_path):
  suite = tmp_path / "real.toml"
  suite.write_text("""
[[tasks]]
name = "signdigits"
kind = "zero_shot"
source = "jsonl:{data_dir}/signdigits/test.jsonl?label=name&limit=40"
records = 40

[[tasks]]
name = "coco_cc"
kind = "retrieval"
source = "jsonl:{data_dir}/coco_cc/test.jsonl"
records = 148
""")
  result, _ = run(model, suite, shared_data, tmp_path / "o", tokenizer="bytes")
  assert not result["skipped"]
  with np.load(tmp_path / "o/outcomes/coco_cc.npz") as file:
    assert len(file["image_rank"]) == 148 and len(file["text_rank"]) == 740
  assert result["tasks"]["signdigits"]["evaluated"] == 40


def test_probe(model, data, tmp_path):
  result, _ = run(
    model,
    tmp_path / "suite.toml",
    data,
    tmp_path / "o",
    tokenizer="bytes",
    probe=True,
  )
  metrics = result["tasks"]["tones"]["metrics"]
  # Train and test are the same: tones are told apart, if anything is.
  assert metrics["linear_probe/accuracy"] > 0.6
  assert 0 <= metrics["knn/accuracy"] <= 1
  assert "knn/accuracy" not in result["tasks"]["captions"]["metrics"]
  for text in (results.table(result), results.markdown(result)):
    assert text.count("linear probe") == text.count("nearest neighbours") == 1


def test_training_data_that_is_not_there_costs_no_score(model, data, tmp_path):
  text = SUITE.replace('train = "jsonl:{data_dir}/tones', 'train = "jsonl:/no')
  (tmp_path / "suite.toml").write_text(text)
  given = model, tmp_path / "suite.toml", data, tmp_path / "o"
  result, _ = run(*given, tokenizer="bytes", probe=True)
  assert result["average"]["tasks"] == 2
  (note,) = result["tasks"]["tones"]["notes"]
  assert note.startswith("no probe: ") and "/no.jsonl" in note


def test_numbers_are_no_places_among_names_of_a_source(model, data, tmp_path):
  names = 'class_names = ["dark", "middling", "light"]'
  text = SUITE.replace(names, "").replace("tones.jsonl", "train.jsonl", 2)
  text = text.replace("train.jsonl", "tones.jsonl", 1)
  (tmp_path / "suite.toml").write_text(text)
  lines = map(json.loads, (data / "tones.jsonl").read_text().splitlines())
  tones = ("dark", "middling", "light")
  train = [line | {"tone": tones.index(line["tone"])} for line in lines]
  (data / "train.jsonl").write_text("\n".join(map(json.dumps, train)))
  given = model, tmp_path / "suite.toml", data, tmp_path / "o"
  result, _ = run(*given, tokenizer="bytes", probe=True)
  (note,) = result["tasks"]["tones"]["notes"]
  assert "no probe: " in note and "'0', which is not in label_names" in note


@pytest.mark.parametrize(
  ("entry", "own", "wrong"),
  [
    ({"failed": True}, False, True),
    ({"refused": True}, True, True),
    # Data of a named suite that is half there: skipped and told of.
    ({"refused": True}, False, False),
    ({"refused": False}, True, False),
  ],
)
def test_when_the_command_fails(entry, own, wrong):
  result = {"skipped": {"a": entry}, "tasks": {"b": {}}}
  assert went_wrong(result, own) is wrong
  assert went_wrong({"skipped": {}, "tasks": {}}, own)


def test_partial_data_is_shown_and_not_averaged(model, data, tmp_path):
  text = SUITE.replace("records = 9", "records = 11", 1)
  (tmp_path / "suite.toml").write_text(text)
  given = model, tmp_path / "suite.toml", data
  said = []
  result, _ = run(*given, tmp_path / "a", tokenizer="bytes", say=said.append)
  assert "9 of 11 pictures are there" in result["skipped"]["tones"]["reason"]
  assert (result["average"]["tasks"], result["average"]["of"]) == (1, 2)
  assert "1 left out" in results.average_line(result)
  result, _ = run(*given, tmp_path / "b", tokenizer="bytes", partial=True)
  assert result["tasks"]["tones"]["partial"]
  assert result["average"]["tasks"] == 1
  assert "tones (partial)" in results.table(result)


NUMBERS = """
[[tasks]]
name = "numbers"
kind = "zero_shot"
source = "jsonl:{data_dir}/tones.jsonl?label=tone"
records = 9

[[tasks]]
name = "numbers_and_names"
kind = "zero_shot"
source = "jsonl:{data_dir}/tones.jsonl?label=tone"
records = 9
class_names = ["dark", "middling", "light"]
"""


def test_labels_that_are_numbers_are_told_of(model, data, tmp_path):
  given = model, tmp_path / "suite.toml", data
  by_name, _ = run(*given, tmp_path / "a", tokenizer="bytes")
  path = data / "tones.jsonl"
  for k, tone in enumerate(("dark", "middling", "light")):
    path.write_text(path.read_text().replace(f'"{tone}"', str(k)))
  (tmp_path / "suite.toml").write_text(NUMBERS)
  result, folder = run(*given, tmp_path / "b", tokenizer="bytes")
  bare, named = result["tasks"].values()
  assert named["score"] == by_name["tasks"]["tones"]["score"]
  assert not named["notes"]
  assert bare["unnamed"] and "numbers without names" in bare["notes"][0]
  assert result["average"] == {"score": named["score"], "tasks": 1, "of": 2}
  text = (folder / "results.md").read_text()
  assert "numbers (unnamed)" in text and bare["notes"][0] in text
  assert bare["notes"][0] in " ".join(results.table(result).split())


def test_a_folder_that_a_source_cannot_say_is_refused(model, data, tmp_path):
  own = tmp_path / "suite.toml"
  data = data.rename(tmp_path / "what?")
  with pytest.raises(ConfigError, match=r"what\? has a '\?'"):
    run(model, own, data, tokenizer="bytes")
  data = data.rename(tmp_path / "this & that")
  with pytest.raises(ConfigError, match="has a '&'"):
    run(model, "stableeval", data, tokenizer="bytes")
  result, _ = run(model, own, data, tmp_path / "o", tokenizer="bytes")
  assert len(result["tasks"]) == 2


def test_a_task_that_fails_is_named_and_others_are_run(model, data, tmp_path):
  for path in data.glob("*.png"):
    path.write_bytes(b"")
  result, _ = run(
    model, tmp_path / "suite.toml", data, tmp_path / "o", tokenizer="bytes"
  )
  assert not result["tasks"] and result["average"]["score"] is None
  for entry in result["skipped"].values():
    assert entry["failed"] and "could be read" in entry["reason"]
  assert "none was run" in results.average_line(result)


def test_captions_that_are_missing(model, data, tmp_path):
  lines = map(json.loads, (data / "tones.jsonl").read_text().splitlines())
  lines = list(lines)
  for line in lines:
    line["text"] = ""
  write_lines(data, lines)
  result, _ = run(
    model, tmp_path / "suite.toml", data, tmp_path / "o", tokenizer="bytes"
  )
  assert list(result["tasks"]) == ["tones"]
  assert "has a caption" in result["skipped"]["captions"]["reason"]


def test_folders_of_other_models_and_suites_are_refused(model, data, tmp_path):
  given = tmp_path / "suite.toml", data, tmp_path / "o"
  run(model, *given, tokenizer="bytes")
  other = tmp_path / "other.npz"
  save(other, text__vocab_size=258, text_length=16, seed=1)
  with pytest.raises(ResultsError, match="results of another model"):
    run(other, *given, tokenizer="bytes")
  with pytest.raises(ResultsError, match="results of another suite"):
    run(model, "smoke", "", tmp_path / "o", tokenizer="bytes")


def test_refuses_folders_of_data_that_are_not_there(model, tmp_path):
  with pytest.raises(ConfigError, match="name it with --data_dir"):
    run(model, "stableeval", tokenizer="bytes")
  with pytest.raises(ConfigError, match="is no folder"):
    run(model, "stableeval", tmp_path / "none", tokenizer="bytes")


def test_without_a_tokenizer_nothing_is_scored(model):
  with pytest.raises(ConfigError, match="does not say which tokenizer"):
    run(model, "smoke")


def test_command(model, data, tmp_path):
  def command(*flags):
    return subprocess.run(
      [sys.executable, "-m", "aced.evaluate", f"--checkpoint={model}", *flags],
      capture_output=True,
      text=True,
      cwd=pathlib.Path(__file__).parents[1],
      check=False,
    )

  given = f"--suite={tmp_path / 'suite.toml'}", f"--data_dir={data}"
  done = command(*given, "--tokenizer=bytes", f"--output={tmp_path / 'o'}")
  assert done.returncode == 0, done.stderr
  for text in ("tones", "95% interval", "over 2 of 2 tasks", "GMACs a pair"):
    assert text in done.stdout
  assert "latency" in done.stdout
  wrong = command("--suite=nothing")
  assert wrong.returncode == 1 and "nothing" in wrong.stderr
  assert "Traceback" not in wrong.stderr
