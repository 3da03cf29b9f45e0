"""Stages that plan their own measurements: what a broken plug-in costs, and a stage without rows."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wpn_bench.core import registry
from wpn_bench.core.registry import Registry
from wpn_bench.engine.generation import Decoding
from wpn_bench.errors import UserError
from wpn_bench.jobs import stages
from wpn_bench.jobs.job import External, Outcome
from wpn_bench.jobs.stages import Stage
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline.plan import Plan, Target
from wpn_bench.pipeline.planner import Planner
from wpn_bench.pipeline.results import CompletedRun, rows_of_stages
from wpn_bench.prompts import FormatTemplate
from wpn_bench.runs.files import Row

PLUGIN = """\
from wpn_bench.jobs.planning import PlannedMeasurement
from wpn_bench.jobs.stages import Stage
from wpn_bench.runs.files import Row


def stage(**functions):
    return Stage("measuring_plugin:run", 1, part="harmless", **{k: f"measuring_plugin:{v}" for k, v in functions.items()})


def run(ctx):
    pass


def plan(model):
    return [PlannedMeasurement("mine", "all", {"dtype": model.dtype}, {"model": model.artifact}, "measure")]


def no_plan(model):
    raise KeyError("sets")


def rows(found):
    return [Row(m.model, m.seed, m.suite, m.set, "words", 2.0, 1) for m in found]


def no_rows(found):
    raise ZeroDivisionError("no responses")


def bad_rows(found):
    return [Row("base", None, "No Such Suite!", "all", "words", 2.0, 1)]


GOOD = stage(plan="plan", rows="rows")
WITHOUT_ROWS = stage(plan="plan")
NO_PLAN = stage(plan="no_plan")
NO_ROWS = stage(plan="plan", rows="no_rows")
BAD_ROWS = stage(plan="plan", rows="bad_rows")
"""


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = {"good": "GOOD", "without_rows": "WITHOUT_ROWS", "no_plan": "NO_PLAN"}
    records |= {"no_rows": "NO_ROWS", "bad_rows": "BAD_ROWS"}
    points = [EntryPoint(name, f"measuring_plugin:{record}", "wpn_bench.stages") for name, record in records.items()]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points)
    monkeypatch.setattr(stages, "STAGES", Registry("stage", {}))
    (tmp_path / "measuring_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "measuring_plugin", raising=False)


def planned(tmp_path: Path, *names: str) -> Plan:
    config = SimpleNamespace(
        dtype="float32",
        decoding=Decoding(),
        offload="none",
        judge="refusal",
        threshold_of=lambda judge: 0.5,
        relevance=False,
        prefilling=None,
        sampling=None,
        best_of_n=None,
        internals=None,
        pair=None,
        tap=None,
        threshold=0.5,
    )
    model = SimpleNamespace(path=tmp_path, digest="base", seen={})
    planner = Planner(
        cast(Any, config),
        cast(
            Any,
            SimpleNamespace(
                device="cpu",
                template=FormatTemplate("{prompt}"),
                candidates=(),
                model=model,
                attacked=None,
                attacker=None,
            ),
        ),
        Store(tmp_path / "store"),
    )
    plan = Plan()
    for name in names:
        planner.measure_by(name, plan, Target("base", None, External(tmp_path, "digest"), "base"))
    return plan


def rows_and_failures(tmp_path: Path, *names: str) -> tuple[list[Row], list[dict[str, str]]]:
    plan = planned(tmp_path, *names)
    outcomes = {job.digest: Outcome(job, "done", 0.0, tmp_path) for job in plan.jobs}
    return rows_of_stages(CompletedRun(*cast(Any, (None, None, plan, outcomes, None, None, None))))


def test_a_stage_plans_a_job_and_adds_rows(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "good").jobs
    assert (job.stage, job.label, job.params) == ("good", "base: measure", {"dtype": "float32"})
    assert rows_and_failures(tmp_path, "good") == ([Row("base", None, "mine", "all", "words", 2.0, 1)], [])


def test_a_stage_without_rows_adds_none(tmp_path: Path) -> None:
    assert rows_and_failures(tmp_path, "without_rows") == ([], [])


def test_a_plug_in_that_cannot_be_planned_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the plug-in's stage 'no_plan' cannot be planned .KeyError: 'sets'.; fix or"):
        planned(tmp_path, "no_plan")


@pytest.mark.parametrize(("name", "why"), [("no_rows", "ZeroDivisionError: no responses"), ("bad_rows", "No Such")])
def test_rows_that_cannot_be_made_do_not_cost_the_others(tmp_path: Path, name: str, why: str) -> None:
    rows, (failed,) = rows_and_failures(tmp_path, name, "good")
    assert [row.suite for row in rows] == ["mine"]
    assert failed["job"] == f"rows of the stage {name}"
    assert why in failed["reason"]


def test_a_plan_needs_a_part_of_the_run() -> None:
    with pytest.raises(ValueError, match="needs a part of the run: harmless, attack, benchmarks"):
        Stage("a:b", 1, plan="a:plan")
