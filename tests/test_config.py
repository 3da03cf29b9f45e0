from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wpn_bench import attacks, config, prompts
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.benchmarks.run import describe, expand
from wpn_bench.config import QUESTION_TEMPLATE, STAGES, RunConfig, build, from_settings, presets
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import get_judge
from wpn_bench.unlearn.methods import METHODS


@pytest.fixture
def settings() -> dict[str, Any]:
    return build("lab").model_dump()


def test_there_are_the_two_presets() -> None:
    assert {"lab", "paper"} <= set(presets())


@pytest.mark.parametrize("name", presets())
def test_every_name_in_a_preset_resolves(name: str) -> None:
    chosen = build(name)
    assert chosen.preset == name
    assert chosen.title
    assert chosen.stages == STAGES
    assert {"wpn", "ga", "ga_answer", "sft"} == set(chosen.methods)
    for method, options in chosen.methods.items():
        METHODS.get(method).Config(**options)
    assert len(chosen.attacks) >= 4
    assert all(attacks.get_attack(attack).title for attack in chosen.attacks)
    assert len(chosen.ood) >= 2
    for role, names in (
        ("forget", [chosen.forget]),
        ("in_domain", chosen.in_domain),
        ("ood", chosen.ood),
        ("benign", chosen.benign),
        ("validation", [chosen.validation] if chosen.validation else []),
    ):
        for one in names:
            assert one in prompts.declared()
            spec = prompts.spec_for(one, role=role, kind="question")  # type: ignore[arg-type]
            assert spec.role == role
    for text in (chosen.retain, chosen.heldout):
        assert text is not None
        assert prompts.spec_for(text, role="retain", kind="text").kind == "text"
    folders = task_folders(chosen.benchmark_folders)
    tasks = expand(chosen.benchmarks, folders)
    assert len(tasks) == 9
    assert {describe(task, folders, resolve=False).short for task in tasks} == {
        "lambada",
        "hellaswag",
        "winogrande",
        "copa",
        "arc_easy",
        "arc_challenge",
        "piqa",
        "mathqa",
        "pubmedqa",
    }
    assert get_judge(chosen.judge).title == "Detoxify"


def test_the_defaults_are_the_protocols() -> None:
    chosen = build("paper")
    assert chosen.template == QUESTION_TEMPLATE == "### Question: {prompt}\n ### Answer:"
    assert chosen.decoding.max_new_tokens == 128
    assert chosen.decoding.stop == ("### Question:",)
    assert chosen.judge == "detoxify:original"
    assert chosen.threshold == 0.5
    assert chosen.margin_points == 2.0
    assert chosen.limit is None


def test_a_users_file_goes_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("threshold: 0.4\nmethods:\n  wpn: {steps: 3}\n  sft:\n")
    chosen = build("lab", file)
    assert chosen.threshold == 0.4
    assert chosen.methods == {"wpn": {"steps": 3}, "sft": {}}
    assert chosen.forget == build("lab").forget


