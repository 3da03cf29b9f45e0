"""The commands that README and docs print, and how the tests run each of them in seconds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("wpn-bench", "nox", "python", "lm_eval")
RUNS = ("full", "evaluate", "train", "harmless", "attack", "benchmarks")

# First words of lines in shell blocks that are no programs of ours.
OTHER_PROGRAMS = {
    "pip": "installs packages from a registry",
    "git": "fetches the repository",
    "cd": "goes into the clone",
    "cat": "prints a file",
    "echo": "writes the file that the next command reads",
    "pre-commit": "writes into the repository",
}

# What stands for something of the reader's own.
PLACEHOLDERS = {
    "RUN": "runs/first",
    "RUN...": "runs/bold",
    "FILE": "labelled.jsonl",
    "DIR": "exported",
    "M": "lab",
    "BASE": "lab",
    "mine=DIR": "mine=lab",
    "NAME=SOURCE": "mine=lab",
    "mine": "wpn",
    "METHOD": "wpn",
    "NAME": "typos",
    "NAME,...": "typos",
    "wpn,yours": "wpn,unlikelihood",
    "RUN/models/...": "runs/first/models/wpn",
}

# An endpoint of the reader's own.
ENDPOINT = "http://localhost:8000/v1#MODEL"

# What FILE is for these.
FILES = {"wpn-bench check": "baseline.json", "wpn-bench attack": "small-attacks.yaml"}

# Not run: the beginning of the command, and why. A run is carried as far as its first job, a script must exist and know
# its options, a nox session must exist.
NOT_RUN = {
    "python -m pip": "installs packages from a registry",
    "python -m nox -s": "installs an environment of its own; what a session runs is tested by itself",
    "nox -s": "installs an environment of its own; what a session runs is tested by itself",
    "wpn-bench full --executor ray": "Ray is an extra; with it tests/jobs/test_ray.py runs jobs on a cluster",
    "wpn-bench full --report-to": "W&B and MLflow are extras and send data to a service",
    "wpn-bench export RUN --format mlflow": "MLflow is an extra; tests/interop/test_tracking.py runs the export",
    "wpn-bench export RUN --format wandb": "W&B is an extra; tests/interop/test_tracking.py runs the export",
    "wpn-bench full -m facebook/opt-2.7b --processes": "several processes: tests/unlearn/test_distributed.py trains so",
    "wpn-bench full -m facebook/opt-2.7b --accelerate": "several processes: tests/unlearn/test_distributed.py trains so",
    "wpn-bench attack --attacks pair": "an attacker has to answer; tests/attacks/test_adaptive.py runs both attacks",
    "wpn-bench --install-completion": "changes the shell's start file; tests/cli/test_completion.py asks for completions",
    "python benchmarks/kills.py": "40 minutes; wants to mount file systems",
    "python benchmarks/bad_line.py": "minutes of waiting for a hub that fails; tests/hub/test_hub.py has such a hub",
    "python benchmarks/large_model.py": "gigabytes of memory and minutes",
    "python benchmarks/scaling.py": "Ray is an extra",
    "python benchmarks/cost_of_methods.py": "`--trl` wants TRL, which is in no extra; minutes",
    "python benchmarks/distributed.py": "minutes, several processes; tests/unlearn/test_distributed.py trains so",
    "python benchmarks/lab_attacks.py": "minutes: it searches with the whole budget of the preset",
    "python benchmarks/report_page.py": "Chromium and minutes; tests/report/test_browser.py opens the page",
    "python benchmarks/label_coverage.py": "run by tests/test_speed_scripts.py",
    "python benchmarks/leakage.py": "run by tests/test_speed_scripts.py",
    "python benchmarks/stability.py": "more than 15 minutes in full; run by tests/test_speed_scripts.py",
    "python -m wpn_bench.benchmarks.language_model": "without options it is a name, not a command; with them it is run",
    "lm_eval --output_path": "options of a command, not a whole one",
    "lm_eval --tasks wpn_nine": "an example of what not to do; lm-eval's own command with our tasks is run",
}

PICKLED = "wpn-bench full --model facebook/opt-2.7b --allow-pickle --methods wpn --offline"
# Run by the run of another command, which has their options and more.

COVERED_BY = {
    "wpn-bench full --judge openai:http://localhost:8000/v1#MODEL,rubric=harm": (
        "wpn-bench full --judge detoxify:original,openai:http://localhost:8000/v1#MODEL,rubric=strongreject,price_in=0.15,price_out=0.6"
    ),
    "wpn-bench full": "wpn-bench full --out runs/first",
    "wpn-bench full --candidate oracle=lab:oracle": "wpn-bench evaluate -m BASE --candidate mine=DIR",
    "wpn-bench full --config FILE": "wpn-bench full --out runs/first",
    "wpn-bench full --preset sceptic --config FILE": "wpn-bench full --out runs/first",
    "wpn-bench full --preset paper -m HuggingFaceTB/SmolLM2-135M-Instruct --prompt-kind continuation"
    " --forget rtp_triples_train.jsonl --prompts in_domain=rtp_triples_test.jsonl --config FILE": (
        "wpn-bench full --model facebook/opt-125m --config docs/examples/triples-field.yaml --prompt-kind continuation"
        " --forget rtp_triples_train.jsonl --prompts in_domain=rtp_triples_test.jsonl --limit 120 --tune 2"
    ),
    "python benchmarks/stages.py RUN STORE --model HuggingFaceTB/SmolLM2-135M-Instruct --peak 180": (
        "python benchmarks/stages.py RUN STORE"
    ),
    "wpn-bench full --tune 8": "wpn-bench full --preset field --tune 8 --seeds 3",
    "wpn-bench full --methods wpn,yours": "wpn-bench full --methods wpn,unlikelihood",
    "wpn-bench attack --attack-file mine.csv": "wpn-bench attack --attack-file mine.csv --attack-file more.yaml",
    'wpn-bench attack --methods "" --attacks NAME': "wpn-bench attack --attacks base64,few_shot",
    "wpn-bench attack --preset lab --config FILE": "wpn-bench full --preset attacks",
    "wpn-bench attack --methods sft --attacks NAME,...": "wpn-bench attack --attacks base64,few_shot",
    "wpn-bench attack --methods wpn,ga,npo,sft --attacks relearn,int8,int4 --seeds 3": (
        "wpn-bench attack --methods wpn,sft --attacks typos,role_play,gcg,int8,relearn --limit 40 --out runs/attacked"
    ),
    "wpn-bench full --model ./my-model --forget mine.jsonl --prompts in_domain=test.jsonl": (
        "wpn-bench full --model ./my-model --forget mine.jsonl --prompts in_domain=test.jsonl --prompts support=tickets.csv"
    ),
    "wpn-bench full --model facebook/opt-2.7b --allow-pickle --limit 50": PICKLED,
    "wpn-bench full --model facebook/opt-2.7b --allow-pickle": PICKLED,
    "wpn-bench full --model facebook/opt-125m --config docs/examples/triples.yaml --prompt-kind continuation"
    " --forget rtp_triples_train.jsonl --prompts in_domain=rtp_triples_test.jsonl --limit 120": (
        "wpn-bench full --model facebook/opt-125m --config docs/examples/triples-field.yaml --prompt-kind continuation"
        " --forget rtp_triples_train.jsonl --prompts in_domain=rtp_triples_test.jsonl --limit 120 --tune 2"
    ),
    "wpn-bench full --model M --limit 20 --methods wpn": "wpn-bench full --out runs/first",
    "wpn-bench attack --attacks gcg,soft_prompt": "wpn-bench full --preset attacks",
    "wpn-bench evaluate --candidate NAME=SOURCE": "wpn-bench evaluate -m BASE --candidate mine=DIR",
    "wpn-bench full -m BASE --candidate mine=DIR": "wpn-bench evaluate -m BASE --candidate mine=DIR",
    "wpn-bench full -m BASE --candidate oracle=DIR": "wpn-bench evaluate -m BASE --candidate mine=DIR",
    "wpn-bench report RUN": "wpn-bench report RUN --format html,md,json,csv,junit",
    "wpn-bench report runs/today --format md,json": "wpn-bench report RUN --format html,md,json,csv,junit",
    "wpn-bench report RUN RUN...": "wpn-bench report runs/monday runs/friday runs/other-model",
    "wpn-bench label RUN": "wpn-bench label RUN --terminal",
    "wpn-bench label RUN --n 100 --model wpn": "wpn-bench label RUN --terminal",
    "wpn-bench export RUN --format lm-eval": "wpn-bench export RUN --format lm-eval --out DIR",
}

# Options that make a command small: the last one on the line counts.
SMALL = ["--limit", "2", "--max-new-tokens", "4"]
LM_EVAL = ["--limit", "2", "--device", "cpu"]
SMALLER = {
    "full --out runs/first": ["--methods", "wpn,sft"],
    "--tune": ["--tune", "2"],
    "--seeds": ["--seeds", "2"],
    "--preset ablation": ["--methods", "wpn,wpn:hidden-last-no-kl,sft:kl"],
    "--preset field": ["--methods", "npo"],
    "--preset real ": ["--model", "facebook/opt-125m"],  # on the loopback hub, in place of SmolLM2
    "triples-field.yaml": ["--methods", "grad_diff:kl"],
    "check_errors.py": ["--repetitions", "2", "--sizes", "lab", "--churn", "0.1", "--seeds", "1"],
    "rejudge.py": ["--suites", "harmless"],
    "wpn-bench doctor": ["--model", "lab"],
}

# Exit codes other than 0: a check has a verdict, the doctor finds faults, and some commands are there to be refused.
EXIT = {
    "wpn-bench check": (0, 3, 4),
    "wpn-bench doctor": (0, 2),
}
REFUSED = (
    "wpn-bench full --model facebook/opt-2.7b",
    "wpn-bench full --model somebody/new-architecture",
)

HUB = re.compile(
    r"facebook/|preset real |unitary/|meta-llama/|somebody/|\./my-model|prefetch|detoxify:original|toxic_comments|held_out_comments"
    r"|^wpn-bench judge FILE$"
)


def shell_lines(page: Path) -> list[str]:
    """Lines of a page's shell blocks, continued lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]


