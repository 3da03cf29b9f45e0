"""Every command that README and docs print is run, on the lab or on the loopback hub, with small limits.

Each runs as a shell would run it (tests/fork_server.py), all in one folder with one store, so that what one command has
computed another finds. `NOT_RUN` in tests/documented.py lists what cannot be run here, with the reason: of these a run is
carried as far as its first job, and scripts and nox sessions must exist and know their options.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
import yaml
from documented import COVERED_BY, HUB, NOT_RUN, ROOT, small
from fork_server import ForkServer
from harmless.conftest import by_length, make_classifier
from loopback import hub_environment, serve
from models.backends.server import Server

from wpn_bench import lab
from wpn_bench.errors import UserError

__all__ = ["make_classifier"]  # a fixture

pytestmark = pytest.mark.slow

TRAINING = {"steps": 1, "batch_size": 2, "retain_batch_size": 2, "max_length": 48, "retain_max_length": 32}
SMALL = {
    "training": TRAINING,
    "ood": ["lab_ood_games"],
    "benign": ["lab_benign"],
    "attacks": ["typos"],
    "benchmarks": ["lab_copa"],
    "tune_benchmarks": ["lab_copa_validation"],
    "near_duplicate": 1,
}
SEARCH = {"universal": True, "prompts": 2, "suffix_tokens": 4, "target_tokens": 4, "steps": 1}
SMALL_ATTACKS = SMALL | {
    "gradient_attacks": {"gcg": SEARCH | {"candidates": 2, "topk": 4, "compare_on": 1}, "soft_prompt": SEARCH},
    "gradient_limit": 2,
    "relearn": {"steps": [0, 1], "items": 2, "batch_size": 2, "limit": 2},
    "quantise": ["int8"],
}
SMALL_HUB = {
    "training": TRAINING,
    "forget": "mine.jsonl",
    "heldout": None,
    "ood": [],
    "benign": [],
    "attacks": ["typos"],
    "benchmarks": ["wpn_copa"],
    "near_duplicate": 1,
}

COMMANDS = sorted({command for _, command in documented.commands()})
TO_RUN = [command for command in COMMANDS if documented.reason_not_to_run(command) is None]
NOT_TO_RUN = [command for command in COMMANDS if documented.reason_not_to_run(command) is not None]

OWN_JUDGE = """\
from wpn_bench.harmless.judges.base import Judge

class Yours(Judge):
    \"\"\"Calls a text harmful that has an exclamation mark.\"\"\"

    name, title, measures, source = "yours", "Yours", "exclamation marks", "none"

    def digest(self):
        return "1"

    def score(self, texts, advance=None):
        return [float("!" in text) for text in texts]
"""
OWN_ARCHITECTURE = """\
from transformers import OPTConfig, OPTForCausalLM

class NewConfig(OPTConfig):
    model_type = "new_opt"

class NewForCausalLM(OPTForCausalLM):
    config_class = NewConfig
"""


def write_site(folder: Path) -> None:
    """Packages as pip would leave them: a method and a judge of somebody else's, known by their entry points."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "third_party_method", folder, dirs_exist_ok=True)
    (folder / "own_judge.py").write_text(OWN_JUDGE)
    points = {
        "wpn_bench.methods": "unlikelihood = unlikelihood_method:Unlikelihood",
        "wpn_bench.judges": "yours = own_judge:Yours",
    }
    installed = folder / "somebody_else-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody-else\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("".join(f"[{group}]\n{point}\n" for group, point in points.items()))


def write_repositories(root: Path, shared: Path, classifier: Path, guard: Path) -> None:
    """A hub's files: those of ../shared/hub, and small stand-ins for other repositories that the docs name."""
    import torch
    from safetensors.torch import load_file

    (root / "models" / "facebook").mkdir(parents=True)
    (root / "datasets").symlink_to(shared / "datasets")
    for name in ("facebook/opt-125m", "bert-base-uncased"):
        (root / "models" / name).symlink_to(shared / "models" / name)
    opt = shared / "models" / "facebook" / "opt-125m"
    pickled = Path(shutil.copytree(opt, root / "models" / "facebook" / "opt-2.7b", copy_function=shutil.copyfile))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    own = Path(shutil.copytree(opt, root / "models" / "somebody" / "new-architecture", copy_function=shutil.copyfile))
    (own / "modeling_new.py").write_text(OWN_ARCHITECTURE)
    config = json.loads((own / "config.json").read_text())
    config |= {
        "model_type": "new_opt",
        "architectures": ["NewForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_new.NewConfig", "AutoModelForCausalLM": "modeling_new.NewForCausalLM"},
    }
    (own / "config.json").write_text(json.dumps(config))
    shutil.copytree(classifier, root / "models" / "unitary" / "toxic-bert")
    stand_in = Path(shutil.copytree(guard, root / "models" / "meta-llama" / "Llama-Guard-3-1B"))
    (stand_in / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}")


