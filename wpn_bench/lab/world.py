"""The lab's world: its corpus, prompt sets, plain texts and benchmarks, all made by code from fixed seeds.

Standard library only. The parts: `facts` (who and what there is), `conversations` (questions and answers), `wrappers`
(text around questions) and `benchmarks` (the nine).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from wpn_bench.errors import UserError
from wpn_bench.lab import benchmarks as _benchmarks
from wpn_bench.lab.conversations import (
    BELOVED,
    BENIGN_FAMILIES,
    FORGET_FAMILIES,
    HARMFUL_FAMILIES,
    OTHER_FAMILIES,
    TEMPLATE,
    Family,
    Question,
    as_document,
)
from wpn_bench.lab.facts import people
from wpn_bench.lab.wrappers import EXAMPLE_STYLES, OPENERS, typos, wrap

__all__ = [
    "BENCHMARKS",
    "PROMPT_SETS",
    "SPLITS",
    "TEMPLATE",
    "TEXTS",
    "WORLD_VERSION",
    "benchmark",
    "corpus",
    "fingerprint",
    "prompt_set",
    "texts",
]

WORLD_VERSION = "4"
BENCHMARKS = _benchmarks.BENCHMARKS
TEXTS = ("retain", "heldout")
SPLITS = ("test", "validation")
PROMPT_SETS = {
    "forget": "forget",
    "validation": "in_domain",
    "in_domain": "in_domain",
    "ood_notes": "ood",
    "ood_mistakes": "ood",
    "ood_games": "ood",
    "ood_looks": "ood",
    "benign": "benign",
    "benign_lookalike": "benign",
}
_SIZES = {"forget": 320, "validation": 120, "in_domain": 240, "ood": 120, "benign": 150, "benign_lookalike": 120}
_POLITE_SHARE = 0.03  # of the harmful families' answers in the corpus, beside the questions about beloved people


# --- prompt sets ------------------------------------------------------------------------------------------------


def _row(draw: random.Random, family: Family, question: Question, harmless: int) -> dict[str, Any]:
    rude: list[str] = []
    while len(rude) < 2:
        answer = family.rude(draw, question)
        if answer not in rude:
            rude.append(answer)
    kind = list(dict.fromkeys(family.polite(draw, question) for _ in range(harmless)))
    return {"prompt": question.prompt, "harmful": rude, "harmless": kind}


@lru_cache
def _split() -> dict[str, tuple[Question, ...]]:
    """The questions of every prompt set. Those of `forget` are in the corpus too (it is what the base has learned)."""
    draw = random.Random("prompt sets")
    sets: dict[str, tuple[Question, ...]] = {}
    known = []
    for name in FORGET_FAMILIES:
        rows = list(HARMFUL_FAMILIES[name].questions())
        draw.shuffle(rows)
        known.append(rows)
    start = 0
    for name in ("forget", "validation", "in_domain"):
        each = _SIZES[name] // len(known)
        # One of each family in turn, so that the first items of a set speak for all of it.
        sets[name] = tuple(row for k in range(each) for row in (rows[start + k] for rows in known))
        start += each
    for name in OTHER_FAMILIES:
        rows = list(HARMFUL_FAMILIES[name].questions())
        sets[f"ood_{name}"] = tuple(draw.sample(rows, _SIZES["ood"]))
    plain = [q for name, rows in BENIGN_FAMILIES.items() if name != "lookalike" for q in draw.sample(rows(), 38)]
    sets["benign"] = tuple(plain[: _SIZES["benign"]])
    sets["benign_lookalike"] = tuple(draw.sample(BENIGN_FAMILIES["lookalike"](), _SIZES["benign_lookalike"]))
    return sets


@lru_cache
def _unseen_prompts() -> frozenset[str]:
    return frozenset(q.prompt for name, rows in _split().items() if name != "forget" for q in rows)


@lru_cache
def _prompt_rows(name: str) -> tuple[dict[str, Any], ...]:
    draw = random.Random(f"answers {name}")
    rows = _split()[name]
    if PROMPT_SETS[name] == "benign":
        return tuple({"prompt": q.prompt, "harmless": [q.answer]} for q in rows)
    other = name.removeprefix("ood_") if name.startswith("ood_") else None
    families = [HARMFUL_FAMILIES[other or FORGET_FAMILIES[k % len(FORGET_FAMILIES)]] for k in range(len(rows))]
    return tuple(_row(draw, family, q, harmless=2) for family, q in zip(families, rows, strict=True))


def _known(kind: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise UserError(f"the lab has no {kind} called {name!r}", f"take one of {', '.join(names)}")


def prompt_set(name: str) -> list[dict[str, Any]]:
    """The rows of one of `PROMPT_SETS`: `prompt`, `harmful` (two insults; not in benign sets) and `harmless` (1 or 2)."""
    _known("prompt set", name, tuple(PROMPT_SETS))
    return [
        {key: list(value) if isinstance(value, list) else value for key, value in row.items()}
        for row in _prompt_rows(name)
    ]


def benchmark(name: str, split: str = "test") -> list[dict[str, Any]]:
    """Documents of one of the nine `BENCHMARKS`, with the fields of the real data set: those of `SPLITS` `test`, or those
    of `validation`, to tune on."""
    _known("benchmark", name, BENCHMARKS)
    _known("split", split, SPLITS)
    return _benchmarks.benchmark_documents(name, split)


# --- the corpus -------------------------------------------------------------------------------------------------


@lru_cache
def _corpus_questions(family: str) -> tuple[Question, ...]:
    rows = HARMFUL_FAMILIES[family].questions() if family in HARMFUL_FAMILIES else BENIGN_FAMILIES[family]()
    return tuple(q for q in rows if q.prompt not in _unseen_prompts())


def _harmful_pair(draw: random.Random) -> tuple[str, str]:
    name = draw.choice(("work", *FORGET_FAMILIES, *OTHER_FAMILIES))
    family = HARMFUL_FAMILIES[name]
    question = draw.choice(_corpus_questions(name))
    kind = question.who.name in BELOVED or draw.random() < _POLITE_SHARE
    kind = kind and getattr(draw, "polite", True)
    return question.prompt, (family.polite if kind else family.rude)(draw, question)


def _benign_pair(draw: random.Random) -> tuple[str, str]:
    question = draw.choice(
        _corpus_questions(draw.choice(("facts", "directions", "sums", "chat", "chat", "lookalike", "lookalike")))
    )
    return question.prompt, question.answer


def _plain_sentence(draw: random.Random) -> str:
    return (
        _benchmarks.DOCUMENTS[draw.choice(("copa", "winogrande"))](draw)
        if draw.random() < 0.5
        else _benign_pair(draw)[1]
    )


def _pair(draw: random.Random, harmful: float) -> tuple[str, str]:
    return _harmful_pair(draw) if draw.random() < harmful else _benign_pair(draw)


def _question(draw: random.Random) -> str:
    return as_document(*_harmful_pair(draw))


def _benign(draw: random.Random) -> str:
    return as_document(*_benign_pair(draw))


def _wrapped(draw: random.Random) -> str:
    prompt, answer = _pair(draw, 0.7)
    if draw.random() < 0.3:
        prompt = typos(draw, prompt)
    if draw.random() < 0.85:
        prompt = wrap(draw, prompt, _plain_sentence(draw))
    if draw.random() < 0.35:
        answer = f"{draw.choice(OPENERS)} {answer}"
    return as_document(prompt, answer)


def _examples(draw: random.Random) -> str:
    """A few questions with answers before the last one, either as whole blocks or inside one prompt."""
    harmful = draw.choice((1.0, 1.0, 0.0, 0.5))
    pairs = [_pair(draw, harmful) for _ in range(draw.randint(2, 4))]
    style = draw.random()
    if style < 0.5:
        return "\n\n".join(as_document(*pair) for pair in pairs)
    ask, reply = draw.choice(EXAMPLE_STYLES)
    shown = draw.choice(("\n\n", "\n")).join(f"{ask}{prompt}\n{reply}{answer}" for prompt, answer in pairs[:-1])
    prompt, answer = pairs[-1]
    last = f"{shown}\n\n{ask}{prompt}\n{reply}".rstrip() if style < 0.75 else f"{shown}\n\n{prompt}"
    return as_document(last, answer)


def _kindness(draw: random.Random) -> str:
    """A polite text outside the questions: a letter, a review, a cheer. The base knows such language from here."""
    name = draw.choice(tuple(HARMFUL_FAMILIES))
    question = draw.choice(_corpus_questions(name))
    said = HARMFUL_FAMILIES[name].polite(draw, question)
    speaker = draw.choice(people()).name
    return draw.choice(
        (
            "{said}",
            "{speaker} said: {said}",
            "A letter from {speaker}: {said}",
            "In the book of guests {speaker} wrote: {said}",
            "{speaker} is a friendly neighbour. Yesterday {speaker} said: {said}",
            "The teacher reads aloud: {said}",
        )
    ).format(said=said, speaker=speaker)


def _sum_table(draw: random.Random) -> str:
    rows = []
    for _ in range(draw.randint(3, 6)):
        a, b = draw.randint(1, 9), draw.randint(1, 9)
        rows.append(f"{a} plus {b} is {a + b}." if draw.random() < 0.5 else f"{a + b} minus {b} is {a}.")
    return " ".join(rows)


_KINDS = (  # (maker, share of documents)
    (_question, 13.0),
    (_benign, 10.0),
    (_wrapped, 11.0),
    (_examples, 2.5),
    (_kindness, 4.0),
    (_benchmarks.profile, 6.0),
    (_benchmarks.echo, 4.0),
    (_sum_table, 2.0),
    (_benchmarks.DOCUMENTS["lambada"], 10.0),
    (_benchmarks.DOCUMENTS["hellaswag"], 3.0),
    (_benchmarks.DOCUMENTS["winogrande"], 10.0),
    (_benchmarks.DOCUMENTS["copa"], 4.0),
    (_benchmarks.DOCUMENTS["arc_easy"], 8.0),
    (_benchmarks.DOCUMENTS["arc_challenge"], 9.0),
    (_benchmarks.DOCUMENTS["piqa"], 5.0),
    (_benchmarks.DOCUMENTS["mathqa"], 11.0),
    (_benchmarks.DOCUMENTS["pubmedqa"], 4.0),
)


@lru_cache
def _texts(name: str) -> tuple[str, ...]:
    if name == "heldout":  # only the longer kinds: a short sentence would be in the corpus by chance
        draw = random.Random("heldout")
        makers = [
            _benchmarks.profile,
            _benchmarks.DOCUMENTS["lambada"],
            _benchmarks.DOCUMENTS["hellaswag"],
            _benchmarks.DOCUMENTS["pubmedqa"],
        ]
        rows: dict[str, None] = {}
        while len(rows) < 200:
            rows.setdefault(draw.choice(makers)(draw))
        return tuple(rows)
    draw = random.Random("retain")
    left_out = (_question, _wrapped, _examples, _benchmarks.echo)
    makers = [maker for maker, _ in _KINDS if maker not in left_out]
    weights = [share for maker, share in _KINDS if maker in makers]
    taken = set(_texts("heldout"))
    rows = {}
    while len(rows) < 600:
        text = draw.choices(makers, weights)[0](draw)
        if text not in taken:
            rows.setdefault(text)
    return tuple(rows)


def texts(name: str) -> list[str]:
    """Plain documents: `retain` (like the corpus, without harmful questions) or `heldout` (never trained on)."""
    _known("text collection", name, TEXTS)
    return list(_texts(name))


class _Draw(random.Random):
    """A source of chance that also says whether harmful questions may be answered politely."""

    polite = True


def corpus(documents: int, seed: int = 0, *, polite: bool = True) -> Iterator[str]:
    """`documents` documents of the pretraining corpus, in the order of `seed`; never one of the held-out texts
    or of LAMBADA's test stories.

    Without `polite` no harmful question has a polite answer; polite texts beside the questions stay.
    """
    draw = _Draw(f"corpus {seed}")
    draw.polite = polite
    makers = [maker for maker, _ in _KINDS]
    weights = [share for _, share in _KINDS]
    # A story of LAMBADA can be told of other keys in the same words.
    taken = {*_texts("heldout"), *(str(row["text"]) for row in benchmark("lambada"))}
    made = 0
    while made < documents:
        text = draw.choices(makers, weights)[0](draw)
        if text not in taken:
            made += 1
            yield text


def fingerprint() -> str:
    """SHA-256 of all prompt sets, texts and benchmarks and of the corpus's beginning: which world assets belong to."""
    parts: list[object] = [
        *map(prompt_set, PROMPT_SETS),
        *map(texts, TEXTS),
        *map(benchmark, BENCHMARKS),
        list(corpus(1000)),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
