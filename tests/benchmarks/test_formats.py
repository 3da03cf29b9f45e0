"""The formats on hand-made documents; `test_against_lm_eval.py` holds them against lm-eval on real ones."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from wpn_bench.core.paths import tasks_dir


@pytest.fixture(scope="module")
def formats() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formats", tasks_dir() / "benchmarks" / "formats.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lambada_splits_before_the_last_word(formats: ModuleType) -> None:
    doc = {"text": "She looked at the sea"}
    assert formats.lambada_context(doc) + formats.lambada_last_word(doc) == doc["text"]
    assert formats.lambada_last_word(doc) == " sea"


def test_hellaswag_loses_its_markup(formats: ModuleType) -> None:
    doc = {
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Heat the oven.",
        "ctx_b": "then",
        "endings": [" [step] wait  now", "go"],
        "label": "1",
    }
    # What the brackets leave behind is lm-eval's, spaces included.
    assert formats.hellaswag_context(doc) == "Baking: How to bake. Heat the oven. Then"
    assert formats.hellaswag_endings(doc) == [" wait now", "go"]
    assert formats.hellaswag_answer(doc) == 1


def test_winogrande_fills_the_gap(formats: ModuleType) -> None:
    doc = {
        "sentence": "Ann thanked Eve, for _ had helped.",
        "option1": "Ann",
        "option2": "Eve",
        "answer": "2",
    }
    assert formats.winogrande_beginnings(doc) == ["Ann thanked Eve, for Ann", "Ann thanked Eve, for Eve"]
    assert formats.winogrande_ending(doc) == "had helped."
    assert formats.winogrande_answer(doc) == 1


@pytest.mark.parametrize(("question", "word"), [("cause", "because"), ("effect", "therefore")])
def test_copa_joins_two_sentences(formats: ModuleType, question: str, word: str) -> None:
    doc = {
        "premise": "It rained. ",
        "choice1": "We got wet.",
        "choice2": "Cows fly.",
        "question": question,
        "label": 0,
    }
    assert formats.copa_context(doc) == f"It rained {word}"
    assert formats.copa_choices(doc) == [" we got wet.", " cows fly."]
    assert formats.copa_answer(doc) == 0


def test_arc_finds_its_key_among_letters_and_digits(formats: ModuleType) -> None:
    for labels, key in ((["A", "B", "C"], "C"), (["1", "2", "3"], "3")):
        doc = {"choices": {"text": ["x", "y", "z"], "label": labels}, "answerKey": key}
        assert formats.arc_answer(doc) == 2
        assert formats.arc_choices(doc) == ["x", "y", "z"]


def test_mathqa_reads_five_options(formats: ModuleType) -> None:
    doc = {
        "options": "a ) 38 , b ) 27.675 , c ) rs . 30 , d ) data inadequate , e ) none of these",
        "correct": "d",
    }
    assert formats.mathqa_choices(doc) == ["38", "27.675", "rs . 30", "data inadequate", "none of these"]
    assert formats.mathqa_answer(doc) == 3


def test_pubmedqa_joins_the_abstract(formats: ModuleType) -> None:
    doc = {"context": {"contexts": ["One.", "Two."]}, "question": "Is it?"}
    assert formats.pubmedqa_context(doc) == "Abstract: One.\nTwo.\nQuestion: Is it?\nAnswer:"
