"""Take the screenshots for the documentation from a run's report: `nox -s pictures`, or `python docs/pictures.py RUN`.

`images/made_from.json` records the code of the report; a test fails if it has changed since.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
RECORD = IMAGES / "made_from.json"
# Name -> (selector of the part of the page, or "" for the top; width of the window in pixels)
PICTURES = {
    "report": ("", 1280),
    "generalisation": ("#harm", 1280),
    "samples": ("#samples", 1280),
    "phone": ("", 400),
}
HEIGHT = 1500  # of a screenshot of the top of the page
PART = 1200  # maximum height of a screenshot of one part
EDGE = 24


def digest() -> str:
    """Return the SHA-256 over all code that decides the appearance of a report."""
    found = hashlib.sha256()
    parts = [*(ROOT / "reports" / "templates").glob("report.*"), *(ROOT / "wpn_bench" / "report").glob("*.py")]
    for part in sorted(parts):
        found.update(part.name.encode() + b"\0" + part.read_bytes() + b"\0")
    return found.hexdigest()


def main() -> None:
    """Take all screenshots."""
    from playwright.sync_api import sync_playwright

    from wpn_bench.report import render

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        (file,) = render(Path(sys.argv[1]), ("html",), Path(folder))
        browser = p.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for name, (part, width) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme="light")
            page.goto(file.as_uri())
            page.wait_for_selector("#samples .sample")
            page.wait_for_timeout(1_500)  # charts are drawn one after another
            target = IMAGES / f"{name}.png"
            if part:
                box = page.locator(part).bounding_box()
                assert box is not None
                clip = {
                    "x": box["x"] - EDGE,
                    "y": box["y"] - EDGE,
                    "width": box["width"] + 2 * EDGE,
                    "height": min(box["height"], PART) + EDGE,
                }
                page.screenshot(path=target, full_page=True, clip=clip)
            else:
                page.screenshot(path=target)
            print(target.relative_to(ROOT))
        browser.close()
    RECORD.write_text(json.dumps({"digest": digest(), "pictures": list(PICTURES)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
