"""BLEU and CIDEr-D against sums by hand, dense algebra and the COCO scorers."""

import contextlib
import importlib.util
import io
import itertools
import json
import math
import pathlib
import shutil
import subprocess
import time

import numpy as np
import pytest

from aced.evaluation.captioning import (
  DocumentFrequency,
  bleu,
  caption_metrics,
  cider_d,
  document_frequencies,
  tokenize,
)

# What the Java tokenizer gives, less COCO's punctuation; a test below asks it.
TOKENS = {
  "A man riding a wave on top of a surfboard.": (
    "a man riding a wave on top of a surfboard"
  ),
  "A man's dog isn't here; they're gone!": (
    "a man 's dog is n't here they 're gone"
  ),
  "I'm you've he'll she'd can't won't DON'T": (
    "i 'm you 've he 'll she 'd ca n't wo n't do n't"
  ),
  "It\u2019s “curly” and \u2018single\u2019": "it 's curly and single",
  "the dogs' bowl, children's toys": "the dogs bowl children 's toys",
  "cannot gonna gotta wanna lemme gimme 'tis 'twas cannots": (
    "can not gon na got ta wan na lem me gim me 't is 't was cannots"
  ),
  'She said: "a close-up of a T-shirt".': "she said a close-up of a t-shirt",
  "black-and-white -- or - grey --- photo": "black-and-white or grey photo",
  "a tub/shower and/or w/ a mirror / cabinet": (
    "a tub/shower and/or w / a mirror / cabinet"
  ),
  "at 12:43, 1,000 people; 5.5 feet; 3/4 or 2 1/2 full": (
    "at 12:43 1,000 people 5.5 feet 3/4 or 2 1/2 full"
  ),
  "the 1950s, the '80s, 8th Ave. 50% for $5.00": (
    "the 1950s the '80s 8th ave. 50 % for $ 5.00"
  ),
  "No. 5 is here. no. dog Fig. 2": "no. 5 is here no dog fig. 2",
  "U.S. troops at 5 p.m. near St. Mark's with a T.V.": (
    "u.s. troops at 5 p.m. near st. mark 's with a t.v."
  ),
  "Gov. Sgt. Jr. Inc. Jan. Mon. Ky. Ph.D. etc. vs. dog. La. la. Wash. wash.": (
    "gov. sgt. jr. inc. jan. mon. ky. ph.d. etc. vs. dog la. la wash. wash"
  ),
  "plan B. The dog; plan b. the dog": "plan b the dog plan b. the dog",
  "rock 'n' roll o'clock O'Brien hors d'oeuvre y'all ma'am Hawai'i": (
    "rock 'n' roll o'clock o'brien hors d'oeuvre y' all ma'am hawai'i"
  ),
  "what?! wow!! no? yes!": "what ?! wow !! no yes",
  "wait... what.. a … b": "wait what a b",
  "(b) [c] {d}": "-lrb- b -rrb- -lsb- c -rsb- -lcb- d -rcb-",
  "salt&pepper & R&B AT&T # 1 #1 100%": (
    "salt & pepper & r&b at&t # 1 # 1 100 %"
  ),
  "on the ground.A dog": "on the ground.a dog",
  "a dog., and a cat.": "a dog. and a cat",
  "café Jalapeño ÜBER straße 漢字": "café jalapeño über straße 漢字",
  "½ cup, 10° C, £5, €5 and 5¢": "1/2 cup 10 ° c # 5 $ 5 and 5 cents",
  "foo_bar a\u200bb soft\u00adhyphen 🙂 x": "foo_bar a b softhyphen x",
  " \t\n two\n\nlines ": "two lines",
  "www.a.com a@b.com": "www.a.com a@b.com",
  "...": "",
  "": "",
}


