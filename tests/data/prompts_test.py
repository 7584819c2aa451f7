"""Tasks as prompts: shares of tasks, rows of ids, and what could break them."""

import collections
import json
import pickle

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data import open_source, records
from aced.data.prompts import (
  CAPTION,
  SEPARATOR,
  Asked,
  Prompted,
  PromptTokenizer,
  questions_of,
)
from aced.data.tokenizers import load
from tests.data.tokenizers import models


class Source(list, records.Source):
  """Records in memory."""

  def __getitem__(self, index):
    return dict(super().__getitem__(index))

  def __repr__(self):
    return "Source(tiny)"


def asked(*pairs):
  return [{"question": q, "answers": list(a)} for q, *a in pairs]


RECORDS = Source(
  [
    {
      "image": b"0",
      "text": ["a cat", "a pet", " ", 3],
      "questions": asked(
        ("what?", "cat", "pet"), ("how many?", "1", "one", "")
      ),
      "label": "cat",
    },
    {"image": b"1", "text": "a dog"},
    {"image": b"2", "questions": asked(("who?", "me"))},
    {"image": b"3", "text": ["one", "two", "three"], "question": "is it?"},
    {"image": b"4", "text": "x", "question": "is it?", "answer": "yes"},
    {"image": b"5"},
  ]
)


def texts_of(index, tasks=("caption", "vqa")):
  texts = Prompted(RECORDS, tasks)[index]["text"]
  return [tuple(text.split(SEPARATOR)) for text in texts]


def test_texts_of_both_tasks_in_equal_parts():
  found = texts_of(0)
  counts = collections.Counter(prompt == CAPTION for prompt, _ in found)
  assert counts[True] == counts[False] == 4
  assert collections.Counter(found) == {
    (CAPTION, "a cat"): 2,
    (CAPTION, "a pet"): 2,
    ("what?", "cat"): 1,
    ("what?", "pet"): 1,
    ("how many?", "1"): 1,
    ("how many?", "one"): 1,
  }


def test_a_record_without_one_task_has_the_other():
  assert texts_of(1) == [(CAPTION, "a dog")]
  assert texts_of(2) == [("who?", "me")]
  # A question that nobody answered is none.
  assert texts_of(3) == [(CAPTION, w) for w in ("one", "two", "three")]
  assert texts_of(4) == [(CAPTION, "x"), ("is it?", "yes")]
  assert texts_of(5) == []
  assert texts_of(4, ("vqa",)) == [("is it?", "yes")]
  assert texts_of(1, ("vqa",)) == []


@pytest.mark.parametrize(("captions", "questions"), [(1, 7), (5, 2), (3, 3)])
def test_shares_are_equal_whatever_the_numbers(captions, questions):
  source = Source(
    [
      {
        "text": [f"c{k}" for k in range(captions)],
        "questions": asked(*((f"q{k}?", "a") for k in range(questions))),
      }
    ]
  )
  prompts = [
    text.split(SEPARATOR)[0]
    for text in Prompted(source, ("vqa", "caption"))[0]["text"]
  ]
  assert prompts.count(CAPTION) == len(prompts) / 2 == max(captions, questions)
  # Nothing is lost.
  assert len(set(prompts)) == 1 + questions


def test_the_rest_of_a_record_and_of_a_source_stay():
  source = Prompted(RECORDS, ["caption"])
  assert len(source) == 6
  record = source[0]
  assert record["image"] == b"0" and record["label"] == "cat"
  assert source.fields(0) == {k: v for k, v in record.items() if k != "image"}
  assert source.where(2) == RECORDS.where(2) and source.damage() == []
  assert RECORDS[0]["text"] == ["a cat", "a pet", " ", 3]
  again = pickle.loads(pickle.dumps(source))
  assert [again[k] for k in range(6)] == [source[k] for k in range(6)]


def test_faults_are_known_behind_prompts():
  clean = Prompted(open_source("synthetic:train?size=40&asked=2"), ["vqa"])
  noisy = open_source("synthetic:train?size=40&asked=2&noise=0.5")
  assert not clean.has_faults and Prompted(noisy, ["vqa"]).has_faults
  assert len({Prompted(noisy, ["vqa"])[k]["fault"] for k in range(40)}) > 1


