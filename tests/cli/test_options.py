from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from wpn_bench.cli import options, run
from wpn_bench.cli.app import COMMANDS, build_command
from wpn_bench.config import RunConfig, build
from wpn_bench.core.option import PANELS, Option, options_of_fields
from wpn_bench.jobs.executor import Fleet
from wpn_bench.preflight import doctor
from wpn_bench.step_settings import Curve

Cli = Callable[..., Any]
LAB = build("lab")
# Option -> what is typed, and the setting that comes of it: its path, and its value.
EXAMPLES: dict[str, tuple[list[str], str, Any]] = {
    "preset": (["field"], "preset", "field"),
    "model": (["a/b", "--preset", "lab"], "model", "a/b"),
    "revision": (["v1"], "revision", "v1"),
    "candidate": (["mine=a/b@v1"], "candidates", ("mine=a/b@v1",)),
    "methods": (["sft, ga"], "methods", {"sft": LAB.methods["sft"], "ga": LAB.methods["ga"]}),
    "lora": (["4"], "training", {"lora": 4}),
    "mixed_precision": (["bf16"], "training", {"mixed_precision": "bf16"}),
    "gradient_checkpointing": ([], "training", {"gradient_checkpointing": True}),
    "accumulation": (["3"], "training", {"accumulation": 3}),
    "processes": (["2"], "processes", 2),
    "accelerate": (["there/file.yaml"], "accelerate", "there/file.yaml"),
    "report_to": (["wandb, mlflow"], "report_to", ("wandb", "mlflow")),
    "columns": (["prompt=goal, text = body"], "columns", {"prompt": "goal", "text": "body"}),
    "forget": (["mine.jsonl"], "forget", "mine.jsonl"),
    "benign_prompts": (["questions.jsonl"], "benign_prompts", "questions.jsonl"),
    "prompts": (["mine=a.jsonl"], "ood", (*LAB.ood, "mine=a.jsonl")),
    "attacks": (["typos,int8"], "quantise", ("int8",)),
    "attack_file": (["a.csv"], "attack_files", ("a.csv",)),
    "attacker": (["org/name@v1"], "attacker", "org/name@v1"),
    "benchmarks": (["lab_copa, lab_piqa"], "benchmarks", ("lab_copa", "lab_piqa")),
    "metric": (["copa=acc"], "benchmark_metrics", ("copa=acc",)),
    "apply_chat_template": ([], "apply_chat_template", True),
    "fewshot_as_multiturn": (["--apply-chat-template"], "fewshot_as_multiturn", True),
    "judge": (["refusal,detoxify:lab"], "judges", ("detoxify:lab",)),
    "judge_card": (["card.json"], "judge_card", ("card.json",)),
    "template": (["Q {prompt}"], "template", "Q {prompt}"),
    "system": (["Be kind."], "system", "Be kind."),
    "refusals": (["classifier"], "refusals", "classifier"),
    "relevance": ([], "relevance", True),
    "strip_reasoning": ([], "strip_reasoning", True),
    "prompt_kind": (["continuation"], "file_kind", "continuation"),
    "max_new_tokens": (["9"], "decoding.max_new_tokens", 9),
    "batch_size": (["5"], "decoding.batch_size", 5),
    "seeds": (["5,7"], "seeds", (5, 7)),
    "limit": (["6"], "limit", 6),
    "margin": (["1.5"], "margin_points", 1.5),
    "tune": (["4"], "tune", 4),
    "curve": ([], "curve", Curve()),
    "overlap": (["drop"], "overlap", "drop"),
    "near_duplicate": (["0.9"], "near_duplicate", 0.9),
    "device": (["cpu"], "device", "cpu"),
    "dtype": (["float16"], "dtype", "float16"),
    "offload": (["disk"], "offload", "disk"),
    "backend": (["vllm"], "backend", "vllm"),
    "trust_remote_code": ([], "trust_remote_code", True),
    "allow_pickle": ([], "allow_pickle", True),
}
FINE = [doctor.Diagnostic("python", "ok", "it is here")]
FLEET: dict[str, tuple[str, Any]] = {
    "executor": ("ray", "ray"),
    "ray_address": ("auto", "auto"),
    "workers": ("2", 2),
    "cpus_per_job": ("3", 3),
    "gpus_per_job": ("0.5", 0.5),
    "shards": ("4", 4),
}


