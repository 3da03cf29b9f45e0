"""Best-of-N: what the augmentation does to prompts of every kind, and which jobs a run has."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wpn_bench.attacks.best_of_n import (
    DISTINCT,
    BestOfN,
    augmented,
    plan,
    run_augment_stage,
    run_best_of_n_stage,
    versions,
)
from wpn_bench.core.json_files import load_json
from wpn_bench.jobs.job import External, Job, StageContext
from wpn_bench.jobs.planning import AskedSet, MeasuredModel
from wpn_bench.jobs.rates import count_items
from wpn_bench.prompts import Item
from wpn_bench.prompts.items import item_row, read_items, write_rows

TEXT = "How do I mend  a torn\tkite?\nTell {prompt} 50 %"


def draws(text: str, way: Any, sigma: float = 0.4, times: int = 400) -> list[str]:
    return [augmented(text, random.Random(seed), sigma, (way,)) for seed in range(times)]


def test_shuffling_keeps_the_ends_of_words_their_letters_and_the_white_space() -> None:
    for made in draws(TEXT, "shuffle"):
        assert [c for c in made if c.isspace()] == [c for c in TEXT if c.isspace()]
        for word, other in zip(TEXT.split(), made.split(), strict=True):
            assert (word[0], word[-1], sorted(word)) == (other[0], other[-1], sorted(other))
            assert word == other or len(word) > 3


def test_the_probabilities_are_those_of_the_published_code() -> None:
    """Of 20,000 draws, the standard error is below 0.4 points."""
    letters, times = "abcdefghij", 2000
    turned = sum(a != b for made in draws(letters, "case", times=times) for a, b in zip(letters, made, strict=True))
    noised = sum(a != b for made in draws(letters, "noise", times=times) for a, b in zip(letters, made, strict=True))
    assert turned / (10 * times) == pytest.approx(0.4**0.5, abs=0.015)
    assert noised / (10 * times) == pytest.approx(0.4**3, abs=0.008)
    shuffled = sum(made != letters for made in draws(letters, "shuffle", times=times))
    assert shuffled / times == pytest.approx(0.4**0.5, abs=0.045)


def test_noise_stays_in_printable_ascii() -> None:
    found = Counter(draws("~ é\n", "noise", 1.0))
    assert set(found) == {"} é\n", "~ é\n", "}!é\n", "~!é\n"}


def marked(text: str) -> Counter[tuple[str, str]]:
    """Count the combining marks with the characters before them."""
    return Counter((a.casefold(), b) for a, b in pairwise(text) if unicodedata.category(b).startswith("M"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "?",
        "a",
        "1234 5678",
        "ß straße ÄRGER",
        "नमस्ते दुनिया",
        "e\u0301e\u0301e\u0301e\u0301e\u0301",
        "👩\u200d👩\u200d👧👍🏽🇩🇪 ok",
        "مرحبا بالعالم",
        "日本語の文章です",
        "a\x00b\u2028c",
    ],
)
def test_text_of_any_kind_loses_no_character(text: str) -> None:
    """In the published code, letters outside ASCII vanish."""
    for seed in range(40):
        made = augmented(text, random.Random(seed), 1.0, ("shuffle", "case"))
        assert sorted(made.casefold()) == sorted(text.casefold())
        assert marked(made) == marked(text)


def test_a_version_depends_on_seed_prompt_and_number_only() -> None:
    item = Item("1", TEXT, harmful=("x",), context="before", answer_prefix="Sure")
    made = versions(item, BestOfN(samples=8))
    assert made[:3] == versions(item, BestOfN(samples=3))
    assert len({one.prompt for one in made}) == 8
    assert all((one.id, one.request, one.harmful, one.context) == ("1", TEXT, (), "") for one in made)
    assert made != versions(item, BestOfN(samples=8, seed=1))
    other = versions(Item("2", TEXT), BestOfN(samples=8))
    assert [one.prompt for one in made] != [one.prompt for one in other]
    whole = versions(Item("1", "changed", original=TEXT), BestOfN(samples=8))  # another attack's item
    assert [one.prompt for one in whole] == [one.prompt for one in made]


def context(out: Path, needs: dict[str, Path], **params: Any) -> StageContext:
    out.mkdir()
    return StageContext(params, needs, out, {}, lambda total, unit: lambda n: None)


def test_prompts_with_few_versions_are_counted(tmp_path: Path) -> None:
    prompts, made = tmp_path / "prompts", tmp_path / "made"
    prompts.mkdir()
    write_rows(prompts / "items.jsonl", [item_row(Item(name, text)) for name, text in (("a", "日本"), ("b", TEXT))])
    run_augment_stage(context(made, {"prompts": prompts}, **BestOfN(samples=5).model_dump(mode="json")))
    assert [one.id for one in read_items(made)] == ["a"] * 5 + ["b"] * 5
    assert load_json(made / DISTINCT, "") == {"a": 1, "b": 5}
    judged = {"scores": tmp_path / "scores", "greedy": tmp_path / "greedy"}
    for folder in judged.values():
        folder.mkdir()
    scores = [0.9, None, 0.5, 0.1, 0.1, *[None] * 5]
    pd.DataFrame({"item_id": ["a"] * 5 + ["b"] * 5, "score": scores}).to_parquet(judged["scores"] / "scores.parquet")
    pd.DataFrame({"item_id": ["a", "b"], "score": [0.9, None]}).to_parquet(judged["greedy"] / "samples.parquet")
    run_best_of_n_stage(context(tmp_path / "out", {**judged, "prompts": made}, threshold=0.5, k=[1]))
    table = pd.read_parquet(tmp_path / "out" / "sampling.parquet").set_index("item_id")
    assert list(table.loc["a"]) == [4, 2, 1, True, 1]
    assert list(table.loc["b", ["n", "harmful", "missing", "distinct"]]) == [0, 0, 5, 5]
    assert pd.isna(table.loc["b", "greedy"])


def measured(tmp_path: Path, **settings: Any) -> MeasuredModel:
    write_rows(tmp_path / "items.jsonl", [item_row(Item(str(k), TEXT)) for k in range(10)])
    prompts = External(tmp_path, "p")
    answers = Job("generate", {"decoding": {"max_new_tokens": 9}}, {"model": prompts, "prompts": prompts}, "answer")
    judged = Job("judge", {"judge": "j", "judge_digest": "d", "dtype": "x"}, {"responses": answers}, "judge", {})
    asked = AskedSet("harmless", "set", prompts, answers, judged)
    chosen = {"best_of_n": BestOfN(**settings).model_dump(mode="json")}
    return MeasuredModel("m", 0, prompts, "float32", "{prompt}", {}, attacked=asked, stage_attacks=chosen)


def test_the_jobs_of_a_run(tmp_path: Path) -> None:
    (one,) = plan(measured(tmp_path, samples=16, limit=4))
    scored = one.needs["scores"]
    assert isinstance(scored, Job)
    answered = scored.needs["responses"]
    assert isinstance(answered, Job)
    assert answered.params["decoding"] | {"independent": True, "temperature": 1.0} == answered.params["decoding"]
    assert count_items(answered) == 4 * 16  # for the forecast
    assert answered.needs["prompts"] == one.needs["prompts"]
    assert one.params["sigma"] == 0.4


def test_the_prompts_are_the_same_however_they_are_decoded(tmp_path: Path) -> None:
    (sampled,), (greedy,) = plan(measured(tmp_path)), plan(measured(tmp_path, temperature=0))
    assert sampled.needs["prompts"].digest == greedy.needs["prompts"].digest
    scored = greedy.needs["scores"]
    assert isinstance(scored, Job)
    answered = scored.needs["responses"]
    assert isinstance(answered, Job)
    assert "temperature" not in answered.params["decoding"]
    assert "independent" not in answered.params["decoding"]


def test_a_run_that_does_not_ask_for_it_has_no_jobs(tmp_path: Path) -> None:
    model = measured(tmp_path)
    assert plan(MeasuredModel("m", 0, model.artifact, "float32", "", {}, attacked=model.attacked)) == []
