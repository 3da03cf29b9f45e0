"""The comparison in a real browser, opened from disk with the network off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wpn_bench.report import compare_runs

from .made_runs import made

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    runs = [made(30, models=("wpn", "sft")).write(folder / "a"), made(24).write(folder / "b")]
    return compare_runs(runs, ("html",), folder / "out")[0]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_the_page_works_offline_and_by_keyboard(chromium: Any, page_file: Path, width: int, scheme: str) -> None:
    context = chromium.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text))
    page.goto(page_file.as_uri())
    assert (requests, complaints) == ([page_file.as_uri()], [])
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#side-by-side tbody").count() == 3
    assert page.locator("#paired").get_by_text("b against a").first.is_visible()
    every = page.locator("#paired details")
    assert not every.locator("table").is_visible()
    every.locator("summary").focus()
    page.keyboard.press("Enter")
    assert every.locator("table").is_visible()
    assert page.locator("#settings").get_by_text("methods.sft", exact=True).is_visible()
    context.close()
