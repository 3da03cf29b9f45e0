from __future__ import annotations

from pathlib import Path

import pytest

from wpn_bench.core import paths


def test_the_folders_exist() -> None:
    assert (paths.tasks_dir() / "presets" / "lab.yaml").is_file()
    assert (paths.reports_dir() / "templates").is_dir()


def test_an_installed_package_contains_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wpn_bench"
    (package / "_tasks").mkdir(parents=True)
    monkeypatch.setattr(paths, "_PACKAGE", package)
    assert paths.tasks_dir() == package / "_tasks"
    assert paths.reports_dir() == tmp_path / "reports"


def test_displayed_paths_never_contain_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.display_path(tmp_path / "data" / "mine.jsonl") == "data/mine.jsonl"
    assert paths.display_path("data/mine.jsonl") == "data/mine.jsonl"
    assert paths.display_path("/home/somebody/secret/mine.jsonl") == "mine.jsonl"
    assert paths.display_path(tmp_path.parent / "else.jsonl") == "else.jsonl"


def test_a_name_is_split_off_a_source_and_paths_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "date=2024.jsonl").write_text("x")
    assert paths.split_named("mine=a.jsonl") == ("mine", "a.jsonl")
    assert paths.split_named("mine=d/date=2024/a.jsonl") == ("mine", "d/date=2024/a.jsonl")
    assert paths.split_named("mine=date=2024.jsonl") == ("mine", "date=2024.jsonl")
    assert paths.split_named("date=2024.jsonl") == (None, "date=2024.jsonl")
    for whole in ("lab_benign", "d/date=2024/gone.jsonl", "~/date=2024/gone.jsonl", "/d/date=2024/gone.jsonl"):
        assert paths.split_named(whole) == (None, whole)
