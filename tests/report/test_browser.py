"""The page in a real browser, opened from disk with the network off."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wpn_bench.report import render

from .browser import Visit
from .fake_run import SECOND

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(whole_run: Path) -> Path:
    return render(whole_run, ("html",))[0]


@pytest.fixture(scope="module", params=["light", "dark", "phone"])
def visit(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Iterator[Visit]:
    """For tests that leave filters and columns as they are: charts take seconds to draw."""
    size = {"width": 400, "height": 800} if request.param == "phone" else {"width": 1280, "height": 900}
    scheme = "dark" if request.param == "dark" else "light"
    visit = Visit(chromium, report, viewport=size, color_scheme=scheme)
    yield visit
    visit.context.close()


def test_the_page_works_offline(visit: Visit, report: Path) -> None:
    page = visit.page
    leaving = [url for url in visit.requests if not url.startswith(("data:", "blob:")) and url != report.as_uri()]
    assert leaving == []
    assert visit.complaints == []
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert page.locator("#comparison tbody tr").count() == 5
    assert "[89.2, 95.7]" in page.locator("#comparison").inner_text()
    charts = "trade-off benchmarks generalisation loss-wpn curve-wpn curve-ga relearning-harmful relearning-benign calibration"
    for name in charts.split():
        assert page.locator(f"#figure-{name} svg.main-svg").count() > 0, name
    assert page.locator("#figure-trade-off .errorbar, #figure-trade-off .xerror").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_answers_are_side_by_side_blurred_and_open_on_request(visit: Visit) -> None:
    page = visit.page
    assert page.locator(".sample").count() == 20
    first = page.locator(".sample").first
    models = first.locator(".answer").evaluate_all("nodes => nodes.map(node => node.dataset.model)")
    assert models == ["base", "wpn", "ga", "ga_answer", "sft"]
    if page.viewport_size["width"] > 700:
        tops = first.locator(".answer").evaluate_all("nodes => nodes.map(node => node.getBoundingClientRect().top)")
        assert len(set(tops)) == 1
    harmful = page.locator(".answer:has(.badge.harmful) .text")
    blurred = "node => getComputedStyle(node).filter"
    assert all("blur" in style for style in harmful.evaluate_all("nodes => nodes.map(n => getComputedStyle(n).filter)"))
    node = harmful.first
    assert node.get_attribute("role") == "button"
    assert "press Enter to show" in (node.get_attribute("aria-label") or "")
    node.click()
    assert node.evaluate(blurred) == "none"
    assert node.get_attribute("role") is None
    other = harmful.nth(1)
    other.focus()
    page.keyboard.press("Enter")
    assert other.evaluate(blurred) == "none"
    harmless = page.locator(".answer:has(.badge.harmless) .text").first
    assert harmless.evaluate(blurred) == "none"
    page.locator("#reveal-all").check()
    assert page.locator("#samples .veiled").count() == 0
    page.locator("#reveal-all").uncheck()
    assert page.locator("#samples .veiled").count() > 0


def test_what_judges_differ_on_is_blurred_until_asked_for(visit: Visit) -> None:
    page = visit.page
    page.locator("#judges summary", has_text="differ most").click()
    text = page.locator(".dispute .text").first
    blurred = "node => getComputedStyle(node).filter"
    assert "blur" in text.evaluate(blurred)
    assert text.get_attribute("role") == "button"
    text.click()
    assert text.evaluate(blurred) == "none"


def test_filters_search_and_pages(chromium: Any, report: Path) -> None:
    visit = Visit(chromium, report, viewport={"width": 1280, "height": 900})
    page = visit.page
    everything = page.locator("#count").inner_text()
    page.locator("#next").click()
    assert page.locator("#page").inner_text().startswith("page 2 of ")
    page.locator("#filter-set").select_option(label="gcg (attack)")
    assert page.locator("#count").inner_text().startswith("120 of ")
    page.locator("#filter-model").select_option(label="WPN")
    page.locator("#filter-flip").select_option("spoilt")
    assert page.locator("#count").inner_text() != everything
    for state in page.locator('.answer[data-model="wpn"] .badge').all_inner_texts():
        assert state.startswith("harmful")
    page.locator("#filter-set").select_option("")
    page.locator("#filter-model").select_option("")
    page.locator("#filter-flip").select_option("")
    page.locator("#filter-text").fill("WINDOW.PWNED")
    page.locator("#count", has_text=re.compile("^1 of")).wait_for()
    assert page.locator(".sample").count() == 1
    page.locator("#reveal-all").check()
    page.locator(".seen summary").click()
    assert "### Question: Say </script><img" in page.locator(".seen .text").inner_text()
    page.locator("#columns input").first.uncheck()
    assert page.locator(".sample .answer").count() == 4
    assert visit.complaints == []
    visit.context.close()


def test_a_page_that_escaped_its_place_still_could_not_run(chromium: Any, report: Path, tmp_path: Path) -> None:
    """The policy is the second wall: a script and a handler put into the page by force are refused."""
    page = report.read_text(encoding="utf-8")
    forced = tmp_path / "forced.html"
    forced.write_text(
        page.replace("<main>", "<main><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>", 1),
        "utf-8",
    )
    visit = Visit(chromium, forced)
    assert visit.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in text for text in visit.complaints)
    visit.context.close()


def test_axe_finds_no_serious_fault(chromium: Any, report: Path) -> None:
    """Light and dark, wide and narrow, with everything opened that can be; and axe would see a fault.

    Colours do not hang on the width, nor anything else on the scheme: each is asked once. Charts are pictures to axe; their
    holder has a name, and a table has their figures.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page_but_charts = {"exclude": [[".plot-container"]]}
    contrast, others = {"runOnly": ["color-contrast"]}, {"rules": {"color-contrast": {"enabled": False}}}

    def faults(options: dict[str, Any]) -> list[tuple[str, str]]:
        found = axe.Axe().run(page, page_but_charts, {"resultTypes": ["violations"], **options}).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        return [(one["id"], node["html"]) for one in serious for node in one["nodes"]]

    visit = Visit(chromium, report, viewport={"width": 1280, "height": 900})
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    page.locator(".sample").evaluate_all("rows => rows.slice(6).forEach((row) => row.remove())")
    assert faults(others) == []
    assert faults(contrast) == []
    page.emulate_media(color_scheme="dark")
    assert faults(contrast) == []
    page.set_viewport_size({"width": 400, "height": 900})
    assert faults(others) == []
    page.evaluate("document.querySelector('#filters label').replaceWith(document.querySelector('#filter-set'))")
    assert [name for name, _ in faults(others)] == ["select-name"]
    visit.context.close()


