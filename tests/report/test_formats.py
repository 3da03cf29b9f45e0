"""The formats beside the page: summary.json, metrics.csv, and the short report within what GitHub takes."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from wpn_bench.core.numbers import percent
from wpn_bench.errors import UserError
from wpn_bench.report import render, tables
from wpn_bench.report.formats import FORMATS, maker
from wpn_bench.report.render import MARKDOWN_LIMIT, fitted
from wpn_bench.runs.finished import load_run
from wpn_bench.runs.headline import HEADLINES
from wpn_bench.runs.view import View

from .fake_run import HOSTILE, results
from .test_render import Tags, write

GITHUB = 65_535
DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def as_github(text: str) -> Tags:
    """The HTML that GitHub makes of Markdown, but for its list of allowed tags, which would hide a mistake."""
    return Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


# --- one list of formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_what_makes_it(name: str) -> None:
    assert callable(maker(FORMATS[name].one))
    if FORMATS[name].several:
        assert callable(maker(str(FORMATS[name].several)))
    assert f"`{name}`" in DOCS.read_text(encoding="utf-8")
    assert (
        len({one.file for one in FORMATS.values()}) == len({one.together for one in FORMATS.values()}) == len(FORMATS)
    )


def test_they_can_be_written_elsewhere(run_dir: Path, tmp_path: Path) -> None:
    before = {path.name for path in run_dir.iterdir()}
    written = render(run_dir, ("json", "md"), tmp_path / "new" / "place")
    assert written == [tmp_path / "new" / "place" / name for name in ("summary.json", "report.md")]
    assert {path.name for path in run_dir.iterdir()} == before
    assert "report.html" not in written[1].read_text(encoding="utf-8")


def test_a_format_that_there_is_not(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"unknown report format 'jsno'; did you mean 'json'\?"):
        render(run_dir, ("jsno",))
    with pytest.raises(UserError, match="--format names no format"):
        render(run_dir, ())


# --- for programs ----------------------------------------------------------------------------------------------------


def test_the_summary_holds_the_table_and_the_verdict(run_dir: Path, results: dict[str, Any]) -> None:
    found = json.loads(render(run_dir, ("json",))[0].read_text(encoding="utf-8"))
    table = tables.headline(View(results), {})
    by_model = {one["model"]: one for one in found["models"]}
    assert set(by_model) == {"base", "wpn", "ga", "ga_answer", "sft", "npo"}
    titles = {one.title: one.key for one in HEADLINES}
    for line in table.lines:
        for column, cell in zip(table.columns, line.cells, strict=True):
            assert cell is not None
            figure = by_model[line.key]["headline"][titles[column]]
            assert column == "Perplexity" or percent(figure["value"]) == cell.value
            assert column == "Perplexity" or figure["significant"] == cell.mark
    assert by_model["npo"] == {
        "model": "npo", "title": "NPO", "method": "npo", "status": "failed", "reason": "loss is not finite at step 31",
        "broken": None, "non_inferiority": None, "headline": {},
    }  # fmt: skip
    assert (by_model["ga"]["broken"], by_model["ga"]["non_inferiority"]) == ("incoherent", "fail")
    assert by_model["base"]["non_inferiority"] is None
    assert found["verdict"][0]["question"] == "Safer?"
    assert found["failed"] == [{"job": "train npo seed 0", "reason": "loss is not finite at step 31"}]
    assert found["skipped"][0]["set"] == "harmbench"
    assert len(json.dumps(found)) < 20_000


def test_every_name_in_the_summary_is_documented(run_dir: Path) -> None:
    """Also of the headline metrics, and of what the comparison adds."""
    text = DOCS.read_text(encoding="utf-8")
    found = json.loads(render(run_dir, ("json",))[0].read_text(encoding="utf-8"))
    names = {*found, *found["run"], *found["verdict"][0], *found["models"][0], *(one.key for one in HEADLINES)}
    names |= {"significant", "note", "settings", "paired", "not_paired"}
    assert not [name for name in names if f"`{name}`" not in text]


def test_the_csv_is_the_rows_of_the_results(run_dir: Path, results: dict[str, Any]) -> None:
    results["metrics"][0] |= {"set": 'a "b", c', "value": None}
    text = render(write(run_dir, results), ("csv",))[0].read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(results["metrics"][0])
    assert len(rows) == len(results["metrics"])
    assert (rows[0]["set"], rows[0]["value"], rows[0]["seed"]) == ('a "b", c', "", "")
    for row, kept in list(zip(rows, results["metrics"], strict=True))[1:]:
        assert row == {k: "" if v is None else str(v) for k, v in kept.items()}


def test_the_csv_reads_back_as_load_run_has_it(run_dir: Path) -> None:
    import pandas as pd

    file = render(run_dir, ("csv",))[0]
    ours, theirs = (f.astype(object).where(f.notna(), None) for f in (pd.read_csv(file), load_run(run_dir).metrics))
    assert ours.to_dict("records") == theirs.to_dict("records")


# --- the short report ------------------------------------------------------------------------------------------------


def many(n: int, title: str = "Method") -> dict[str, Any]:
    """Results of `n` methods beside the base, each tuned."""
    found = results()
    pattern = found["models"]["wpn"] | {"history": [], "curve": None}
    kept = ("rtp_triples_test", "advbench", "typos", "nine", "heldout_text")
    rows = [
        row for row in found["metrics"] if row["model"] == "wpn" and row["set"] in kept and "@" not in row["metric"]
    ]
    for k in range(n):
        found["models"][f"m{k}"] = pattern | {"title": f"{title} {k}", "method": f"m{k}"}
        found["metrics"] += [row | {"model": f"m{k}"} for row in rows]
    return found


def test_fourteen_methods_fit_and_long_parts_are_folded(run_dir: Path) -> None:
    text = render(write(run_dir, many(10)), ("md",))[0].read_text(encoding="utf-8")
    assert len(text) < GITHUB / 3
    page = as_github(text)
    summaries = re.findall("<summary>(.*?)</summary>", text)
    assert "Tuning" in summaries
    assert "Relearning" in summaries
    open_part = re.sub(r"(?s)<details>.*?</details>", "", text)
    assert len(open_part) < 9_000
    assert open_part.count("\n| ") == 2 - 1 + 15  # the headline table: its head, base and 14 methods
    assert "**1 failed, 1 skipped**" in open_part
    assert "loss is not finite" in open_part
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == len(re.findall(r"(?m)^\|---", text))
    assert tags.count("details") == text.count("</details>")


@pytest.mark.parametrize(
    ("methods", "title"), [(150, "Method"), (400, "Method"), (3, "x" * 1_000_000), (60, "<&>|" * 500)]
)
@pytest.mark.slow
def test_it_never_grows_beyond_what_github_takes(run_dir: Path, methods: int, title: str) -> None:
    text = render(write(run_dir, many(methods, title)), ("md",))[0].read_text(encoding="utf-8")
    assert len(text) <= GITHUB
    assert text.count("<details>") == text.count("</details>")
    if methods > 100:
        assert "too long for a comment" in text


def test_sections_that_do_not_fit_are_named() -> None:
    text = fitted("# Head\nfirst\f\f## Short\nwords\f## Long \\| one\n" + "x" * 1500 + "\f## Last\nend\n", limit=2_000)
    assert (
        text == "# Head\nfirst\n\n## Short\nwords\n\n## Last\nend\n\n*Left out, too long for a comment: Long | one.*\n"
    )
    whole = fitted("# Head\nfirst\f## Long\n" + "x" * 1500)
    assert whole == f"# Head\nfirst\n\n<details><summary>Long</summary>\n\n{'x' * 1500}\n\n</details>\n"


def test_a_head_that_is_too_long_is_cut_after_a_line() -> None:
    text = fitted("\n".join(f"<details>line {k}" for k in range(20_000)))
    assert len(text) < MARKDOWN_LIMIT
    kept = text.partition("\n\n*Cut here")[0].splitlines()
    assert kept == [f"<details>line {k}" for k in range(len(kept))]


def test_hostile_text_makes_no_markup_there(run_dir: Path, results: dict[str, Any]) -> None:
    evil = f"{HOSTILE}\n\n</details>**b** [l](javascript:x) | `c` \f ## T"
    results["run"] |= {"model": evil, "judge": evil, "failed": [{"job": evil, "reason": evil}]}
    results["run"]["skipped"] = [{"set": evil, "reason": evil, "n": 1}]
    for name in ("wpn", "ga", "ga_answer", "sft", "npo"):
        results["models"][name] |= {"title": evil, "reason": evil}
    page = as_github(render(write(run_dir, results), ("md",))[0].read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert not set(tags) & {"img", "script", "code"}
    assert [a.get("href") for tag, a in page.tags if tag == "a"] == []
    assert "**b** [l](javascript:x) | `c` ## T" in page.text
