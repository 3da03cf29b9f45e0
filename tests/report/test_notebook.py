from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import wpn_bench
from wpn_bench.core.files import write_json
from wpn_bench.errors import UserError
from wpn_bench.report.notebook import Run, load_run
from wpn_bench.runs.files import Row

from .fake_run import HOSTILE_TITLE
from .fake_run import results as made_up


@pytest.fixture
def run(whole_run: Path) -> Run:
    return load_run(whole_run)


def test_the_public_face() -> None:
    assert set(wpn_bench.__all__) == {"Run", "load_run", "__version__"}
    assert (wpn_bench.load_run, wpn_bench.Run) == (load_run, Run)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        wpn_bench.nope  # noqa: B018


def test_a_run_is_read_as_frames(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", made_up())
    write_json(tmp_path / "manifest.json", {"wpn_bench": "0"})
    pd.DataFrame({"item_id": ["a"], "harmless": [True]}).to_parquet(tmp_path / "samples.parquet")
    run = wpn_bench.load_run(str(tmp_path))
    assert run.results == json.loads(json.dumps(made_up()))
    assert run.manifest == {"wpn_bench": "0"}
    assert list(run.metrics.columns) == list(Row.__dataclass_fields__)
    assert len(run.metrics) == len(made_up()["metrics"])
    assert run.metrics["seed"].isna().all()
    assert run.samples["item_id"].tolist() == ["a"]
    assert run.documents.empty


def test_the_headline_has_the_numbers_of_the_rows(run: Run) -> None:
    table = run.headline()
    assert set(table["model"]) == set(run.models) == {"base", "wpn", "ga", "ga_answer", "sft"}
    wpn = table[table["model"] == "wpn"].set_index(["suite", "metric"])
    for suite, name, metric in (
        ("harmless", "rtp_triples_test", "harmless_rate"),
        ("harmless", "rtp_triples_test", "coherent_harmless_rate"),
        ("benchmark", "nine", "accuracy"),
        ("benchmark", "heldout_text", "perplexity"),
        ("benign", "truthful_qa", "refusal_rate"),
    ):
        (row,) = (
            r for r in run.results["metrics"]
            if (r["model"], r["suite"], r["set"], r["metric"]) == ("wpn", suite, name, metric)
        )  # fmt: skip
        found = wpn.loc[(suite, metric)]
        assert (found["set"], found["n"]) == (name, row["n"])
        for number in ("value", "ci_low", "ci_high", "delta", "p_value"):
            assert found[number] == pytest.approx(row[number])
    ood = run.metrics.query("model == 'wpn' and suite == 'ood' and metric == 'coherent_harmless_rate'")
    assert wpn.loc[("ood", "coherent_harmless_rate"), ["set", "value"]].tolist() == [
        "mean",
        pytest.approx(ood["value"].mean()),
    ]
    attacks = run.metrics.query("model == 'wpn' and suite == 'attack' and metric == 'coherent_harmless_rate'")
    worst = attacks[attacks["set"] != "worst_case"].sort_values("value").iloc[0]
    assert wpn.loc[("attack", "coherent_harmless_rate"), ["set", "value"]].tolist() == [worst["set"], worst["value"]]
    assert not table[table["model"] == "base"]["significant"].any()
    assert wpn.loc[("harmless", "harmless_rate"), "significant"]


def samples() -> pd.DataFrame:
    """Two seeds of wpn on three prompts: a stays harmful, b becomes harmless, c harmful in seed 1 only, d is not judged."""
    scores = {
        ("base", None): (0.9, 0.8, 0.1, 0.2), ("wpn", 0): (0.7, 0.1, 0.2, None), ("wpn", 1): (0.7, 0.2, 0.9, 0.9),
    }  # fmt: skip
    rows = [
        {"model": model, "seed": seed, "suite": "harmless", "set": "s", "item_id": item, "prompt": item.upper(),
         "response": f"{model} {item}", "score": score, "coherent": True}
        for (model, seed), of in scores.items()
        for item, score in zip("abcd", of, strict=True)
    ]  # fmt: skip
    frame = pd.DataFrame(rows).astype({"seed": "Int64", "score": float})
    frame["harmless"] = (frame["score"] < 0.5).astype("boolean").mask(frame["score"].isna())
    return frame


def test_flips_are_the_changed_verdicts_of_the_same_prompt_and_seed(run: Run) -> None:
    run = replace(run)
    vars(run)["samples"] = samples()
    pairs = run.pairs("wpn")
    assert len(pairs) == 7  # d of seed 0 was not judged
    assert (pairs["base_response"] == "base " + pairs["item_id"]).all()
    flips = run.flips("wpn")
    found = [tuple(row) for row in flips[["seed", "item_id", "change"]].itertuples(index=False)]
    assert found == [
        (0, "b", "became harmless"),
        (1, "b", "became harmless"),
        (1, "c", "became harmful"),
        (1, "d", "became harmful"),
    ]


def test_documents_lost_and_gained(run: Run) -> None:
    rows = [
        {"model": model, "seed": seed, "task": "copa", "doc_id": k, "target": "x", "prediction": p, "correct": p == "x"}
        for model, seed, said in (("base", None, "xxy"), ("wpn", 0, "xyx"))
        for k, p in enumerate(said)
    ]
    run = replace(run)
    vars(run)["documents"] = pd.DataFrame(rows)
    found = run.document_flips("wpn")
    assert found[["doc_id", "prediction", "base_prediction", "change"]].values.tolist() == [
        [1, "y", "x", "lost"],
        [2, "x", "y", "gained"],
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [("base", "base cannot be compared with itself"), ("wpm", "unknown model of this run 'wpm'; did you mean 'wpn'")],
)
def test_models_that_cannot_be_compared(run: Run, model: str, problem: str) -> None:
    for ask in (run.pairs, run.flips, run.document_flips):
        with pytest.raises(UserError, match=problem):
            ask(model)


def test_without_items_there_are_no_flips(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", made_up())
    run = load_run(tmp_path)
    for ask in (run.pairs, run.flips, run.document_flips):
        assert ask("wpn").empty
        assert "change" in ask("wpn")


def test_a_notebook_shows_verdict_and_table_and_takes_nothing_for_markup(run: Run) -> None:
    html = run._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>" not in html
    assert escape(HOSTILE_TITLE) in html
    for sentence in run.verdict():
        assert escape(sentence, quote=False).replace("'", "&#39;").replace('"', "&#34;") in html
    assert html.count("<tr>") == 1 + len(run.models)
    rate = run.headline().query("model == 'wpn' and metric == 'harmless_rate'")["value"].item()
    assert f"{100 * rate:.1f} %" in html


def test_a_terminal_shows_the_verdict(run: Run) -> None:
    lines = repr(run).splitlines()
    assert lines[0].startswith(f"Run {run.name}: base, wpn")
    assert lines[1:] == run.verdict()


@pytest.mark.parametrize("suite", ["harmless", "benchmark"])
def test_a_run_of_one_suite_has_a_headline(tmp_path: Path, without: Callable[..., dict[str, Any]], suite: str) -> None:
    others = {"harmless", "ood", "attack", "benign", "benchmark"} - {suite}
    write_json(tmp_path / "results.json", without(made_up(), suites=tuple(others)))
    run = load_run(tmp_path)
    assert set(run.headline()["suite"]) == {suite}
    assert "<table>" in run._repr_html_()
