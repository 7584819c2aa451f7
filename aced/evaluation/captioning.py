"""BLEU and CIDEr-D of captions, as the COCO caption evaluation has them."""

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Words = Sequence[str]
Gram = tuple[str, ...]

_ORDER = 4
# The constants of the COCO scorer: a precision without a match is not quite
# zero, and one without an n-gram is no division by zero.
_SMALL, _TINY = 1e-9, 1e-15


class DocumentFrequency(NamedTuple):
  """How many of `pictures` have each n-gram, a tuple of words, in a caption."""

  counts: Mapping[Gram, int]
  pictures: int


def tokenize(text: str) -> list[str]:
  """The words of a caption, in lower case, without punctuation.

  The reference is the tokenizer of the COCO evaluation: Stanford's PTBTokenizer
  3.4.1 as pycocoevalcap runs it, a Java program. This has its rules for English
  without it. `n't`, `'s`, `'re` and the like are words of their own ("isn't" is
  `is n't`), as are the parts of "cannot" and "gonna"; hyphens, inner slashes
  and dots stay ("close-up", "and/or", "12:43", "u.s."), and so does the dot of
  an abbreviation ("st."). Of punctuation, what COCO's list names is left out:
  `. ? ! , : ; - -- ...` and quotes. What it does not name is a word: `& # % $ /
  ?!` and brackets, as `-lrb-` and `-rrb-`: it has those in capitals alone.

  The words of COCO's val2017 captions are the same. Known differences: a
  caption's last "K." is "k", where there it depends on the next caption; quotes
  side by side are never a word; joined or capital abbreviations ("etc.a",
  "MFG."), tags with spaces, smileys, addresses and bracketed telephone numbers
  have simpler rules; letters and symbols beyond Latin are those Python knows.

  Args:
    text: one caption.

  Returns:
    Its words; none for a text without any.

  Raises:
    ValueError: `text` is not a string.
  """
  _check_text("text", text)
  chunks = text.split()
  words = []
  for chunk, after in zip(chunks, [*chunks[1:], ""]):
    # What follows matters to a final dot alone.
    words += _words_of(chunk, after if chunk[-1] == "." else "")
  return words


def bleu(
  candidates: Sequence[Words],
  references: Sequence[Sequence[Words]],
  order: int = _ORDER,
) -> tuple[float, ...]:
  """BLEU-1 to BLEU-`order` of a corpus (Papineni et al., 2002).

  The geometric mean of the clipped precisions of 1- to k-grams, summed over
  the corpus, times the brevity penalty `min(1, exp(1 - r / c))`, `c` words of
  candidates against `r` of the references nearest in length (of equally near
  ones the shorter). The smoothing is that of the COCO evaluation,
  `(matches + 1e-15) / (n-grams + 1e-9)`: no match at all is not quite zero.

  Args:
    candidates: the words of `n` captions, as `tokenize` gives them.
    references: of each, the words of one or more human captions.
    order: the longest n-gram.

  Returns:
    `order` fractions: BLEU-1, BLEU-2, and so on.

  Raises:
    ValueError: `order` is below 1, or inputs are empty or do not fit together.
  """
  if not isinstance(order, int) or order < 1:
    raise ValueError(f"order={order!r} must be a whole number from 1 on, as 4.")
  _check(candidates, references, _check_words)
  matches, grams, size, target = [0] * order, [0] * order, 0, 0
  for words, others in zip(candidates, references):
    size += len(words)
    target += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
    theirs = [_grams(o, order) for o in others]
    for gram, count in _grams(words, order).items():
      most = max(counts.get(gram, 0) for counts in theirs)
      matches[len(gram) - 1] += min(count, most)
    for k in range(order):
      grams[k] += max(0, len(words) - k)
  ratio = (size + _TINY) / (target + _SMALL)
  brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  product, scores = 1.0, []
  for k in range(order):
    product *= (matches[k] + _TINY) / (grams[k] + _SMALL)
    scores.append(product ** (1 / (k + 1)) * brevity)
  return tuple(scores)


def document_frequencies(
  references: Sequence[Sequence[Words]],
) -> DocumentFrequency:
  """Counts in how many pictures each n-gram of the references stands.

  Args:
    references: of each picture, the words of one or more human captions.

  Returns:
    What `cider_d` weighs n-grams with.

  Raises:
    ValueError: no picture, or one without references.
  """
  _check_references(references, _check_words)
  counts = Counter()
  for others in references:
    counts.update(set().union(*(_grams(words) for words in others)))
  return DocumentFrequency(counts, len(references))


