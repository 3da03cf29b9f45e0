from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wpn_bench import __version__
from wpn_bench.cli import main
from wpn_bench.cli.catalogue import KINDS
from wpn_bench.config import RunConfig
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.executor import Fleet
from wpn_bench.pipeline import runner
from wpn_bench.step_settings import Curve

Cli = Callable[..., Any]
COMMANDS = (
    "full",
    "train",
    "harmless",
    "attack",
    "benchmarks",
    "report",
    "show",
    "check",
    "judge",
    "label",
    "export",
    "doctor",
    "list",
)


# --- what costs nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["full", "--help"], ["full", "--limit", "-1"], ["list", "methods"]]
)
@pytest.mark.slow
def test_nothing_heavy_is_imported_before_a_command_runs(arguments: list[str]) -> None:
    code = (
        "import sys; from wpn_bench.cli import main\n"
        "sys.argv = ['wpn-bench', *sys.argv[1:]]\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'lm_eval', 'detoxify', 'plotly', 'scipy'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_version(cli: Cli) -> None:
    said = cli("--version")
    assert (said.code, said.out, said.err) == (0, f"wpn-bench {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(cli: Cli, option: str) -> None:
    said = cli(option)
    assert (said.code, said.err) == (0, "")
    for command in COMMANDS:
        assert f" {command} " in said.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    said = cli(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert f"wpn-bench {command}" in said.out


def test_without_arguments_the_help_is_shown(cli: Cli) -> None:
    said = cli()
    assert said.code == 2
    assert "Usage: wpn-bench" in said.out + said.err
    assert "full        Train WPN" in said.out + said.err


def test_the_console_script(tmp_path: Path) -> None:
    """Installed, and reached by `python -m` too."""
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="wpn-bench")
    assert script.load() is main.main
    done = subprocess.run([sys.executable, "-m", "wpn_bench", "full", "--limit", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("wpn-bench: --limit 0 is not a positive number; ")


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_all_there_is(cli: Cli) -> None:
    said = cli("list")
    assert (said.code, said.err) == (0, "")
    for name in (
        "wpn", "ga_answer", "sft", "role_play", "few_shot", "typos", "detoxify", "wpn_pubmedqa", "lab_copa",
        "advbench", "lab_forget", "paper",
    ):  # fmt: skip
        assert name in said.out


@pytest.mark.parametrize("kind", ["methods", "attacks", "judges", "benchmarks", "prompts", "presets"])
def test_list_one_kind(cli: Cli, kind: str) -> None:
    said = cli("list", kind)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(kind)
    assert len(said.out.splitlines()) > 2


@pytest.mark.parametrize("width", ["80", "120"])
def test_list_breaks_no_name_and_overruns_no_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = cli("list").out.splitlines()
    assert max(map(len, lines)) <= int(width)
    names = {line.split(" ")[0] for line in lines}
    for entries in KINDS.values():
        assert {entry.name for entry in entries()} <= names


def test_list_is_whole_and_speaks_json(cli: Cli) -> None:
    found = json.loads(cli("list", "--json").out)
    assert list(found) == list(KINDS)
    for kind, entries in found.items():
        assert entries, kind
        for entry in entries:
            assert entry["name"], kind
            assert entry["title"], entry
            assert entry["source"], entry
            assert "\n" not in "".join((entry["name"], entry["title"], entry["what"], entry["source"]))
    by_name = {entry["name"]: entry for entry in found["attacks"]}
    assert by_name["rot13"]["source"] == "Yuan et al. 2023"
    assert by_name["rot13"]["what"] == "Letters moved 13 places in the alphabet, to be decoded and answered."
    assert list(json.loads(cli("list", "judges", "--json").out)) == ["judges"]
    options = {option["name"]: option for option in json.loads(cli("list", "npo", "--json").out)["options"]}
    assert options["beta"]["default"] == 0.1


def test_list_prompts_shows_role_licence_and_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = cli("list", "prompts").out
    for words in (
        "Role: forget, kind: question",
        "Role: ood, kind: continuation",
        "CC-BY-NC-4.0",
        "Warning: Insults, slurs and sexual language.",
        "arXiv 2307.15043",
    ):
        assert words in said


def test_list_a_method_shows_its_formula_and_options(cli: Cli) -> None:
    said = cli("list", "wpn")
    assert said.code == 0
    assert "log(1 + sum_j exp(s(x, y-_j) - s(x, y+)))" in " ".join(said.out.split())
    assert re.search(r"temperature = \d", said.out)
    assert "position" in said.out
    assert "--tune searches lr: 0.333 to 3 times its own, by its logarithm" in said.out
    assert "--tune searches steps: 0.5 or 1 or 2 times its own" in said.out


# --- from options to a configuration ---------------------------------------------------------------------------------


@pytest.fixture
def asked(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[RunConfig, dict[str, Any]]]:
    """Type a run command; the configuration it leads to, and what else the pipeline is given."""

    def go(*arguments: object) -> tuple[RunConfig, dict[str, Any]]:
        got: list[Any] = []

        def run(config: RunConfig, **rest: Any) -> dict[str, Any]:
            got.append((config, rest))
            raise JobFailed("that will do")

        monkeypatch.setattr(runner, "run", run)
        monkeypatch.chdir(tmp_path)
        said = cli(*arguments)
        assert (said.code, said.err) == (1, "wpn-bench: that will do\n")
        found: tuple[RunConfig, dict[str, Any]] = got[0]
        return found

    return go


def test_full_alone_is_the_lab(asked: Callable[..., Any]) -> None:
    config, rest = asked("full")
    assert (config.preset, config.model, config.judge) == ("lab", "lab", "detoxify:lab")
    assert config.stages == ("train", "harmless", "attack", "benchmarks")
    assert rest["out"].parent == Path("runs")
    assert rest["out"].name.endswith("-lab")
    assert rest["command"] == "wpn-bench full"


def test_with_a_model_it_is_the_paper(asked: Callable[..., Any]) -> None:
    config, rest = asked("full", "--model", "facebook/opt-125m", "--revision", "main")
    assert (config.preset, config.model, config.revision) == ("paper", "facebook/opt-125m", "main")
    assert rest["out"].name.endswith("-opt-125m")
    config, _ = asked("full", "--model", "facebook/opt-125m", "--preset", "lab")
    assert (config.preset, config.model) == ("lab", "facebook/opt-125m")


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("train", {"train"}),
        ("harmless", {"train", "harmless"}),
        ("attack", {"train", "attack"}),
        ("benchmarks", {"train", "benchmarks"}),
    ],
)
def test_commands_are_parts_of_full(asked: Callable[..., Any], command: str, stages: set[str]) -> None:
    assert set(asked(command)[0].stages) == stages


def test_options_go_over_the_preset(asked: Callable[..., Any], tmp_path: Path) -> None:
    config, rest = asked(
        "full", "--methods", "sft, wpn", "--limit", 7, "--seeds", "0,3", "--max-new-tokens", 9, "--batch-size", 5,
        "--margin", 1.5, "--benchmarks", "lab_copa,lab_piqa", "--attacks", "typos", "--judge", "detoxify:unbiased",
        "--overlap", "drop", "--device", "cpu", "--dtype", "bfloat16", "--out", tmp_path / "o", "--store", tmp_path / "s",
    )  # fmt: skip
    assert list(config.methods) == ["sft", "wpn"]
    assert (config.limit, config.seeds, config.margin_points) == (7, (0, 3), 1.5)
    assert (config.decoding.max_new_tokens, config.decoding.batch_size, config.benchmark_batch_size) == (9, 5, 5)
    assert config.decoding.stop == ("### Question:",)
    assert (config.benchmarks, config.attacks) == (("lab_copa", "lab_piqa"), ("typos",))
    assert (config.judge, config.overlap, config.device, config.dtype) == (
        "detoxify:unbiased",
        "drop",
        "cpu",
        "bfloat16",
    )
    assert (rest["out"], rest["store"]) == (tmp_path / "o", tmp_path / "s")


@pytest.mark.parametrize(
    ("typed", "seeds"), [("3", (0, 1, 2)), ("1", (0,)), ("0,3", (0, 3)), ("7,", (7,)), ("5, 7", (5, 7)), ("0,", (0,))]
)
def test_seeds(asked: Callable[..., Any], typed: str, seeds: tuple[int, ...]) -> None:
    assert asked("full", "--seeds", typed)[0].seeds == seeds


def test_a_variety_of_a_method_by_its_name(asked: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("methods: {wpn: {}, 'wpn:hidden': {space: hidden}}\n")
    config, _ = asked("full", "--config", "mine.yaml", "--methods", "wpn:hidden,sft")
    assert config.methods == {"wpn:hidden": {"space": "hidden"}, "sft": {}}
    config, _ = asked("full", "--methods", "wpn:paper", "--preset", "ablation")
    assert config.methods == {"wpn:paper": {"space": "hidden", "pooling": "position"}}
    config, _ = asked("full", "--config", "mine.yaml", "--methods", "wpn:paper")
    assert config.methods == {"wpn:paper": {"space": "hidden", "pooling": "position"}}


def test_tuning_and_the_curve(asked: Callable[..., Any], tmp_path: Path) -> None:
    config, _ = asked("full")
    assert (config.tune, config.curve, config.curve_methods()) == (None, None, [])
    config, _ = asked("full", "--tune", 8, "--curve")
    assert config.tune == 8
    assert config.curve == Curve()
    assert config.curve_methods() == ["wpn", "wpn:paper", "ga"]
    assert asked("full", "--curve", "--methods", "sft")[0].curve_methods() == ["sft"]
    (tmp_path / "mine.yaml").write_text("curve: {methods: [ga], steps: [0, 3]}\n")
    config, _ = asked("full", "--config", "mine.yaml")
    assert (config.curve_methods(), config.curve.steps) == (["ga"], (0, 3))
    assert asked("full", "--config", "mine.yaml", "--curve")[0].curve == config.curve
    # Picking methods picks their curves, too.
    assert asked("full", "--config", "mine.yaml", "--methods", "wpn")[0].curve is None
    assert asked("full", "--config", "mine.yaml", "--methods", "wpn,ga")[0].curve_methods() == ["ga"]
    assert asked("full", "--config", "mine.yaml", "--methods", "wpn", "--curve")[0].curve_methods() == ["wpn"]


def test_a_method_keeps_what_the_preset_says_of_it(asked: Callable[..., Any]) -> None:
    config, _ = asked("full", "--methods", "ga")
    assert config.methods == {"ga": {"stop_at_harmless_rate": 0.9}}


def test_how_it_is_trained(asked: Callable[..., Any], tmp_path: Path) -> None:
    assert asked("full")[0].training == {}
    config, _ = asked(
        "train", "--method", "wpn", "--lora", 16, "--mixed-precision", "bf16", "--gradient-checkpointing",
        "--accumulation", 4, "--report-to", "tensorboard, wandb",
    )  # fmt: skip
    assert config.training == {
        "lora": 16,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "accumulation": 4,
    }
    assert list(config.methods) == ["wpn"]
    assert config.report_to == ("tensorboard", "wandb")
    (tmp_path / "mine.yaml").write_text("training: {lora: {rank: 4, dropout: 0.1}, accumulation: 2}\n")
    config, _ = asked("full", "--config", "mine.yaml", "--accumulation", 8)
    assert config.training == {"lora": {"rank": 4, "dropout": 0.1}, "accumulation": 8}


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--lora", 0, "--lora 0 is not a positive number"),
        ("--accumulation", -1, "--accumulation -1 is not a positive number"),
        ("--mixed-precision", "fp8", "training: mixed_precision: "),
    ],
)
def test_what_cannot_be_trained(cli: Cli, tmp_path: Path, option: str, value: object, problem: str) -> None:
    said = cli("train", option, value, "--out", tmp_path / "x")
    assert said.code == 2
    assert said.err.startswith(f"wpn-bench: {problem}")
    assert not (tmp_path / "x").exists()


def test_who_does_the_work(asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wpn_bench.jobs.executor.find_spec", lambda name: True)
    alone, rest = asked("full")
    assert rest["fleet"] == Fleet()
    config, rest = asked(
        "full", "--executor", "ray", "--ray-address", "auto", "--cpus-per-job", 2, "--gpus-per-job", 0.5, "--shards", 3,
    )  # fmt: skip
    assert rest["fleet"] == Fleet("ray", ray_address="auto", cpus_per_job=2, gpus_per_job=0.5, shards=3)
    assert config == alone  # it decides no result
    assert asked("attack", "--executor", "ray", "--workers", 2)[1]["fleet"] == Fleet("ray", workers=2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--executor slurm", "unknown executor 'slurm'; choose from local, ray"),
        ("--executor ray --workers 0", "--workers 0 is not a positive number; "),
        ("--shards 2", "--shards needs the executor ray; add --executor ray"),
        ("--executor ray --gpus-per-job nan", "--gpus-per-job nan is invalid; "),
        ("--executor ray", "--executor ray needs ray, which is not installed; pip install 'wpn-bench[ray]'"),
    ],
)
def test_who_cannot_do_the_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, problem: str
) -> None:
    monkeypatch.setattr("wpn_bench.jobs.executor.find_spec", lambda name: None if name == "ray" else True)
    said = cli("full", *options.split(), "--out", tmp_path / "x")
    assert said.code == 2
    assert said.err.startswith(f"wpn-bench: {problem}")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_configuration_file_goes_between(asked: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("limit: 3\nthreshold: 0.4\nmethods: {wpn: {steps: 2}, sft: {steps: 1}}\n")
    config, _ = asked("full", "--config", "mine.yaml", "--limit", 5, "--methods", "wpn")
    assert (config.limit, config.threshold, config.methods) == (5, 0.4, {"wpn": {"steps": 2}})


def test_ones_own_prompts(asked: Callable[..., Any]) -> None:
    preset = asked("full")[0]
    config, _ = asked(
        "full", "--prompts", "in_domain=a.jsonl", "--prompts", "mine=b.csv", "--prompts", "validation=v.csv"
    )
    assert config.in_domain == ("in_domain=a.jsonl",)
    assert config.ood == (*preset.ood, "mine=b.csv")
    assert config.validation == "v.csv"
    assert config.forget == preset.forget


def test_ones_own_attacks(asked: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,template\none,A {prompt}\n")
    (tmp_path / "b.yaml").write_text("template: 'B {prompt}'\n")
    (tmp_path / "mine.yaml").write_text("attack_files: [b.yaml]\nattacks: [typos, b]\n")
    preset = asked("full")[0]
    assert preset.attack_files == ()
    config, _ = asked("attack", "--attack-file", "a.csv", "--attack-file", "b.yaml")
    assert (config.attack_files, config.attacks) == (("a.csv", "b.yaml"), preset.attacks)
    config, _ = asked("attack", "--attack-file", "a.csv", "--attack-file", "b.yaml", "--config", "mine.yaml")
    assert (config.attack_files, config.attacks) == (("b.yaml", "a.csv"), ("typos", "b"))
    assert asked("attack", "--attack-file", "a.csv", "--attacks", "")[0].attacks == ()


def test_what_does_not_fit(asked: Callable[..., Any]) -> None:
    config, rest = asked("full")
    assert (config.offload, rest["force"]) == ("none", False)
    config, rest = asked("benchmarks", "--offload", "disk", "--force")
    assert (config.offload, rest["force"]) == ("disk", True)


def test_another_forget_set_has_its_own_test_prompts(asked: Callable[..., Any]) -> None:
    config, _ = asked("full", "--forget", "mine.jsonl", "--prompt-kind", "continuation")
    assert (config.forget, config.in_domain, config.validation) == ("mine.jsonl", (), None)
    assert config.file_kind == "continuation"
    config, _ = asked("full", "--forget", "mine.jsonl", "--prompts", "in_domain=t.jsonl")
    assert (config.in_domain, config.validation) == (("in_domain=t.jsonl",), None)


@pytest.mark.parametrize("typed", [True, False])
def test_the_sets_of_a_users_file_stay(asked: Callable[..., Any], tmp_path: Path, typed: bool) -> None:
    file = tmp_path / "mine.yaml"
    forget = "" if typed else "forget: mine.jsonl\n"
    words = ["full", "--config", str(file), *(["--forget", "mine.jsonl"] if typed else [])]
    for written, expected in (
        ("in_domain: [t.jsonl]\nvalidation: v.jsonl\n", (("t.jsonl",), "v.jsonl")),
        ("in_domain: [t.jsonl]\n", (("t.jsonl",), None)),
        ("validation: v.jsonl\n", ((), "v.jsonl")),
        ("limit: 5\n", ((), None)),
    ):
        file.write_text(written + forget)
        config, _ = asked(*words)
        assert (config.forget, config.in_domain, config.validation) == ("mine.jsonl", *expected)


def test_no_home_folder_in_the_command(asked: Callable[..., Any], tmp_path: Path) -> None:
    _, rest = asked(
        "full", "--model", tmp_path / "m", f"--out={tmp_path}/o", "--prompts", f"in_domain={tmp_path}/t.jsonl"
    )
    assert str(tmp_path) not in rest["command"]
    assert "in_domain=t.jsonl" in rest["command"]


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    said = cli("full", "--out", tmp_path)
    assert said.code == 130
    assert said.err.strip() == "stopped; finished work is kept, repeat the command to continue"


def test_a_bug_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setenv("WPN_BENCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli("full", "--out", tmp_path)
    monkeypatch.delenv("WPN_BENCH_DEBUG")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = cli("full", "--out", tmp_path)
    assert said.code == 1
    assert re.fullmatch(r"wpn-bench: a bug: ZeroDivisionError: a bug; please report it with (\S+) .*\n", said.err)
    (told,) = (tmp_path / "wpn-bench" / "bugs").iterdir()
    assert "Traceback" in told.read_text()


def test_a_failed_job_ends_in_1_and_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = {
        "run": {
            "failed": [{"job": "train ga (seed 0)", "reason": "training diverged"}],
            "skipped": [{"set": "ood", "n": 3, "reason": "prompt too long"}],
        },
        "models": {"ga": {"method": "ga", "status": "failed", "steps": []}},
    }
    monkeypatch.setattr(runner, "run", lambda *_, **__: results)
    said = cli("train", "--out", tmp_path)
    assert said.code == 1
    assert said.err.splitlines() == [
        "failed: train ga (seed 0): training diverged",
        "skipped: 3 prompts of ood: prompt too long",
    ]
    assert said.out.splitlines() == [f"report: {tmp_path / 'report.html'}", "ga: failed, [] steps"]


def test_a_good_run_ends_in_0(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = {
        "method": "ga",
        "status": "ok",
        "steps": [3, 3],
        "folder": {"0": "models/ga-seed0", "1": "models/ga-seed1"},
    }
    results = {"run": {"failed": [], "skipped": []}, "models": {"ga": model}}
    monkeypatch.setattr(runner, "run", lambda *_, **__: results)
    said = cli("train", "--out", tmp_path)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[1:] == [
        "ga: ok, [3, 3] steps",
        f"model: {tmp_path / 'models' / 'ga-seed0'}",
        f"model: {tmp_path / 'models' / 'ga-seed1'}",
    ]


def test_report_of_one_run_and_of_several(cli: Cli, tmp_path: Path) -> None:
    """One run's reports go into its folder; two runs' comparison beside the first, or where it is told to."""
    from tests.report.made_runs import made

    one, two = (made(good).write(tmp_path / name) for good, name in ((30, "a"), (24, "b")))
    said = cli("report", one, "--format", "json,csv")
    assert (said.code, said.err) == (0, "")
    assert said.out.split() == [str(one / "summary.json"), str(one / "metrics.csv")]
    said = cli("report", one, two, "--format", "md")
    assert (said.code, said.err) == (0, "")
    assert said.out.split() == [str(tmp_path / "comparison" / "comparison.md")]
    said = cli("report", one, two, "--format", "csv", "--out", tmp_path / "there")
    assert said.out.split() == [str(tmp_path / "there" / "comparison.csv")]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("nowhere",), "nowhere contains no results.json; give the folder that `wpn-bench full` printed"),
        (("nowhere", "--format", "pdf"), "unknown report format 'pdf'; choose from "),
        (("nowhere", "--format", ","), "--format names no format; choose from "),
        (("nowhere", "nowhere"), "the run nowhere is given twice; give each run once"),
        (("nowhere", "elsewhere"), "nowhere contains no results.json; "),
    ],
)
def test_bad_input_to_report(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("report", *arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"wpn-bench: {problem}")
    assert len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "first", "others"),
    [
        (["detoxify:unbiased"], "detoxify:unbiased", ()),
        (["detoxify:lab,refusal"], "detoxify:lab", ("refusal",)),
        (
            ["classifier:a/b,label=toxic,threshold=0.4,detoxify:lab", "refusal"],
            "classifier:a/b,label=toxic,threshold=0.4",
            ("detoxify:lab", "refusal"),
        ),
    ],
)
def test_the_first_judge_decides(
    asked: Callable[..., Any], given: list[str], first: str, others: tuple[str, ...]
) -> None:
    config = asked("full", *(word for one in given for word in ("--judge", one)))[0]
    assert (config.judge, config.judges) == (first, others)


def test_a_command_is_kept_without_the_paths_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from wpn_bench.cli import crash

    typed = [
        "full", "--out", "/home/me/run", "--prompts", "x=/home/me/x.jsonl", "--model", "facebook/opt-125m",
        "--judge", "detoxify:/home/me/judge.ckpt,threshold=0.4,classifier:~/toxic,label=a/b",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["wpn-bench", *typed])
    assert crash.typed_command() == (
        "wpn-bench full --out run --prompts x=x.jsonl --model facebook/opt-125m"
        " --judge 'detoxify:judge.ckpt,threshold=0.4,classifier:~/toxic,label=a/b'"
    )