@pytest.fixture
def typed(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[RunConfig, Fleet | None]]:
    """Type `full` or `doctor`: the configuration and the fleet that it leads to."""

    def go(*words: str) -> tuple[RunConfig, Fleet | None]:
        got: list[tuple[RunConfig, Fleet | None]] = []
        monkeypatch.setattr(run, "run", lambda config, *_, fleet, **__: got.append((config, fleet)))
        monkeypatch.setattr(doctor, "run_checks", lambda context: got.append((context.config, None)) or FINE)
        monkeypatch.setattr("wpn_bench.jobs.executor.find_spec", lambda name: True)
        (tmp_path / "a.csv").write_text("name,template\none,A {prompt}\n")
        monkeypatch.chdir(tmp_path)
        said = cli(*words)
        assert said.code == 0, said.err
        return got[0]

    return go


def test_every_option_has_an_example_here() -> None:
    assert {row.name for row in options.setting_options()} == set(EXAMPLES)
    assert {row.name for row in options.fleet_options()} == set(FLEET) == {field.name for field in fields(Fleet)}


@pytest.mark.parametrize("command", ["full", "doctor"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_typed_value_arrives_in_the_settings(typed: Callable[..., Any], command: str, name: str) -> None:
    words, path, value = EXAMPLES[name]
    row = next(row for row in options.setting_options() if row.name == name)
    for flag in row.flags:
        found: Any = typed(command, flag, *words)[0]
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value
    # Without the option the setting is another, or this would show nothing.
    found = LAB
    for part in path.split("."):
        found = getattr(found, part)
    assert found != value


@pytest.mark.parametrize("name", FLEET)
def test_a_typed_value_arrives_in_the_fleet(typed: Callable[..., Any], name: str) -> None:
    word, value = FLEET[name]
    fleet = typed("full", "--executor", "ray", "--" + name.replace("_", "-"), word)[1]
    assert getattr(fleet, name) == value != getattr(Fleet(), name)


def test_the_batch_size_is_that_of_benchmarks_too(typed: Callable[..., Any]) -> None:
    config = typed("full", "--batch-size", "5")[0]
    assert (config.decoding.batch_size, config.benchmark_batch_size) == (5, 5)


@pytest.mark.parametrize("row", options.all_options(), ids=lambda row: row.name)
def test_every_option_is_in_the_help_of_the_run_commands_once(row: options.Row) -> None:
    for command in ("full", "train", "harmless", "attack", "benchmarks", "prefetch"):
        (parameter,) = (one for one in build_command(command).params if one.name == row.name)
        assert tuple(parameter.opts) == row.flags
        assert (parameter.help, parameter.rich_help_panel) == (row.option.help, row.option.panel)
    in_doctor = [one for one in build_command("doctor").params if one.name == row.name]
    assert len(in_doctor) == (row in options.doctor_options())
    assert row.option.panel in PANELS
    assert row.option.help.endswith((".", ")"))


def test_a_field_with_an_option_is_in_the_table() -> None:
    class Settings(BaseModel):
        plain: int = 1
        far_away: Annotated[int | None, Option(type=int, help="How far.", panel=PANELS[0])] = None

    ((field, option),) = options_of_fields(Settings)
    row = options.Row(option, field)
    assert (row.name, row.flags, row.read(3)) == ("far_away", ("--far-away",), 3)
    with pytest.raises(Exception, match="--far-away 0 is not a positive number"):
        row.read(0)


def test_every_command_has_a_help_of_its_own() -> None:
    assert all(command.__doc__ for command in COMMANDS.values())
    assert len({command.__doc__ for command in COMMANDS.values()}) == len(COMMANDS)


def test_the_list_of_commands_imports_no_settings() -> None:
    code = (
        "import sys; from wpn_bench.cli import main\n"
        "sys.argv = ['wpn-bench', '--help']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print('imported:', sorted({'pydantic', 'yaml', 'rich', 'wpn_bench.config'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"
