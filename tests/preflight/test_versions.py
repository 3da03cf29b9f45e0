"""Declared versions are tested versions, and a run says when it uses others."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from wpn_bench.preflight import versions
from wpn_bench.preflight.versions import LIBRARIES, normal_name, notes_on_versions, pinned_versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_lowest_declared_version_is_the_tested_minor_version(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {normal_name(r.name): r.specifier for r in map(Requirement, project["dependencies"])}[name]
    pin = pinned_versions()[name]
    major, minor = pin.split(".")[:2]
    assert declared.contains(pin)
    assert not declared.contains(f"{major}.{int(minor) - 1}.99")


@pytest.mark.parametrize(
    ("installed", "noted"), [("5.22.0", True), ("5.24.1", True), ("6.0.0.dev0", True), ("5.23.9+local", False)]
)
def test_another_minor_version_is_noted(installed: str, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = pinned_versions() | {"transformers": "5.23.0"}
    monkeypatch.setattr(versions, "pinned_versions", lambda: pins)
    monkeypatch.setattr(versions, "version", lambda name: installed if name == "transformers" else pins[name])
    notes = notes_on_versions()
    assert bool(notes) is noted
    if noted:
        assert notes[0].endswith(f"transformers {installed} (tested: 5.23.0)")


def test_these_versions_are_the_tested_ones() -> None:
    assert notes_on_versions() == []


def test_without_the_list_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "pinned_versions", dict)
    assert notes_on_versions() == []
