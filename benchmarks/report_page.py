"""Measure how long Chromium takes to open and filter the report of a run with many samples.

    python benchmarks/report_page.py                        # 4,000 prompts, answered by five models
    python benchmarks/report_page.py --prompts 20000 --models 3

The runs are synthetic (tests/report/fake_run.py), so the script needs a git checkout and the `test` extra. "open" is the time until
the first page of samples is displayed. "filter" is the time from the change of a control until the new layout, the slowest of each
kind.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FILTERS = {
    "set": """(k) => { const s = document.getElementById("filter-set"); s.value = String(k % s.options.length - 1); return s; }""",
    "flip": """(k) => { const s = document.getElementById("filter-flip"); s.selectedIndex = k % s.options.length; return s; }""",
    "model": """(k) => { const s = document.getElementById("filter-model"); s.selectedIndex = k % s.options.length; return s; }""",
    "judge": """(k) => { const s = document.getElementById("filter-judge"); s.selectedIndex = k % s.options.length; return s; }""",
}
TIMED = """([change, k]) => { const control = eval(change)(k); const t = performance.now();
  control.dispatchEvent(new Event("change")); document.body.getBoundingClientRect(); return performance.now() - t; }"""
SEARCH_DELAY = 150  # milliseconds that the page waits for the next letter


def main() -> None:
    """Print one line for the page and one for each filter."""
    from playwright.sync_api import sync_playwright

    from tests.report.browser import FLAGS
    from tests.report.fake_run import SETS, results, samples, write_run
    from wpn_bench.report import render

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4_000)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()

    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", results(), per_set=5)
        models = ("base", "wpn", "sft", "ga", "ga_answer")[: given.models]
        rows = samples(-(-given.prompts // sum(map(len, SETS.values()))))
        frame = pd.DataFrame([row for row in rows if row["model"] in models])
        frame = frame.astype({"seed": "Int64", "harmless": "boolean", "coherent": "boolean"})
        frame.to_parquet(run / "samples.parquet", index=False)
        began = time.perf_counter()
        page_file = render(run, ("html",))[0]
        took, size = time.perf_counter() - began, page_file.stat().st_size / 2**20
        executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=executable, args=list(FLAGS))
            opened = []
            for _ in range(given.repeats):
                page = browser.new_context(
                    offline=True, viewport={"width": 1280, "height": 900}, bypass_csp=True
                ).new_page()
                began = time.perf_counter()
                page.goto(page_file.as_uri())
                page.wait_for_selector(".sample")
                opened.append(time.perf_counter() - began)
            count = page.locator("#count").inner_text()
            print(f"{len(frame):,} answers; page {size:.1f} MiB, made in {took:.1f} s, holds {count}")
            print(f"open: median {sorted(opened)[len(opened) // 2]:.2f} s, slowest {max(opened):.2f} s")
            for name, change in FILTERS.items():
                slowest = max(page.evaluate(TIMED, [change, k]) for k in range(2 * given.repeats))
                print(f"filter by {name}: slowest {slowest:.0f} ms")
                page.evaluate(TIMED, [change, 0])
            page.evaluate("document.getElementById('filter-set').value = ''")
            searched = []
            for text in ("the", "zzz", "people of", "e")[: given.repeats]:
                began = time.perf_counter()
                page.evaluate("document.getElementById('count').textContent = ''")
                page.locator("#filter-text").fill(text)
                page.wait_for_function("document.getElementById('count').textContent !== ''")
                searched.append(1000 * (time.perf_counter() - began) - SEARCH_DELAY)
            print(f"search: slowest {max(searched):.0f} ms after the pause of {SEARCH_DELAY} ms")
            browser.close()


if __name__ == "__main__":
    main()
