"""Whatever a model, a prompt set or a name says, the page shows it and does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.report import render

from . import hostile
from .browser import Visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(hostile.write_run(tmp_path_factory.mktemp("hostile") / "run"))[0]


@pytest.fixture(scope="module")
def visit(chromium: Any, report: Path) -> Iterator[Visit]:
    visit = Visit(chromium, report, viewport={"width": 1280, "height": 900})
    yield visit
    visit.context.close()


# Elements that the page has no use for, handlers, and links that leave: there are none, whatever the texts are.
FOREIGN = """() => [
  ...document.querySelectorAll("img, iframe, object, embed, base, form[action], video, math, marquee, textarea, link, svg script, svg a"),
  ...document.querySelectorAll("main style, main script, main meta"),
  ...[...document.querySelectorAll("*")].filter((node) => [...node.attributes].some((a) => a.name.startsWith("on"))),
  ...[...document.querySelectorAll("[href], [src]")].filter((node) => !(node.getAttribute("href") ?? "").startsWith("#")),
].map((node) => node.outerHTML.slice(0, 200))"""


ROWS = """rows => rows.map(row => ({
  set: row.querySelector(".who strong").textContent, prompt: row.querySelector(".prompt .text").textContent,
  input: row.querySelector(".seen .text").textContent, answer: row.querySelector(".answer .text").textContent}))"""


@pytest.fixture(scope="module")
def shown(visit: Visit) -> list[dict[str, str]]:
    """All that a reader can do: open everything, unveil, point at the charts, turn every page. Returns the samples."""
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    page.locator("#reveal-all").check()
    for holder in page.locator("[data-figure]").all()[:6]:
        holder.scroll_into_view_if_needed()
        box = holder.bounding_box()
        assert box is not None
        for x in range(6):
            page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 6, box["y"] + box["height"] / 2)
    rows: list[dict[str, str]] = []
    while True:
        page.locator("#rows button.rest").evaluate_all("buttons => buttons.forEach((button) => button.click())")
        rows += page.locator(".sample").evaluate_all(ROWS)
        assert page.evaluate(FOREIGN) == []
        if page.locator("#next").is_disabled():
            break
        page.locator("#next").click()
    page.locator("#filter-text").fill(hostile.PAYLOADS[0])
    page.locator("#count", has_text=re.compile(r"^\d of")).wait_for()
    return rows


def test_nothing_runs_and_nothing_is_asked_for(visit: Visit, shown: list[dict[str, str]], report: Path) -> None:
    page = visit.page
    assert page.locator("[data-figure] svg.main-svg").count() >= 10
    assert page.evaluate("window.pwned") is None
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:")) and url != report.as_uri()] == []
    assert page.url == report.as_uri()


def test_texts_are_shown_as_they_are(shown: list[dict[str, str]]) -> None:
    texts = [*hostile.PAYLOADS, hostile.LETTERS]
    assert len(texts) > 50
    assert [row["prompt"] for row in shown] == texts
    assert [row["answer"] for row in shown] == texts
    assert [row["input"] for row in shown] == [f"### Question: {text}" for text in texts]
    assert [row["set"] for row in shown] == [text[:2000] for text in texts]


def test_names_are_shown_as_they_are(visit: Visit) -> None:
    """In tables and lists control characters stand as a mark, and spaces are one; a chart shortens what is long."""
    page = visit.page
    written = page.locator("#gaps li strong").all_text_contents()
    found = {_squeezed(text) for text in written}
    for text in hostile.PAYLOADS:
        assert _squeezed("".join("\ufffd" if c in "\x00\x01\x07\x1b\x7f" else c for c in text)) in found, text
    assert _squeezed(hostile.SURROGATE.replace("\ud83d", "?")) in found
    titles = " ".join(page.locator("#comparison tbody th").all_text_contents())
    for text in (hostile.PAYLOADS[0], hostile.PAYLOADS[11], hostile.PAYLOADS[35]):
        assert text in titles
    legend = " ".join(page.locator("#figure-benchmarks .legendtext").all_text_contents())
    for start in ("<script>window.pwned=1</script>", "{{ 7*7 }} {% for x", "<b>bold</b><br><a href="):
        assert start in legend


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_short_report_holds_no_markup(report: Path) -> None:
    from markdown_it import MarkdownIt

    text = report.with_name("report.md").read_text(encoding="utf-8")
    assert len(re.findall(r"window\.pwned", text)) > 40
    assert not [c for c in text if ord(c) < 32 and c not in "\n\t"]
    blocks = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    tokens = [token for block in blocks for token in (block, *(block.children or []))]
    # Ours are these, and within a summary stands text alone.
    ours = re.compile(r"<br>|</?sub>|</details>|<details><summary>(<b>[^<>]*</b>)?[^<>]*</summary>")
    html = {token.content.strip() for token in tokens if token.type.startswith("html")}
    assert "<br>" in html
    assert [content for content in html if not ours.fullmatch(content)] == []
    assert [token.attrs["href"] for token in tokens if token.type == "link_open"] == ["report.html"]
    assert not [token for token in tokens if token.type in ("image", "fence", "code_block")]