def parts(line: str) -> list[str]:
    """The commands of a line, without its comment."""
    line = re.split(r"\s#\s|^#", line)[0]
    return [part.strip() for part in re.split(r"\s*&&\s+", line) if part.strip()]


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) for each line of a shell block and each span of code that begins with a program of ours."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        spans = re.findall(rf"`(?:time |[A-Z_]+=\S+ )?((?:{'|'.join(PROGRAMS)})\s[^`]+)`", text)
        for line in (*shell_lines(page), *(" ".join(span.split()) for span in spans)):
            for part in parts(line):
                if re.match(rf"({'|'.join(PROGRAMS)})\b", part):
                    yield page.name, typed(part)


def typed(command: str) -> str:
    """A command without what stands for "and so on", choices, and what its output is piped into."""
    return re.sub(r"\s+(\[.*|\.\.\.$|>.*|\|.*|\\\|.*)$", "", command)


def reason_not_to_run(command: str) -> str | None:
    """Why a command is not run; None: it is."""
    for beginning, reason in NOT_RUN.items():
        exact = beginning.count(" ") == 2 and beginning.startswith("python -m wpn_bench")
        if command == beginning or (not exact and command.startswith(beginning)):
            return reason
    return None


def words_of(command: str) -> list[str]:
    """The words of a command to run, with something in the place of placeholders."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    for beginning, file in FILES.items():
        if command.startswith(beginning):
            words = [file if word == PLACEHOLDERS["FILE"] else word for word in words]
    if words[0] == "wpn-bench" and len(words) == 2 and words[1] in (*RUNS, "prefetch", "check"):
        return [*words, "--help"]  # it is named, not typed
    return words


def small(command: str) -> list[str]:
    """The words of a command, with options behind it that make it small.

    The presets' own sets, tasks and steps are replaced by those of a `--config` file: `tests/test_documented_commands.py`
    writes it.
    """
    words = words_of(command)
    if "--help" in words:
        return words
    more: list[str] = []
    for part, options in SMALLER.items():
        if part in command and not (part == "wpn-bench doctor" and "--model" in command):
            more += options
    if words[0] == "wpn-bench" and words[1] in (*RUNS, "prefetch"):
        more += SMALL
        if "--methods" not in (*words, *more) and "--out" not in words and words[1] != "evaluate":
            more += ["--methods", "sft"]
        if "--config" not in words:
            attacks = "small-attacks.yaml" if re.search(r"gcg|relearn|preset attacks", command) else "small.yaml"
            more += ["--config", "hub.yaml" if HUB.search(command) and "--judge" not in words else attacks]
    if words[0] == "lm_eval" or "wpn_bench.benchmarks.language_model" in words:
        more += LM_EVAL
    return [*words, *more]
