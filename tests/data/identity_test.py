"""Names of sources and tokenizers: by content, not by path."""

import json
import shutil

from aced.data import identity, tokenizers
from aced.data.sources import open_source


def test_a_source_is_its_content_and_not_its_path(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "0.bin").write_bytes(b"zero")
  lines = [json.dumps({"image": "0.bin", "text": f"caption {k}"}) for k in "ab"]
  (tmp_path / "a" / "pairs.jsonl").write_text("\n".join(lines))
  first = identity.of_source(open_source(str(tmp_path / "a" / "pairs.jsonl")))
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  moved = next((tmp_path / "b").glob("*.jsonl"))
  assert identity.of_source(open_source(f"jsonl:{moved}")) == first
  text = moved.read_text()
  moved.write_text(text.replace("caption", "Caption", 1))
  assert identity.of_source(open_source(f"jsonl:{moved}")) != first


def test_options_of_a_source_count():
  names = {
    identity.of_source(open_source(f"synthetic:train?size=100&{options}"))
    for options in ("seed=0", "seed=1", "noise=0.5", "limit=50")
  }
  assert len(names) == 4
  assert identity.of_source(open_source("synthetic:train?size=100")) in names


def test_tokenizers_by_model_case_and_length(tmp_path):
  path = tmp_path / "a.model"
  tokenizers.train_sentencepiece(["a red dog", "two blue cats"] * 9, path, 40)
  specs = [
    ("bytes", 8),
    ("bytes", 16),
    (f"sentencepiece:{path}", 8),
    (f"sentencepiece:{path}?lower=1", 8),
  ]
  names = [identity.of_tokenizer(tokenizers.load(*spec)) for spec in specs]
  assert len(set(names)) == 4
  shutil.copy(path, tmp_path / "b.model")
  again = tokenizers.load(f"sentencepiece:{tmp_path / 'b.model'}", 8)
  assert identity.of_tokenizer(again) == names[2]
