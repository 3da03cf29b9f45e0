from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from wpn_bench import attacks, config, prompts
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.benchmarks.run import describe
from wpn_bench.benchmarks.selection import select
from wpn_bench.config import STAGES, RunConfig, attack_settings, build, from_settings, presets
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import get_judge
from wpn_bench.prompts.templates import QUESTION_TEMPLATE
from wpn_bench.unlearn.methods import METHODS, method_of, title_of, variant_of


@pytest.fixture
def settings() -> dict[str, Any]:
    return build("lab").model_dump()


def test_attacks_of_every_kind_are_named_together() -> None:
    base = build("attacks")
    chosen = attack_settings(("typos", "gcg", "int8"), base.model_dump())
    assert chosen == {
        "attacks": ("typos",),
        "gradient_attacks": {"gcg": base.gradient_attacks["gcg"]},
        "quantise": ("int8",),
        "relearn": None,
        "relearn_search": None,
        "prefilling": None,
        "sampling": None,
        "best_of_n": None,
        "internals": None,
        "pair": None,
        "tap": None,
    }
    assert attack_settings(("relearn",), build("lab").model_dump())["relearn"]["steps"] == (0, 2, 5, 10, 20, 40)
    assert attack_settings(("relearn_search",), base.model_dump())["relearn_search"]["learning_rates"] == 10
    staged = attack_settings(("prefilling", "sampling"), build("lab").model_dump())
    assert (staged["prefilling"]["depths"], staged["sampling"]["samples"]) == ((0, 1, 2, 4, 8, 16, 32), 128)
    for options, said in (({"gcg": {"stepz": 3}}, "did you mean 'steps'"), ({"gcq": {}}, "did you mean 'gcg'")):
        with pytest.raises(UserError, match=said):
            from_settings(base.model_dump() | {"gradient_attacks": options})
    with pytest.raises(UserError, match=r"attack gcg: steps: .*greater than or equal to 1"):
        from_settings(base.model_dump() | {"gradient_attacks": {"gcg": {"steps": 0}}})


def test_there_are_the_presets_that_the_docs_name() -> None:
    assert {"lab", "paper", "real", "real_gpu", "sceptic"} <= set(presets())


def test_the_limit_of_a_kind_of_sets_can_only_be_made_smaller() -> None:
    base = build("lab").model_dump() | {"limits": {"attacks": 50, "ood": 9}}
    planned, rehearsal = from_settings(base), from_settings(base | {"limit": 20})
    kinds = ("in_domain", "attacks", "ood", "benchmarks")
    assert [planned.limit_of(kind) for kind in kinds] == [None, 50, 9, None]
    assert [rehearsal.limit_of(kind) for kind in kinds] == [20, 20, 9, 20]
    with pytest.raises(UserError, match=r"unknown setting .limits\.attack."):
        from_settings(base | {"limits": {"attack": 5}})
    with pytest.raises(UserError, match=r"limits\.ood: .* greater than or equal to 1"):
        from_settings(base | {"limits": {"ood": 0}})


@pytest.mark.parametrize("name", presets())
def test_every_name_in_a_preset_resolves(name: str) -> None:
    chosen = build(name)
    assert chosen.preset == name
    assert chosen.title
    assert chosen.stages == STAGES
    assert {"wpn", "ga"} <= set(chosen.methods)
    assert {"sft", "sft_kl"} & set(chosen.methods)  # the training without the contrast
    for method, options in chosen.methods.items():
        method_of(method).Config(**options)
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
    tasks = select(chosen.benchmarks, folders).tasks
    tuned_on = select(chosen.tune_benchmarks, folders).tasks
    assert not set(tuned_on) & set(tasks)
    assert all(describe(task, folders, resolve=False).title for task in tuned_on)
    if chosen.tune_text:
        assert prompts.spec_for(chosen.tune_text, role="validation", kind="text").role == "validation"
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
    known = ["detoxify"] if chosen.model == "lab" else ["exchange", "detoxify"]
    assert [get_judge(judge).name for judge in (chosen.judge, *chosen.judges)] == known


def test_the_ablation_is_every_combination_once() -> None:
    chosen = build("ablation")
    varieties = [METHODS.get("wpn").Config(**o) for n, o in chosen.methods.items() if n.partition(":")[0] == "wpn"]
    found = [(v.space, v.pooling, v.anchor > 0, v.kl > 0) for v in varieties]  # type: ignore[attr-defined]
    on_off = (True, False)
    assert sorted(found) == sorted(product(("output", "hidden"), ("position", "mean", "last"), on_off, on_off))
    # `wpn` is what WPN is by default, and nothing else differs between the varieties.
    assert METHODS.get("wpn").Config(**chosen.methods["wpn"]) == METHODS.get("wpn").Config()
    assert {key for o in chosen.methods.values() for key in o} == {"space", "pooling", "anchor", "kl"}
    assert chosen.curve_methods() == ["wpn", "ga"]


