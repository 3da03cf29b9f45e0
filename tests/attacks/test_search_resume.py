"""A search that was killed goes on where it stood, to the same end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.attacks.gcg import run_gcg_stage
from wpn_bench.attacks.search import SEARCH
from wpn_bench.attacks.soft_prompt import run_soft_prompt_stage
from wpn_bench.attacks.target_loss import TargetLoss
from wpn_bench.jobs import journal
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.journal import Journal, use_journal

from .searching import ITEMS, TEMPLATE, stage_context

GCG = {"steps": 6, "candidates": 8, "topk": 8, "suffix_tokens": 4, "target_tokens": 4}
SOFT = {"steps": 9, "suffix_tokens": 4, "target_tokens": 4}
STAGES = [
    pytest.param(run_gcg_stage, GCG, id="gcg"),
    pytest.param(run_gcg_stage, GCG | {"universal": True, "progressive": True, "compare_on": 1}, id="gcg-universal"),
    pytest.param(run_soft_prompt_stage, SOFT, id="soft_prompt"),
    pytest.param(run_soft_prompt_stage, SOFT | {"universal": True}, id="soft_prompt-universal"),
]


class Killed(BaseException):
    """Nobody catches it."""


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SYNC_SECONDS", -1.0)
    return


def left(ctx: StageContext) -> dict[str, Any]:
    """What a stage wrote, but for how long it took."""
    files = {p.name: p.read_text() for p in ctx.out.iterdir()}
    found = json.loads(files.pop(SEARCH))
    for search in found["searches"]:
        del search["seconds"]
    return {**files, SEARCH: found}


@pytest.mark.parametrize(("stage", "config"), STAGES)
@pytest.mark.slow
def test_it_goes_on_where_it_stood(
    stage: Any, config: dict[str, Any], small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"config": config, "template": TEMPLATE.value, "dtype": "float32", "decoding": {"max_new_tokens": 4}}
    ctx = stage_context(tmp_path, params, small_opt, prompts=ITEMS)
    stage(ctx)
    whole = left(ctx)
    passes: list[int] = []
    loss_and_gradient = TargetLoss.loss_and_gradient
    monkeypatch.setattr(
        TargetLoss, "loss_and_gradient", lambda *args, **rest: passes.append(1) or loss_and_gradient(*args, **rest)
    )
    stage(replace(ctx, out=stage_context(tmp_path, params, small_opt, prompts=ITEMS).out))
    uninterrupted, kills = len(passes), 0
    passes.clear()
    while True:

        def advance(n: int, before: int = len(passes)) -> None:
            if len(passes) - before > 3:
                raise Killed

        again = stage_context(tmp_path, params, small_opt, prompts=ITEMS)
        again = replace(again, progress=lambda total, unit, advance=advance: advance)
        try:
            with use_journal(Journal(tmp_path / "journal")):
                stage(again)
        except Killed:
            kills += 1
            assert kills < 40
            continue
        break
    assert kills >= 2
    assert left(again) == whole
    # Each attempt may look once more at where it stood, and at a search's beginning or end.
    assert len(passes) <= uninterrupted + 3 * (kills + 1)
