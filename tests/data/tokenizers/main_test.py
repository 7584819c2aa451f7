import json
import re
import subprocess
import sys

import pytest

from aced.data.tokenizers import load
from aced.data.tokenizers.__main__ import Texts, main


def test_command(tmp_path):
  path = tmp_path / "x.model"
  command = [sys.executable, "-W", "error::RuntimeWarning", "-m"]
  command += ["aced.data.tokenizers", "train", "synthetic:train?size=300"]
  command += ["--output", str(path), "--vocab_size", "100"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  spec = done.stdout.strip().removeprefix("--config.input.tokenizer=")
  pieces = load(spec, 16).vocab_size
  assert pieces <= 100
  told = f"^{pieces} pieces, which is all that these captions give$"
  assert re.search(told, done.stderr, re.MULTILINE)


def test_questions_and_answers_are_texts_too():
  plain = list(Texts("synthetic:train?size=5"))
  asked = list(Texts("synthetic:train?size=5&asked=2"))
  assert len(asked) == 5 + 5 * 2 * 2 and set(plain) < set(asked)
  assert sum(text.endswith("?") for text in asked) == 10


def write(path, *records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return Texts(f"jsonl:{path}")


QUESTION = {"question": "what colour?"}


@pytest.mark.parametrize(
  "asked",
  [
    {"questions": [QUESTION | {"answers": ["red"]}]},
    {"questions": [QUESTION | {"answer": "red"}]},
    {"questions": [QUESTION | {"answers": [{"answer": "red"}]}]},
    {"questions": [QUESTION | {"answer": {"answer": "red"}}]},
    {"questions": QUESTION | {"answer": "red"}},
    {"questions": [], **QUESTION, "answer": "red"},
    QUESTION | {"answers": ["red", True, None, " "]},
  ],
)
def test_questions_have_every_form_that_decoders_learn_from(tmp_path, asked):
  found = write(tmp_path / "a.jsonl", {"text": "a ball"} | asked)
  assert list(found) == ["a ball", "what colour?", "red"]
  assert found.report() == []


@pytest.mark.parametrize(
  "asked",
  [
    {"questions": ["what colour?"]},
    {"questions": "what colour?"},
    {"questions": [QUESTION]},
    {"questions": [QUESTION | {"answers": []}]},
    {"questions": [QUESTION | {"answers": [True, float("nan")]}]},
    {"questions": [{"question": ["what colour?"], "answers": ["red"]}]},
    QUESTION,
  ],
)
def test_questions_of_another_form_are_told_of(tmp_path, asked):
  record = {"text": "a ball"}
  found = write(tmp_path / "a.jsonl", record, record | asked, record | asked)
  assert list(found) == ["a ball"] * 3
  (line,) = found.report()
  assert line.startswith("passed over: 2 questions without an answer, or of")
  assert "; the first: line 2 of" in line and "what colour?" in line


def test_what_is_passed_over_is_told(tmp_path, capsys):
  path = tmp_path / "a.jsonl"
  good, asked = {"text": "a red ball"}, QUESTION | {"answer": "red"}
  write(path, *[good] * 20, {"text": " "}, {"text": 5}, {"caption": "x"}, asked)
  out = str(tmp_path / "x.model")
  main(["train", f"jsonl:{path}", "--output", out, "--vocab_size", "40"])
  told = capsys.readouterr().err
  assert "passed over: 3 records without a caption that is text; the f" in told
  assert f"line 21 of {path}: empty_caption" in told
  # Told even where nothing is left to learn from.
  write(path, {"text": " "})
  with pytest.raises(SystemExit, match="there is no caption to learn"):
    main(["train", f"jsonl:{path}", "--output", f"{out}2"])
  assert "passed over: 1 records" in capsys.readouterr().err


def test_overwrites_only_when_told(tmp_path, capsys):
  path = tmp_path / "x.model"
  train = ["train", "synthetic:train?size=300", "--output", str(path)]
  main([*train, "--vocab_size", "90"])
  before = path.read_bytes()
  with pytest.raises(SystemExit, match="x.model is there already.*--overwrite"):
    main([*train, "--vocab_size", "90"])
  assert path.read_bytes() == before
  train[1] = "synthetic:val?size=200"
  main([*train, "--vocab_size", "90", "--overwrite"])
  assert path.read_bytes() != before
  assert "pieces" in capsys.readouterr().err


def test_says_what_is_wrong_with_the_source(tmp_path):
  with pytest.raises(SystemExit, match=r"SourceError: .*there is no file"):
    main(["train", "none.jsonl", "--output", str(tmp_path / "x")])
