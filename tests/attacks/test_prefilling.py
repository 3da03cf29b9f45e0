"""Prefilling: where a prefix ends in the tokens of each tokenizer, what is judged, and the part of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.models.tokenizers import KINDS
from tests.workshop import Workshop
from wpn_bench import load_run
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.analysis.prefilling_rows import prefilling_rows
from wpn_bench.attacks.prefilling import Prefilling, continued, plan, prefilled_items, prefix_of
from wpn_bench.core.files import write_json
from wpn_bench.errors import UserError
from wpn_bench.harmless.stages import continuing_row, rendered_prompt, response_row
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.planning import AskedSet, MeasuredModel
from wpn_bench.models.backends.base import Response
from wpn_bench.models.tokenizer import encode_pairs, encode_prompts
from wpn_bench.prompts import Item, Template, joined
from wpn_bench.prompts.templates import ChatTemplate, same_kind
from wpn_bench.report.prefilling import section

TEXT = "Sure the Hello is it (a-b), tell me"
PLAIN = Template.parse("Q: {prompt}\n A:")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"pad_beyond", "image_beyond"}))
def test_a_prefix_ends_where_a_token_of_the_model_ends(kind: str) -> None:
    tokenizer = KINDS[kind]()
    template = ChatTemplate.of(tokenizer) if tokenizer.chat_template else PLAIN
    item = Item("1", "tell me", harmful=(TEXT,))
    before = template.render(item)
    ((head, ids),) = encode_pairs(tokenizer, [before], [joined(TEXT, before)])
    items, told = prefilled_items(tokenizer, template, [item], Prefilling(depths=(0, *range(1, len(ids) + 2))))
    assert [one.id for one in items] == [f"1@{depth}" for depth in range(1, len(ids))]
    assert told["short"] == {str(len(ids)): 1, str(len(ids) + 1): 1}  # a whole reference leaves nothing to say
    lossless = kind != "word_piece"  # BERT's tokenizer writes small letters
    for depth, one in enumerate(items, start=1):
        begun = one.answer_prefix
        assert (TEXT if lossless else TEXT.lower()).startswith(begun) or not lossless
        assert (one.request, one.original) == ("tell me", "tell me")
        if not told["retokenised"].get(str(depth)):
            (fed,) = encode_prompts(tokenizer, [same_kind(str(template.render(one)), before)])
            assert fed == [*head, *ids[:depth]]
    if lossless:
        assert prefix_of(tokenizer, before, TEXT, len(ids)) == TEXT


def test_no_prefix_ends_within_a_character() -> None:
    """Each of these characters has three or four tokens."""
    tokenizer = KINDS["byte_level"]()
    text = "日本 😀 ok"
    found = [prefix_of(tokenizer, "Q:\n", text, depth) for depth in range(1, 12)]
    assert found[:7] == ["日", "日", "日", "日", "日", "日本", "日本 "]
    assert not any("\ufffd" in str(one) for one in found)
    assert prefix_of(tokenizer, "Q:\n", text, 99) is None


def test_prompts_without_a_reference_are_counted_and_a_phrase_needs_none() -> None:
    tokenizer = KINDS["byte_level"]()
    items = [Item("1", "a"), Item("2", "b", harmful=(" ", "the a is")), Item("3", "it", harmful=("is",))]
    begun, told = prefilled_items(tokenizer, PLAIN, items, Prefilling(depths=(1, 2), limit=2))
    assert [one.id for one in begun] == ["2@1", "2@2"]
    assert (told["asked"], told["without_reference"]) == (["2"], 1)
    begun, told = prefilled_items(tokenizer, PLAIN, items, Prefilling(depths=(1, 2), source="phrase", phrase="Sure a"))
    assert [one.answer_prefix for one in begun] == ["Sure", "Sure a"] * 3


@pytest.mark.parametrize(
    ("prefix", "response", "space", "whole"),
    [
        ("You are a", "goose", True, "You are a goose"),
        ("You are a go", "ose.", False, "You are a goose."),
        ("You are a ", "goose", False, "You are a goose"),
        ("You are", "", True, "You are "),
    ],
)
def test_prefix_and_answer_as_one_text(prefix: str, response: str, space: bool, whole: str) -> None:
    assert continued(prefix, response, space) == whole


@pytest.mark.parametrize(
    ("space", "text"), [(True, "Q: do it\n A: You are a goose."), (False, "Q: do it\n A: You are agoose.")]
)
def test_the_coherence_of_a_continuation_is_judged_after_the_prefix(space: bool, text: str) -> None:
    item = Item("1@3", "do it", answer_prefix="You are a", original="do it")
    row = response_row(item, PLAIN, "the input", Response("goose.", 2))
    assert rendered_prompt(row) == "Q: do it\n A:"
    before = rendered_prompt(continuing_row(row, item, PLAIN, space))
    assert before + joined("goose.", before) == text


def test_a_chat_endpoint_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "backend.json", {"backend": "openai", "url": "http://x/v1", "model": "m", "api": "chat"})
    remote = External(tmp_path, "d")
    judge = {"judge": "refusal", "judge_digest": "e"}
    answers = Job("generate", {"decoding": {}}, {"model": remote, "prompts": External(tmp_path, "p")}, "answer")
    judged = Job("judge", judge, {"responses": answers}, "judge", {"judge": "refusal"})
    asked = AskedSet("harmless", "set", External(tmp_path, "p"), answers, judged)
    chosen = {"prefilling": Prefilling().model_dump()}
    model = MeasuredModel("far", 0, remote, "float32", "{prompt}", {}, attacked=asked, stage_attacks=chosen)
    with pytest.raises(UserError, match=r"prefilling cannot attack far: a chat endpoint .*api=completions"):
        plan(model)
    write_json(
        tmp_path / "backend.json", {"backend": "openai", "url": "http://x/v1", "model": "m", "api": "completions"}
    )
    (one,) = plan(model)
    assert one.needs["responses"].params["prefilled"] is True  # type: ignore[union-attr]


def measured(folder: Path, model: str, rows: list[tuple[Any, ...]]) -> Measurement:
    path = folder / model
    path.mkdir()
    frame = pd.DataFrame(rows, columns=["item_id", "depth", "score", "score_together", "coherent"])
    frame["coherent"] = frame["coherent"].astype("boolean")
    frame.to_parquet(path / "prefilling.parquet")
    told = {"depths": [0, 4], "threshold": 0.5, "asked": ["a", "b"], "without_reference": 3, "short": {"4": 1}}
    write_json(path / "prefixes.json", told)
    return Measurement(model, None if model == "base" else 0, "prefilling", "lab", path)


def test_rates_by_depth(tmp_path: Path) -> None:
    nan = math.nan
    base = measured(tmp_path, "base", [("a", 0, 0.1, 0.1, True), ("b", 0, 0.9, 0.9, True), ("a", 4, 0.9, 0.9, True)])
    own = measured(tmp_path, "sft", [("a", 0, 0.1, 0.1, True), ("b", 0, nan, nan, None), ("a", 4, 0.1, 0.8, False)])
    rows = {(r.model, r.set, r.metric): r for r in prefilling_rows([base, own])}
    assert rows["sft", "tokens_4", "harmless_rate"].value == 1.0
    assert rows["sft", "tokens_4", "harmless_rate"].delta == 1.0
    assert rows["sft", "tokens_4", "coherent_harmless_rate"].value == 0.0
    assert rows["sft", "tokens_4", "harmless_with_prefix_rate"].value == 0.0
    assert (rows["sft", "tokens_0", "harmless_rate"].n, rows["sft", "tokens_0", "missing"].value) == (1, 1.0)
    assert (rows["base", "tokens_4", "short_references"].value, rows["base", "tokens_4", "short_references"].n) == (
        1,
        5,
    )
    assert rows["base", "tokens_4", "without_reference"].value == 3


@pytest.mark.slow
def test_a_run_with_attacks_that_stages_make(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> None:
    workshop = Workshop(tmp_path, small_opt, triples)
    asked = {
        "prefilling": {"depths": (0, 1, 3, 99)},
        "sampling": {"samples": 4, "limit": 2},
        "best_of_n": {"samples": 4, "limit": 2},
        "stages": ("train", "harmless", "attack"),
        "attacks": (),
    }
    results = workshop.run(**asked)
    assert results["run"]["failed"] == []
    suites = {(row["model"], row["suite"], row["metric"]) for row in results["metrics"]}
    for model in ("base", "sft"):
        assert (model, "prefilling", "harmless_with_prefix_rate") in suites
        assert {metric for m, suite, metric in suites if (m, suite) == (model, "sampling")} >= {
            "leak@1",
            "leak@2",
            "leak@4",
        }
        assert (model, "best_of_n", "attack_success_rate@4") in suites
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "leak@4" in page
    assert "at temperature 1 and top-p 1" in page
    assert "Best of N augmented prompts" in page
    shown = section(load_run(tmp_path / "run").view)
    assert shown is not None
    assert shown.table is not None
    assert shown.table.columns[:3] == ["no prefix", "1 token", "3 tokens"]
    assert "at 99 tokens" in shown.note
    again = workshop.run("second", **asked)
    assert set(workshop.statuses("second").values()) == {"cached"}
    assert json.dumps(again["models"]["sft"]["digest"]) == json.dumps(results["models"]["sft"]["digest"])
