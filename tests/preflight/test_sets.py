from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wpn_bench import prompts
from wpn_bench.config import RunConfig, build, from_settings
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import UserError
from wpn_bench.pipeline import inputs
from wpn_bench.preflight.prefetch import hub_sources
from wpn_bench.preflight.sets import sets_of, split_set_name, task_names_of


def config(preset: str = "lab", **changes: Any) -> RunConfig:
    return from_settings(build(preset).model_dump() | changes)


def test_every_setting_that_names_a_set_is_in_the_list() -> None:
    found = sets_of(
        config(
            forget="lab_forget",
            in_domain=("one=lab_ood_games",),
            ood=("lab_ood_games",),
            benign=("lab_benign",),
            validation="lab_forget",
            retain="lab_retain",
            heldout="lab_heldout",
            tune=2,
            tune_benchmarks=(),
            tune_text="lab_retain",
        )
    )
    assert [(one.use, one.spec.name, one.spec.role, one.is_text) for one in found] == [
        ("forget", "lab_forget", "forget", False),
        ("in_domain", "one", "in_domain", False),
        ("ood", "lab_ood_games", "ood", False),
        ("benign", "lab_benign", "benign", False),
        ("validation", "lab_forget", "validation", False),
        ("tune_benign", "lab_benign_training", "benign", False),
        ("retain", "lab_retain", "retain", True),
        ("heldout", "lab_heldout", "heldout", True),
        ("tune_text", "lab_retain", "validation", True),
    ]


def test_what_the_run_does_not_read_is_not_in_the_list() -> None:
    uses = {one.use for one in sets_of(config(in_domain=(), validation=None, heldout=None, tune_text="lab_retain"))}
    assert uses == {"forget", "ood", "benign", "retain"}
    # Tuned on tasks, the run reads no text to tune on.
    tuned = config(tune=2, tune_text="lab_retain", tune_benchmarks=("lab_copa_validation",))
    assert "tune_text" not in {one.use for one in sets_of(tuned)}


def test_tasks_of_the_run() -> None:
    tuned = {"tune": 2, "tune_benchmarks": ("lab_copa_validation",)}
    names = task_names_of(config(benchmarks=("lab_piqa",), **tuned))
    assert (names.tested, names.tuned) == (("lab_piqa",), ("lab_copa_validation",))
    names = task_names_of(config(benchmarks=("lab_piqa",), stages=("train",), **tuned))
    assert (names.tested, names.tuned) == ((), ("lab_copa_validation",))
    assert task_names_of(config(benchmarks=("lab_piqa",), stages=("train",))).folders == ()


def test_an_own_name_of_a_set() -> None:
    assert split_set_name("mine=a=b.jsonl") == ("mine", "a=b.jsonl")
    assert split_set_name("lab_benign") == (None, "lab_benign")


def test_prefetch_fetches_the_hub_sets_of_the_list_once_each() -> None:
    paper = config("paper", ood=("advbench", "advbench_again=advbench"))
    hubs = [source.hub for source in hub_sources(paper)]
    assert set(hubs) == {one.spec.source.hub for one in sets_of(paper)} - {None}
    assert len(hub_sources(paper)) == len({(s.hub, s.config, s.revision) for s in hub_sources(paper)})


@pytest.mark.parametrize(
    "use", ["forget", "in_domain", "ood", "benign", "validation", "retain", "heldout", "tune_text", "tune_benign"]
)
def test_the_early_check_reads_each_local_file(tmp_path: Path, use: str) -> None:
    """A mistake in any file is an error before the model is looked for."""
    file = tmp_path / "broken.jsonl"
    file.write_text("{\n")
    value: Any = (str(file),) if use in ("in_domain", "ood", "benign") else str(file)
    wrong = config(**({"model": str(tmp_path), "tune": 1, "tune_benchmarks": ()} | {use: value}))
    with pytest.raises(UserError, match=r"broken\.jsonl line 1 is not valid JSON"):
        inputs.prepare(wrong, Reporter())


@pytest.mark.slow
def test_a_run_reads_the_sets_of_the_list_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("load_prompts", "load_texts"):
        load = getattr(prompts, name)
        monkeypatch.setattr(prompts, name, lambda spec, load=load: (read.append(spec.name), load(spec))[1])
    lab = config(tune=1, tune_benchmarks=(), tune_text="lab_heldout", heldout=None)
    inputs.prepare(lab, Reporter())
    assert sorted(read) == sorted(one.spec.name for one in sets_of(lab))