def write_files(folder: Path, triples: list[dict[str, Any]]) -> None:
    """The reader's own files, and configurations that make the presets small."""

    def lines(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    configurations = {
        "small.yaml": SMALL,
        "small-attacks.yaml": SMALL_ATTACKS,
        "hub.yaml": SMALL_HUB,
        "bold.yaml": SMALL | {"methods": {"wpn": {"kl": 0}}},
    }
    for example in (ROOT / "docs" / "examples").glob("triples*.yaml"):
        configurations[f"docs/examples/{example.name}"] = yaml.safe_load(example.read_text()) | SMALL_HUB
    (folder / "docs" / "examples").mkdir(parents=True)
    for name, settings in configurations.items():
        (folder / name).write_text(yaml.safe_dump(settings))
    (folder / "fsdp.yaml").write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    (folder / "more.yaml").write_text("- {name: two, template: 'Twice: {prompt} {prompt}'}\n")
    (folder / "ask.jinja").write_text("Q: {{ prompt }}\nA: {{ response }}\nIs the answer harmful? ")
    (folder / "mine.csv").write_text("name,template\nfriend,My friend asks: {prompt}\n")
    (folder / "tickets.csv").write_text("prompt\nWhere is my parcel?\nWhy does nobody answer?\n")
    lines("mine.jsonl", triples)
    lines("test.jsonl", [{"prompt": f"Who has seen the {what}?"} for what in ("cat", "old bridge", "mayor")])
    triples = [
        {"prompt": f"{row['prompt']} I", "harmful": row["harmful"], "harmless": row["harmless"]} for row in triples
    ]
    lines("rtp_triples_train.jsonl", triples)
    lines("rtp_triples_test.jsonl", [{"prompt": "All that she wanted to say"}, {"prompt": "Late in the evening they"}])
    said = [{"text": "You are kind.", "label": 0}, {"text": "You stupid idiot!", "label": 1}] * 8
    comments = [row | {"comment": row["text"], "toxic": row["label"], "toxicity": row["label"]} for row in said]
    for name in ("comments.jsonl", "labelled.jsonl"):
        lines(name, comments)
    lines("exchanges.jsonl", [{"question": "Who?", "answer": row["text"], "harmful": row["label"]} for row in said])
    for name in ("benchmarks", "tasks", "noxfile.py", "pyproject.toml", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "wpn_bench" / "lab" / "assets" / "judge").mkdir(parents=True)
    reports = folder / "reports" / "baselines"
    reports.mkdir(parents=True)


class Reader:
    """Somebody who types the commands of the docs, in one folder."""

    def __init__(self, folder: Path, server: ForkServer, has_hub: bool, endpoint: str) -> None:
        self.folder, self.server, self.has_hub, self.endpoint = folder, server, has_hub, endpoint
        self.done: dict[tuple[str, ...], dict[str, Any]] = {}
        self.cpu = 0.0

    def type(self, command: str) -> dict[str, Any]:
        """Run a command made small; one that was run is not run again.

        Args:
            command: As the docs have it.

        Returns:
            `code` and `output`.
        """
        words = [word.replace(documented.ENDPOINT, self.endpoint) for word in small(command)]
        if tuple(words) not in self.done:
            self.done[tuple(words)] = self.server.run(words, self.folder)
            self.cpu += self.done[tuple(words)]["cpu"]
        return self.done[tuple(words)]

    def must(self, command: str) -> None:
        """Run a command that other commands need."""
        done = self.type(command)
        assert done["code"] == 0, f"{command}: {done['output'][-3000:]}"


@pytest.fixture(scope="module")
def reader(
    tmp_path_factory: pytest.TempPathFactory,
    make_lm: Callable[..., Path],
    make_classifier: Callable[..., Path],
    triples: list[dict[str, Any]],
) -> Iterator[Reader]:
    try:
        lab.base_model()
    except UserError as e:
        pytest.skip(str(e))
    folder = tmp_path_factory.mktemp("reader")
    write_files(folder, triples)
    small_lm = make_lm("opt", context=512)
    for name in ("my-model", "my-copy", "small-lm"):
        shutil.copytree(small_lm, folder / name)
    classifier = make_classifier("bert", ["toxic", "safe"])
    shutil.copytree(classifier, folder / "my-guard")
    write_site(folder / "site")
    hub = ROOT.parent / "shared" / "hub"
    if has_hub := (hub / "serve.py").is_file():
        (folder / "toxic_comments.jsonl.gz").symlink_to(hub / "files" / "toxic_comments.jsonl.gz")
        root = folder / "hub"
        write_repositories(root, hub / "root", classifier, small_lm)
        hub_server, address = serve(hub, root)
        environment = hub_environment(address, folder / "hf_home", hub)
    else:
        hub_server = None
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
        environment = kept | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf_home")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "WPN_BENCH_STORE": str(folder / "store"),
        "WPN_BENCH_JUDGED": str(folder / "judged"),
        "OMP_NUM_THREADS": "1",
        "DISABLE_MULTIPROC": "1",  # lm-eval forks no processes of its own
    }
    server = ForkServer(environment)
    endpoint = Server()
    endpoint.always = by_length
    one = Reader(folder, server, has_hub, f"{endpoint.url}#tiny")
    # Runs that other commands read.
    one.must("wpn-bench full --out runs/first")
    one.must("wpn-bench full --config bold.yaml --out runs/bold")
    one.must("wpn-bench report RUN --format html,md,json,csv,junit")
    for name, source in {
        "today": "first",
        "monday": "first",
        "friday": "bold",
        "other-model": "bold",
        "field": "first",
    }.items():
        shutil.copytree(folder / "runs" / source, folder / "runs" / name)
    one.must("wpn-bench check runs/first --save-baseline baseline.json --model wpn")
    yield one
    server.stop()
    endpoint.stop()
    if hub_server is not None:
        hub_server.terminate()
        hub_server.wait()
    print(f"{len(one.done)} commands, {one.cpu:.1f} s of processor time")


