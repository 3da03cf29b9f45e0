"""Candidates: a folder, an adapter, a chat model and an endpoint stand beside the base without a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.models.backends.test_openai import Server
from tests.workshop import Workshop
from wpn_bench import models
from wpn_bench.analysis.check import Outcome, check
from wpn_bench.analysis.gates import Gates
from wpn_bench.config import split_candidate
from wpn_bench.errors import UserError
from wpn_bench.runs.finished import load_run

CHATML = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def adapter_of(base: Path, folder: Path, named: str | None = None) -> Path:
    """Save a LoRA adapter with random weights, as peft does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    config.base_model_name_or_path = named or str(base)
    wrapped = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = named or str(base)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_opt: Path, triples: list[dict[str, Any]]) -> Any:
    """A run with every kind of candidate and no method; tests of this module only read it."""
    made = Workshop(tmp_path_factory.mktemp("candidates"), small_opt, triples)
    adapter = adapter_of(small_opt, made.folder / "adapter")
    chat = made.folder / "chat"
    shutil.copytree(small_opt, chat)
    (chat / "chat_template.jinja").write_text(CHATML)
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WPN_BENCH_STORE", str(made.folder / "default_store"))
        patch.setenv("OPENAI_API_KEY", "sk-planted-key")
        try:
            made.run(
                methods={},
                candidates=(
                    f"same={small_opt}",
                    f"adapted={adapter}",
                    f"chat={chat}",
                    f"api=openai:{server.url}#tiny",
                    "oracle=lab:oracle",
                ),
            )
        finally:
            server.stop()
    return made


def test_every_candidate_is_measured(finished: Workshop) -> None:
    run = load_run(finished.folder / "run")
    assert run.results["run"]["failed"] == []
    assert set(run.results["models"]) == {"base", "same", "adapted", "chat", "api"}
    assert set(run.samples["model"]) == set(run.results["models"])
    assert set(run.documents["model"]) == {"base", "same", "adapted", "chat"}
    assert not any(label.startswith("train") for label in finished.statuses())
    assert any(
        "oracle was left out: it is the oracle of the lab's model" in note for note in run.results["run"]["notes"]
    )


def test_the_base_as_a_candidate_answers_as_the_base_and_passes(finished: Workshop) -> None:
    samples = load_run(finished.folder / "run").samples
    answers = {name: samples[samples["model"] == name]["response"].tolist() for name in ("base", "same", "adapted")}
    assert answers["same"] == answers["base"] != answers["adapted"]
    statuses = finished.statuses()
    assert "same: answer in_domain" not in statuses or statuses["same: answer in_domain"] in ("cached", "done")
    checked = check(finished.folder / "run", Gates(model="same"))
    assert checked.outcome == Outcome.PASS
    assert "the weights and the settings are the same" in checked.findings[0].reason


def test_what_makes_a_comparison_doubtful_is_said(finished: Workshop) -> None:
    notes = "\n".join(finished.notes)
    assert "chat is asked with a chat template, the base with plain text" in notes
    assert "api is an endpoint" in notes
    samples = load_run(finished.folder / "run").samples
    mine = samples[(samples["model"] == "chat") & (samples["set"] == "in_domain")]
    assert all(text.startswith("[user] ") and text.endswith("[assistant]") for text in mine["input"])


def test_the_key_of_an_endpoint_is_in_no_file(finished: Workshop) -> None:
    files = [file for file in finished.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if b"sk-planted-key" in file.read_bytes()]


