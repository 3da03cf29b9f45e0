"""Were two runs asked the same? Every difference is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_run import write_run

from wpn_bench.analysis import baselines
from wpn_bench.analysis.comparability import Protocol, differences, protocol_of
from wpn_bench.errors import UserError
from wpn_bench.runs.finished import Run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"run": {"judge": "detoxify:original"}},
            "the judge differs (run: 'detoxify:lab'; baseline: 'detoxify:original')",
        ),
        ({"run": {"threshold": 0.4}}, "the threshold differs"),
        ({"run": {"template": "{prompt}"}}, "the template differs"),
        ({"run": {"decoding": {"max_new_tokens": 41}}}, "the decoding differs: max_new_tokens (run: 40; baseline: 41)"),
        ({"manifest": {"judge": {"name": "detoxify:lab", "digest": "other"}}}, "the judge digest differs"),
        ({"n": 39}, "prompt set in_domain: another one"),
        ({"tasks": ("copa", "piqa")}, "task lambada: only in run"),
        ({"tasks": ("copa", "piqa", "lambada", "more")}, "task more: only in baseline"),
        ({"suites": {"harmless": ("in_domain",)}}, "prompt set notes: only in run"),
    ],
)
@pytest.mark.slow
def test_differences_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    ours = baselines.of_run(write_run(tmp_path / "a", n=40))
    theirs = baselines.of_run(write_run(tmp_path / "b", **{"n": 40, **changes}))
    assert any(said in line for line in differences(ours.protocol, theirs.protocol).lines())
    assert not differences(ours.protocol, ours.protocol)


def test_another_detector_of_refusals_is_a_difference_of_their_rate_alone(tmp_path: Path) -> None:
    found = [{}, {"detector": "classifier", "digest": "aa" * 32}, {"detector": "classifier", "digest": "bb" * 32}]
    runs = [{"refusals": one} if one else {} for one in found]
    wording, first, second = (
        baselines.of_run(write_run(tmp_path / str(k), n=9, run=run)).protocol for k, run in enumerate(runs)
    )
    apart = differences(wording, first)
    assert apart.lines() == []
    said = "refusals were detected in different ways (run: 'wording'; baseline: 'classifier aaaaaaaaaaaa')"
    assert apart.metrics == {"refusal_rate": said, "answered_coherent_harmless_rate": said}
    assert list(differences(first, second).metrics) == ["refusal_rate", "answered_coherent_harmless_rate"]
    assert differences(first, first).metrics == {}
    # A baseline from before there was a classifier names no detector.
    old = Protocol({k: v for k, v in wording.settings.items() if k != "refusals"}, wording.sets)
    assert differences(wording, old).metrics == {}


def test_the_batch_size_is_no_difference(tmp_path: Path) -> None:
    decoding = {"max_new_tokens": 40, "batch_size": 1}
    ours = baselines.of_run(write_run(tmp_path / "a", n=9))
    theirs = baselines.of_run(write_run(tmp_path / "b", n=9, run={"decoding": decoding}))
    assert not differences(ours.protocol, theirs.protocol)


def test_another_revision_of_the_data_is_named(tmp_path: Path) -> None:
    tasks = {"copa": {"task": "copa", "dataset": "super_glue", "revision": "v1", "digest": "1"}}
    other = {"copa": {"task": "copa", "dataset": "super_glue", "revision": "v2", "digest": "2"}}
    sides = [
        baselines.of_run(write_run(tmp_path / name, n=9, tasks=("copa",), suites={}, manifest={"tasks": told}))
        for name, told in (("a", tasks), ("b", other))
    ]
    assert differences(sides[0].protocol, sides[1].protocol).lines() == [
        "task copa: another one: revision (run: 'v1'; baseline: 'v2')"
    ]


def searched(folder: Path, config: dict[str, Any], n: int = 9) -> Run:
    """A run with an attack that no digest describes."""
    return Run.read(write_run(folder, n=n, suites={"attack": ("gcg",)}, manifest={"prompt_sets": {}, "config": config}))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"gradient_attacks": {"gcg": {"steps": 16}}}, None),
        ({"gradient_attacks": {"gcg": {"steps": 16}, "soft_prompt": {}}}, None),
        ({"gradient_attacks": {"gcg": {"steps": 500}}}, "another one: its definition or its data changed"),
        ({"quantise": ["gcg"]}, "another one: its definition or its data changed"),
        ({}, "the manifest of baseline does not say what it is"),
    ],
)
def test_a_search_is_the_same_with_the_same_options(tmp_path: Path, config: dict[str, Any], reason: str | None) -> None:
    ours = protocol_of(searched(tmp_path / "a", {"gradient_attacks": {"gcg": {"steps": 16}}}), ["base"])
    theirs = protocol_of(searched(tmp_path / "b", config), ["base"])
    assert differences(ours, theirs).sets.get(("attack", "gcg")) == reason


def test_a_search_on_fewer_prompts_is_another_question(tmp_path: Path) -> None:
    config = {"gradient_attacks": {"gcg": {}}}
    sides = [protocol_of(searched(tmp_path / str(n), config, n), ["base"]) for n in (9, 8)]
    assert differences(*sides).sets[("attack", "gcg")] == "other items (run: 9; baseline: 8)"


def test_a_prompt_set_that_the_manifest_does_not_describe_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say which prompt set in_domain is"):
        baselines.of_run(write_run(tmp_path / "run", n=9, manifest={"prompt_sets": {}}))


def test_models_that_were_asked_other_prompts_are_refused(tmp_path: Path) -> None:
    import pandas as pd

    run = write_run(tmp_path / "run", n=9)
    samples = pd.read_parquet(run / "samples.parquet")
    samples[(samples["model"] != "wpn") | (samples["item_id"] != samples["item_id"].iloc[0])].to_parquet(
        run / "samples.parquet"
    )
    with pytest.raises(UserError, match="not all models were measured on the same prompts of"):
        protocol_of(Run.read(run), ["base", "wpn"])
    assert protocol_of(Run.read(run), ["base"]).sets