def cider_d(
  candidates: Sequence[Words],
  references: Sequence[Sequence[Words]],
  document_frequency: DocumentFrequency | None = None,
  sigma: float = 6.0,
) -> tuple[float, np.ndarray]:
  """CIDEr-D of each picture and of the corpus (Vedantam et al., 2015).

  Ten times the mean, over references and over n-grams of 1 to 4 words, of
  `exp(-(l_c - l_r)^2 / 2 sigma^2) min(g_c, g_r) . g_r / (|g_c| |g_r|)`, where
  `g` counts each n-gram times `log(pictures / pictures that have it)`
  (arXiv 1411.5726; no stemming, as in the COCO evaluation).

  N-grams that every picture has weigh nothing: a single picture scores 0, as in
  the COCO evaluation, unless `document_frequency` is that of a larger set.
  Scores are of the set: compare them on equal references alone.

  Args:
    candidates: the words of `n` captions, as `tokenize` gives them.
    references: of each, the words of one or more human captions.
    document_frequency: None: that of `references`.
    sigma: of the penalty on a difference in length, in words.

  Returns:
    The mean, and `(n,)` float64, one score from 0 to 10 for each picture.

  Raises:
    ValueError: `sigma` is not positive, or inputs are empty or do not fit
      together.
  """
  if not sigma > 0:
    raise ValueError(f"sigma={sigma!r} must be above 0; COCO's is 6.0.")
  _check(candidates, references, _check_words)
  if document_frequency is None:
    document_frequency = document_frequencies(references)
  weights, unseen = _weights(document_frequency)
  scores = np.zeros(len(candidates))
  for i, (words, others) in enumerate(zip(candidates, references)):
    vector, norms = _vector(words, weights, unseen)
    for other in others:
      theirs, their_norms = _vector(other, weights, unseen)
      dots = [0.0] * _ORDER
      for gram, weight in theirs.items():
        dots[len(gram) - 1] += min(vector.get(gram, 0.0), weight) * weight
      cosines = sum(
        dot / math.sqrt(ours * norm)
        for dot, ours, norm in zip(dots, norms, their_norms)
        if ours and norm
      )
      apart = len(words) - len(other)
      scores[i] += cosines * math.exp(-(apart**2) / (2 * sigma**2))
    scores[i] *= 10 / (_ORDER * len(others))
  return float(scores.mean()), scores