@pytest.mark.parametrize("tasks", [(), ("caption", "vqs"), "vqa"])
def test_tasks_that_are_none_are_refused(tasks):
  with pytest.raises(ConfigError, match="must be some of caption, vqa"):
    Prompted(RECORDS, tasks)


def test_sources_without_a_task(caplog):
  captions = open_source("synthetic:train?size=1000")
  with caplog.at_level("WARNING", logger="absl"):
    Prompted(captions, ("caption", "vqa")).check(all_tasks=False)
  assert "none of 64 records" in caplog.text
  assert "has a question with an answer: caption is all" in caplog.text
  with pytest.raises(ConfigError, match=r"names vqa, .*tasks=\"\('caption',\)"):
    Prompted(captions, ("caption", "vqa")).check()
  with pytest.raises(ConfigError, match=r"config\.decoder\.tasks=\('vqa',\)"):
    Prompted(captions, ("vqa",)).check()
  caplog.clear()
  Prompted(RECORDS, ("caption", "vqa")).check()
  assert not caplog.records


@pytest.mark.parametrize(
  ("record", "want"),
  [
    ({"question": "q?", "answer": "a"}, [("q?", ["a"])]),
    ({"question": "q?", "answers": "a"}, [("q?", ["a"])]),
    (
      {"question": "q?", "answers": ["a", 7, "", "a"]},
      [("q?", ["a", "7", "a"])],
    ),
    ({"question": "q?", "answer": 3}, [("q?", ["3"])]),
    ({"question": "q?", "answer": True}, []),
    # As the files of VQA v2 have it.
    (
      {"question": "q?", "answers": [{"answer": "a", "answer_id": 1}, {}]},
      [("q?", ["a"])],
    ),
    ({"question": "q?", "answers": []}, []),
    ({"question": " ", "answer": "a"}, []),
    ({"question": None, "answer": "a"}, []),
    ({"question": "q?"}, []),
    ({"questions": []}, []),
    ({"questions": ["q?", None, 3]}, []),
    ({"questions": "q?", "question": "r?", "answer": "a"}, [("r?", ["a"])]),
    (
      {"questions": asked(("q?", "a"), ("r?", "b"))},
      [("q?", ["a"]), ("r?", ["b"])],
    ),
  ],
)
def test_questions_of(record, want):
  assert questions_of(record) == want


def test_a_question_for_each_record():
  source = Asked(RECORDS, "vqa")
  assert len(source) == 4
  found = [
    (r["image"], r["text"], r["references"])
    for r in (source[k] for k in range(4))
  ]
  assert found == [
    (b"0", "what?" + SEPARATOR, ["cat", "pet"]),
    (b"0", "how many?" + SEPARATOR, ["1", "one"]),
    (b"2", "who?" + SEPARATOR, ["me"]),
    (b"4", "is it?" + SEPARATOR, ["yes"]),
  ]
  assert "image" not in source.fields(1)
  assert source.fields(np.int64(1))["references"] == ["1", "one"]
  assert source.where(1) == RECORDS.where(0) and source.where(
    3
  ) == RECORDS.where(4)
  assert len(Asked(RECORDS, "vqa", limit=2)) == 2
  assert len(Asked(RECORDS, "vqa", limit=99)) == 4
  for index in (4, -1):
    with pytest.raises(IndexError):
      source.where(index)


def test_captions_asked_for():
  source = Asked(RECORDS, "caption")
  assert [
    r["references"] for r in (source.fields(k) for k in range(len(source)))
  ] == [
    ["a cat", "a pet"],
    ["a dog"],
    ["one", "two", "three"],
    ["x"],
  ]
  assert {source.fields(k)["text"] for k in range(4)} == {CAPTION + SEPARATOR}


def test_asked_refuses():
  with pytest.raises(ConfigError, match=r"none of the 2 .* has a question"):
    Asked(Source([RECORDS[1], RECORDS[5]]), "vqa")
  with pytest.raises(ConfigError, match=r"none of the 1 .* has a caption"):
    Asked(Source([RECORDS[5]]), "caption")
  with pytest.raises(ConfigError, match="limit=-3"):
    Asked(RECORDS, "vqa", limit=-3)


