"""Real models, data and judge by their names, from the loopback hub, in processes of their own.

The stand-in weights are small; what is tested is the way, not the figures.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer
from huggingface_hub import ModelCard

from wpn_bench import load_run
from wpn_bench.core.files import digest_file
from wpn_bench.runs.files import read_manifest, validate

pytestmark = [pytest.mark.hub, pytest.mark.slow]
Typed = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """\
methods:
  sft: {steps: 2, batch_size: 4}
decoding: {max_new_tokens: 16, batch_size: 8}
attacks: [prefix_injection, few_shot, payload_splitting, base64]
"""
OWN = CONFIG + "ood: []\nbenign: []\njudge: detoxify:original\njudges: []\n"
NINE = {
    "lambada", "hellaswag", "winogrande", "copa", "arc_easy", "arc_challenge", "piqa", "mathqa", "pubmedqa"
}  # fmt: skip
OOD = {"advbench", "harmbench", "do_not_answer", "xstest_unsafe", "rtp_toxic", "rtp_nontoxic"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub_runs")
    (folder / "quick.yaml").write_text(CONFIG)
    (folder / "own.yaml").write_text(OWN)
    (folder / "wpn.yaml").write_text("methods:\n  wpn: {steps: 2, batch_size: 2, retain_batch_size: 2}\n")
    return folder


@pytest.fixture(scope="module")
def typed(place: Path, hub_endpoint: dict[str, str], hub_commands: ForkServer) -> Typed:
    """`typed("full", "--model", ...)`, in `place`, with one store; `env` changes the environment.

    huggingface_hub reads its environment when it is imported, so a changed one needs a new interpreter.
    """

    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments), "--store", "store"]
        if not env:
            return hub_commands.completed(["wpn-bench", *words], place)
        return subprocess.run(
            [sys.executable, "-m", "wpn_bench", *words],
            cwd=place,
            env=hub_endpoint | env,
            capture_output=True,
            text=True,
            timeout=560,
        )

    return run


def paper(model: str, out: str) -> list[str]:
    return ["full", "--model", model, "--limit", "3", "--methods", "sft", "--config", "quick.yaml", "--out", out]


@pytest.fixture(scope="module")
def opt(typed: Typed) -> subprocess.CompletedProcess[str]:
    return typed(*paper("facebook/opt-125m", "opt"))


def check_run(folder: Path, model: str) -> dict[str, Any]:
    """What every run of the paper's preset must have left; its manifest."""
    run = load_run(folder)
    validate(run.results)
    asked = run.results["run"]
    assert (asked["model"], asked["preset"], asked["judge"], asked["lab"]) == (
        model,
        "paper",
        "exchange",
        False,
    )
    assert asked["failed"] == []
    assert {m["status"] for m in run.results["models"].values()} == {"ok"}
    assert len(asked["revision"]) == 40
    assert set(run.documents["task"]) == NINE
    assert set(run.documents.groupby(["model", "task"]).size()) == {3}
    assert set(run.samples[run.samples["suite"] == "ood"]["set"]) == OOD
    assert set(run.samples.groupby(["model", "set"]).size()) == {3}
    assert len(set(run.samples[run.samples["suite"] == "attack"]["set"])) >= 4
    assert run.samples["score"].between(0, 1).all()
    perplexity = run.metrics[(run.metrics["metric"] == "perplexity") & (run.metrics["model"] == "base")]
    assert perplexity["value"].item() > 1
    assert (folder / "report.html").stat().st_size > 10_000
    manifest = read_manifest(folder)
    for task in manifest["tasks"].values():
        assert len(task["revision"]) == 40
    for name, one in manifest["prompt_sets"].items():
        assert len(one["source"]["revision"]) == 40, name
    return manifest


def test_opt_with_the_papers_preset(place: Path, opt: subprocess.CompletedProcess[str]) -> None:
    assert opt.returncode == 0, opt.stderr
    assert [line.partition("?")[0] for line in opt.stdout.splitlines()[1:]] == ["Safer", "Capability loss", "Others"]
    progress = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d |note: |skipped: ")
    assert [line for line in opt.stderr.splitlines() if not progress.match(line)] == []
    manifest = check_run(place / "opt", "facebook/opt-125m")
    assert manifest["prompt_sets"]["pku_forget"]["source"]["hub"] == "PKU-Alignment/PKU-SafeRLHF"
    assert manifest["tasks"]["pubmedqa"]["dataset"] == "qiaojin/PubMedQA"


