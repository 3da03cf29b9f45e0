"""The registry of stages: ours, those of plug-ins, and those that gradient attacks bring along."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from wpn_bench.attacks import registry as attacks_registry
from wpn_bench.core import registry
from wpn_bench.core.registry import Registry, import_attribute
from wpn_bench.errors import UserError
from wpn_bench.jobs import stages
from wpn_bench.jobs.job import Job
from wpn_bench.jobs.stages import STAGES, stage_names, stage_of

PLUGIN = """\
from wpn_bench.attacks.search import GradientAttack, SearchConfig, search_stage
from wpn_bench.jobs.stages import Stage

STAGE = Stage("stage_plugin:run", 3, ("numpy",))
LACKING = Stage("stage_plugin:run", 1, ("no-such-distribution",))
NO_STAGE = "stage_plugin:run"


def run(ctx):
    pass


class Attack(GradientAttack):
    name = "mine"
    Config = SearchConfig
    stage = search_stage("stage_plugin:run", 2)


class Stageless(GradientAttack):
    name = "stageless"
    Config = SearchConfig
"""
Plug = Callable[..., None]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plug:
    """A function that makes these entry points of the module `stage_plugin` (name -> value) the only plug-ins."""

    def installed(
        stages_: Mapping[str, str] = MappingProxyType({}), attacks: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        groups = {"wpn_bench.stages": stages_, "wpn_bench.gradient_attacks": attacks}

        def points(*, group: str) -> list[EntryPoint]:
            return [EntryPoint(name, value, group) for name, value in groups.get(group, {}).items()]

        monkeypatch.setattr(registry, "entry_points", points)
        ours = {name: STAGES._parts[name] for name in STAGES}
        monkeypatch.setattr(stages, "STAGES", Registry("stage", ours))
        gradient = attacks_registry.GRADIENT
        ours = {name: gradient._parts[name] for name in gradient}
        monkeypatch.setattr(attacks_registry, "GRADIENT", Registry("gradient_attack", ours))

    (tmp_path / "stage_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stage_plugin", raising=False)
    return installed


@pytest.mark.parametrize("name", stage_names())
def test_every_stage_can_be_found_and_its_libraries_are_installed(name: str) -> None:
    stage = stage_of(name)
    named = (stage.function, stage.memory, stage.plan, stage.rows, stage.section)
    assert all(callable(import_attribute(path)) for path in named if path)
    assert stage.version >= 1
    assert all(version(library) for library in stage.libraries)
    assert stage.source is None


def test_stages_that_build_on_their_own_answers_are_not_shared() -> None:
    every = {name: stage_of(name) for name in stage_names()}
    not_shared = {name for name, stage in every.items() if stage.resumable and not stage.shardable}
    assert not_shared == {"gcg", "soft_prompt", "converse", "adapt"}
    assert not any(stage.shardable for stage in every.values() if not stage.resumable)


def test_a_stage_of_a_plug_in_is_known_by_its_source(plug: Plug, tmp_path: Path) -> None:
    plug(stages_={"mine": "stage_plugin:STAGE"})
    assert "mine" in stage_names()
    before = Job("mine", {}, {}, "mine").inputs
    assert before["version"] == 3
    assert len(before["source"]) == 64
    assert "source" not in Job("generate", {}, {}, "generate").inputs
    (tmp_path / "stage_plugin.py").write_text(PLUGIN + "\n# changed\n")
    del sys.modules["stage_plugin"]
    assert Job("mine", {}, {}, "mine").inputs["source"] != before["source"]


def test_a_gradient_attack_brings_its_stage(plug: Plug) -> None:
    plug(attacks={"mine": "stage_plugin:Attack"})
    stage = stage_of("mine")
    assert (stage.version, stage.part, stage.resumable, stage.unhashed_files) == (2, "attack", True, ("search.json",))
    assert stage.source is not None
    assert "mine" in stage_names()


def test_an_unknown_stage_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown stage 'generat'; did you mean 'generate'"):
        stage_of("generat")


def test_a_plug_in_replaces_no_stage_of_ours(plug: Plug) -> None:
    plug(stages_={"judge": "stage_plugin:STAGE"}, attacks={"gcg": "stage_plugin:Attack"})
    assert (stage_of("judge").source, stage_of("gcg").source) == (None, None)


def test_a_gradient_attack_that_is_called_like_a_stage_is_refused(plug: Plug) -> None:
    plug(attacks={"judge": "stage_plugin:Attack"})
    with pytest.raises(UserError, match="a gradient attack has the name of the stage 'judge'; rename or uninstall"):
        stage_names()
    assert stage_of("judge").source is None


@pytest.mark.parametrize("value", ["a_package_nobody_has:STAGE", "stage_plugin:NOTHING"])
def test_a_plug_in_that_cannot_be_imported_is_named(plug: Plug, value: str) -> None:
    plug(stages_={"mine": value})
    with pytest.raises(UserError, match=r"the stage 'mine' of the plug-in \w+ cannot be loaded .*; fix or uninstall"):
        stage_of("mine")


@pytest.mark.parametrize(
    "points", [{"stages_": {"mine": "stage_plugin:NO_STAGE"}}, {"attacks": {"mine": "stage_plugin:Stageless"}}]
)
def test_a_plug_in_without_a_stage_is_named(plug: Plug, points: dict[str, Any]) -> None:
    plug(**points)
    with pytest.raises(UserError, match="the plug-in 'mine' does not name a stage"):
        stage_of("mine")


def test_a_library_that_is_not_installed_is_named(plug: Plug) -> None:
    plug(stages_={"mine": "stage_plugin:LACKING"})
    with pytest.raises(UserError, match="the stage 'mine' needs no-such-distribution, which is not installed"):
        _ = Job("mine", {}, {}, "mine").digest