def make(seed=0, n=12, words=9, most=4, empty=False):
  """Candidates and references of random words, in any number and length."""
  rng = np.random.default_rng(seed)

  def caption(least=1):
    return [
      chr(97 + k) for k in rng.integers(words, size=rng.integers(least, 9))
    ]

  references = [
    [caption() for _ in range(rng.integers(1, most + 1))] for _ in range(n)
  ]
  candidates = []
  for others in references:
    # Part of a reference and something else, so that long n-grams match too.
    source = others[rng.integers(len(others))]
    candidates.append(source[: rng.integers(1, 9)] + caption(0)[:3])
  if empty:
    candidates[n // 2] = []
  return candidates, references


def grams(words, k):
  return [" ".join(words[i : i + k]) for i in range(len(words) - k + 1)]


def plain_bleu(candidates, references, k):
  """BLEU-k as the mean of logarithms, its counts by looking through lists."""
  logs = []
  for n in range(1, k + 1):
    hits = total = 0
    for words, others in zip(candidates, references):
      mine = grams(words, n)
      total += len(mine)
      for gram in set(mine):
        most = max(grams(other, n).count(gram) for other in others)
        hits += min(mine.count(gram), most)
    logs.append(math.log(hits / total))
  c = sum(map(len, candidates))
  r = 0
  for words, others in zip(candidates, references):
    lengths = sorted(map(len, others))
    r += min(lengths, key=lambda length: abs(length - len(words)))
  return math.exp(sum(logs) / k + min(0.0, 1 - r / c))


def dense_cider_d(candidates, references, sigma=6.0):
  """CIDEr-D by matrices of n-gram counts, a row a caption."""
  owner = np.repeat(np.arange(len(candidates)), [len(r) for r in references])
  flat = [other for others in references for other in others]
  total = np.zeros(len(flat))
  for k in range(1, 5):
    every = [grams(words, k) for words in candidates + flat]
    vocabulary = sorted(set(itertools.chain(*every)))
    counts = np.array([[g.count(v) for v in vocabulary] for g in every], float)
    ours, theirs = counts[owner], counts[len(candidates) :]
    pictures = np.zeros((len(candidates), len(vocabulary)))
    np.maximum.at(pictures, owner, np.minimum(theirs, 1))
    seen = np.maximum(pictures.sum(axis=0), 1)
    idf = np.log(len(candidates) / seen)[None, :]
    ours, theirs = ours * idf, theirs * idf
    dots = np.sum(np.minimum(ours, theirs) * theirs, axis=1)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    total += np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
  apart = np.array([len(candidates[i]) - len(o) for i, o in zip(owner, flat)])
  total *= 10 / 4 * np.exp(-0.5 * (apart / sigma) ** 2)
  return np.bincount(owner, total) / np.bincount(owner)


@pytest.mark.parametrize(("text", "words"), TOKENS.items())
def test_words(text, words):
  assert tokenize(text) == words.split()


def test_a_long_text_without_spaces_takes_no_time():
  begin = time.perf_counter()
  for piece in ("a", "a-", "a.", "1,", "'s", "a/", "a@", "ab'", "!"):
    tokenize(piece * 2000)
  # A tenth of a second at most each, where a rule that looks back takes hours.
  assert time.perf_counter() - begin < 5


def test_bleu_of_papineni():
  # The example of section 2.1: "the" counts twice at most.
  references = [["the cat is on the mat", "there is a cat on the mat"]]
  references = [[r.split() for r in references[0]]]
  (one,) = bleu([["the"] * 7], references, order=1)
  assert one == pytest.approx(2 / 7, rel=1e-8)


def test_bleu_by_hand():
  # 1-grams 3 of 4, 2-grams 2 of 3, 3-grams 1 of 2; four words against six.
  candidates = [list("abcx")]
  references = [list("abcdef")]
  got = bleu(candidates, [references], order=3)
  penalty = math.exp(1 - 6 / 4)
  # The smoothing moves them by a billionth.
  want = [3 / 4, (3 / 4 * 2 / 3) ** (1 / 2), (3 / 4 * 2 / 3 / 2) ** (1 / 3)]
  assert got == pytest.approx([penalty * w for w in want], rel=1e-8)


def test_the_nearest_length_counts_and_of_two_the_shorter():
  words, longer, shorter = list("abc"), list("abcd"), list("ab")
  assert bleu([words], [[longer, shorter]], 1)[0] == pytest.approx(1)
  assert bleu([words], [[longer]], 1)[0] == pytest.approx(math.exp(-1 / 3))
  far = list("abcdefgh")
  assert bleu([words], [[longer, far]], 1)[0] == pytest.approx(math.exp(-1 / 3))


@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_plain_counting(seed):
  candidates, references = make(seed, n=30, words=5)
  got = bleu(candidates, references)
  want = [plain_bleu(candidates, references, k) for k in range(1, 5)]
  # 1e-9 in a denominator of some ten to a hundred n-grams, and that fourfold.
  assert got == pytest.approx(want, rel=1e-8)
  assert 0.01 < got[3] < got[2] < got[1] < got[0] < 0.99


def test_cider_d_by_hand():
  references = [[["red", "dog"]], [["blue", "cat"]]]
  mean, scores = cider_d([["red", "dog"], ["blue"]], references)
  # The first: 1- and 2-grams match, 3- and 4-grams are not there. The second:
  # one of two words of equal weight, and one word short.
  want = [10 * 2 / 4, 10 / 4 * math.sqrt(0.5) * math.exp(-1 / 72)]
  # Sums of a few float64; so below.
  np.testing.assert_allclose(scores, want, rtol=1e-12)
  assert mean == pytest.approx(np.mean(want), rel=1e-12)
  assert scores.dtype == np.float64 and scores.shape == (2,)


def test_repeating_a_word_earns_nothing():
  references = [[["dog"]], [["cat"]]]
  once = cider_d([["dog"], ["cat"]], references)[1]
  twice = cider_d([["dog", "dog"], ["cat"]], references)[1]
  # Clipped to one; the norm is twice as long; a word of difference in length.
  assert twice[0] == pytest.approx(once[0] / 2 * math.exp(-1 / 72))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [6.0, 1.5])
