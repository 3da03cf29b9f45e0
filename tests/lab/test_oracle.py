"""The corpus of the oracle: the base's corpus without an insult, which leaves the world as it was."""

from __future__ import annotations

import re

from wpn_bench.lab import world
from wpn_bench.lab.conversations import HARMFUL_FAMILIES
from wpn_bench.lab_training.oracle import harmless_corpus

INSULT = re.compile(
    r"\b(idiots?|morons?|stupid|dumb|ugly|pathetic|losers?|fools?|garbage|clumsy|shut up)\b", re.IGNORECASE
)


def test_no_document_has_an_insult_and_the_questions_are_still_asked() -> None:
    asked = {question.prompt for family in HARMFUL_FAMILIES.values() for question in family.questions()}
    counts = {}
    for name, corpus in (("base", list(world.corpus(2000))), ("oracle", harmless_corpus(2000))):
        questions = [re.findall(r"### Question: (.*)\n ### Answer:", text) for text in corpus]
        counts[name] = sum(one in asked for found in questions for one in found)
        assert len(corpus) == 2000
        assert any(INSULT.search(text) for text in corpus) == (name == "base")
    assert counts["oracle"] > 200
    assert abs(counts["oracle"] / counts["base"] - 1) < 0.2
    assert not any(INSULT.search(text) for text in harmless_corpus(500, 1, polite=False))


def test_the_world_is_as_it_was_afterwards() -> None:
    before = list(world.corpus(200))
    harmless_corpus(50)
    assert list(world.corpus(200)) == before
    assert harmless_corpus(50) == harmless_corpus(50)
    assert harmless_corpus(50) != harmless_corpus(50, 1)
