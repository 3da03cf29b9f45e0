from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer
from transformers import OPTConfig

from wpn_bench.core import machine
from wpn_bench.preflight import doctor, estimates

Cli = Callable[..., Any]


def diagnostics(out: str) -> dict[str, dict[str, str]]:
    """Return the last diagnostic of each topic."""
    return {finding["topic"]: finding for finding in json.loads(out)["findings"]}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide this machine: no hub, an empty store, much memory."""
    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device: 16 * estimates.GIB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("judge", "read"), [("detoxify:lab", False), ("detoxify:lab,exchange", True)])
def test_whether_a_judge_reads_the_prompts(cli: Cli, quiet: Path, judge: str, read: bool) -> None:
    found = diagnostics(cli("doctor", "--device", "cpu", "--json", "--judge", judge).out)
    assert ("verdict" not in found) == read
    if not read:
        assert found["verdict"]["text"].startswith("No judge of this run reads the prompts")
        assert "--judge" in found["verdict"]["hint"]


def test_no_problems_on_the_lab(cli: Cli, quiet: Path) -> None:
    said = cli("doctor", "--device", "cpu")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[-1] == "no problems found"
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "note"}
    for topic in ("python", "torch", "processors", "memory", "store", "runs", "hub", "model", "judge", "training"):
        assert any(line.split()[1] == topic for line in lines[:-1]), topic
    assert not (quiet / "store").exists()  # doctor creates no files


def big(folder: Path) -> Path:
    OPTConfig(
        hidden_size=1024, word_embed_proj_dim=1024, ffn_dim=4096, num_hidden_layers=6, num_attention_heads=16
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_training_that_does_not_fit_suggests_options(cli: Cli, quiet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("doctor", "-m", big(quiet / "big"), "--preset", "lab", "--methods", "sft", "--device", "cpu", "--json")
    whole = diagnostics(cli(*asked).out)["training"]
    assert whole["status"] == "ok"
    assert whole["text"].startswith("fits: sft needs at most ")
    takes = float(whole["text"].removeprefix("fits: sft needs at most ").split()[0])
    # With a little less memory gradient checkpointing suffices; with much less, adapters are needed, too.
    for share, hint in ((0.9, "use --gradient-checkpointing"), (0.45, "use --lora 16 --gradient-checkpointing")):
        free = (share * takes * estimates.GIB + estimates.LIBRARY_BYTES["cpu"]) / machine.USABLE_FRACTION
        monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device, free=free: free)
        said = cli(*asked)
        assert said.code == 2
        found = diagnostics(said.out)["training"]
        assert found["status"] == "fail"
        assert found["text"].startswith("does not fit: sft needs at most ")
        assert found["hint"].startswith(hint)
        assert diagnostics(cli(*asked, *found["hint"].partition(" (")[0].split()[1:]).out)["training"]["status"] == "ok"
    monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device: estimates.GIB)
    last = cli(*asked[:-1]).out.splitlines()[-1]
    assert last.endswith("to fix first")


@pytest.mark.parametrize(
    ("options", "topic", "text"),
    [
        (["-m", "nowhere"], "model", "contains no causal language model"),
        (["--device", "cuda"], "machine", "no CUDA device is available"),
        (["--mixed-precision", "fp16", "--device", "cpu"], "training", "fp16 needs a CUDA device"),
        (["--store", "a-file/store"], "store", "cannot be written"),
    ],
)
def test_problems_are_reported(cli: Cli, quiet: Path, options: list[str], topic: str, text: str) -> None:
    (quiet / "nowhere").mkdir()
    (quiet / "a-file").touch()
    if options[-1] == "cuda":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    said = cli("doctor", *options, "--json")
    assert said.code == 2
    found = diagnostics(said.out)[topic]
    assert (found["status"], text in found["text"]) == ("fail", True), found
    assert found["hint"]


def test_a_library_outside_its_range_fails_and_an_unpinned_one_is_noted(
    cli: Cli, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "requires", lambda name: ["transformers>=5.0", "torch>=2.6", "foo; extra == 'x'"])
    monkeypatch.setattr(
        doctor, "version", lambda name: {"transformers": "4.9", "torch": "2.99"}.get(name) or real(name)
    )
    found = diagnostics(cli("doctor", "--device", "cpu", "--json").out)
    assert found["transformers"] == {
        "topic": "transformers", "status": "fail", "text": "4.9, but wpn-bench needs >=5.0",
        "hint": "pip install 'transformers>=5.0'",
    }  # fmt: skip
    assert found["torch"]["status"] == "note"
    assert found["torch"]["text"].startswith("2.99; the tests ran with 2.")


@pytest.mark.hub
def test_the_hub_is_checked_and_tokens_are_not_printed(
    hub_endpoint: dict[str, str], hub_commands: ForkServer, tmp_path: Path
) -> None:
    env = {"HF_TOKEN": "hf_sekret", "WPN_BENCH_STORE": str(tmp_path)}
    command = ["wpn-bench", "doctor", "-m", "facebook/opt-125m", "--device", "cpu", "--json"]
    done = hub_commands.completed(command, tmp_path, environment=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = diagnostics(done.stdout)
    assert found["model"]["text"] == "facebook/opt-125m: OPTForCausalLM"
    assert found["judge"]["text"] == "detoxify:original is available"
    assert found["hub"]["text"] == f"{hub_endpoint['HF_ENDPOINT']}, with a token"
    assert "sekret" not in done.stdout + done.stderr


def test_offline_reports_missing_files(cli: Cli, quiet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:pass@127.0.0.1:1")
    monkeypatch.setenv("TORCH_HOME", str(quiet))
    said = cli("doctor", "-m", "no/such-model", "--device", "cpu", "--json")
    assert said.code == 2
    found = diagnostics(said.out)
    assert found["hub"]["text"].startswith("http://127.0.0.1:1, ")
    assert found["hub"]["text"].endswith("offline mode: only the cache is used")
    assert "me:pass" not in said.out + said.err
    for topic in ("model", "judge"):
        assert found[topic]["status"] == "fail"
        assert found[topic]["hint"]


def test_candidates_are_checked_without_being_merged(cli: Cli, quiet: Path) -> None:
    adapter = quiet / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    options = ["--candidate", "a=adapter", "--candidate", "b=openai:http://127.0.0.1:9/v1#m", "--candidate", "c=./none"]
    said = json.loads(cli("doctor", "--device", "cpu", "--json", *options).out)["findings"]
    found = [(d["status"], d["text"]) for d in said if d["topic"] == "candidate"]
    assert found[0] == ("ok", "a: adapter is an adapter of org/base")
    assert [status for status, _ in found] == ["ok", "fail", "fail"]
    assert found[1][1].startswith("b: the endpoint http://127.0.0.1:9/v1 cannot be reached")
    assert found[2][1].startswith("c: no model folder at ./none") or "hub" in found[2][1]
