from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.core import registry
from wpn_bench.core.registry import Registry
from wpn_bench.jobs import stages
from wpn_bench.report import sections
from wpn_bench.report.sections import Section, contributed, plain_table
from wpn_bench.runs.finished import Run

PLUGIN = """\
from wpn_bench.jobs.stages import Stage
from wpn_bench.report.sections import Section

GOOD = Stage("section_plugin:run", 1, section="section_plugin:section")
BROKEN = Stage("section_plugin:run", 1, section="section_plugin:broken")
NONE = Stage("section_plugin:run", 1, section="section_plugin:none")
PLAIN = Stage("section_plugin:run", 1)


def run(ctx):
    pass


def section(view):
    return Section("Mine", note="told")


def broken(view):
    raise KeyError("a row")


def none(view):
    return None
"""
Found = Callable[..., list[Section]]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Found:
    """The sections of a run that had jobs of these stages, each installed as a plug-in."""

    def sections_of(manifest: dict[str, Any], **named: str) -> list[Section]:
        points = [EntryPoint(name, f"section_plugin:{record}", "wpn_bench.stages") for name, record in named.items()]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: points)
        installed: Registry[Any] = Registry("stage", {})
        monkeypatch.setattr(stages, "STAGES", installed)
        monkeypatch.setattr(sections, "STAGES", installed)
        return contributed(Run(tmp_path, {}, manifest))

    (tmp_path / "section_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "section_plugin", raising=False)
    return sections_of


def manifest(*names: str) -> dict[str, Any]:
    return {"stages": [{"stage": name} for name in names]}


def test_a_section_of_a_stage_that_ran(found: Found) -> None:
    assert found(manifest("mine"), mine="GOOD") == [Section("Mine", note="told", id="stage-mine")]


def test_a_stage_that_did_not_run_has_none(found: Found) -> None:
    assert found(manifest("other"), mine="GOOD") == []
    assert found({}, mine="GOOD") == []


def test_a_stage_without_a_section_and_one_with_nothing_to_show(found: Found) -> None:
    assert found(manifest("mine", "empty"), mine="PLAIN", empty="NONE") == []


@pytest.mark.parametrize(("record", "why"), [("BROKEN", "KeyError: 'a row'"), ("NOTHING", "cannot be loaded")])
def test_a_broken_plug_in_does_not_cost_the_report(found: Found, record: str, why: str) -> None:
    good, broken = found(manifest("mine", "bad"), mine="GOOD", bad=record)
    assert good.title == "Mine"
    assert (broken.title, broken.id) == ("bad", "stage-bad")
    assert why in broken.note


@pytest.mark.parametrize("listed", [None, "x", [1], [{"stage": 3}]])
def test_a_manifest_of_another_shape_has_no_sections(found: Found, listed: object) -> None:
    assert found({"stages": listed}, mine="GOOD") == []


def test_a_plain_table_has_holes() -> None:
    table = plain_table(["a", "b"], {"base": ["1", None]})
    (line,) = table.lines
    assert line.cells[0] is not None
    assert (line.name, line.cells[0].value, line.cells[1]) == ("base", "1", None)
