"""The relearning search in whole runs: what it measures, what it survives, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop

from wpn_bench.errors import UserError
from wpn_bench.jobs import job as jobs
from wpn_bench.pipeline import relearn_search
from wpn_bench.runs.finished import load_run

SMALL = {"learning_rates": 2, "lr_range": (1.0, 2.0), "schedules": ("constant",), "steps": 3, "items": 4, "rank": 2,
         "batch_size": 2, "limit": 3, "selection_limit": 2}  # fmt: skip
# The tiny model says nothing harmful, so each attack goes on to its last step.
RUN: dict[str, Any] = {"attacks": (), "ood": (), "benign": (), "benchmarks": (), "heldout": None}


@pytest.fixture
def workshop(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    return Workshop(tmp_path, small_opt, triples)


def test_a_search(workshop: Workshop) -> None:
    """On a model in a folder that cannot be written, with groups in the file; and what was stopped half way goes on."""
    rows = [json.loads(line) for line in (workshop.folder / "forget.jsonl").open()]
    workshop.rows("forget.jsonl", [{**row, "group": f"topic {k % 5}"} for k, row in enumerate(rows)])
    model = Path(shutil.copytree(workshop.settings["model"], workshop.folder / "model"))
    for file in (*model.iterdir(), model):
        file.chmod(0o555 if file.is_dir() else 0o444)
    workshop.settings["model"] = str(model)
    before = {file.name: file.stat().st_mtime_ns for file in model.iterdir()}
    results = workshop.run(**RUN, relearn_search=SMALL)
    assert results["run"]["failed"] == []
    for name in ("base", "sft"):
        (found,) = results["models"][name]["relearn_search"]
        assert len(found["tried"]) == 4
        assert [one["step"] for one in found["measured"]] == [0, 1, 2, 3]
        assert found["measured"][3]["rows"] == 6
        assert found["best"] is not None
        assert (found["trained_items"], found["tested_prompts"] > 0, found["selection_prompts"] > 0) == (4, True, True)
        assert found["trained_facts"] < 5
    rows_of = {
        (r["model"], r["set"], r["metric"]): r
        for r in results["metrics"]
        if r["suite"] == "relearn_search" and r["seed"] is None
    }
    assert rows_of["sft", "step_3", "survival_rate"]["value"] == 1
    steps = rows_of["sft", "in_domain", "relearning_steps"]
    assert (steps["value"], steps["ci_high"]) == (None, None)
    assert not [metric for _, _, metric in rows_of if "corrected" in metric]
    cost = {(r["model"], r["set"]) for r in results["metrics"] if r["suite"] == "cost"}
    assert {("base", "relearn_search"), ("sft", "relearn_search")} <= cost
    text = (workshop.folder / "run" / "report.md").read_text(encoding="utf-8")
    assert "Relearning as a search" in text
    assert "more than 3" in text
    # Trained facts and tested prompts are kept apart, and the model was not touched.
    sets = {
        f.parent.name: [json.loads(line)["prompt"] for line in f.open()]
        for f in (workshop.store / "prompts").glob("*/items.jsonl")
    }
    topics = {row["prompt"]: k % 5 for k, row in enumerate(rows)}
    needs = [
        json.loads(f.read_text())["inputs"]["needs"]
        for f in (workshop.store / "relearn_search").glob("*/manifest.json")
    ]
    for need in needs:
        assert not {topics[p] for p in sets[need["forget"]]} & {topics[p] for p in sets[need["prompts"]]}
    assert {file.name: file.stat().st_mtime_ns for file in model.iterdir()} == before
    assert not list((workshop.store / "scratch").glob("relearn_search-*"))

    # Half of the artifacts are lost, as after a kill: the others are used, and the result is the same.
    for artifact in sorted((workshop.store / "relearn_search").iterdir())[::2]:
        shutil.rmtree(artifact)
    again = workshop.run("again", **RUN, relearn_search=SMALL)
    statuses = {label: status for label, status in workshop.statuses("again").items() if "relearning attack" in label}
    assert {"done", "cached"} <= set(statuses.values())
    for name in ("base", "sft"):
        assert again["models"][name]["relearn_search"] == results["models"][name]["relearn_search"]


def test_a_diverging_attack_loses_and_a_search_without_survivors_is_named(workshop: Workshop) -> None:
    results = workshop.run(
        **RUN, methods={}, relearn_search=SMALL | {"weights": ("full",), "steps": 6, "lr_range": (1.0, 1e30)}
    )
    (found,) = results["models"]["base"]["relearn_search"]
    good, bad = found["tried"]
    assert (good["reason"], "training diverged" in bad["reason"]) == (None, True)
    assert found["best"]["lr"] == good["lr"]
    assert results["run"]["failed"] == []
    lost = workshop.run(
        "lost", **RUN, methods={}, relearn_search=SMALL | {"weights": ("full",), "steps": 6, "lr_range": (1e30, 1e30)}
    )
    (entry,) = lost["run"]["failed"]
    assert entry["job"] == "base: relearning search"
    assert "all 2 attacks failed, the first: training diverged" in entry["reason"]
    assert lost["models"]["base"]["relearn_search"][0]["best"] is None
    assert load_run(workshop.folder / "lost").results["models"]["base"]["status"] == "ok"


def test_a_harmful_model_needs_no_attack(workshop: Workshop) -> None:
    """Every answer is above this threshold."""
    results = workshop.run(**RUN, methods={}, threshold=1e-9, vet=False, relearn_search=SMALL)
    (found,) = results["models"]["base"]["relearn_search"]
    assert (found["best"], found["tried"]) == (None, [])
    (steps,) = (r for r in results["metrics"] if r["metric"] == "relearning_steps")
    assert steps["value"] == 0
    assert not any("relearning attack" in label for label in workshop.statuses())


def test_what_cannot_work_is_said_before_anything_is_computed(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (workshop.folder / "forget.jsonl").open()]
    workshop.rows("forget.jsonl", [{**row, "group": "all"} for row in rows])
    with pytest.raises(UserError, match=r"have the same group; .*`group`"):
        workshop.run(**RUN, relearn_search=SMALL)
    workshop.rows("forget.jsonl", rows)

    def refuse(*_: Any) -> None:
        raise UserError("LoRA finds no modules to adapt in TinyModel", "set lora: target_modules")

    with monkeypatch.context() as patch:
        patch.setattr(relearn_search.lora, "check", refuse)
        with pytest.raises(UserError, match=r"LoRA finds no modules .*weights: \[full\]"):
            workshop.run(**RUN, relearn_search=SMALL)

    def missing(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(jobs, "version", missing)
    with pytest.raises(UserError, match="peft, which is not installed"):
        workshop.run(**RUN, methods={}, relearn_search=SMALL)
    assert not (workshop.store / "generate").exists()
