from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wpn_bench.benchmarks.definitions import read_folders, task_folders
from wpn_bench.cli import completion

HEAVY = {"torch", "transformers", "pandas", "datasets", "lm_eval", "detoxify", "plotly", "scipy", "peft", "rich"}


# Completion ran 358 modules when this was written, in a quarter of a second of processor time; `import pandas` alone runs 608.
MOST_MODULES = 450


def complete(*words: str) -> tuple[list[str], set[str], int]:
    """What bash is offered for the last of the words, which heavy packages that took, and how many modules in all."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported:', *sorted(sys.modules), file=sys.stderr))\n"
        "from wpn_bench.cli.main import main\n"
        "main()\n"
    )
    asked = {"_WPN_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("wpn-bench", *words))}
    asked["COMP_CWORD"] = str(len(words))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stderr.splitlines()[-1]
    assert imported.startswith("imported: ")
    modules = imported.split()[1:]
    return done.stdout.split(), HEAVY & set(modules), len(modules)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["full", "--preset", "a"], ["ablation", "attacks"]),
        (["full", "--methods", "wpn,sf"], ["wpn,sft", "wpn,sft_kl"]),
        (["train", "--method", "rm"], ["rmu"]),
        (["attack", "--attacks", "typos,typ"], []),
        (["attack", "--attacks", "rel"], ["relearn", "relearn_search"]),
        (["full", "--judge", "det"], ["detoxify"]),
        (["judge", "f.jsonl", "--judge", "ref"], ["refusal", "refusal_classifier"]),
        (["full", "--benchmarks", "lab_cop"], ["lab_copa", "lab_copa_validation"]),
        (["full", "--forget", "pku_f"], ["pku_forget"]),
        (["list", "at"], ["attacks"]),
        (["list", "wp"], ["wpn"]),
        (["harm"], ["harmless"]),
        (["full", "--curv"], ["--curve"]),
    ],
)
@pytest.mark.slow
def test_names_are_completed_and_nothing_heavy_is_imported(words: list[str], offered: list[str]) -> None:
    *said, modules = complete(*words)
    assert said == [offered, set()]
    # A count of modules, not seconds: those depend on the machine and on what else it does.
    assert modules < MOST_MODULES


def test_the_quick_names_are_the_real_ones() -> None:
    from wpn_bench import attacks
    from wpn_bench.cli import catalogue

    assert set(completion.benchmarks()) == set(read_folders(task_folders(("benchmarks", "lab"))))
    assert set(completion.attacks()) == set(attacks.all_names())
    for kind in ("methods", "judges", "prompts", "presets"):
        assert sorted(getattr(completion, kind)()) == sorted(e.name for e in catalogue.KINDS[kind]())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_what_to_load(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wpn_bench", "--show-completion", shell], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "_WPN_BENCH_COMPLETE" in done.stdout


def test_install_completion_writes_to_the_shells_own_file(tmp_path: object) -> None:
    home = {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = [sys.executable, "-m", "wpn_bench", "--install-completion", "bash"]
    done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = f"{tmp_path}/.bash_completions/wpn-bench.sh"
    with open(script, encoding="utf-8") as f:
        assert "complete -o default -F _wpn_bench_completion wpn-bench" in f.read()
    with open(f"{tmp_path}/.bashrc", encoding="utf-8") as f:
        assert script in f.read()