def test_the_defaults_are_the_protocols() -> None:
    chosen = build("paper")
    assert chosen.template == "auto"
    assert QUESTION_TEMPLATE == "### Question: {prompt}\n ### Answer:"
    assert chosen.decoding.max_new_tokens == 128
    assert chosen.decoding.stop == ("### Question:",)
    assert (chosen.judge, chosen.judges) == ("exchange", ("detoxify:original",))
    assert chosen.threshold == 0.5
    assert chosen.margin_points == 2.0
    assert chosen.limit is None


def test_a_file_names_attacks_of_every_kind_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "attacks: [typos, pair, gcg, int8, relearn]\npair: {queries: 3}\ngradient_attacks: {gcg: {steps: 2}}\n"
    )
    config = build("lab", file)
    assert (config.attacks, config.quantise) == (("typos",), ("int8",))
    assert config.pair is not None
    assert config.pair.queries == 3
    assert config.gradient_config("gcg").steps == 2
    assert config.relearn is not None
    assert config.tap is None
    file.write_text("attacks: [gcg]\ngradient_attacks: 3\n")
    with pytest.raises(UserError, match="gradient_attacks"):
        build("lab", file)
    file.write_text("attacks: [7, typos]\n")
    with pytest.raises(UserError, match="attacks"):
        build("lab", file)


def test_attacks_on_weights_are_off_unless_asked_for(tmp_path: Path) -> None:
    for preset in ("lab", "paper"):
        assert (build(preset).relearn, build(preset).quantise) == (None, ())
    chosen = build("attacks")
    assert chosen.quantise == ("int8", "int4")
    assert chosen.relearn is not None
    assert chosen.relearn.kinds == ("harmful", "benign")
    file = tmp_path / "mine.yaml"
    file.write_text("relearn: {steps: [4, 0, 1], kinds: [benign]}\n")
    mine = build("lab", file).relearn
    assert mine is not None
    assert (mine.steps, mine.kinds, mine.items) == ((0, 1, 4), ("benign",), 16)


def test_a_users_file_goes_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("threshold: 0.4\nmethods:\n  wpn: {steps: 3}\n  sft:\n")
    chosen = build("lab", file)
    assert chosen.threshold == 0.4
    assert chosen.methods == {"wpn": {"steps": 3}, "sft": {}}
    assert chosen.forget == build("lab").forget