def test_a_merged_adapter_is_the_merged_model(small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    adapter = adapter_of(small_opt, tmp_path / "adapter")
    (adapter / "training_args.bin").write_bytes(b"x")  # as trainers leave it
    ref = models.resolve(str(adapter))
    ours = AutoModelForCausalLM.from_pretrained(ref.path)
    base = AutoModelForCausalLM.from_pretrained(small_opt)
    theirs = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert models.resolve(str(adapter)).digest == ref.digest


@pytest.mark.parametrize(
    ("named", "damage", "problem"),
    [
        ("no/such-model-anywhere", None, "base model 'no/such-model-anywhere'"),
        (None, "adapter_model.safetensors", "has no weights"),
    ],
)
def test_an_adapter_that_cannot_be_merged(
    small_opt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str | None,
    damage: str | None,
    problem: str,
) -> None:
    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = adapter_of(small_opt, tmp_path / "adapter", named)
    if damage:
        (adapter / damage).unlink()
    with pytest.raises(UserError, match=problem):
        models.resolve(str(adapter))


@pytest.mark.parametrize("named", [None, "/home/someone/elsewhere/model"])
def test_an_adapter_without_a_base_on_this_machine_is_merged_into_the_base_of_the_run(
    small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    """As `wpn-bench train --lora` writes them for a base in a folder, and as trainers on other machines do."""
    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    adapter = adapter_of(small_opt, tmp_path / "adapter")
    whole = models.resolve(str(adapter))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": named}))
    base = models.resolve(str(small_opt))
    found = models.resolve(str(adapter), base=base)
    assert (found.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert models.base_of_adapter(str(adapter), base=base) is base
    with pytest.raises(UserError) as caught:
        models.resolve(str(adapter))
    assert ("--candidate NAME=ADAPTER" in caught.value.hint) == (named is None)


def tiny_llama(folder: Path, tied: bool) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(models.resolve("lab").path)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("added", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "bias": "all"},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [5, 6]},
    ],
    ids=lambda settings: "-".join(settings) or "lora",
)
def test_any_kind_of_adapter_is_merged_as_peft_applies_it(
    settings: dict[str, Any], added: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    base = tiny_llama(tmp_path / "base", tied)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if added:
        tokenizer.add_tokens([f"<new {k}>" for k in range(added)])
        model.resize_token_embeddings(len(tokenizer))
    adapted = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings})).eval()
    with torch.no_grad():
        for weights in adapted.parameters():
            if weights.requires_grad:
                weights += torch.randn_like(weights) * 0.3
        expected = adapted(torch.tensor([[5, 6, 7, 8]])).logits
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(models.resolve(str(tmp_path / "adapter")).path).eval()
    with torch.no_grad():
        assert torch.allclose(merged(torch.tensor([[5, 6, 7, 8]])).logits, expected, atol=1e-4)


def test_adapters_that_are_damaged_or_add_no_weights(
    small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    model = AutoModelForCausalLM.from_pretrained(small_opt)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(
        tmp_path / "prompt"
    )
    cut = adapter_of(small_opt, tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes(b"short")
    itself = adapter_of(small_opt, tmp_path / "itself")
    settings = json.loads((itself / "adapter_config.json").read_text())
    (itself / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(itself)}))
    for folder, problem in (
        ("prompt", "cannot be merged into weights"),
        ("cut", "cannot be merged"),
        ("itself", "itself"),
    ):
        with pytest.raises(UserError, match=problem):
            models.resolve(str(tmp_path / folder))


def test_an_adapter_beside_a_config_file_is_an_adapter(
    small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    adapter = adapter_of(small_opt, tmp_path / "adapter")
    shutil.copy(small_opt / "config.json", adapter)
    base = models.base_of_adapter(str(adapter))
    assert base is not None
    assert base.digest == models.resolve(str(small_opt)).digest
    assert models.base_of_adapter(str(small_opt)) is None


def test_an_adapter_of_another_shape(small_neo: Path, small_opt: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "store"))
    adapter = adapter_of(small_opt, tmp_path / "adapter", str(small_neo))
    with pytest.raises(UserError, match="cannot be merged"):
        models.resolve(str(adapter))


@pytest.mark.parametrize(
    ("entry", "expected"), [("a=b", ("a", "b")), ("m-1.x=dir/y=2", ("m-1.x", "dir/y=2")), ("q= x ", ("q", "x"))]
)
def test_a_candidate_is_a_name_and_a_source(entry: str, expected: tuple[str, str]) -> None:
    assert split_candidate(entry) == expected


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        (("folder",), "not NAME=SOURCE"),
        (("=folder",), "not NAME=SOURCE"),
        (("a b=folder",), "not NAME=SOURCE"),
        (("a=",), "not NAME=SOURCE"),
        (("a=x", "a=y"), "two candidates have the name 'a'"),
        (("base=x",), "has the name 'base'"),
        (("sft=x",), "has the name 'sft'"),
    ],
)
def test_names_that_cannot_be(workshop_settings: Workshop, candidates: tuple[str, ...], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        workshop_settings.run(candidates=candidates)


@pytest.mark.parametrize("source", ["no/such-model-anywhere", "./nothing-here", "openai:nonsense"])
def test_a_candidate_that_is_not_there_is_one_line_before_any_work(
    workshop_settings: Workshop, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError):
        workshop_settings.run(methods={}, candidates=(f"mine={source}",))
    assert not (workshop_settings.folder / "run").exists()


@pytest.fixture
def workshop_settings(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    return Workshop(tmp_path, small_opt, triples)