def test_what_is_cached_needs_no_hub(
    place: Path, typed: Typed, opt: subprocess.CompletedProcess[str], comparable: Callable[..., Any]
) -> None:
    """The same command when the hub is gone: the same results, nothing computed again."""
    assert opt.returncode == 0
    again = typed(*paper("facebook/opt-125m", "offline"), HF_ENDPOINT="http://127.0.0.1:9")
    assert again.returncode == 0, again.stderr
    assert {s["status"] for s in read_manifest(place / "offline")["stages"]} == {"cached"}
    first, second = (json.loads((place / out / "results.json").read_text()) for out in ("opt", "offline"))
    assert comparable(second) == comparable(first)


def test_gpt_neo_passes_through(place: Path, typed: Typed) -> None:
    done = typed(*paper("EleutherAI/gpt-neo-125m", "neo"))
    assert done.returncode == 0, done.stderr
    check_run(place / "neo", "EleutherAI/gpt-neo-125m")


def test_ones_own_triples(place: Path, typed: Typed, shared_hub: Path) -> None:
    files = shared_hub / "files"
    done = typed(
        "harmless", "--model", "EleutherAI/gpt-neo-125m", "--forget", files / "rtp_triples_train.jsonl",
        "--prompts", f"in_domain={files / 'rtp_triples_test.jsonl'}", "--prompt-kind", "continuation",
        "--limit", 3, "--methods", "sft", "--config", "own.yaml", "--out", "rtp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = load_run(place / "rtp")
    validate(run.results)
    mine = run.samples[run.samples["set"] == "in_domain"]
    assert len(mine) == 2 * 3
    # Continuations go to the model as they are.
    assert mine["input"].tolist() == mine["prompt"].tolist()
    first = json.loads((files / "rtp_triples_test.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert mine["prompt"].tolist()[0] == first["prompt"]
    manifest = read_manifest(place / "rtp")
    # A tenth of the forget set is held back for validation, and some items' harmless references are all harmful.
    (note,) = [n for n in run.results["run"]["notes"] if "harmful by the judge" in n]
    dropped = int(re.search(r"\((\d+) items have none left", note)[1])  # type: ignore[index]
    assert dropped > 0
    (forget,) = [s for s in manifest["prompt_sets"].values() if s["suite"] == "forget"]
    assert forget["n"] == pytest.approx(954 * 0.9 - dropped, abs=5)
    assert forget["source"]["file"] == "rtp_triples_train.jsonl"
    assert str(shared_hub) not in json.dumps(manifest)


LORA = ("--lora", "4")


def trained_in(place: Path, options: tuple[str, ...]) -> Path:
    return place / ("trained" + "".join(options))


@pytest.fixture(scope="module")
def trained(place: Path, typed: Typed) -> dict[tuple[str, ...], subprocess.CompletedProcess[str]]:
    train = ("train", "--method", "wpn", "--model", "facebook/opt-125m", "--config", "wpn.yaml")
    return {options: typed(*train, *options, "--out", trained_in(place, options)) for options in ((), LORA)}


@pytest.fixture(scope="module")
def loaded(
    place: Path,
    trained: dict[tuple[str, ...], Any],
    hub_endpoint: dict[str, str],
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> dict[tuple[str, ...], str]:
    """What a process without peft and without wpn-bench says of the models."""
    code = (
        "import sys; sys.modules['peft'] = sys.modules['wpn_bench'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    model, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)\n"
        "    assert not said['missing_keys'] and not said['unexpected_keys'], said\n"
        "    ids = AutoTokenizer.from_pretrained(folder)('The town', return_tensors='pt')\n"
        "    print(type(model).__name__, model.generate(**ids, max_new_tokens=4, do_sample=False).shape[0])\n"
    )
    folders = [str(trained_in(place, options) / "models" / "wpn") for options in trained]
    return dict(zip(trained, run_python(code, hub_endpoint, *folders).stdout.splitlines(), strict=True))


@pytest.mark.parametrize("options", [(), LORA], ids=["full", "lora"])
def test_train_leaves_a_model_that_transformers_loads(
    place: Path,
    trained: dict[tuple[str, ...], subprocess.CompletedProcess[str]],
    loaded: dict[tuple[str, ...], str],
    options: tuple[str, ...],
) -> None:
    done, out = trained[options], trained_in(place, options)
    assert done.returncode == 0, done.stderr
    folder = out / "models" / "wpn"
    assert done.stdout.splitlines()[-1] == f"model: {folder.resolve()}"
    assert loaded[options] == "OPTForCausalLM 1"
    results, manifest = json.loads((out / "results.json").read_text()), read_manifest(out)
    digest = digest_file(folder / "model.safetensors")
    assert results["models"]["wpn"]["digest"] == {"0": digest}
    assert manifest["models"]["wpn"]["0"]["digest"] == digest
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "facebook/opt-125m"
    assert card.data.datasets == ["PKU-Alignment/PKU-SafeRLHF", "Salesforce/wikitext"]
    assert digest in card.text
    if options:
        adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["r"]) == ("facebook/opt-125m", 4)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("wpn-bench: ")
    assert "; " in line
    assert done.stdout == ""
    return line


def test_an_unknown_model(typed: Typed) -> None:
    line = one_line(typed("full", "--model", "facebook/opt-125", "--out", "x"))
    assert "unknown model 'facebook/opt-125'" in line
    assert "check the spelling" in line


def test_no_hub_and_nothing_cached(typed: Typed, tmp_path: Path) -> None:
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    line = one_line(typed("full", "--model", "facebook/opt-125m", "--out", "x", **gone))
    assert "facebook/opt-125m is not in the local cache and the hub cannot be reached" in line
    assert "without --model, `wpn-bench full` uses its small lab model, which needs no network" in line


def test_a_local_model_and_no_hub_for_the_data(typed: Typed, tmp_path: Path, small_opt: Path) -> None:
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    line = one_line(typed("full", "--model", small_opt, "--out", "x", **gone))
    assert "PKU-Alignment/PKU-SafeRLHF" in line
    assert "once while online" in line


# --- fetched ahead, over a bad line; then no line at all --------------------------------------------------------------

SMALL = """\
methods: {sft: {steps: 2, batch_size: 4}}
forget: FORGET
in_domain: []
vet: false
decoding: {max_new_tokens: 8, batch_size: 8}
ood: [advbench]
benign: []
attacks: []
benchmarks: [wpn_copa]
"""
# No connection and no name look-up, in any library; a unix socket may be.
GUARD = """\
import socket
def refuse(*given, **named):
    with open({log!r}, "a") as f:
        f.write(repr(given) + "\\n")
    raise OSError("there is no network here")
connect = socket.socket.connect
socket.socket.connect = lambda self, at: connect(self, at) if self.family == socket.AF_UNIX else refuse(at)
socket.getaddrinfo = refuse
"""


def test_what_was_prefetched_over_a_bad_line_runs_without_any(
    place: Path, typed: Typed, hub_with: Callable[..., dict[str, str]], shared_hub: Path, tmp_path: Path
) -> None:
    rows = (shared_hub / "files" / "rtp_triples_test.jsonl").read_text(encoding="utf-8").split("\n")[:40]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (place / "small.yaml").write_text(SMALL.replace("FORGET", str(tmp_path / "mine.jsonl")))
    asked = ["--model", "facebook/opt-125m", "--config", "small.yaml"]
    log = tmp_path / "requests"
    env = hub_with("--fail-rate", "0.2", "--cut-rate", "0.2", "--seed", "2", "--log", str(log))
    done = typed("prefetch", *asked, **env)
    assert done.returncode == 0, done.stderr
    assert any(line.endswith(" 503") for line in log.read_text().splitlines())
    lines = done.stdout.splitlines()
    fetched = {line.split()[2] for line in lines if line.startswith("fetched")}
    assert {"bert-base-uncased", "facebook/opt-125m", "aps/super_glue", "walledai/AdvBench"} <= fetched
    assert lines[-1].endswith("wpn-bench full --model facebook/opt-125m --config small.yaml --store store --offline")

    log.unlink()
    again = typed("prefetch", *asked, **env)
    assert not [line for line in again.stdout.splitlines() if line.startswith("fetched")]
    assert not [line for line in log.read_text().splitlines() if "/resolve/" in line]  # where branches are now, no more

    refused = tmp_path / "refused"
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD.format(log=str(refused)))
    env |= {"PYTHONPATH": f"{guard}:{env['PYTHONPATH']}"}
    run = typed("full", *asked, "--limit", 3, "--offline", "--out", "ahead", **env)
    assert run.returncode == 0, run.stderr
    assert not refused.exists()
    manifest = read_manifest(place / "ahead")
    commits = [manifest["model"]["revision"], manifest["tasks"]["copa"]["revision"]]
    commits += [manifest["prompt_sets"]["advbench"]["source"]["revision"]]
    commits += [one["source"]["revision"] for one in manifest["texts"].values()]
    commits.append(manifest["judged_from"]["detoxify:original"]["bert-base-uncased"])
    assert all(len(commit) == 40 for commit in commits)
    assert (manifest["config"]["trust_remote_code"], manifest["config"]["allow_pickle"]) == (False, False)

    line = one_line(typed("full", *asked, "--benchmarks", "wpn_piqa", "--offline", "--out", "x", **env))
    assert "the data set 'baber/piqa' is not cached" in line
    assert "wpn-bench prefetch" in line
    assert not refused.exists()