# Name of a model, its options, and what decoding makes of a text.
KINDS = [
  ("bytes", "", str),
  ("c4", "", str),
  ("c4", "?eos=none&pad=5", str),
  ("c4", "?pad=0", str),
  ("gemma", "?bos=1", str),
  ("bert", "?special=0", str.lower),
  ("plain", "", str),
  ("plain", "?bos=<|endoftext|>", str),
]
every_kind = pytest.mark.parametrize(("name", "options", "read"), KINDS)


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
  return models.write(tmp_path_factory.mktemp("models"))


def rows(tokenizer, *texts):
  ids = tokenizer(list(texts))
  assert ids.shape == (len(texts), tokenizer.length) and ids.dtype == np.int32
  assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
  return ids


@every_kind
def test_rows_round_trip(specs, name, options, read):
  inner = load(specs[name] + options, 120)
  tokenizer = PromptTokenizer(inner)
  assert tokenizer.vocab_size == inner.vocab_size + 3
  assert len({tokenizer.bos, tokenizer.separator, tokenizer.eos}) == 3
  captions = models.captions()[:40]
  ids = rows(tokenizer, *(CAPTION + SEPARATOR + text for text in captions))
  assert [tokenizer.decode(row) for row in ids] == [read(c) for c in captions]
  for row, caption in zip(ids, captions, strict=True):
    row = row.tolist()
    # Start, prompt, separator, words, end; ends alone behind.
    middle, end = row.index(tokenizer.separator), row.index(tokenizer.eos)
    assert row[0] == tokenizer.bos and set(row[end:]) == {tokenizer.eos}
    assert max(row[1:middle] + row[middle + 1 : end]) < inner.vocab_size
    # The words on both sides are those of the tokenizer itself.
    own = inner([CAPTION, caption])[:, int(inner.bos is not None) :].tolist()
    assert row[1:middle] == own[0][: middle - 1]
    assert row[middle + 1 : end] == own[1][: end - middle - 1]


@every_kind
def test_prompts_are_the_same_with_and_without_an_answer(
  specs, name, options, read
):
  """Else a model would be asked otherwise than it was taught."""
  for length in (8, 24, 100):
    tokenizer = PromptTokenizer(load(specs[name] + options, length))
    for prompt in (CAPTION, "what shape is red?", "why " * 60, "", "Ünï 漢字"):
      alone, whole = rows(
        tokenizer, prompt + SEPARATOR, f"{prompt}{SEPARATOR}{'a red ring ' * 9}"
      )
      end = alone.tolist().index(tokenizer.separator) + 1
      assert end <= length - length // 4
      np.testing.assert_array_equal(alone[:end], whole[:end])
      assert set(alone[end:]) == {tokenizer.pad}
      assert tokenizer.decode(alone) == ""
      assert len(tokenizer.decode(whole)) > 0


@every_kind
def test_answers_that_are_cut_do_not_end(specs, name, options, read):
  answer = models.captions()[0] + " and " + models.captions()[1]
  inner = load(specs[name] + options, 300)
  text = f"q?{SEPARATOR}{answer}"
  row = rows(PromptTokenizer(inner), text)[0].tolist()
  full = row[: row.index(row[-1]) + 1]  # Down to its end.
  assert full[-1] == PromptTokenizer(inner).eos
  for length in range(8, len(full) + 3):
    tokenizer = PromptTokenizer(load(specs[name] + options, length))
    got = rows(tokenizer, text)[0].tolist()
    missing = max(length - len(full), 0)
    # With a question of a few ids, which is not cut, a row is a cut row.
    if full.index(tokenizer.separator) < length // 2:
      assert got == full[:length] + [tokenizer.eos] * missing
    assert (tokenizer.eos in got) == (len(full) <= length)


@pytest.mark.parametrize(
  "text", ["a small red circle", "Ünïcödé 🙂 and 漢字", "🙂" * 9, "e\u0301tè"]
)
@pytest.mark.parametrize("name", ["bytes", "gemma", "plain"])
def test_unicode(specs, name, text):
  whole = PromptTokenizer(load(specs[name], 200))
  row = rows(whole, f"🙂 {text}?{SEPARATOR}{text}")[0]
  assert whole.decode(row) == text
  for length in range(8, 60):
    tokenizer = PromptTokenizer(load(specs[name], length))
    row = rows(tokenizer, text + SEPARATOR + text)[0]
    middle = row.tolist().index(tokenizer.separator)
    # A prompt is cut between characters where the tokenizer can.
    if name == "bytes":
      assert text.startswith(tokenizer._decode(row[1:middle].tolist()))
    assert text.startswith(tokenizer.decode(row).rstrip("\ufffd"))


