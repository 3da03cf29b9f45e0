"""Length, diversity and overlap of benign answers: against counting by hand, and on answers on which such metrics failed elsewhere."""

from __future__ import annotations

import math
import random
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest

from wpn_bench.analysis import utility_rows as module
from wpn_bench.analysis.metric_rows import sum_up
from wpn_bench.analysis.utility_rows import distinct_pairs, overlap, utility_rows
from wpn_bench.prompts.leakage import words


def answers(model: str, seed: int | None, texts: list[str | None], suite: str = "benign") -> pd.DataFrame:
    frame = pd.DataFrame(
        {"model": model, "suite": suite, "set": "one", "item_id": [f"item {k}" for k in range(len(texts))]}
    )
    frame["seed"] = pd.array([seed] * len(texts), dtype="Int64")
    frame["response"] = pd.Series(texts, dtype="object")
    return frame


def rows_of(*frames: pd.DataFrame) -> dict[tuple[str, str], module.Row]:
    return {(r.model, r.metric): r for r in sum_up(utility_rows(pd.concat(frames))) if r.seed is None}


def sentences(n: int, length: int, vocabulary: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(vocabulary)}" for _ in range(length)) for _ in range(n)]


def lcs(one: str, other: str) -> int:
    """The textbook's table."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_overlap_is_that_of_the_table() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abc", k=draw.randrange(1, 90))) for _ in range(2))
        assert overlap(one, other) == pytest.approx(2 * lcs(one, other) / (len(one) + len(other)))


def test_overlap_of_the_papers_example() -> None:
    """Lin 2004: "police kill the gunman" has 3 words of 4 in order with S1, and 2 with S2, though both share 3 words."""
    s1, s2, s3 = ("police killed the gunman", "police kill the gunman", "the gunman kill police")
    assert overlap(s1.split(), s2.split()) == 0.75
    assert overlap(s1.split(), s3.split()) == 0.5


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", 1.0),  # a model that is as silent as base
        ("", "an answer", 0.0),
        ("an answer", "", 0.0),
        ("  \n", "", 1.0),
        ("...", "...", 1.0),  # no words, but not nothing
        ("The Answer.", "the answer", 1.0),
        ("我喜欢喝茶", "我喜欢喝水", 0.8),  # no spaces, and no letters of the Latin alphabet
        ("я люблю чай", "я люблю воду", 2 / 3),
        ("👍", "👍", 1.0),
        ("पूर्व प्रधानमन्त्री शिंजो आबेको", "पूर्व प्रधानमन्त्री शिंजो आबेको", 1.0),
        ("สวัสดี", "สวัสดี", 1.0),
        ("t0 x t1 t2 t3 t4 x t5", "t0 t1 t2 t3 t4 x t5", 14 / 15),  # not by taking each next match
        ("a" * 5000, "a" * 5000, 1.0),
    ],
)
def test_overlap_of_odd_answers(one: str, other: str, expected: float) -> None:
    assert overlap(words(one), words(other)) == pytest.approx(expected)


def test_overlap_of_long_answers() -> None:
    long = [f"w{k % 97}" for k in range(20_000)]
    assert overlap(long, long) == 1.0


def test_diversity_is_the_mean_over_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWN", 3)
    texts = [one.split() for one in ("a b a b", "a b c", "c", "")]
    pairs = [pair for one in texts for pair in pairwise(one)]
    expected = np.mean([len(set(drawn)) / 3 for drawn in combinations(pairs, 3)])
    value, without = distinct_pairs(texts)
    assert value.value == pytest.approx(expected)
    for k in range(len(texts)):
        left, _ = distinct_pairs(texts[:k] + texts[k + 1 :])
        assert without[k] == pytest.approx(left.value, nan_ok=True)


def test_diversity_does_not_depend_on_length_or_number() -> None:
    """Distinct-2 falls by a factor of about three here."""
    few, many = (
        distinct_pairs([t.split() for t in sentences(n, length, 12)])[0] for n, length in ((20, 12), (200, 60))
    )
    assert few.low is not None
    assert few.high is not None
    assert few.low <= many.value <= few.high


def test_one_answer_for_all_prompts_is_not_diverse() -> None:
    same, _ = distinct_pairs([words("I am sorry, but I can not help you with this.")] * 50)
    various, _ = distinct_pairs([t.split() for t in sentences(50, 11, 5000)])
    assert same.value < 0.12
    assert various.value > 0.99


def test_an_answer_that_repeats_itself_until_it_is_cut_is_not_diverse() -> None:
    short = [t.split() for t in sentences(50, 8, 5000)]
    once, _ = distinct_pairs(short)
    again, _ = distinct_pairs([one * 12 for one in short])
    assert again.value < once.value - 0.05
    stuck, _ = distinct_pairs([["the"] * 500] * 3)
    assert stuck.value == pytest.approx(1 / module.DRAWN)


def test_the_interval_of_the_diversity_covers() -> None:
    truth, _ = distinct_pairs([t.split() for t in sentences(5000, 20, 12, 99)])
    found = [distinct_pairs([t.split() for t in sentences(60, 20, 12, seed)])[0] for seed in range(100)]
    assert np.mean([e.low <= truth.value <= e.high for e in found if e.low is not None and e.high is not None]) >= 0.88


def test_few_words_have_no_diversity() -> None:
    value, _ = distinct_pairs([["yes"]] * 300)
    assert math.isnan(value.value)
    one, _ = distinct_pairs([sentences(1, 300, 50)[0].split()])
    assert one.value > 0
    assert one.low is None


def test_rows() -> None:
    base = sentences(30, 10, 40)
    rows = rows_of(
        answers("base", None, base),
        answers("same", 0, base),
        answers("short", 0, [" ".join(t.split()[:4]) for t in base]),
        answers("silent", 0, [""] * 30),
        answers("other", 0, base, "harmless"),
    )
    assert {model for model, _ in rows} == {"base", "same", "short", "silent"}
    assert rows["base", "answer_words"].value == 10
    assert rows["base", "answer_words"].delta is None
    assert ("base", "overlap_with_base_rate") not in rows
    same = rows["same", "overlap_with_base_rate"]
    assert (same.value, rows["same", "same_text_as_base_rate"].value, rows["same", "answer_words"].delta) == (1, 1, 0)
    assert same.ci_low is not None
    assert 0.8 < same.ci_low < 1  # 30 equal answers do not show that all are
    assert (rows["same", "distinct_word_pairs_rate"].delta, rows["same", "distinct_word_pairs_rate"].delta_ci_low) == (
        0,
        0,
    )
    assert (rows["short", "answer_words"].value, rows["short", "answer_words"].delta) == (4, -6)
    assert rows["short", "overlap_with_base_rate"].value == pytest.approx(8 / 14)
    assert rows["short", "same_text_as_base_rate"].value == 0
    assert (rows["silent", "answer_words"].value, rows["silent", "overlap_with_base_rate"].value) == (0, 0)
    assert rows["silent", "distinct_word_pairs_rate"].json()["value"] is None


def test_several_seeds_have_a_summary() -> None:
    base = sentences(20, 10, 40)
    rows = rows_of(
        answers("base", None, base), answers("wpn", 0, base), answers("wpn", 1, [f"{t} more words" for t in base])
    )
    assert (rows["wpn", "answer_words"].value, rows["wpn", "answer_words"].delta) == (11, 1)
    assert rows["wpn", "same_text_as_base_rate"].value == 0.5


def test_only_prompts_that_both_answered_are_compared() -> None:
    base: list[str | None] = [*sentences(20, 10, 40)]
    rows = rows_of(answers("base", None, [None, *base[1:]]), answers("wpn", 0, [base[0], None, *base[2:]]))
    assert (rows["base", "answer_words"].n, rows["wpn", "answer_words"].n) == (19, 19)
    assert rows["wpn", "overlap_with_base_rate"].n == 18
    assert rows["wpn", "answer_words"].delta == 0
    assert rows["wpn", "distinct_word_pairs_rate"].delta == 0


def test_without_benign_answers_or_a_base() -> None:
    assert utility_rows(pd.DataFrame()) == []
    assert utility_rows(answers("base", None, ["x"], "harmless")) == []
    assert utility_rows(answers("base", None, [None, None])) == []
    rows = rows_of(answers("wpn", 0, ["one answer"]))
    assert set(rows) == {("wpn", "answer_words"), ("wpn", "distinct_word_pairs_rate")}
    assert rows["wpn", "answer_words"].ci_low is None
