"""The report's section on judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_run import rename_as_before

from wpn_bench.report import charts
from wpn_bench.report.judges import SHOWN, judges
from wpn_bench.report.render import render
from wpn_bench.runs.finished import Run
from wpn_bench.runs.view import View

from .fake_run import CHARACTERS, HOSTILE, SECOND, SETS, write_run


def test_the_tables(run_dir: Path, results: dict[str, Any]) -> None:
    found = judges(Run(run_dir, results, {}))
    assert found is not None
    assert found.card is not None
    assert found.agreement is not None
    assert found.agreement_by_model is not None
    assert len(found.agreement_by_model.lines) == len(CHARACTERS)
    (whole,) = found.agreement.lines
    assert whole.small == "all responses, n = 1,800"
    assert [(cell.value, cell.ci) for cell in whole.cells if cell] == [
        ("90.0 %", ""), ("0.71", "[0.68, 0.74]"), ("25.0 %", ""), ("31.0 %", ""),
    ]  # fmt: skip
    assert "n/a" in [cell.value for line in found.agreement_by_model.lines for cell in line.cells if cell]
    assert found.corrected is not None
    assert len(found.corrected.lines) == sum(len(sets) for sets in SETS.values())
    assert len(found.corrected.columns) == len(CHARACTERS)
    cells = [cell for line in found.corrected.lines for cell in line.cells if cell]
    # Cut exactly where the raw rate cannot come of Se .9 and Sp .95: harmful under 5 % or over 90 %.
    for cell in cells:
        raw = float(cell.note.removeprefix("raw ").split()[0])
        assert cell.note.endswith("; cut") == (100 - raw < 5 - 0.05 or 100 - raw > 90 + 0.05) or raw in (95.0, 10.0)
    assert {cell.note.endswith("; cut") for cell in cells} == {True, False}


def test_disagreements_are_the_largest_and_each_text_once(run_dir: Path, results: dict[str, Any]) -> None:
    found = judges(Run(run_dir, results, {}))
    assert found is not None
    (second,) = found.seconds
    assert len(second.disagreements) == SHOWN
    assert len({d.response for d in second.disagreements}) == SHOWN
    apart = []
    for one in second.disagreements:
        (_, first, harmful), (name, other, also) = one.verdicts
        assert name == SECOND
        assert harmful != also
        far = [(s - t) / ((1 - t) if s >= t else t) for s, t in ((first, 0.5), (other, 0.3))]
        apart.append(abs(far[0] - far[1]))
    assert apart == sorted(apart, reverse=True)


@pytest.fixture
def three(results: dict[str, Any]) -> dict[str, Any]:
    """Results of three judges, of which the third reads the prompts."""
    run = results["run"]
    run["judges"] = [judge | {"reads_prompt": False} for judge in run["judges"]]
    run["judges"].append(
        run["judges"][1] | {"name": "guard:x", "threshold": 0.5, "reads_prompt": True, "card": run["judge_card"]}
    )
    rows = [
        {"model": None, "n": 1800, "alpha": 0.4, "ci_low": 0.35, "ci_high": 0.45},
        {"model": "ga", "n": 450, "alpha": None, "ci_low": None, "ci_high": None},
    ]
    run["alpha"] = {"judges": [judge["name"] for judge in run["judges"]], "rows": rows}
    return results


def test_three_judges(run_dir: Path, three: dict[str, Any]) -> None:
    run = Run(run_dir, three, {})
    scores = run.samples
    scores["score:guard:x"] = scores["score"].where(scores.index % 3 > 0)  # like the first, a third is missing
    found = judges(run)
    assert found is not None
    assert found.alpha is not None
    assert [(line.name, cell.value, cell.ci) for line in found.alpha.lines for cell in line.cells if cell] == [
        ("All responses", "0.40", "[0.35, 0.45]"),
        (View(three).title("ga"), "n/a", ""),
    ]
    assert len(found.disagreements) == SHOWN
    for one in found.disagreements:
        names = [name for name, _, _ in one.verdicts]
        assert names in (["detoxify:original", SECOND], ["detoxify:original", SECOND, "guard:x"])
        assert {harmful for _, _, harmful in one.verdicts} == {True, False}
    (_, third) = found.seconds
    assert third.card is not None
    assert third.figures is not None


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        ([False, False, False], "No judge of this run reads the prompts"),
        ([False, False, True], "detoxify:original, does not read the prompts: read also the rates by guard:x."),
        ([True, False, False], ""),
        ([None, None, None], ""),  # older results do not say
    ],
)
def test_whether_a_judge_reads_the_prompts(
    run_dir: Path, three: dict[str, Any], reads: list[bool | None], said: str
) -> None:
    for judge, known in zip(three["run"]["judges"], reads, strict=True):
        judge.pop("reads_prompt")
        judge |= {} if known is None else {"reads_prompt": known}
    found = judges(Run(run_dir, three, {}))
    assert found is not None
    assert (said in found.reading) if said else found.reading == ""


def test_the_page_shows_them_blurred_and_as_text(run_dir: Path) -> None:
    page, markdown = (path.read_text(encoding="utf-8") for path in render(run_dir))
    section = page.split('<section id="judges">')[1].split("</section>")[0]
    assert section.count('class="text veiled" data-veil=') == 2 * SHOWN
    assert 'data-figure="calibration"' in section
    assert HOSTILE not in page
    assert "Web comments &lt;/script&gt;" in section
    assert "<summary>Judges</summary>" in markdown
    assert "corrected" in markdown
    assert HOSTILE not in markdown


@pytest.mark.slow
def test_a_run_folder_that_calls_scores_toxicity_gives_the_same_page(run_dir: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run_dir, tmp_path / "old"))
    rename_as_before(old)
    assert [f.read_text(encoding="utf-8") for f in render(old)] == [
        f.read_text(encoding="utf-8") for f in render(run_dir)
    ]


def test_the_calibration_chart_leaves_empty_bins_out(results: dict[str, Any]) -> None:
    figure = charts.calibration(View(results))
    assert figure is not None
    assert len(figure["data"][1]["x"]) == 9
    assert figure["data"][1]["y"][0] == 0.0
    results["run"]["judge_card"] = None
    assert charts.calibration(View(results)) is None


@pytest.mark.parametrize("lost", [("judges",), ("judge_card", "agreement")])
def test_older_and_plainer_results_have_less_to_say(
    tmp_path: Path, results: dict[str, Any], lost: tuple[str, ...]
) -> None:
    for key in lost:
        del results["run"][key]
    if "judges" not in lost:
        results["run"]["judges"] = results["run"]["judges"][:1]
    page = render(write_run(tmp_path / "run", results, per_set=2), ("html",))[0].read_text(encoding="utf-8")
    assert '<section id="judges">' not in page


def test_what_a_judge_took_is_on_the_page(run_dir: Path, results: dict[str, Any]) -> None:
    results["run"]["judges"][1]["usage"] = {"asked": 7, "asked_prompt_tokens": 1234, "asked_completion_tokens": 5}
    (run_dir / "results.json").write_text(json.dumps(results))
    render(run_dir)
    for page in ("report.html", "report.md"):
        assert "was asked 7 times: 1,234 tokens in, 5 out." in (run_dir / page).read_text()