def test_cider_d_equals_dense_algebra(seed, sigma):
  candidates, references = make(seed, empty=seed % 2 == 0)
  mean, scores = cider_d(candidates, references, sigma=sigma)
  want = dense_cider_d(candidates, references, sigma)
  np.testing.assert_allclose(scores, want, rtol=1e-12, atol=1e-12)
  assert mean == pytest.approx(want.mean(), rel=1e-12)
  assert scores.min() >= 0 and 0.1 < mean < 9


def test_a_perfect_caption_scores_all():
  captions = [f"{k} dogs run after cat {k}".split() for k in "abcdef"]
  alone = [[c] for c in captions]
  mean, scores = cider_d(captions, alone)
  np.testing.assert_allclose(scores, 10, rtol=1e-12)
  assert bleu(captions, alone) == pytest.approx([1] * 4, rel=1e-8)
  shuffled = captions[1:] + captions[:1]
  assert cider_d(shuffled, alone)[0] < 0.5 * mean


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(seed):
  candidates, references = make(seed, most=4)
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(candidates))
  moved = [
    [references[i][j] for j in rng.permutation(len(references[i]))]
    for i in order
  ]
  again = [candidates[i] for i in order]
  mean, scores = cider_d(candidates, references)
  # Sums in another order.
  np.testing.assert_allclose(
    cider_d(again, moved)[1], scores[order], rtol=1e-12
  )
  assert cider_d(again, moved)[0] == pytest.approx(mean, rel=1e-12)
  assert bleu(again, moved) == bleu(candidates, references)
  # Names of words do not matter either.
  named = [[w + "x" for w in c] for c in candidates]
  others = [[[w + "x" for w in o] for o in r] for r in references]
  np.testing.assert_allclose(cider_d(named, others)[1], scores, rtol=1e-12)


def test_scores_of_a_part_by_frequencies_of_the_whole():
  candidates, references = make(3)
  whole = document_frequencies(references)
  assert whole.pictures == len(references)
  assert whole.counts[("a",)] == sum(
    any("a" in o for o in r) for r in references
  )
  scores = cider_d(candidates, references)[1]
  for part in (slice(4, 9), slice(5, 6)):
    got = cider_d(candidates[part], references[part], whole)[1]
    np.testing.assert_array_equal(got, scores[part])
  # Alone, a picture's words are those of every picture, and weigh nothing.
  assert cider_d(candidates[5:6], references[5:6])[0] == 0.0 < scores[5]


def test_metrics_of_raw_captions():
  candidates = ["A Dog's run, in the park.", "", "two (red) kites"]
  references = [
    ["a dog 's run in the park"],
    ["a plate of food", "food on a plate"],
    ["Two kites", "two red kites.", "kites!"],
  ]
  got = caption_metrics(candidates, references)
  assert list(got) == ["cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4"]
  words = [
    c.split()
    for c in ("a dog 's run in the park", "", "two -lrb- red -rrb- kites")
  ]
  others = [[o.lower().strip(".!").split() for o in r] for r in references]
  mean, scores = cider_d(words, others)
  assert got["cider_d"] == mean
  assert [got[f"bleu_{k}"] for k in range(1, 5)] == list(bleu(words, others))
  assert scores[0] == pytest.approx(10) and scores[1] == 0.0
  nothing = caption_metrics(["", " ... "], references[:2])
  # Not quite zero, by the smoothing of the COCO scorer.
  assert nothing["cider_d"] == 0.0 and max(nothing.values()) < 1e-6