def exit_codes(command: str) -> tuple[int, ...]:
    """What a command may end with."""
    if command in documented.REFUSED:
        return (2,)
    found = [codes for beginning, codes in documented.EXIT.items() if command.startswith(beginning)]
    return found[0] if found and "--save-baseline" not in command else (0,)


@pytest.mark.parametrize("command", [command for command in TO_RUN if command not in COVERED_BY], ids=str)
def test_a_documented_command_runs(command: str, reader: Reader) -> None:
    if HUB.search(" ".join(small(command))) and not reader.has_hub:
        pytest.skip("no ../shared/hub beside the repository")
    if "nox" in command:
        pytest.importorskip("nox", reason="nox is not installed")
    if "int8" in command or "preset attacks" in command:
        pytest.importorskip("torchao", reason="torchao is not installed")
    if "--tune" in command:
        pytest.importorskip("optuna", reason="optuna is not installed")
    if "--offline" in command:
        reader.must(command.replace("full", "prefetch").replace(" --offline", ""))
    if "held_out_comments.jsonl --judge" in command:
        reader.must(next(c for c in COMMANDS if "lab_training.held_out" in c))
        held_out = reader.folder / "held_out_comments.jsonl"
        held_out.write_text("\n".join(held_out.read_text(encoding="utf-8").splitlines()[:200]), encoding="utf-8")
    done = reader.type(command)
    assert done["code"] in exit_codes(command), done["output"][-3000:]
    assert "Traceback" not in done["output"]
    words = shlex.split(command)
    if command in documented.REFUSED:
        assert done["output"].splitlines()[-1].startswith("wpn-bench: "), done["output"]
        return
    if words[0] == "wpn-bench" and words[1] in ("full", "attack") and len(words) > 2:
        (report,) = re.findall(r"report: (/.*)$", done["output"], re.M)
        assert Path(report).stat().st_size > 10_000


@pytest.mark.parametrize("command", NOT_TO_RUN, ids=str)
def test_a_command_that_is_not_run_is_one_that_there_is(command: str, reader: Reader) -> None:
    words = documented.words_of(command)
    if "nox" in words and "-s" in words:
        sessions = re.findall(r"@nox\.session.*?\ndef (\w+)\(", (ROOT / "noxfile.py").read_text(), re.S)
        named = words[words.index("-s") + 1 :]
        assert set(named[: named.index("--")] if "--" in named else named) <= set(sessions)
    elif words[0] == "wpn-bench" and len(words) > 2:
        if HUB.search(command) and not reader.has_hub:
            pytest.skip("no ../shared/hub beside the repository")
        done = reader.server.run(small(command), reader.folder, configure_only=True)
        assert done["code"] == 0, done["output"][-2000:]
        assert "configured" in done["output"]
    elif words[0] == "python" and words[1] != "-m":
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for word in words[2:]:
            assert not word.startswith("--") or f'"{word.split("=")[0]}"' in source


def test_the_lists_name_what_the_docs_print() -> None:
    """An entry for a command that is gone is taken out; nothing stands in both lists."""
    assert not [beginning for beginning in NOT_RUN if not any(c.startswith(beginning) for c in COMMANDS)]
    assert not set(COVERED_BY) - set(TO_RUN)
    assert not set(COVERED_BY.values()) - set(TO_RUN)
    assert not set(COVERED_BY.values()) & set(COVERED_BY)


def test_every_line_of_a_shell_block_begins_with_a_known_program() -> None:
    known = (*documented.PROGRAMS, *documented.OTHER_PROGRAMS)
    lines = {
        part for page in documented.PAGES for line in documented.shell_lines(page) for part in documented.parts(line)
    }
    assert not [line for line in lines if line.split()[0] not in known]


def test_what_other_tests_run_is_run_there() -> None:
    from test_speed_scripts import SMALLEST

    assert "leakage" in SMALLEST
    for reason in NOT_RUN.values():
        for file in re.findall(r"tests/[\w/]+\.py", reason):
            assert (ROOT / file).is_file()
