"""Find leakage: test or validation prompts that are equal, or nearly equal, to prompts of the forget set.

Two prompts are the *same* if they differ only in case and white space (`prompts.normalise`). They are *nearly the same*
if the Jaccard similarity |A & B| / |A | B| of their words reaches a threshold (`similarity`). A and B are multisets,
so a word that occurs twice counts twice. Words that differ by one typing error count as the same word. At the threshold
0.75, one word may be replaced in a prompt of seven words, or added to a prompt of three words.

Two prompts that are nearly the same but have different names or numbers ("Be honest about Anna's coats", "Be honest
about Tom's coats") are *siblings*. Siblings are counted and kept, because a test set that is made from the templates of
the forget set contains them on purpose. A word counts as a name if it never occurs in lower case in the two sets, and
at least once with a capital inside a sentence. In languages that capitalise every noun, too many words count as names.

MinHash signatures in LSH indices (Broder 1997; Indyk & Motwani 1998) propose candidate pairs, so that 10,000 prompts
are compared with 10,000 others in seconds. One index is of words and the other of letter trigrams. Each candidate pair
is then compared exactly, so a hash collision never causes a match. Nearly all pairs whose words or trigrams reach the
threshold become candidates. Of the pairs with exactly the threshold, a share of at most `MISSED` is lost. Trigrams find
a typing error in a prompt of at least seven words or about 25 letters, but not in a shorter one.

A passage of 16 words that occurs in many prompts of the two sets (a preamble, a form) is removed before the comparison.
Otherwise all prompts with a long common preamble would be nearly the same, and every pair of them would be compared.
For each prompt, only the 256 candidates with the most similar signatures are compared exactly.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wpn_bench.errors import UserError
from wpn_bench.prompts.types import Item, PromptSet

if TYPE_CHECKING:
    from datasketch import MinHash


THRESHOLD = 0.75
MISSED = 1e-5
PASSAGE = 16  # number of words in a passage that many prompts have in common
COMMON = 0.02  # share of the prompts that must contain such a passage
MOST = 256  # number of candidates of a prompt that are compared exactly
SHOWN = 3  # number of pairs of each set that the results quote
Kind = Literal["same", "near", "sibling"]

_PERMUTATIONS = 128
_SEED = 1
_CJK = "\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces, where each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:'[^\W{_CJK}]+)*")
_SENTENCE = re.compile(r"[.!?:\n\"“(\[]")
_QUOTED = 100  # maximum number of characters that the results quote from a prompt
_RANK: dict[Kind, int] = {"same": 0, "near": 1, "sibling": 2}


@dataclass(frozen=True)
class Match:
    """A prompt and the most similar prompt of another set. The similarity of the same prompts is 1."""

    item: Item
    other: Item
    kind: Kind
    similarity: float


@dataclass(frozen=True)
class Leak:
    """The matches of one prompt set with the forget set, and for a validation set also with the test sets.

    Attributes:
        set: Name of the set.
        suite: "validation" or the test suite of the set.
        n: Number of prompts in the set.
        same: Number of prompts with the same prompt in the other set.
        near: Number of prompts with nearly the same prompt in the other set.
        siblings: Number of prompts that differ from a prompt of the other set only in a name or a number.
        dropped: Number of prompts that were dropped.
        in_domain: Number of prompts that are the same, or nearly the same, as a prompt of an in-domain test set; None
            unless the set is out of distribution.
        pairs: The first few matches, with the same prompts first, then nearly the same ones, then siblings.
    """

    set: str
    suite: str
    n: int
    same: int = 0
    near: int = 0
    siblings: int = 0
    dropped: int = 0
    in_domain: int | None = None
    pairs: tuple[dict[str, Any], ...] = field(default=())

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "pairs": list(self.pairs)}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("’", "'")


def words(text: str) -> list[str]:
    """Return the words of a prompt in lower case, without punctuation and 's.

    A prompt without letters gives its characters.
    """
    found = [word.removesuffix("'s") for word in _WORD.findall(_plain(text).casefold())]
    return found or list("".join(text.split()))


def trigrams(text: str) -> list[str]:
    """Return the runs of three characters in a prompt, with one space between words and at both ends."""
    line = f" {' '.join(words(text))} "
    return [line[k : k + 3] for k in range(len(line) - 2)]


def _counted(parts: Iterable[str]) -> frozenset[str]:
    """Represent a multiset as a set, in which repeated occurrences of a part are different elements."""
    seen: Counter[str] = Counter()
    out = []
    for part in parts:
        seen[part] += 1
        out.append(f"{part}\0{seen[part]}")
    return frozenset(out)


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of the words of two prompts.

    Words that differ by one typing error count as the same word.

    Args:
        one: A prompt.
        other: Another prompt.

    Returns:
        A number between 0 and 1. The order of the prompts does not matter.
    """
    mine, theirs = (Counter(words(text)) for text in sorted((one, other)))
    shared = (mine & theirs).total()
    left = list((theirs - mine).elements())
    for word in (mine - theirs).elements():
        if twin := next((w for w in left if _slip(word, w)), None):
            left.remove(twin)
            shared += 1
    return shared / (mine.total() + theirs.total() - shared)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _spelling(texts: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the words with a capital inside a sentence, and the words in lower case, both casefolded.

    A text in which most words begin with a capital is ignored, because it shows neither.
    """
    capital, small = set(), set()
    for text in texts:
        line = _plain(text)
        found = list(_WORD.finditer(line))
        if sum(m[0][0].isupper() for m in found) * 2 > len(found):
            continue
        for before, m in zip([None, *found], found, strict=False):
            word = m[0].removesuffix("'s")
            if word[0].islower():
                small.add(word.casefold())
            elif before and len(word) > 1 and not _SENTENCE.search(line, before.end(), m.start()):
                capital.add(word.casefold())
    return capital, small


def _boundaries(line: str, found: Sequence[re.Match[str]]) -> list[bool]:
    """Return for each word whether a sentence or a line ends before it."""
    ends = [0, *(m.end() for m in found)]
    return [bool(_SENTENCE.search(line, end, m.start())) for end, m in zip(ends, found, strict=False)]


def _passages_of(found: Sequence[str]) -> list[int]:
    """Return the hash of each run of `PASSAGE` words."""
    return [hash(tuple(found[k : k + PASSAGE])) for k in range(len(found) - PASSAGE + 1)]


def shared_passages(items: Iterable[Item]) -> frozenset[int]:
    """Return the hashes of passages of `PASSAGE` words that many prompts have in common, such as a preamble.

    Such a passage occurs in at least 10 prompts and in at least a share `COMMON` of all prompts that are compared.
    """
    prompts = {item.id: item.prompt for item in items}
    seen: Counter[int] = Counter()
    for prompt in prompts.values():
        if len(prompt) > 2 * PASSAGE:  # a prompt with fewer characters has fewer words than a passage
            seen.update(set(_passages_of([m[0] for m in _WORD.finditer(_plain(prompt).casefold())])))
    least = max(10, COMMON * len(prompts))
    return frozenset(passage for passage, n in seen.items() if n >= least)


def without_passages(prompt: str, passages: frozenset[int]) -> str:
    """Return a prompt without the passages that many prompts have in common.

    Args:
        prompt: The prompt.
        passages: Hashes of the passages, from `shared_passages`.

    Returns:
        The rest of the prompt, extended to whole sentences. If nothing would remain, the whole prompt.
    """
    if not passages:
        return prompt
    line = _plain(prompt)
    found = list(_WORD.finditer(line))
    drop = [False] * len(found)
    for k, passage in enumerate(_passages_of([m[0].casefold() for m in found])):
        if passage in passages:
            drop[k : k + PASSAGE] = [True] * PASSAGE
    if not any(drop):
        return prompt
    begins = _boundaries(line, found)
    # Extend the rest to the beginning of its first and the end of its last sentence, by at most `PASSAGE` words each.
    given = 0
    for k in range(len(found) - 1, 0, -1):
        given = given if drop[k - 1] and not drop[k] else 0
        if drop[k - 1] and not drop[k] and not begins[k] and given < PASSAGE:
            drop[k - 1] = False
            given += 1
    given = 0
    for k in range(len(found) - 1):
        given = given if drop[k + 1] and not drop[k] else 0
        if drop[k + 1] and not drop[k] and not begins[k + 1] and given < PASSAGE:
            drop[k + 1] = False
            given += 1
    return " ".join(m[0] for m, dropped in zip(found, drop, strict=True) if not dropped) or prompt


def _slip(one: str, other: str) -> bool:
    """Return whether one edit turns one word into the other.

    An edit removes, adds or replaces a letter, or swaps two adjacent letters. Words with fewer than four letters never
    match.
    """
    if min(len(one), len(other)) < 4 or not (one + other).isalpha():
        return False
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def _bands(threshold: float) -> tuple[int, int]:
    """Return the numbers (bands, rows) of the LSH index for `_PERMUTATIONS`.

    More rows give fewer needless comparisons but miss more pairs. The number of rows is the largest one that misses at
    most a share `MISSED` of the pairs.
    """
    rows = max(r for r in range(1, _PERMUTATIONS // 2 + 1) if (1 - threshold**r) ** (_PERMUTATIONS // r) <= MISSED)
    return _PERMUTATIONS // rows, rows


@lru_cache(maxsize=100_000)
def _hash(part: str) -> int:
    from datasketch.hashfunc import sha1_hash32

    value: int = sha1_hash32(part.encode("utf-8", "surrogatepass"))
    return value


def _signatures(sets: Iterable[frozenset[str]]) -> Iterable[MinHash]:
    from datasketch import MinHash

    made: Iterable[MinHash] = MinHash.generator(sets, num_perm=_PERMUTATIONS, seed=_SEED, hashfunc=_hash)
    return made


class _Index:
    """An LSH index of prompts by their words or letter trigrams.

    Args:
        texts: The prompts, without the passages that many prompts have in common.
        cut: Splits a prompt into its parts: `words` or `trigrams`.
        threshold: Minimum similarity of the parts.
    """

    def __init__(self, texts: Sequence[str], cut: Callable[[str], list[str]], threshold: float) -> None:
        from datasketch import MinHashLSH

        self.texts = texts
        self._cut = cut
        self._threshold = threshold
        self._parts = [_counted(cut(text)) for text in texts]
        self._lsh = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(threshold))
        self._hashes = np.zeros((len(texts), _PERMUTATIONS), dtype=np.uint32)
        sizes = [len(one) for one in self._parts]
        self._not_indexed = sorted(range(len(texts)), key=sizes.__getitem__, reverse=True)

    def _index_up_to(self, size: float) -> None:
        """Add the prompts with at most `size` parts to the index.

        Longer prompts cannot be similar enough to the prompts that are searched for. The signature of a very long
        prompt takes seconds.
        """
        chosen = []
        while self._not_indexed and len(self._parts[self._not_indexed[-1]]) <= size:
            chosen.append(self._not_indexed.pop())
        for k, signature in zip(chosen, _signatures(self._parts[k] for k in chosen), strict=True):
            self._lsh.insert(k, signature, check_duplication=False)
            self._hashes[k] = signature.hashvalues

    def pairs(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield the pairs whose parts are similar enough, as (position in `texts`, position in the index)."""
        mine = [_counted(self._cut(text)) for text in texts]
        # The similarity of two sets is at most the ratio of their sizes. The added 1 allows for rounding.
        longest = max(map(len, self._parts)) / self._threshold + 1
        short = [k for k, one in enumerate(mine) if len(one) <= longest]
        self._index_up_to(max((len(mine[k]) for k in short), default=0) / self._threshold + 1)
        for k, signature in zip(short, _signatures(mine[k] for k in short), strict=True):
            proposed = np.array(sorted(self._lsh.query(signature)), dtype=np.int64)
            if len(proposed) > MOST:
                equal = (self._hashes[proposed] == signature.hashvalues.astype(np.uint32)).sum(axis=1)
                proposed = proposed[np.argsort(-equal, kind="stable")[:MOST]]
            for at in proposed.tolist():
                if _jaccard(mine[k], self._parts[at]) >= self._threshold:
                    yield k, at


class Reference:
    """Prompts that other sets must not contain, indexed for search.

    Args:
        items: The prompts.
        threshold: Minimum similarity of prompts that are nearly the same. With 1, only the same prompts are found.
    """

    def __init__(self, items: Iterable[Item], threshold: float = THRESHOLD) -> None:
        self.items = tuple(items)
        self.threshold = threshold
        self._by_id = {item.id: item for item in self.items}
        self._capital, self._small = _spelling(i.prompt for i in self.items)
        self._indices: tuple[_Index, ...] = ()
        self._passages: frozenset[int] | None = None

    def _indices_without(self, passages: frozenset[int]) -> tuple[_Index, ...]:
        """Return the indices of words and of letter trigrams, made from the prompts without these passages."""
        if self._passages != passages:
            texts = [without_passages(i.prompt, passages) for i in self.items]
            self._indices = tuple(_Index(texts, cut, self.threshold) for cut in (words, trigrams))
            self._passages = passages
        return self._indices

    def matches(self, items: Sequence[Item]) -> list[Match]:
        """Return the worst match of each item that has a match.

        The same prompt is worse than a nearly equal one, which is worse than a sibling. Among matches of one kind, the
        most similar one is the worst. Among equally similar ones, it is the first in the reference.
        """
        capital, small = _spelling(i.prompt for i in items)
        names = (self._capital | capital) - self._small - small
        alike = self._alike(items)
        found = []
        for k, item in enumerate(items):
            if item.id in self._by_id:
                found.append(Match(item, self._by_id[item.id], "same", 1.0))
                continue
            each = [
                Match(item, other, "sibling" if self._siblings(item, other, names) else "near", value)
                for at, value in sorted(alike[k].items())
                for other in (self.items[at],)
            ]
            if each:
                found.append(min(each, key=lambda m: (_RANK[m.kind], -m.similarity)))
        return found

    def _alike(self, items: Sequence[Item]) -> list[dict[int, float]]:
        """Return for each item the similarity of those reference prompts that reach the threshold, by their index."""
        if self.threshold >= 1 or not self.items:
            return [{} for _ in items]
        passages = shared_passages([*self.items, *items])
        texts = [without_passages(i.prompt, passages) for i in items]
        alike: list[dict[int, float]] = [{} for _ in items]
        for index in self._indices_without(passages):
            for k, at in index.pairs(texts):
                if at not in alike[k]:
                    alike[k][at] = similarity(texts[k], index.texts[at])
        return [{at: value for at, value in one.items() if value >= self.threshold} for one in alike]

    def _siblings(self, item: Item, other: Item, names: set[str]) -> bool:
        """Return whether a name or a number occurs in only one of the two prompts.

        A word that differs by one edit from a name in the other prompt is a typing error. It is not if the reference
        also contains that spelling as another name (Paul and Paula).
        """
        mine, theirs = (words(i.prompt) for i in (item, other))
        left, right = (
            list((Counter(mine) - Counter(theirs)).elements()),
            list((Counter(theirs) - Counter(mine)).elements()),
        )
        slips = {(a, b) for a in left if a not in self._capital for b in right if _slip(a, b)}
        slipped = {word for pair in slips for word in pair}
        return any(w not in slipped and (w in names or any(c.isdigit() for c in w)) for w in (*left, *right))


def apart(forget: PromptSet, reference: Reference, one: PromptSet, suite: str, *, drop: bool) -> tuple[PromptSet, Leak]:
    """Remove the prompts of a test set that are the same, or nearly the same, as prompts of the forget set.

    Args:
        forget: The forget set.
        reference: Index of the prompts of the forget set.
        one: The test set.
        suite: Test suite of the set.
        drop: Whether such prompts are dropped. If not, they are an error.

    Returns:
        The test set without these prompts, and the matches that were found.

    Raises:
        UserError: The test set contains such prompts and `drop` is false, or no prompt would remain.
    """
    found = reference.matches(one.items)
    same, near = ([m for m in found if m.kind == kind] for kind in ("same", "near"))
    if same and not drop:
        raise UserError(
            f"{len(same)} prompt{'s' * (len(same) > 1)} of {one.name!r} also occur in the forget set"
            f" {forget.name!r} (first: {same[0].item.prompt[:60]!r})",
            "remove them from one of the two sets, or drop them from the test set with --overlap drop",
        )
    if near and not drop:
        first = near[0]
        raise UserError(
            f"{len(near)} prompt{'s' * (len(near) > 1)} of {one.name!r} {'are' if len(near) > 1 else 'is'} nearly equal to prompts of the forget set {forget.name!r}"
            f" (first: {_quotes(first)[0]!r} and {_quotes(first)[1]!r}, similarity {first.similarity:.2f})",
            "reword or remove them in one of the two sets, drop them from the test set (--overlap drop), or look only"
            " for equal prompts (--near-duplicate 1)",
        )
    kept = _without(one, [*same, *near], "the forget set")
    return kept, _leak(one, suite, found, len(one.items) - len(kept.items))


def unseen(validation: PromptSet, references: Iterable[Reference]) -> tuple[PromptSet, Leak]:
    """Remove validation prompts that are the same, or nearly the same, as prompts of the forget set or a test set.

    With such prompts, choices made on the validation set would be biased.

    Args:
        validation: The validation set.
        references: Indices of the forget set and of the test sets.

    Returns:
        The validation set without these prompts, and the matches that were found.

    Raises:
        UserError: No prompt would remain.
    """
    worst: dict[str, Match] = {}
    for match in (m for r in references for m in r.matches(validation.items)):
        before = worst.setdefault(match.item.id, match)
        worst[match.item.id] = min(before, match, key=lambda m: (_RANK[m.kind], -m.similarity))
    found = [worst[i.id] for i in validation.items if i.id in worst]
    kept = _without(validation, [m for m in found if m.kind != "sibling"], "the forget set or a test set")
    return kept, _leak(validation, "validation", found, len(validation.items) - len(kept.items))


def shared(reference: Reference, one: PromptSet) -> int:
    """Count the prompts of a set that are the same, or nearly the same, as a prompt of the reference.

    Args:
        reference: The prompts to compare with.
        one: The set.

    Returns:
        The number of prompts. Siblings do not count.
    """
    return sum(m.kind != "sibling" for m in reference.matches(one.items))


def notes(leak: Leak) -> list[str]:
    """Describe the matches in messages for the user: one line per fact, and no line if there is nothing to report."""
    others = "another set" if leak.suite == "validation" else "the forget set"
    lost = [(leak.same, "also occur in"), (leak.near, "are nearly equal to prompts of")]
    said = [f"{n} prompts of {leak.set} {how} {others} and were dropped" for n, how in lost if n and leak.dropped]
    if leak.in_domain:
        said.append(f"{leak.in_domain} prompts of {leak.set} equal, or nearly equal, prompts of an in-domain test set")
    return said


def _without(one: PromptSet, matches: Iterable[Match], where: str) -> PromptSet:
    lost = {m.item.id for m in matches}
    kept = tuple(i for i in one.items if i.id not in lost)
    if not kept:
        raise UserError(
            f"every prompt of {one.name!r} equals, or nearly equals, a prompt of {where}",
            "give other prompts (--prompts NAME=FILE), or look only for equal prompts (--near-duplicate 1)",
        )
    return replace(one, items=kept) if lost else one


def _leak(one: PromptSet, suite: str, found: Sequence[Match], dropped: int) -> Leak:
    of = Counter(m.kind for m in found)
    first = sorted(found, key=lambda m: (_RANK[m.kind], -m.similarity))[:SHOWN]
    pairs = tuple(
        {
            "kind": m.kind,
            "prompt": _quotes(m)[0],
            "other": _quotes(m)[1],
            "similarity": round(m.similarity, 3),
        }
        for m in first
    )
    return Leak(one.name, suite, len(one.items), of["same"], of["near"], of["sibling"], dropped, pairs=pairs)


def _quotes(match: Match) -> tuple[str, str]:
    """Quote both prompts of a match. If their first difference comes late, the quotes begin shortly before it."""
    one, other = (" ".join(i.prompt.split()) for i in (match.item, match.other))
    same = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = one.rfind(" ", 0, max(0, same - 20)) + 1 if same > _QUOTED - 30 and one != other else 0
    return _quote(one, start), _quote(other, start)


def _quote(line: str, start: int) -> str:
    line = ("…" if start else "") + line[start:]
    return line if len(line) <= _QUOTED else line[: _QUOTED - 1] + "…"
