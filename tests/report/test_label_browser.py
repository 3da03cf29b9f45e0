"""The page to label answers in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_run import write_run

from wpn_bench.analysis.label_sample import draw_sample
from wpn_bench.report.label_page import LabelServer
from wpn_bench.report.label_session import Session
from wpn_bench.runs.files import SAMPLES
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import read_labels

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ANSWERS = [
    '</script><img src=x onerror="window.pwned=1"><b>bold</b>',
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd. \u05d6\u05d4 \u05d8\u05e7\u05e1\u05d8 abc.",
    "",
    "long line " * 2000 + "unbroken" * 500,
    "<script>window.pwned=2</script>\n\n  indented\n{{ question }}",
    "\u202eturned round\x00\x1b[2J",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", n=30, tasks=())
    frame = pd.read_parquet(folder / SAMPLES)
    frame["response"] = [ANSWERS[k % len(ANSWERS)] for k in range(len(frame))]
    frame["score"] = np.where(frame["score"] >= 0.5, 0.5, 0.0) + np.random.default_rng(0).random(len(frame)) / 2
    frame.to_parquet(folder / SAMPLES)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[LabelServer]:
    session = Session(folder, draw_sample(Run.read(folder), 50), "1")
    with LabelServer(session, "Harmful?", lambda: "sensitivity  100 %") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


class Sitting:
    """A tab with the page."""

    def __init__(self, chromium: Any, server: LabelServer, **options: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = chromium.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.open(server)

    def open(self, server: LabelServer) -> None:
        self.page.goto(server.url)
        self.page.wait_for_selector("html[data-ready]")

    def press(self, key: str) -> None:
        """Press a key that labels, skips or takes back, and wait until it is done."""
        before = self.page.locator("#count").inner_text()
        self.page.keyboard.press(key)
        self.page.wait_for_function("before => document.querySelector('#count').innerText !== before", arg=before)

    @property
    def count(self) -> str:
        return str(self.page.locator("#count").inner_text())


@pytest.fixture(params=[1280, 400])
def sitting(request: pytest.FixtureRequest, chromium: Any, server: LabelServer) -> Iterator[Sitting]:
    sitting = Sitting(chromium, server, viewport={"width": request.param, "height": 800})
    yield sitting
    sitting.context.close()


def test_all_in_one_sitting_by_keys(sitting: Sitting, server: LabelServer, folder: Path) -> None:
    page = sitting.page
    total = server.session.show().total
    for k in range(total):
        shown = server.session.show()
        response = page.locator("#response")
        expected = shown.response.strip() or "(empty answer)"
        assert response.evaluate("node => node.textContent").strip() == expected.replace("\x00", "\x00")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert (
            page.locator("[data-say=harmless]").bounding_box()["y"] < 800
        )  # a long answer does not push the keys away
        sitting.press("12"[k % 2])
    assert sitting.count.startswith(f"{total} of {total}")
    assert page.locator("#end").is_visible()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, b").count() == 0
    page.keyboard.press("q")
    page.wait_for_selector("#closed:not([hidden])")
    assert page.locator("#summary").inner_text() == "sensitivity  100 %"
    assert sitting.complaints == []
    host = server.url.split("/")[2]
    assert {url.split("/")[2] for url in sitting.requests if not url.startswith("data:")} == {host}
    said = [line.label for line in read_labels(folder).lines]
    assert said == ["harmless" if k % 2 == 0 else "harmful" for k in range(total)]


def test_an_answer_that_reads_from_the_right_is_set_so(sitting: Sitting, server: LabelServer) -> None:
    while not server.session.show().response.startswith("\u05e9"):
        sitting.press("1")
    assert sitting.page.locator("#response").evaluate("node => node.matches(':dir(rtl)')")


def test_a_long_answer_scrolls_by_keys_and_the_next_begins_at_its_top(sitting: Sitting, server: LabelServer) -> None:
    while not server.session.show().response.startswith("long line"):
        sitting.press("1")
    sitting.page.keyboard.press("PageDown")
    sitting.page.wait_for_function("() => document.querySelector('#item').scrollTop > 100")
    sitting.press("1")
    assert sitting.page.evaluate("document.querySelector('#item').scrollTop") == 0


@pytest.fixture
def desk(chromium: Any, server: LabelServer) -> Iterator[Sitting]:
    desk = Sitting(chromium, server, viewport={"width": 1280, "height": 800})
    yield desk
    desk.context.close()


def test_keys_of_other_layouts_and_repeated_ones(desk: Sitting, folder: Path) -> None:
    page = desk.page
    fire = "o => document.dispatchEvent(new KeyboardEvent('keydown', {bubbles: true, cancelable: true, ...o}))"
    for ignored in (
        {"key": "1", "code": "Digit1", "repeat": True}, {"key": "1", "code": "Digit1", "ctrlKey": True},
        {"key": "s", "code": "KeyS", "metaKey": True}, {"key": "x", "code": "KeyX"}, {"key": "Enter", "code": "Enter"},
    ):  # fmt: skip
        page.evaluate(fire, ignored)
    page.wait_for_timeout(100)
    assert read_labels(folder).lines == ()
    # A French keyboard writes `&` with the key of the 1, a Russian one a Cyrillic letter with that of the S.
    for key, code, expected in (("&", "Digit1", "1 of"), ("\u044b", "KeyS", "1 skipped"), ("2", "Numpad2", "2 of")):
        page.evaluate(fire, {"key": key, "code": code})
        page.locator("#count", has_text=expected).wait_for()
    assert [line.label for line in read_labels(folder).lines] == ["harmless", "skipped", "harmful"]


def test_a_key_pressed_twice_labels_one_answer(desk: Sitting, folder: Path) -> None:
    desk.page.evaluate(
        "() => { for (const k of ['1', '2', '1']) document.dispatchEvent(new KeyboardEvent('keydown', {key: k})); }"
    )
    desk.page.locator("#count", has_text="1 of").wait_for()
    desk.page.wait_for_timeout(100)
    assert [line.label for line in read_labels(folder).lines] == ["harmless"]


def test_undo_refresh_and_a_second_tab(desk: Sitting, server: LabelServer, chromium: Any, folder: Path) -> None:
    first = server.session.show().key
    desk.press("2")
    desk.press("u")
    assert server.session.show().key == first
    desk.press("3")
    assert "1 undecided" in desk.count
    desk.page.reload()
    desk.page.wait_for_selector("html[data-ready]")
    assert desk.count.startswith("1 of")
    other = Sitting(chromium, server)
    other.press("1")
    # The first tab still shows the answer that the other one has labelled; coming back to it shows the next.
    desk.page.evaluate("window.dispatchEvent(new Event('focus'))")
    desk.page.locator("#count", has_text="2 of").wait_for()
    desk.press("1")
    assert desk.count.startswith("3 of")
    other.context.close()


def test_buttons_do_what_keys_do(desk: Sitting, folder: Path) -> None:
    page = desk.page
    assert page.locator("[data-do=undo]").is_disabled()
    for word, expected in (("harmful", "1 of"), ("skipped", "1 skipped")):
        page.locator(f"[data-say={word}]").click()
        page.locator("#count", has_text=expected).wait_for()
    page.keyboard.press("1")  # the focus is not on the button that was clicked
    page.locator("#count", has_text="2 of").wait_for()
    assert [line.label for line in read_labels(folder).lines] == ["harmful", "skipped", "harmless"]


def test_a_program_that_has_ended_is_said_so_and_no_label_pretended(desk: Sitting) -> None:
    desk.context.set_offline(True)
    desk.page.keyboard.press("1")
    desk.page.locator("#problem", has_text="does not answer").wait_for()
    assert desk.count.startswith("0 of")


def test_axe_finds_no_serious_fault(desk: Sitting) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for scheme in ("light", "dark"):
        desk.page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(desk.page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
