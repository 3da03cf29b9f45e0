"""Fixtures of the report tests: a made-up run folder, whole or with parts taken out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .browser import FLAGS
from .fake_run import results as made_up_results
from .fake_run import write_run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on the PATH: the report was not opened in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def results() -> dict[str, Any]:
    return made_up_results()


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run_dir(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the whole run that a test may change."""
    # Another test may have written reports beside the run.
    return Path(shutil.copytree(whole_run, tmp_path / "run", ignore=shutil.ignore_patterns("report.*")))


@pytest.fixture
def without() -> Callable[..., dict[str, Any]]:
    """results -> the same without some models (`models=...`) or suites (`suites=...`)."""

    def cut(results: dict[str, Any], models: tuple[str, ...] = (), suites: tuple[str, ...] = ()) -> dict[str, Any]:
        return results | {
            "models": {name: model for name, model in results["models"].items() if name not in models},
            "metrics": [row for row in results["metrics"] if row["model"] not in models and row["suite"] not in suites],
        }

    return cut