def test_everything_can_be_done_with_the_keyboard(chromium: Any, report: Path) -> None:
    visit = Visit(chromium, report, viewport={"width": 1280, "height": 900})
    page = visit.page
    everything = page.locator("#count").inner_text()
    page.locator("#filter-set").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "filter-flip"
    page.keyboard.type("became harmful")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "filter-judge"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "filter-text"
    page.keyboard.type("the")
    page.wait_for_timeout(300)
    filtered = page.locator("#count").inner_text()
    assert filtered != everything
    assert int(filtered.split()[0]) > 0
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#reveal-all").is_checked()
    assert page.locator("#samples .veiled").count() == 0
    page.locator("[data-copy=command]").focus()
    page.keyboard.press("Enter")
    page.locator("[data-copy=command]", has_text=re.compile("Copied|Selected")).wait_for()
    assert visit.complaints == []
    visit.context.close()


def test_samples_are_read_by_the_judge_that_is_asked_for(chromium: Any, report: Path) -> None:
    visit = Visit(chromium, report, viewport={"width": 1280, "height": 900})
    page = visit.page
    first = page.locator('.answer[data-model="base"] .badge')
    before = first.all_inner_texts()
    page.locator("#filter-judge").select_option(label=SECOND)
    assert first.all_inner_texts() != before
    page.locator("#filter-flip").select_option("fixed")
    page.locator("#filter-model").select_option(label="WPN")
    assert {text.split()[0] for text in first.all_inner_texts()} == {"harmful"}
    assert {text.split()[0] for text in page.locator('.answer[data-model="wpn"] .badge').all_inner_texts()} == {
        "harmless"
    }
    by_second = page.locator("#count").inner_text()
    page.locator("#filter-judge").select_option("0")
    assert page.locator("#count").inner_text() != by_second
    visit.context.close()


def test_more_models_than_fit_are_a_tick_away(chromium: Any, tmp_path: Path, whole_run: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    frame = pd.read_parquet(run / "samples.parquet")
    few = frame[frame["set"] == "rtp_triples_test"].groupby("model").head(5)
    more = [few[few["model"] == "wpn"].assign(model=name) for name in ("dpo", "rmu")]
    pd.concat([few, *more]).to_parquet(run / "samples.parquet")
    visit = Visit(chromium, render(run, ("html",))[0], viewport={"width": 1280, "height": 900})
    page = visit.page
    answers = page.locator(".sample").first.locator(".answer")
    shown = "nodes => nodes.map((node) => node.dataset.model)"
    assert answers.evaluate_all(shown) == ["base", "wpn", "ga", "ga_answer", "sft"]
    page.locator("#filter-model").select_option(label="rmu")
    assert answers.evaluate_all(shown) == ["base", "wpn", "ga", "ga_answer", "sft", "rmu"]
    page.locator("#columns label", has_text="dpo").click()
    assert "dpo" in answers.evaluate_all(shown)
    visit.context.close()
