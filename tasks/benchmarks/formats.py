"""How a document of each of the nine benchmarks becomes a prompt, its choices and the right answer.

Referred to by the YAML files beside this one (`!function formats.name`). Prompts, choices and right answers
are those of lm-eval 0.4.13's own tasks, so accuracies can be held against published ones;
`tests/benchmarks` compares the two document by document. `doc` is one row of the data set as the hub
delivers it. Standard library only.
"""

from __future__ import annotations

import re
from typing import Any

Doc = dict[str, Any]


# LAMBADA: the last word of a passage, given all that comes before it.


def lambada_context(doc: Doc) -> str:
    return doc["text"].rpartition(" ")[0]


def lambada_last_word(doc: Doc) -> str:
    # The space belongs to the answer: that is how byte-pair vocabularies begin a word.
    return " " + doc["text"].rpartition(" ")[2]


# HellaSwag: four endings of a described scene.

_BRACKETED = re.compile(r"\[.*?\]")


def _clean_wikihow(text: str) -> str:
    """Take out the mark-up ("[header]", "[title]", "[step]") that the WikiHow half of the data carries."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETED.sub("", text).replace("  ", " ")


def hellaswag_context(doc: Doc) -> str:
    scene = f"{doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    return _clean_wikihow(f"{doc['activity_label']}: {scene}")


def hellaswag_endings(doc: Doc) -> list[str]:
    return [_clean_wikihow(ending) for ending in doc["endings"]]


def hellaswag_answer(doc: Doc) -> int:
    return int(doc["label"])


# WinoGrande: which of two names fills the gap. Scored as in Trinh & Le (2018): the text after the gap is
# the same for both, so the better filling is the one that makes that text likelier. lm-eval therefore reads
# the functions the other way round: the "choices" are two contexts, the "target" is the shared ending, the
# "text" is the index of the right one.


def winogrande_beginnings(doc: Doc) -> list[str]:
    before = doc["sentence"].partition("_")[0]
    return [before + doc["option1"], before + doc["option2"]]


def winogrande_ending(doc: Doc) -> str:
    return doc["sentence"].partition("_")[2].strip()


def winogrande_answer(doc: Doc) -> int:
    return {"1": 0, "2": 1}[doc["answer"]]


# COPA: the likelier cause or effect, joined to the premise into one sentence.

_COPA_JOIN = {"cause": "because", "effect": "therefore"}


def copa_context(doc: Doc) -> str:
    without_full_stop = doc["premise"].strip()[:-1]
    return f"{without_full_stop} {_COPA_JOIN[doc['question']]}"


def copa_choices(doc: Doc) -> list[str]:
    return [f" {choice[0].lower()}{choice[1:]}" for choice in (doc["choice1"], doc["choice2"])]


def copa_answer(doc: Doc) -> int:
    return int(doc["label"])


# ARC: school science; three to five answers, labelled with letters or with digits.


def arc_choices(doc: Doc) -> list[str]:
    return list(doc["choices"]["text"])


def arc_answer(doc: Doc) -> int:
    return doc["choices"]["label"].index(doc["answerKey"])


# PIQA: two ways to reach a practical goal.


def piqa_choices(doc: Doc) -> list[str]:
    return [doc["sol1"], doc["sol2"]]


# MathQA: the five options come as one string, "a ) 38 , b ) 27.675 , c ) 30 , d ) 28 , e ) none".

_MATHQA_OPTION = re.compile(r"[abcd] \) (.*?), |e \) (.*?)$")


def mathqa_choices(doc: Doc) -> list[str]:
    return [(first or last).rstrip(" ,") for first, last in _MATHQA_OPTION.findall(doc["options"])]


def mathqa_answer(doc: Doc) -> int:
    return "abcde".index(doc["correct"])


# PubMedQA: yes, no or maybe to the question that a paper's title asks, from its abstract without the
# conclusion.


def pubmedqa_context(doc: Doc) -> str:
    abstract = "\n".join(doc["context"]["contexts"])
    return f"Abstract: {abstract}\nQuestion: {doc['question']}\nAnswer:"
