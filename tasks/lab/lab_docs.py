"""Documents and formats of the lab's nine tasks: the data come from `wpn_bench.lab.world`, the formats from the real nine."""

from __future__ import annotations

import re
from typing import Any

import datasets

from wpn_bench.lab import world


def _load(name: str) -> dict[str, Any]:
    return {split: datasets.Dataset.from_list(world.benchmark(name, split)) for split in world.SPLITS}


def lambada(**_: Any) -> dict[str, Any]:
    return _load("lambada")


def hellaswag(**_: Any) -> dict[str, Any]:
    return _load("hellaswag")


def winogrande(**_: Any) -> dict[str, Any]:
    return _load("winogrande")


def copa(**_: Any) -> dict[str, Any]:
    return _load("copa")


def arc_easy(**_: Any) -> dict[str, Any]:
    return _load("arc_easy")


def arc_challenge(**_: Any) -> dict[str, Any]:
    return _load("arc_challenge")


def piqa(**_: Any) -> dict[str, Any]:
    return _load("piqa")


def mathqa(**_: Any) -> dict[str, Any]:
    return _load("mathqa")


def pubmedqa(**_: Any) -> dict[str, Any]:
    return _load("pubmedqa")


def hellaswag_text(doc: dict[str, Any]) -> str:
    return f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}"


def winogrande_text(doc: dict[str, Any]) -> int:
    """lm-eval's form of "many contexts, one target": the text is the number of the right choice."""
    return int(doc["answer"]) - 1


def winogrande_target(doc: dict[str, Any]) -> str:
    return str(doc["sentence"].split("_", 1)[1]).strip()


def winogrande_choices(doc: dict[str, Any]) -> list[str]:
    before = doc["sentence"].split("_", 1)[0]
    return [before + doc["option1"], before + doc["option2"]]


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def copa_text(doc: dict[str, Any]) -> str:
    link = {"cause": "because", "effect": "therefore"}[doc["question"]]
    return f"{doc['premise'].strip()[:-1]} {link}"


def copa_choices(doc: dict[str, Any]) -> list[str]:
    return [" " + _lower_first(doc["choice1"]), " " + _lower_first(doc["choice2"])]


def copa_target(doc: dict[str, Any]) -> str:
    return copa_choices(doc)[doc["label"]]


def mathqa_choices(doc: dict[str, Any]) -> list[str]:
    """The five answers of "a ) 3 , b ) 4 , c ) ..."."""
    return [part.strip(" ,") for part in re.split(r"[a-e] \) ", doc["options"])[1:]]


def pubmedqa_text(doc: dict[str, Any]) -> str:
    abstract = "\n".join(doc["context"]["contexts"])
    return f"Abstract: {abstract}\nQuestion: {doc['question']}\nAnswer:"