def caption_metrics(
  candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
  """CIDEr-D and BLEU of captions as they are written.

  Args:
    candidates: `n` captions, one a picture. An empty one scores 0.
    references: of each picture, one or more human captions, in any number.

  Returns:
    `{"cider_d": ..., "bleu_1": ..., ..., "bleu_4": ...}`; BLEU as fractions;
    CIDEr-D from 0 to 10, as the COCO evaluation gives it and as logs and pages
    show it (papers tend to print it times 100: their 110 is 1.1 here).

  Raises:
    ValueError: inputs that are empty, no strings or do not fit together.
  """
  _check(candidates, references, _check_text)
  words = [tokenize(text) for text in candidates]
  others = [[tokenize(text) for text in texts] for texts in references]
  metrics = {"cider_d": cider_d(words, others)[0]}
  scores = bleu(words, others)
  return metrics | {f"bleu_{k}": score for k, score in enumerate(scores, 1)}


def _grams(words: Words, order: int = _ORDER) -> Counter[Gram]:
  """How often each n-gram of 1 to `order` words stands in `words`."""
  counts = Counter()
  for k in range(1, order + 1):
    counts.update(zip(*(words[i:] for i in range(k))))
  return counts


def _weights(document_frequency):
  """Weights of n-grams, and of those that no reference has."""
  counts, pictures = document_frequency
  most = max(counts.values(), default=0)
  if pictures < max(most, 1):
    # Weights would be negative.
    raise ValueError(
      f"document_frequency is of {pictures} pictures, and an n-gram of it of"
      f" {most}; take it from document_frequencies(references)."
    )
  unseen = math.log(pictures)
  weights = {g: unseen - math.log(max(1, n)) for g, n in counts.items()}
  return weights, unseen


def _vector(words, weights, unseen):
  """Weighted counts, and their squared norm for each length of n-gram."""
  vector, norms = {}, [0.0] * _ORDER
  for gram, count in _grams(words).items():
    vector[gram] = weight = count * weights.get(gram, unseen)
    norms[len(gram) - 1] += weight * weight
  return vector, norms


def _check(candidates, references, check):
  _check_references(references, check)
  _check_list("candidates", candidates, "one caption a picture")
  if len(candidates) != len(references):
    raise ValueError(
      f"{len(candidates)} candidates and {len(references)} lists of references;"
      " expected one of each for every picture."
    )
  for i, candidate in enumerate(candidates):
    check(f"candidates[{i}]", candidate)


def _check_references(references, check):
  _check_list("references", references, "one list of captions a picture")
  for i, others in enumerate(references):
    name = f"references[{i}]"
    _check_list(name, others, "not empty: leave out pictures without captions")
    for j, other in enumerate(others):
      check(f"{name}[{j}]", other)


def _check_list(name, rows, expected):
  if not isinstance(rows, list | tuple) or not rows:
    raise ValueError(f"{name} is {rows!r}; expected a list, {expected}.")


def _check_text(name, text):
  if not isinstance(text, str):
    raise ValueError(f"{name} is {text!r}; expected a string, one caption.")


def _check_words(name, words):
  listed = isinstance(words, list | tuple)
  if not listed or not all(isinstance(word, str) for word in words):
    raise ValueError(
      f"{name} is {words!r}; expected a list of words, as tokenize(text) gives."
    )


# PTBTokenizer's rules for English. At each place the one of the longest match
# wins, what must follow counted in, and of equally long ones the first. The
# token is the group that took part, or all of the match.
_NUMERAL = r"\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215f"
_LETTER = rf"(?:[^\W\d_{_NUMERAL}]|[\u00ad\u0300-\u036f])"
_BEYOND = r"\U00010000-\U0010ffff"
_ALNUM = rf"(?:{_LETTER}|\d)"
_APOS = r"['\u2019]"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_PART = rf"(?:[dlo]{_APOS}{_ALNUM})?{_ALNUM}+"
_THING = rf"{_PART}(?:[-_\u2010\u2011]{_PART})*"
_HYPHENED = (
  r"[a-z\d][a-z\d.,\u00ad]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z\d\u00ad]+))+"
)
_SLASHED = r"[a-z\d]+(?:-[a-z]+)*"
_CAPITALS = r"(?-i:[A-Z]+(?:[+&][A-Z]+)+)"
_AUXILIARY = rf"{_APOS}(?:[msd]|re|ve|ll)"
# Words that keep a final dot; that do so with a capital; before a number.
_DOTTED = (
  "adj adm adv ala? alex apr ariz assn assoc asst attys? aug ave bancorp bhd"
  " bldg blvd brig bros calif capt cf cie co[ls]? colo co?mdr conn corp cpl ct"
  r" dak dec dept det drs? (?:ed|ph)\.d elec ens esq est etc ext feb fla fri ft"
  " ga gen govs? hon inc ind insp intl invt jan jos jr jul jun kans? ky lieut"
  " lt ltd maj mar md messrs m[ft]g mich minn mlle mme mont? mo mrs? ms msgr mt"
  " natl neb nev nov oct okla penn pfc ph plc p?pt[ye]s? pres profs? pvt rd"
  " reps? rev rt sens? sept? seq sfc sgt spc sq sr ste? supts? sys tel tenn"
  " thu thurs treas tues? univ va vs vt wed wisc? wm wyo"
)
_DOTTED_NAMES = "ark az del ill la mass miss ore pa tex wash"
_DOTTED_COUNTS = "art ca figs? nos? pp? op prop"
_OPENERS = (
  r"a about according additionally after an as at but earlier he her here"
  r" however if in it last many more mr\. ms\. now once one other our she"
  " since so some such that the their then there these they this we what when"
  " while yet you"
)


def _one_of(words: str) -> str:
  return f"(?:{'|'.join(words.split())})"


_RULES = [
  re.compile(rule, re.IGNORECASE)
  for rule in (
    r"(can)not|(gon|wan)na|(got)ta|(lem|gim)me|('t)(?:is|was)",
    r"</?[a-z!?][^>\s]*>",
    rf"({_WORD}){_AUXILIARY}",
    rf"([a-z\u00ad]*[a-mo-z])n{_APOS}t",
    _WORD,
    rf"{_APOS}n{_APOS}?|[ldj]{_APOS}|(?:dunkin|somethin|ol){_APOS}",
    rf"{_APOS}(?:em|till?|cause|[2-9]0s)",
    r"cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l",
    rf"(?-i:(?![IY])[A-Z]|n){_APOS}{_LETTER}{{2,}}",
    rf"{_LETTER}+[aeiouy]{_APOS}[aeiou]{_LETTER}*",
    rf"(y{_APOS}){_LETTER}",
    r"(?:https?://|www\.)\S*[\w/]|[\w.+-]+@[\w.-]*\w",
    r"(?:[a-z\d-]+\.)+(?:com|net|org|edu)(?:/\S*[\w/])?",
    rf"@[a-z_][a-z\d_]*|#{_LETTER}+",
    rf"({_AUXILIARY}|n{_APOS}t)[^a-z]",
    r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
    r"(?:\d{1,4}-)?\d{1,4}/\d{1,4}",
    rf"pro-|anti-|s&p-500|s&ls|(?:cap{_APOS}n|c{_APOS}est)|c\+\+|[cf]#",
    rf"{_SLASHED}(?:/{_SLASHED}){{1,2}}",
    r"(?-i:[A-Z]*)\$",
    rf"([a-z])\.\s(?:(?=(?-i:[A-Z])){_one_of(_OPENERS)})?$",
    r"[a-z](?:\.[a-z])*\.",
    rf"{_one_of(_DOTTED)}\.",
    rf"(?=(?-i:[A-Z])){_one_of(_DOTTED_NAMES)}\.",
    rf"({_one_of(_DOTTED_COUNTS)}\.)\s?\d",
    r"('\d\d)\s",
    rf"((?:{_WORD}|{_HYPHENED}|{_THING}|{_CAPITALS})\.)[,;:]",
    _HYPHENED,
    _THING,
    _CAPITALS,
    r"([:;=][-']?(?-i:[()|DOPp]))[^a-z]",
    r"''|(')[a-z]\S|\u2019(?:[msd]|re|ve|ll)",
    r"&(?:amp|lt|gt|quot);",
    r"\.{3,5}|-+|\*+|#+|@+|_+|[?!]+",
    r"[\u00b2\u00b3\u00b9\u2070-\u2079]+|[\u2080-\u2089]+",
    # One mark or symbol; what no rule has is passed over.
    rf"[{_NUMERAL}]|[^\w\s\u200b-\u200f\ufe00-\ufe0f\ufeff{_BEYOND}]",
  )
]
_PUNCTUATION = {
  *".?!,:;'\"`-\u2013\u2014\u2015\u2026\u2018\u2019\u201b\u201c\u201d",
  *"\u00ab\u00bb\u2039\u203a",
  *("''", "--", "---", "----", "...", "....", ".....", "&quot;"),
}
_WRITTEN = {
  **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-"},
  **{"{": "-lcb-", "}": "-rcb-", "\u00a3": "#", "\u20ac": "$"},
  **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3"},
  **{"\u2154": "2/3", "\u00a2": "cents", "\u00ad": ""},
  **{"&amp;": "&", "&lt;": "<", "&gt;": ">"},
}
_SPELT = re.compile("|".join(map(re.escape, _WRITTEN)))
_SUFFIX = re.compile(rf"{_AUXILIARY}|n{_APOS}t")


@functools.lru_cache(maxsize=2**16)
def _words_of(chunk: str, after: str) -> tuple[str, ...]:
  """The words of what stands between two spaces, before `after`."""
  text, place, words = f"{chunk} {after}", 0, []
  while place < len(chunk):
    found = (rule.match(text, place) for rule in _RULES)
    best = max(filter(None, found), key=re.Match.end, default=None)
    if not best:
      place += 1
      continue
    group = best.lastindex or 0
    place, word = best.end(group), best[group].lower()
    if _SUFFIX.fullmatch(word):
      word = word.replace("\u2019", "'")
    if word not in _PUNCTUATION:
      words.append(_SPELT.sub(lambda part: _WRITTEN[part[0]], word))
  return tuple(words)