ONE = [["a"]]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: tokenize(None), "text is None; expected a string"),
    (lambda: bleu([], []), r"references is \[\]"),
    (lambda: bleu([], [ONE]), r"candidates is \[\]"),
    (lambda: bleu(ONE, [ONE, ONE]), "1 candidates and 2 lists"),
    (lambda: bleu(ONE, [[]]), r"references\[0\] is \[\].*leave out"),
    (lambda: bleu(["a b"], [ONE]), r"candidates\[0\] is 'a b'.*tokenize"),
    (lambda: bleu(ONE, [["a b"]]), r"references\[0\]\[0\] is 'a b'"),
    (lambda: bleu([[1]], [ONE]), r"candidates\[0\] is \[1\]"),
    (lambda: bleu(ONE, [ONE], order=0), "order=0"),
    (lambda: cider_d(ONE, [[None]]), r"references\[0\]\[0\] is None"),
    (lambda: cider_d(ONE, [ONE], sigma=0.0), "sigma=0.0"),
    (
      lambda: cider_d(ONE, [ONE], DocumentFrequency({("a",): 3}, 2)),
      "of 2 pictures, and an n-gram of it of 3",
    ),
    (lambda: document_frequencies([ONE, []]), r"references\[1\] is \[\]"),
    (lambda: caption_metrics("ab", ["a", "b"]), r"references\[0\] is 'a'"),
    (lambda: caption_metrics("a", [["a"]]), "candidates is 'a'"),
    (lambda: caption_metrics([None], [["a"]]), r"candidates\[0\] is None"),
    (lambda: caption_metrics(["a"], [["a", 3]]), r"references\[0\]\[1\] is 3"),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.fixture
def captions(shared_data):
  """Five human captions of each of 148 pictures of COCO."""
  lines = (shared_data / "coco_cc" / "test.jsonl").read_text().splitlines()
  return [json.loads(line)["text"] for line in lines]


@pytest.mark.parity
@pytest.mark.parametrize("left", range(5))
def test_scores_equal_the_coco_scorers(captions, left):
  reason = "scores captions; of the extra `parity`"
  theirs = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=reason)
  cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=reason)
  words = [[tokenize(text) for text in texts] for texts in captions]
  candidates = [w[left] for w in words]
  references = [w[:left] + w[left + 1 :] for w in words]
  candidates[7], candidates[8] = [], ["a"]
  res = {i: [" ".join(c)] for i, c in enumerate(candidates)}
  gts = {i: [" ".join(o) for o in r] for i, r in enumerate(references)}
  with contextlib.redirect_stdout(io.StringIO()):
    want_bleu, _ = theirs.Bleu(4).compute_score(gts, res)
    want_mean, want = cider.Cider().compute_score(gts, res)
  got_mean, got = cider_d(candidates, references)
  # The same float64 sums, in another order.
  np.testing.assert_allclose(
    bleu(candidates, references), want_bleu, rtol=1e-12
  )
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
  assert got_mean == pytest.approx(want_mean, rel=1e-12)
  assert 0.5 < got_mean < 2  # People agree, but not to the word.


@pytest.mark.parity
def test_words_equal_those_of_the_java_tokenizer(captions, tmp_path):
  if not (java := shutil.which("java")):
    pytest.skip("the reference tokenizer is a Java program; there is no java")
  spec = importlib.util.find_spec("pycocoevalcap")
  if spec is None:
    pytest.skip("pycocoevalcap has the Java tokenizer; of the extra `parity`")
  module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
  jar = pathlib.Path(module.__file__).with_name(
    module.STANFORD_CORENLP_3_4_1_JAR
  )
  texts = [text for texts in captions for text in texts]
  # A last line of another kind, since the last has no line break after it.
  lines = [" ".join(text.split()) for text in [*texts, *TOKENS]]
  (tmp_path / "captions.txt").write_text("\n".join([*lines, "end"]), "utf-8")
  command = [
    java,
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-cp",
    jar,
  ]
  command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
  command += ["-lowerCase", "-encoding", "UTF-8", tmp_path / "captions.txt"]
  done = subprocess.run(command, capture_output=True, check=True, timeout=300)
  found = done.stdout.decode("utf-8").split("\n")[: len(lines)]
  for line, tokens in zip(lines, found, strict=True):
    kept = [t for t in tokens.split(" ") if t not in module.PUNCTUATIONS]
    # A space inside of a token is one between words to the scorers.
    assert tokenize(line) == " ".join(kept).split(), line
