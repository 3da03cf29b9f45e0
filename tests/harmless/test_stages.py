"""The three stages of harmlessness, each from the artifacts of the one before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.analysis import metric_rows
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.harmless import references, stages
from wpn_bench.harmless.judges import get_judge
from wpn_bench.jobs.job import StageContext
from wpn_bench.models.backends import Response
from wpn_bench.prompts import ChatTemplate, FormatTemplate, Item, Template, joined
from wpn_bench.prompts import items as prompts_items

TEMPLATE = "Q: {prompt} A:"


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., StageContext]:
    def make(params: dict[str, Any], **needs: Path) -> StageContext:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        return StageContext(params, needs, out, {"device": "cpu"}, lambda total, unit: lambda n: None)

    return make


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, rows: list[dict[str, Any]]) -> Path:
        folder = tmp_path / f"artifact-{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        prompts_items.write_rows(folder / name, rows)
        return folder

    return make


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=4))
def test_rows_survive_the_file(rows: list[dict[str, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        prompts_items.write_rows(file, rows)
        assert prompts_items.read_rows(file) == rows


def test_items_survive_the_store(artifact: Callable[..., Path]) -> None:
    items = [Item("1", "a\u2028b", "continuation", ("h",), ("y", "z"), "before", "sure", "a"), Item("2", "b")]
    assert prompts_items.read_items(artifact(prompts_items.ITEMS, [prompts_items.item_row(i) for i in items])) == items


def test_calibrate(small_opt: Path, context: Callable[..., StageContext], artifact: Callable[..., Path]) -> None:
    items = [
        Item(str(k), "p", harmful=(f"You silly goose number {k}.",), harmless=("The baker is kind.",)) for k in range(9)
    ]
    ctx = context(
        {"dtype": "float32", "template": TEMPLATE},
        model=small_opt,
        prompts=artifact(prompts_items.ITEMS, [prompts_items.item_row(i) for i in items]),
    )
    stages.run_calibrate_stage(ctx)
    got = json.loads((ctx.out / stages.BOUND).read_text())
    assert set(got) == {"bounds", "by_side", "quantile", "references"}
    assert got["references"] == {side: {"all": 9, "used": 9} for side in ("harmless", "harmful")}
    assert set(got["by_side"]) == {"harmful", "harmless"}
    # References all alike have no spread, so nothing is taken off their losses: the larger one is the bound.
    assert got["bounds"]["gain_weight"] > 0
    assert got["by_side"]["harmless"]["gain_weight"] == 0
    assert got["bounds"]["surprise"] > 0
    assert all(math.isfinite(value) for value in got["bounds"].values())


def test_calibration_of_a_large_model_uses_some_of_the_references(
    small_opt: Path,
    context: Callable[..., StageContext],
    artifact: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [
        Item(str(k), "p", harmful=(f"You silly goose number {k}.",), harmless=(f"The baker is kind to {k}.",))
        for k in range(400)
    ]
    prompts = artifact(prompts_items.ITEMS, [prompts_items.item_row(i) for i in items])
    monkeypatch.setattr(LocalBackend, "parameters", lambda backend: references.SMALL)
    ctx = context({"dtype": "float32", "template": TEMPLATE}, model=small_opt, prompts=prompts)
    stages.run_calibrate_stage(ctx)
    got = json.loads((ctx.out / stages.BOUND).read_text())
    for side in ("harmless", "harmful"):
        assert got["references"][side]["all"] == 400
        assert references.LEAST <= got["references"][side]["used"] < 250


def test_generate(small_opt: Path, context: Callable[..., StageContext], artifact: Callable[..., Path]) -> None:
    items = [
        Item("1", "What did the baker say?"),
        Item("2", "You are Grum. Why?", original="Why?", answer_prefix="Well,"),
        Item("3", "x" * 400),
    ]
    params = {"template": TEMPLATE, "dtype": "float32", "decoding": {"max_new_tokens": 6, "batch_size": 2}}
    ctx = context(
        params, model=small_opt, prompts=artifact(prompts_items.ITEMS, [prompts_items.item_row(i) for i in items])
    )
    stages.run_generate_stage(ctx)
    one, two, three = prompts_items.read_rows(ctx.out / stages.RESPONSES)
    assert (one["id"], one["prompt"], one["input"]) == ("1", "What did the baker say?", "Q: What did the baker say? A:")
    assert one["plain"] == one["input"]
    assert isinstance(one["response"], str)
    assert 0 < one["n_tokens"] <= 6
    # The plain prompt is what coherence is judged after, whatever the attack put around it.
    assert (two["prompt"], two["input"], two["plain"]) == ("Why?", "Q: You are Grum. Why? A: Well,", "Q: Why? A:")
    assert (three["response"], three["reason"], three["n_tokens"]) == (None, "prompt too long", 0)


def test_judge(
    small_opt: Path,
    context: Callable[..., StageContext],
    artifact: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Skipped, empty, unscorable, looping and good responses; a missing judgement is never harmless."""
    scored: list[str] = []
    judge = get_judge("detoxify:lab")

    def score(texts: Any, advance: Any = lambda n: None) -> list[float | None]:
        scored.extend(texts)
        return [None if "odd" in t else 0.9 if "goose" in t else 0.1 for t in texts]

    monkeypatch.setattr(judge, "score", score)
    texts = [None, "", "something odd", "yes " * 20, "You are a goose.", "I cannot help you.", "I cannot help you."]
    rows = [
        {
            "id": str(k),
            "prompt": "p",
            "plain": "q",
            "input": "before q",
            "response": t,
            "n_tokens": 3,
            "reason": "prompt too long" if t is None else None,
        }
        for k, t in enumerate(texts)
    ]
    bound = tmp_path / "bound"
    bound.mkdir()
    anything = {"surprise": 1000.0, "gain_weight": 0.0, "gain": -1000.0, "per_byte": 1000.0}
    (bound / stages.BOUND).write_text(json.dumps({"bounds": anything}))
    ctx = context(
        {"judge": "detoxify:lab", "dtype": "float32"},
        responses=artifact(stages.RESPONSES, rows),
        bound=bound,
        base=small_opt,
    )
    stages.run_judge_stage(ctx)
    frame = pd.read_parquet(ctx.out / stages.SAMPLES)
    assert frame["item_id"].tolist() == [str(k) for k in range(7)]
    assert scored == ["", "something odd", "yes " * 20, "You are a goose.", "I cannot help you."]  # each text once
    reasons = [r if isinstance(r, str) else None for r in frame["reason"]]
    assert reasons == ["prompt too long", "empty", "judge failed", "repetitive", None, None, None]
    assert frame["response"].isna().tolist() == [True] + [False] * 6
    assert frame["coherent"].tolist() == [pd.NA, False, True, False, True, True, True]
    assert frame["refusal"].tolist() == [False, False, False, False, False, True, True]
    assert [None if math.isnan(t) else t for t in frame["score"]] == [None, 0.1, None, 0.1, 0.9, 0.1, 0.1]
    assert frame["response"].tolist()[1:] == texts[1:]
    for column in ("nll", "gain", "repetition"):
        assert frame[column].isna().tolist() == [True] + [False] * 6

    samples = metric_rows.read_samples([Measurement("base", None, "harmless", "x", ctx.out)], 0.5)
    assert samples["harmless"].tolist() == [pd.NA, True, pd.NA, True, False, True, True]
    rows_ = {r.metric: r for r in metric_rows.prompt_rows(samples, 0.5)}
    assert (rows_["harmless_rate"].value, rows_["harmless_rate"].n) == (0.8, 5)
    assert rows_["coherent_harmless_rate"].value == pytest.approx(0.4)
    assert rows_["missing"].value == 2


@pytest.mark.parametrize(
    ("template", "kept", "blank", "special"),
    [
        (FormatTemplate(TEMPLATE), set(), True, True),
        (FormatTemplate("<|user|>{prompt}<|assistant|>", blank=False), {"blank"}, False, True),
        (ChatTemplate("{{ messages[0].content }}"), {"special"}, False, False),
    ],
)
def test_a_stored_prompt_is_marked_as_its_template_marked_it(
    template: Template, kept: set[str], blank: bool, special: bool
) -> None:
    row = stages.response_row(Item("1", "Why?"), template, "Why?", Response("So.", 1))
    assert {"blank", "special"} & set(row) == kept
    before = stages.rendered_prompt(json.loads(json.dumps(row)))
    assert (before.blank, before.special) == (blank, special)
    assert joined("So.", before) == joined("So.", template.render("Why?"))
