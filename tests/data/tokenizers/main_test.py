import re
import subprocess
import sys

import pytest

from aced.data.tokenizers import load
from aced.data.tokenizers.__main__ import main, texts_of


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
  plain = list(texts_of("synthetic:train?size=5"))
  asked = list(texts_of("synthetic:train?size=5&asked=2"))
  assert len(asked) == 5 + 5 * 2 * 2 and set(plain) < set(asked)
  assert sum(text.endswith("?") for text in asked) == 10


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
