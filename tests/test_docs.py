"""The documentation: the site builds without a warning, their Python runs, their pictures are current.

Their commands: tests/test_documented_commands.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented import PAGES, ROOT
from made_run import write_run


def python_of(page: Path) -> str:
    """All Python of a page, which goes on from block to block; not what the reader's own files are put into."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return "\n".join(block for block in blocks if "DIR" not in block)


PYTHON = [(page.name, code) for page in PAGES if (code := python_of(page))]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
@pytest.mark.slow
def test_python_in_the_pages_runs(page: str, code: str, tmp_path: Path) -> None:
    code = re.sub(r'"runs/[^"]*"', '"runs/first"', code)
    write_run(tmp_path / "runs" / "first", n=400)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()
    assert "Unlikelihood training" in (tmp_path / "site" / "extending" / "index.html").read_text()


def test_the_pictures_are_of_the_report_as_it_is() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import pictures
    finally:
        sys.path.pop(0)
    made = json.loads(pictures.RECORD.read_text())
    assert made["digest"] == pictures.digest(), "the report has changed: make its pictures again with `nox -s pictures`"
    assert made["pictures"] == list(pictures.PICTURES)
    shown = {name for page in PAGES for name in re.findall(r"images/([\w-]+)\.png", page.read_text())}
    assert shown == set(pictures.PICTURES)
    for name in pictures.PICTURES:
        assert (pictures.IMAGES / f"{name}.png").stat().st_size < 400_000


def test_the_glossary_is_short_and_in_order() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M)[1:]
    terms = [term for term, _ in rows]
    assert 30 <= len(terms) <= 40
    assert terms == sorted(terms, key=str.casefold)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).exists(), link