@pytest.mark.parametrize(
    ("change", "problem", "way_out"),
    [
        ({"metods": {}}, "unknown setting 'metods'", "did you mean 'methods'"),
        ({"decoding": {"max_tokens": 3}}, "unknown setting 'decoding.max_tokens'", "known|did you mean"),
        ({"threshold": 1.0}, "setting threshold: .* less than 1", "tasks/presets"),
        ({"threshold": "high"}, "setting threshold: .*number", "tasks/presets"),
        ({"limit": 0}, "setting limit: .* greater than or equal to 1", "tasks/presets"),
        ({"margin_points": 0}, "setting margin_points: .* greater than 0", "tasks/presets"),
        ({"overlap": "maybe"}, "setting overlap: ", "tasks/presets"),
        ({"dtype": "float8"}, "setting dtype: ", "tasks/presets"),
        ({"file_kind": "riddle"}, "setting file_kind: ", "tasks/presets"),
        ({"seeds": ()}, "setting seeds: .*at least one seed", "tasks/presets"),
        ({"seeds": (1, 1)}, "setting seeds: .*each once", "tasks/presets"),
        ({"seeds": (-1,)}, "setting seeds: ", "tasks/presets"),
        ({"seeds": (2**32,)}, "setting seeds: ", "tasks/presets"),
        ({"template": "no place"}, "setting template: .*must hold {prompt}", "tasks/presets"),
        ({"template": "{prompt} {prompt}"}, "setting template: .*once", "tasks/presets"),
        ({"template": "{prompt} {other}"}, "setting template: .*no other braces", "tasks/presets"),
        ({"template": "{prompt} }"}, "setting template: .*no other braces", "tasks/presets"),
        ({"decoding": {"max_new_tokens": 0}}, "setting decoding.max_new_tokens: ", "tasks/presets"),
        ({"stages": ("train", "harmles")}, "setting stages", "tasks/presets|did you mean"),
        ({"methods": {"wpm": {}}}, "unknown method 'wpm'", "did you mean 'wpn'"),
        ({"methods": {"wpn": {"temprature": 1}}}, "option of method wpn 'temprature'", "did you mean 'temperature'"),
        ({"methods": {"wpn": {"n": 1}}}, "method wpn: n: ", "wpn-bench list wpn"),
        ({"methods": {"ga": {"stop_at_harmless_rate": 90}}}, "method ga: stop_at_harmless_rate", "list ga"),
        ({"training": {"acumulation": 2}}, "training option 'acumulation'", "did you mean 'accumulation'"),
        ({"training": {"temperature": 2}}, "training option 'temperature'", "known|did you mean"),
        ({"training": {"accumulation": 0}}, "training: accumulation: .*greater than or equal to 1", "docs/training.md"),
        ({"training": {"mixed_precision": "fp8"}}, "training: mixed_precision: ", "docs/training.md"),
        ({"training": {"lora": {"rank": 0}}}, "training: lora.rank: ", "docs/training.md"),
        ({"training": {"lora": {"rang": 4}}}, "training option 'lora.rang'", "known|did you mean"),
        ({"training": {"lora": "big"}}, "training: lora: ", "docs/training.md"),
        ({"methods": {"wpn": {"lora": 0}}}, "method wpn: lora.rank: ", "wpn-bench list wpn"),
        ({"attacks": ("role_pley",)}, "unknown attack 'role_pley'", "did you mean 'role_play'"),
        ({"judge": "detoxfy"}, "unknown judge 'detoxfy'", "did you mean 'detoxify'"),
        ({"judge": "detoxify:orignal"}, "unknown Detoxify variant 'orignal'", "did you mean 'original'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], change: dict[str, Any], problem: str, way_out: str) -> None:
    import re

    with pytest.raises(UserError) as caught:
        from_settings(settings | change)
    assert re.search(problem, caught.value.problem)
    assert re.search(way_out, caught.value.way_out)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset() -> None:
    with pytest.raises(UserError, match="unknown preset 'papr'; did you mean 'paper'"):
        build("papr")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"a: [1, 2\n", "cannot be read"),
        (b"a: \xff\n", "cannot be read"),
        (b"methods: [wpn]\n", "methods"),
        (b"methods: wpn\n", "methods"),
        (b"methods: {wpn: fast}\n", "methods"),
        (b"1: 2\n", "1"),
    ],
)
def test_a_bad_configuration_file(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        build("lab", file)


def test_a_configuration_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        build("lab", tmp_path / "none.yaml")


def test_a_configuration_does_not_change(settings: dict[str, Any]) -> None:
    chosen = RunConfig.model_validate(settings)
    with pytest.raises(Exception, match="frozen"):
        chosen.limit = 3  # type: ignore[misc]


def test_every_preset_file_holds_known_settings_only() -> None:
    for file in presets().values():
        assert set(config.read_yaml(file)) <= set(RunConfig.model_fields)


def test_training_is_for_all_methods_and_beneath_their_own(settings: dict[str, Any]) -> None:
    methods = {"wpn": {}, "ga": {"accumulation": 1}, "sft": {"lora": False, "lr": 0.1}}
    chosen = from_settings(settings | {"methods": methods, "training": {"accumulation": 4, "lora": 8, "steps": 7}})
    wpn, ga, sft = (chosen.method_config(name) for name in methods)
    assert [c.accumulation for c in (wpn, ga, sft)] == [4, 1, 4]
    assert [c.lora and c.lora.rank for c in (wpn, ga, sft)] == [8, 8, None]
    assert [c.steps for c in (wpn, ga, sft)] == [7, 7, 7]
    assert (sft.lr, ga.lr) == (0.1, None)
    # What neither says is the method's own default.
    assert (ga.batch_size, wpn.batch_size) == (32, 8)
    assert type(ga) is METHODS.get("ga").Config