def test_half_a_character_of_json_is_no_end_of_a_run():
  tokenizer = PromptTokenizer(load("bytes", 32))
  text = json.loads('"a \\ud83d b"')
  row = rows(tokenizer, f"{text}?{SEPARATOR}{text}")[0]
  assert tokenizer.decode(row) == "a ? b"


@pytest.mark.parametrize("name", ["bytes", "gemma", "plain"])
def test_a_separator_within_texts_breaks_no_row(specs, name):
  source = Source(
    [
      {
        "text": f"a{SEPARATOR}b",
        "questions": asked((f"is{SEPARATOR}it?", f"c{SEPARATOR}d")),
      }
    ]
  )
  tokenizer = PromptTokenizer(load(specs[name], 64))
  texts = Prompted(source, ("caption", "vqa"))[0]["text"]
  for row, answer in zip(rows(tokenizer, *texts), "ac", strict=True):
    assert row.tolist().count(tokenizer.separator) == 1
    assert tokenizer.decode(row).startswith(answer)
  # What is asked of the model is the prompt that it learns.
  question = Asked(source, "vqa")
  alone, taught = rows(tokenizer, question.fields(0)["text"], texts[1])
  end = alone.tolist().index(tokenizer.separator) + 1
  np.testing.assert_array_equal(alone[:end], taught[:end])
  assert tokenizer.decode(alone) == "" and "it" in texts[1].split(SEPARATOR)[0]
  assert question.fields(0)["references"] == [f"c{SEPARATOR}d"]


def test_ids_that_pad_elsewhere_are_words_here(specs):
  """A text may end in the very id that the inner tokenizer pads with."""
  bare = load(specs["c4"] + "?eos=none", 40)
  caption = models.captions()[0]
  last = bare._encode(caption)[-1]
  inner = load(f"{specs['c4']}?eos=none&pad={last}", 40)
  assert inner.decode(inner([caption])[0]) != caption  # It cannot know.
  tokenizer = PromptTokenizer(inner)
  assert (
    tokenizer.decode(rows(tokenizer, f"?{SEPARATOR}{caption}")[0]) == caption
  )
  assert tokenizer.decode(rows(tokenizer, f"?{SEPARATOR}")[0]) == ""


def test_decoding_what_a_model_may_write():
  """Ids that no text has: those of the inner tokenizer, a second prompt."""
  tokenizer = PromptTokenizer(load("bytes", 16))
  bos, sep, eos = tokenizer.bos, tokenizer.separator, tokenizer.eos
  a, b = (ord(c) + 2 for c in "ab")
  for ids, want in (
    ([bos, a, sep, b, a, eos, eos], "ba"),
    ([bos, a, sep, b, a, eos, b, sep, a], "ba"),
    ([bos, a, sep, b, 0, 1, a, bos, b, sep, a, eos], "baba"),
    ([bos, a, sep, eos, b], ""),
    ([bos, a, sep, b, b], "bb"),
    ([bos, a, sep], ""),
    ([a, b, eos], "ab"),
    (np.array([bos, sep, a, eos], np.int32), "a"),
  ):
    assert tokenizer.decode(ids) == want, ids


def test_a_tokenizer_like_others(specs):
  tokenizer = PromptTokenizer(load(specs["c4"], 12))
  again = pickle.loads(pickle.dumps(tokenizer))
  text = f"{CAPTION}{SEPARATOR}a red ring"
  np.testing.assert_array_equal(again([text]), tokenizer([text]))
  assert again.content == tokenizer.content != tokenizer.inner.content
  assert tokenizer([]).shape == (0, 12)
  # A text without a separator is a prompt.
  np.testing.assert_array_equal(
    tokenizer([CAPTION]), tokenizer([CAPTION + SEPARATOR])
  )
  assert specs["c4"] in repr(tokenizer)


def test_refused_tokenizers(specs):
  with pytest.raises(ConfigError, match="text_length=7 leaves no room"):
    PromptTokenizer(load("bytes", 7))
  with pytest.raises(ConfigError, match="add the option special=0"):
    PromptTokenizer(load(specs["bert"], 32))
