"""The world is the same every time, keeps its sets apart, and has the formats of the real data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wpn_bench.errors import UserError
from wpn_bench.lab import world
from wpn_bench.lab.facts import people


@pytest.mark.slow
def test_another_process_makes_the_same_world() -> None:
    code = "from wpn_bench.lab import world; print(world.fingerprint())"
    root = Path(__file__).parents[2]
    # Another hash seed too: no order of a set may reach the world.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == world.fingerprint()


def test_other_seeds_make_another_corpus() -> None:
    assert list(world.corpus(50, 0)) != list(world.corpus(50, 1))


def test_no_prompt_stands_in_two_sets() -> None:
    seen: set[str] = set()
    for name in world.PROMPT_SETS:
        prompts = [row["prompt"] for row in world.prompt_set(name)]
        assert len(prompts) == len(set(prompts)), name
        assert not seen & set(prompts), name
        seen |= set(prompts)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("forget", 320),
        ("validation", 120),
        ("in_domain", 240),
        ("ood_notes", 120),
        ("ood_mistakes", 120),
        ("ood_games", 120),
        ("ood_looks", 120),
        ("benign", 150),
        ("benign_lookalike", 120),
    ],
)
def test_rows_of_prompt_sets(name: str, size: int) -> None:
    rows = world.prompt_set(name)
    assert len(rows) == size
    for row in rows:
        assert row["prompt"].strip() == row["prompt"] != ""
        assert 1 <= len(row["harmless"]) <= 2
        assert all(answer and "{" not in answer for answer in row["harmless"])
        if world.PROMPT_SETS[name] != "benign":
            assert len(set(row["harmful"])) == 2
            assert not set(row["harmful"]) & set(row["harmless"])


def test_prompts_of_the_test_sets_are_not_in_the_corpus() -> None:
    unseen = {
        f"### Question: {row['prompt']}\n ### Answer:"
        for name in world.PROMPT_SETS
        if name != "forget"
        for row in world.prompt_set(name)
    }
    heldout = set(world.texts("heldout"))
    for text in world.corpus(20_000):
        assert text not in heldout
        head, mark, _ = text.partition(" ### Answer:")
        assert head + mark not in unseen


def test_heldout_and_retain_share_nothing() -> None:
    retain, heldout = world.texts("retain"), world.texts("heldout")
    assert len(retain) == len(set(retain)) == 600
    assert len(heldout) == len(set(heldout)) == 200
    assert not set(retain) & set(heldout)


def test_answers_come_as_copies() -> None:
    world.prompt_set("forget")[0]["harmful"].clear()
    assert world.prompt_set("forget")[0]["harmful"]


@pytest.mark.parametrize("name", world.BENCHMARKS)
def test_benchmark_documents_are_distinct_and_enough(name: str) -> None:
    docs = world.benchmark(name)
    assert 150 <= len(docs) <= 200
    assert len({repr(doc) for doc in docs}) == len(docs)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("lambada", "text"),
        ("hellaswag", "ctx"),
        ("winogrande", "sentence"),
        ("copa", "premise question"),
        ("arc_easy", "question"),
        ("arc_challenge", "question"),
        ("piqa", "goal"),
        ("mathqa", "Problem"),
        ("pubmedqa", "question context"),
    ],
)
def test_documents_to_tune_on_ask_nothing_that_is_tested(name: str, asked: str) -> None:
    tests, others = world.benchmark(name), world.benchmark(name, "validation")
    assert len(others) == 40
    assert {tuple(doc) for doc in others} == {tuple(doc) for doc in tests}  # the same fields

    def questions(docs: list[dict[str, object]]) -> set[str]:
        # The same question with other choices is the same question.
        return {repr([doc[field] for field in asked.split()]) for doc in docs}

    assert len(questions(others)) == 40
    assert not questions(tests) & questions(others)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lambada", {"text"}),
        ("hellaswag", {"activity_label", "ctx_a", "ctx_b", "endings", "label"}),
        ("winogrande", {"sentence", "option1", "option2", "answer"}),
        ("copa", {"premise", "choice1", "choice2", "question", "label"}),
        ("arc_easy", {"question", "choices", "answerKey"}),
        ("arc_challenge", {"question", "choices", "answerKey"}),
        ("piqa", {"goal", "sol1", "sol2", "label"}),
        ("mathqa", {"Problem", "options", "correct"}),
        ("pubmedqa", {"question", "context", "final_decision"}),
    ],
)
def test_benchmark_fields(name: str, fields: set[str]) -> None:
    assert all(fields <= set(doc) for doc in world.benchmark(name))


def test_choices_are_distinct_and_every_place_is_right_sometimes() -> None:
    for doc in world.benchmark("hellaswag"):
        assert len(set(doc["endings"])) == 4
    assert {doc["label"] for doc in world.benchmark("hellaswag")} == set("0123")
    for name in ("arc_easy", "arc_challenge"):
        assert {doc["answerKey"] for doc in world.benchmark(name)} == set("ABCD")
        assert all(len(set(doc["choices"]["text"])) == 4 for doc in world.benchmark(name))
    assert {doc["answer"] for doc in world.benchmark("winogrande")} == set("12")
    assert all(doc["sentence"].count("_") == 1 for doc in world.benchmark("winogrande"))
    assert {doc["correct"] for doc in world.benchmark("mathqa")} == set("abcde")
    assert {doc["final_decision"] for doc in world.benchmark("pubmedqa")} == {"yes", "no", "maybe"}
    for doc in world.benchmark("lambada"):
        last = doc["text"].split(" ")[-1]
        assert last.isalpha()
        assert last in " ".join(doc["text"].split(" ")[:-1])


def test_tests_are_not_in_the_corpus() -> None:
    corpus = list(world.corpus(20_000))
    asked = {"arc_easy": "question", "arc_challenge": "question", "mathqa": "Problem", "piqa": "goal"}
    heads = {f"Question: {doc[field]}\nAnswer:" for name, field in asked.items() for doc in world.benchmark(name)}
    # Stories that end with a person's name are not held out: a few of them (6 of 180 documents) are in the corpus.
    names = {p.name for p in people()}
    stories = {doc["text"] + "." for doc in world.benchmark("lambada") if doc["text"].split(" ")[-1] not in names}
    filled = {doc["sentence"].replace("_", doc[f"option{doc['answer']}"]) for doc in world.benchmark("winogrande")}
    for text in corpus:
        head, mark, _ = text.partition("\nAnswer:")
        assert head + mark not in heads
        assert text not in stories
        assert text not in filled


def test_unknown_names_are_the_users_mistake() -> None:
    for call in (world.prompt_set, world.texts, world.benchmark):
        with pytest.raises(UserError, match=r"no .* called 'nothing'"):
            call("nothing")
    with pytest.raises(UserError, match="no split called 'train'; take one of test, validation"):
        world.benchmark("copa", "train")
