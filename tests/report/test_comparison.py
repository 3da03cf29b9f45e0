"""Several runs on one page: what is paired, what is not and why, and that every format says the same."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_ind, ttest_rel

from wpn_bench.analysis import stats
from wpn_bench.analysis.pairing import matched
from wpn_bench.errors import UserError
from wpn_bench.report import compare_runs, formats
from wpn_bench.report.comparison import labels
from wpn_bench.report.formats import Format

from .fake_run import HOSTILE, results, write_run
from .made_runs import ITEMS, SETS, TASKS, made
from .test_render import Tags


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """No figure that is asked for here comes of a bootstrap but the intervals of accuracies, which only have to be there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 200)
        yield


def found(folders: list[Path], out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(compare_runs(folders, ("json",), out)[0].read_text(encoding="utf-8"))
    return loaded


def row_of(
    paired: dict[str, Any], name: str, metric: str, seed: int | None = None, model: str = "wpn"
) -> dict[str, Any]:
    key = {"model": model, "seed": seed, "set": name, "metric": metric}
    (row,) = [row for row in paired["rows"] if key.items() <= row.items()]
    return dict(row)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_one_seed_each_is_paired_by_item(tmp_path: Path) -> None:
    """Items 0 to 29 against items 0 to 23: six lost, none gained, in every set, by the exact test of their six signs."""
    runs = [made(30, 30).write(tmp_path / "a"), made(24, 20).write(tmp_path / "b")]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    assert (paired["run"], paired["against"], paired["not_paired"]) == ("b", "a", [])
    for name in SETS:
        row = row_of(paired, name, "harmless_rate")
        assert (row["value"], row["n"]) == (24 / ITEMS, ITEMS)
        assert row["delta"] == pytest.approx(-6 / ITEMS)
        assert row["delta_ci_low"] < -6 / ITEMS < row["delta_ci_high"]
        assert row["p_value"] == pytest.approx(binomtest(0, 6).pvalue)
    assert row_of(paired, "worst_case", "coherent_harmless_rate")["delta"] == pytest.approx(-6 / ITEMS)
    for task in (*TASKS, "nine"):
        assert row_of(paired, task, "accuracy")["delta"] == pytest.approx(-10 / 50)
    # Holm over the two tasks.
    assert row_of(paired, "copa", "accuracy")["p_value"] == pytest.approx(2 * binomtest(0, 10).pvalue)
    assert paired["seeds"] == {"wpn": "seed 0"}


def test_a_run_against_its_copy_shows_no_difference(tmp_path: Path) -> None:
    first = made(30).write(tmp_path / "a")
    copy = Path(shutil.copytree(first, tmp_path / "b"))
    (paired,) = found([first, copy], tmp_path / "out")["paired"]
    assert paired["rows"]
    assert {row["delta"] for row in paired["rows"]} == {0.0}
    assert all(row["p_value"] == 1.0 for row in paired["rows"])


@pytest.mark.slow
def test_the_same_seeds_are_paired_each_with_itself(tmp_path: Path) -> None:
    """The intervals are over seeds: three differences of -6, -6 and -4 items."""
    one, two = made(30, seeds=(0, 1, 2)), made(24, seeds=(0, 1, 2))
    two.harmless["wpn", 2] = set(range(28))
    (paired,) = found([one.write(tmp_path / "a"), two.write(tmp_path / "b")], tmp_path / "out")["paired"]
    assert [row_of(paired, "far", "harmless_rate", seed)["delta"] for seed in (0, 1, 2)] == pytest.approx(
        [-0.15, -0.15, -0.1]
    )
    row = row_of(paired, "far", "harmless_rate")
    assert row["delta"] == pytest.approx(-0.4 / 3)
    assert row["p_value"] == pytest.approx(ttest_rel([0.6, 0.625, 0.7], [0.75, 0.775, 0.8]).pvalue)
    assert paired["seeds"] == {"wpn": "seeds 0, 1, 2, each with itself"}


@pytest.mark.slow
def test_other_seeds_are_compared_by_their_means(tmp_path: Path) -> None:
    """No seed stands against another: Welch's test of the two means, and the page says that it is unpaired."""
    runs = [made(30, seeds=(0, 1, 2)).write(tmp_path / "a"), made(20, seeds=(5, 6, 8)).write(tmp_path / "b")]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    ours, theirs = [30 / 40, 31 / 40, 32 / 40], [25 / 40, 26 / 40, 28 / 40]
    expected = ttest_ind(theirs, ours, equal_var=False)
    row = row_of(paired, "in_domain", "harmless_rate")
    assert row["delta"] == pytest.approx(sum(theirs) / 3 - sum(ours) / 3)
    assert row["p_value"] == pytest.approx(expected.pvalue)
    assert row["delta_ci_high"] == pytest.approx(expected.confidence_interval().high)
    assert paired["seeds"] == {"wpn": "seeds 0, 1, 2 against 5, 6, 8, unpaired"}
    nine = row_of(paired, "nine", "accuracy")  # no seed differs from another: no interval can be had
    assert (nine["delta"], nine["delta_ci_low"], nine["p_value"]) == (pytest.approx(0.0), None, None)


@pytest.mark.parametrize(
    ("first", "other", "pairs"),
    [
        ([0], [0], [(0, 0)]),
        ([0], [7], [(0, 7)]),
        ([0, 1, 2], [2, 1], [(1, 1), (2, 2)]),
        ([0, 1], [5, 6], []),
        ([0], [5, 6], []),
    ],
)
def test_which_seed_stands_against_which(first: list[int], other: list[int], pairs: list[tuple[int, int]]) -> None:
    assert matched(first, other) == pairs


# --- what is not paired ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what", "reason"),
    [
        ({"manifest": {"model": {"digest": "ff" * 32}}}, "everything", "the runs have different base models"),
        ({"manifest": {"judge": {"digest": "ff" * 32}}}, "prompt sets", "the judge digest differs"),
        ({"about": {"threshold": 0.3}}, "prompt sets", "the threshold differs (a: 0.5; b: 0.3)"),
        ({"about": {"template": "Q: {prompt}"}}, "prompt sets", "the template differs"),
        ({"about": {"decoding": {"max_new_tokens": 64}}}, "prompt sets", "the decoding differs: max_new_tokens (a: 40; b: 64)"),
        ({"manifest": {"prompt_sets": {}}}, ", ".join(SETS), "the manifest of b does not say what it is"),
        (
            {"manifest": {"tasks": {"copa": {"digest": "ff" * 32}, "piqa": {"digest": "1f" * 32}}}},
            "copa",
            "another one: task (a: 'wpn_copa'; b: None)",
        ),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_what_was_asked_otherwise_is_named_and_not_paired(
    tmp_path: Path, changes: dict[str, Any], what: str, reason: str
) -> None:
    runs = [made(30).write(tmp_path / "a"), made(24, **changes).write(tmp_path / "b")]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    (said,) = [one["reason"] for one in paired["not_paired"] if one["what"] == what]
    assert reason in said
    sets = {row["set"] for row in paired["rows"]}
    names = {"everything": {*SETS, *TASKS}, "prompt sets": set(SETS), "copa": {"copa", "nine"}}.get(what, set(SETS))
    assert not sets & names
    assert what == "everything" or sets
    page = compare_runs(runs, ("html",), tmp_path / "out")[0].read_text(encoding="utf-8")
    assert said in Tags(page).text


def test_decoding_in_other_batches_is_the_same_decoding(tmp_path: Path) -> None:
    other = made(24, about={"decoding": {"max_new_tokens": 40, "batch_size": 64}})
    (paired,) = found([made(30).write(tmp_path / "a"), other.write(tmp_path / "b")], tmp_path / "out")["paired"]
    assert paired["not_paired"] == []


def test_rules_that_judged_the_same_answer_otherwise_are_found_out(tmp_path: Path) -> None:
    """Equal answers of base are coherent in the one run and not in the other: the plain rates are paired, these are not."""
    runs = [made(30).write(tmp_path / "a"), made(24, incoherent={0, 1}).write(tmp_path / "b")]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    metrics = {row["metric"] for row in paired["rows"]}
    assert metrics == {"harmless_rate", "refusal_rate", "accuracy"}
    (said,) = paired["not_paired"]
    assert said["what"] == f"coherent_harmless_rate of {', '.join(SETS)}"
    assert (
        said["reason"]
        == f"the rules of judging have changed: {2 * len(SETS)} equal answers of base have another verdict"
    )


def test_refusals_that_were_detected_otherwise_are_not_paired(tmp_path: Path) -> None:
    """Base refuses nothing in either run, so its verdicts are the same."""
    about = {"refusals": {"detector": "classifier", "digest": "aa" * 32}}
    runs = [made(30).write(tmp_path / "a"), made(24, about=about).write(tmp_path / "b")]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    assert {row["metric"] for row in paired["rows"]} == {"harmless_rate", "coherent_harmless_rate", "accuracy"}
    assert [said["what"] for said in paired["not_paired"]] == ["refusal_rate", "answered_coherent_harmless_rate"]
    for said in paired["not_paired"]:
        assert "refusals were detected in different ways (a: 'wording'; b: 'classifier aa" in said["reason"]


def test_other_answers_of_base_are_said(tmp_path: Path) -> None:
    runs = [made(30).write(tmp_path / "a"), made(24, base_says="yes").write(tmp_path / "b")]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    assert paired["notes"][0].startswith(f"base itself gave another answer to {6 * ITEMS} of {6 * ITEMS} prompts")


def test_the_same_weights_are_said(tmp_path: Path) -> None:
    weights = {"models": {"wpn": {"0": {"digest": "aa" * 32}}, "sft": {"0": {"digest": "bb" * 32}}}}
    others = {"models": {"wpn": {"0": {"digest": "aa" * 32}}, "sft": {"0": {"digest": "cc" * 32}}}}
    runs = [
        made(30, models=("wpn", "sft"), manifest=one).write(tmp_path / name)
        for name, one in (("a", weights), ("b", others))
    ]
    (paired,) = found(runs, tmp_path / "out")["paired"]
    assert paired["notes"] == ["the same weights in both runs, seed by seed: wpn"]


def test_documents_that_only_one_run_was_asked(tmp_path: Path) -> None:
    """The same task with a limit: no pair of it, and none of the macro average."""
    runs = [made(30).write(tmp_path / "a"), made(24).write(tmp_path / "b")]
    documents = pd.read_parquet(runs[1] / "documents.parquet")
    cut = documents[(documents["task"] != "copa") | (documents["doc_id"] < 20)]
    cut.to_parquet(runs[1] / "documents.parquet", index=False)
    (paired,) = found(runs, tmp_path / "out")["paired"]
    reasons = {one["what"]: one["reason"] for one in paired["not_paired"]}
    assert reasons["copa"] == "other items (a: 50; b: 20)"
    assert {row["set"] for row in paired["rows"] if row["suite"] == "benchmark"} == {"piqa"}
    assert "nine" in reasons


@pytest.mark.parametrize("missing", ["manifest.json", "samples.parquet", "documents.parquet"])
@pytest.mark.slow
def test_a_file_that_is_not_there(tmp_path: Path, missing: str) -> None:
    runs = [made(30).write(tmp_path / "a"), made(24).write(tmp_path / "b")]
    (runs[1] / missing).unlink()
    (paired,) = found(runs, tmp_path / "out")["paired"]
    suites = {row["suite"] for row in paired["rows"]}
    left = {"manifest.json": set(), "samples.parquet": {"benchmark"}, "documents.parquet": set(SETS.values())}
    assert suites == left[missing]
    assert len(paired["not_paired"]) == 1


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two runs of two methods and one of another base, compared in every format."""
    folder = tmp_path_factory.mktemp("three")
    runs = [
        made(30, models=("wpn", "sft")).write(folder / "monday" / "run"),
        made(24, 20, lr=2e-4).write(folder / "friday" / "run"),
        made(10, manifest={"model": {"digest": "ee" * 32}}, about={"model": "b/model"}).write(folder / "other"),
    ]
    compare_runs(runs, ("html", "md", "json", "csv"), folder / "out")
    return runs, folder / "out"


def test_every_format_says_the_same(three: tuple[list[Path], Path]) -> None:
    _, out = three
    assert {path.name for path in out.iterdir()} == {f"comparison.{name}" for name in ("html", "md", "json", "csv")}
    page = Tags((out / "comparison.html").read_text(encoding="utf-8")).text
    short = (out / "comparison.md").read_text(encoding="utf-8")
    assert "monday/run 75.0 % [59.8, 85.8] +65.0" in page
    assert "friday/run lost its knowledge 60.0 % [44.6, 73.7] +50.0" in page
    for text in (page, short):
        assert "friday/run against monday/run" in text
        assert re.search(r"[−-]15\.0\s?\\?\*", text)
        assert "the runs have different base models" in text
        assert "methods.wpn.lr" in text
    assert re.search(r"methods\.wpn\.lr 0\.0001 0\.0002 0\.0001", page)
    assert "methods.sft run not run not run" in page
    assert "versions.torch 2.13.0" in page.partition("settings are the same")[2]
    assert "versions.torch" not in page.partition("Settings that differ")[2].partition("settings are the same")[0]


def test_what_the_csv_and_the_json_hold(three: tuple[list[Path], Path]) -> None:
    runs, out = three
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text(encoding="utf-8"))))
    stored = {
        label: json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]
        for label, run in zip(("monday/run", "friday/run", "other"), runs, strict=True)
    }
    assert [row["run"] for row in rows] == [label for label, of_run in stored.items() for _ in of_run]
    for row, (_, kept) in zip(rows, ((label, r) for label, of_run in stored.items() for r in of_run), strict=True):
        assert {k: "" if v is None else str(v) for k, v in kept.items()}.items() <= row.items()
    summary = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert [run["label"] for run in summary["runs"]] == ["monday/run", "friday/run", "other"]
    assert summary["settings"]["differ"]["base model.name"] == ["a/model", "a/model", "b/model"]
    wpn = next(model for model in summary["runs"][1]["models"] if model["model"] == "wpn")
    assert wpn["headline"]["harmless_rate"]["value"] == 0.6


def test_the_page_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    """Hostile text in every field of a run stays text; there is no script at all."""
    evil = f"{HOSTILE}{{{{ 7*7 }}}}|`"
    changed = results()
    changed["run"] |= {"model": evil, "command": evil, "judge": evil, "preset": evil, "template": evil, "created": evil}
    changed["run"] |= {"failed": [{"job": evil, "reason": evil}]}
    changed["models"]["wpn"] |= {"title": evil, "config": {evil: evil}}
    changed["models"][evil] = changed["models"].pop("ga")
    for row in changed["metrics"]:
        row["model"] = evil if row["model"] == "ga" else row["model"]
        row["set"] = evil if row["set"] == "gcg" else row["set"]
    runs = [write_run(tmp_path / name, one, per_set=2) for name, one in (("a", results()), ("b <b>|", changed))]
    strange = {
        "config": {evil: [evil]},
        "versions": {evil: evil},
        "model": [evil],
        "judge": evil,
        "tasks": {"copa": evil},
    }
    (runs[1] / "manifest.json").write_text(json.dumps({evil: evil, **strange}))
    page, short = (p.read_text(encoding="utf-8") for p in compare_runs(runs, ("html", "md"), tmp_path / "out"))
    parsed = Tags(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "img", "b", "link", "iframe", "svg")]
    assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on")]
    assert "default-src 'none'" in page
    assert HOSTILE in parsed.text
    assert "<img" not in short
    assert "49" not in re.findall(r"pwned=1\">(.{2})", parsed.text)


def test_it_lies_beside_the_first_run_unless_told(tmp_path: Path) -> None:
    runs = [made(30).write(tmp_path / "x" / "a"), made(24).write(tmp_path / "b")]
    assert compare_runs(runs, ("md",)) == [tmp_path / "x" / "comparison" / "comparison.md"]
    text = (tmp_path / "x" / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert "comparison.html" not in text


def test_runs_are_named_by_their_folders(tmp_path: Path) -> None:
    assert labels([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert labels([Path("/x/a/run"), Path("/x/b/run"), Path("/y/c")]) == ["a/run", "b/run", "c"]
    assert labels([Path("/1/a/run"), Path("/2/a/run")]) == ["1/a/run", "2/a/run"]


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = made(30).write(tmp_path / "a"), made(24).write(tmp_path / "b")
    with pytest.raises(UserError, match="the run a is given twice"):
        compare_runs([one, two, tmp_path / "b" / ".." / "a"])
    with pytest.raises(UserError, match=r"contains no results\.json"):
        compare_runs([one, tmp_path])
    with pytest.raises(UserError, match=r"unknown report format 'htlm'; did you mean 'html'\?"):
        compare_runs([one, two], ("htlm",))
    with pytest.raises(UserError, match="1 runs cannot be compared"):
        compare_runs([one])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        compare_runs([one, two], ("md",), tmp_path / "file" / "out")
    monkeypatch.setitem(formats.FORMATS, "alone", Format("alone.xml", "wpn_bench.report.summary:metrics"))
    with pytest.raises(UserError, match="the format 'alone' can only show a single run"):
        compare_runs([one, two], ("alone",))
    assert not (tmp_path / "comparison").exists()