@pytest.mark.parametrize(
    ("change", "problem", "hint"),
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
        ({"template": "no place"}, "setting template: .*must contain {prompt}", "tasks/presets"),
        ({"template": "{prompt} {prompt}"}, "setting template: .*once", "tasks/presets"),
        ({"template": "{prompt} {other}"}, "setting template: .*no other braces", "tasks/presets"),
        ({"template": "{prompt} }"}, "setting template: .*no other braces", "tasks/presets"),
        ({"decoding": {"max_new_tokens": 0}}, "setting decoding.max_new_tokens: ", "tasks/presets"),
        ({"relearn": {"steps": (0,)}}, "setting relearn.steps: .*one above 0", "tasks/presets"),
        ({"relearn": {"kinds": ()}}, "setting relearn.kinds: ", "tasks/presets"),
        (
            {"relearn_search": {"lr_range": (2, 1)}},
            "setting relearn_search.lr_range: .*lowest learning rate first",
            "tasks/presets",
        ),
        (
            {"relearn_search": {"weights": ("lora", "lora")}},
            "setting relearn_search.weights: .*each entry once",
            "tasks/presets",
        ),
        (
            {"relearn_search": {"schedules": ("step",)}},
            "setting relearn_search.schedules",
            "tasks/presets|did you mean",
        ),
        ({"prefilling": {"depths": (0,)}}, "setting prefilling.depths: .*one above 0", "tasks/presets"),
        ({"sampling": {"samples": 8, "k": (1, 16)}}, "setting sampling: .*k = 16 needs at least 16", "tasks/presets"),
        ({"best_of_n": {"samples": 8, "k": (9,)}}, "setting best_of_n: .*k = 9 needs at least 9", "tasks/presets"),
        ({"best_of_n": {"temperature": 0, "top_p": 0.9}}, "setting best_of_n: .*top_p needs sampling", "tasks/presets"),
        ({"best_of_n": {"ways": ("shufle",)}}, "setting best_of_n.ways", "tasks/presets|did you mean"),
        ({"relearn": {"step": (1,)}}, "unknown setting 'relearn.step'", "known|did you mean"),
        ({"quantise": ("int3",)}, "unknown quantisation 'int3'", "did you mean 'int8'|did you mean 'int4'"),
        ({"stages": ("train", "harmles")}, "setting stages", "tasks/presets|did you mean"),
        ({"methods": {"wpm": {}}}, "unknown method 'wpm'", "did you mean 'wpn'"),
        ({"methods": {"wpn": {"temprature": 1}}}, "option of method wpn 'temprature'", "did you mean 'temperature'"),
        ({"methods": {"wpn": {"n": 1}}}, "method wpn: n: ", "wpn-bench list wpn"),
        ({"methods": {"ga": {"stop_at_harmless_rate": 90}}}, "method ga: stop_at_harmless_rate", "list ga"),
        ({"methods": {"wpm:mean": {}}}, "unknown method 'wpm'", "did you mean 'wpn'"),
        ({"methods": {"wpn:": {}}}, "setting methods: .*the label of 'wpn:'", "tasks/presets"),
        ({"methods": {"wpn:a:b": {}}}, "setting methods: .*the label of 'wpn:a:b'", "tasks/presets"),
        ({"methods": {"wpn:../x": {}}}, "setting methods: .*the label", "tasks/presets"),
        ({"methods": {"wpn:hot": {"temprature": 1}}}, "option of method wpn:hot 'temprature'", "'temperature'"),
        ({"methods": {"wpn:hot": {"n": 1}}}, "method wpn:hot: n: ", "wpn-bench list wpn"),
        ({"seeds": 0}, "setting seeds: .*1 to 100", "tasks/presets"),
        ({"seeds": True}, "setting seeds", "tasks/presets"),
        ({"tune": 0}, "setting tune: .*greater than or equal to 1", "tasks/presets"),
        ({"tune_loss_bound": 0}, "setting tune_loss_bound: .*greater than 0", "tasks/presets"),
        ({"tune_benchmarks": ("lab_copa",)}, "lab_copa is a test benchmark of this run", "tasks/presets"),
        ({"curve": {"steps": (0,)}}, "setting curve.steps: .*one above 0", "tasks/presets"),
        ({"curve": {"steps": (-1, 5)}}, "setting curve.steps: ", "tasks/presets"),
        ({"curve": {"steps": (5, 5)}}, "setting curve.steps: .*each once", "tasks/presets"),
        (
            {"curve": {"methods": ("npo",)}},
            "curve.methods contains 'npo', which is not among the methods",
            "tasks/presets",
        ),
        ({"curve": {"stpes": (5,)}}, "unknown setting 'curve.stpes'", "known|did you mean"),
        ({"training": {"acumulation": 2}}, "training option 'acumulation'", "did you mean 'accumulation'"),
        ({"training": {"temperature": 2}}, "training option 'temperature'", "known|did you mean"),
        ({"training": {"accumulation": 0}}, "training: accumulation: .*greater than or equal to 1", "docs/training.md"),
        ({"training": {"mixed_precision": "fp8"}}, "training: mixed_precision: ", "docs/training.md"),
        (
            {"training": {"sam": 0.1, "gradient_checkpointing": True}},
            "sam does not work with gradient_checkp",
            "docs/training.md",
        ),
        (
            {"training": {"sam": 0.1}, "processes": 2},
            "has the option sam, .* several processes",
            "tasks/presets|its own",
        ),
        (
            {"training": {"sam": 0.1}, "dtype": "bfloat16"},
            "moves weights by less than bfloat16 can hold: add mixed_precision: bf16",
            "tasks/presets",
        ),
        ({"training": {"undo": {"alpha": 1}}}, "training: undo.alpha: .*less than 1 .*given: 1", "docs/training.md"),
        ({"methods": {"wpn": {"undo": 0}}}, "method wpn: undo.alpha: .*greater than 0", "wpn-bench list wpn"),
        ({"methods": {"wpn": {"undo": {"beta": -0.1}}}}, "method wpn: undo.beta: ", "wpn-bench list wpn"),
        ({"methods": {"wpn": {"undo": {"steps": 0}}}}, "method wpn: undo.steps: ", "wpn-bench list wpn"),
        ({"methods": {"wpn": {"undo": {"stpes": 9}}}}, "option of method wpn 'undo.stpes'", "known|did you mean"),
        ({"methods": {"wpn": {"undo": "much"}}}, "method wpn: undo: ", "wpn-bench list wpn"),
        (
            {"training": {"undo": 0.3, "lora": 4}},
            "undo trains all weights, so it does not work with lora",
            "training.md",
        ),
        ({"training": {"undo": 0.3}, "processes": 2}, "has the option undo, .* several processes", "tasks/presets"),
        ({"training": {"lora": {"rank": 0}}}, "training: lora.rank: ", "docs/training.md"),
        ({"training": {"lora": {"rang": 4}}}, "training option 'lora.rang'", "known|did you mean"),
        ({"training": {"lora": "big"}}, "training: lora: ", "docs/training.md"),
        ({"methods": {"wpn": {"lora": 0}}}, "method wpn: lora.rank: ", "wpn-bench list wpn"),
        ({"attacks": ("role_pley",)}, "unknown attack 'role_pley'", "did you mean 'role_play'"),
        ({"attack_files": ("gone.csv",)}, "there is no file gone.csv", "check the path"),
        ({"attack_files": "mine.csv"}, "setting attack_files: .*tuple", "tasks/presets"),
        ({"attack_files": ("mine.txt",)}, "mine.txt is not .csv, .tsv, .json, .jsonl or .yaml", "convert it"),
        ({"judge": "detoxfy"}, "unknown judge 'detoxfy'", "did you mean 'detoxify'"),
        ({"judge": "detoxify:orignal"}, "unknown Detoxify variant 'orignal'", "did you mean 'original'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], change: dict[str, Any], problem: str, hint: str) -> None:
    import re

    with pytest.raises(UserError) as caught:
        from_settings(settings | change)
    assert re.search(problem, caught.value.problem)
    assert re.search(hint, caught.value.hint)
    assert "\n" not in str(caught.value)


def test_a_number_of_seeds_and_a_list_of_them(settings: dict[str, Any]) -> None:
    assert from_settings(settings | {"seeds": 3}).seeds == (0, 1, 2)
    assert from_settings(settings | {"seeds": [3]}).seeds == (3,)
    assert from_settings(settings | {"seeds": [5, 7]}).seeds == (5, 7)


def test_varieties_of_a_method(settings: dict[str, Any]) -> None:
    given = {"wpn": {}, "wpn:hidden-mean": {"space": "hidden"}, "ga:20_steps.x": {"steps": 20}}
    assert from_settings(settings | {"methods": given}).methods == given
    assert method_of("wpn:hidden-mean") is METHODS.get("wpn")
    assert [title_of(name) for name in given] == ["WPN (ours)", "WPN (hidden-mean)", "Gradient ascent (20_steps.x)"]


def test_the_variant_that_reads_the_paper(settings: dict[str, Any]) -> None:
    """`wpn:paper` needs no definition, stands beside our own variant in every preset, and cannot mean anything else."""
    for name in presets():
        methods = list(build(name).methods)
        assert {"wpn", "wpn:paper"} <= set(methods), name
    config = from_settings(settings | {"methods": {"wpn": {}, "wpn:paper": {"kl": 0.5}}})
    ours, paper = config.method_config("wpn"), config.method_config("wpn:paper")
    assert (ours.space, ours.pooling) == ("output", "position")  # type: ignore[attr-defined]
    assert (paper.space, paper.pooling, paper.kl) == ("hidden", "position", 0.5)  # type: ignore[attr-defined]
    assert config.methods["wpn:paper"] == {"space": "hidden", "pooling": "position", "kl": 0.5}
    assert title_of("wpn:paper") == "WPN (paper)"
    assert "Figure 1" in variant_of("wpn:paper").paper
    assert variant_of("wpn").paper != variant_of("wpn:paper").paper
    with pytest.raises(UserError, match=r"'wpn:paper' stands for space=hidden: give .* another name"):
        from_settings(settings | {"methods": {"wpn:paper": {"space": "output"}}})


def test_an_unknown_preset() -> None:
    with pytest.raises(UserError, match="unknown preset 'papr'; did you mean 'paper'"):
        build("papr")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "contains no settings"),
        (b"- a\n- b\n", "contains no settings"),
        (b"a: [1, 2\n", "cannot be read"),
        (b"a: \xff\n", "is not UTF-8"),
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
    for name in presets():
        assert set(config.read_preset(name)) <= set(RunConfig.model_fields)


def test_a_preset_holds_what_it_changes_of_the_one_it_extends() -> None:
    lab, field = config.read_preset("lab"), config.read_preset("field")
    assert {name for name in field if field[name] != lab[name]} == {"title", "methods"}
    assert set(field["methods"]) > set(lab["methods"])


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
