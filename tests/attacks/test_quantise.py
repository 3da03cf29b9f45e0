"""Quantisation: what is rounded, by how much, what stays, and that the folder is a model like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.models.architectures import save
from wpn_bench import models
from wpn_bench.attacks import quantise
from wpn_bench.attacks.quantise import GROUP, SCHEMES, get_scheme, obstacle, rounded_weights, run_quantise_stage
from wpn_bench.engine.generation import Decoding, generate
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.job import StageContext

LARGEST = {"int8": 127, "int4": 7}


def rounded(model: Path, out: Path, scheme: str, dtype: str = "float32") -> Path:
    """The stage's folder."""
    pytest.importorskip("torchao", reason="quantisation needs torchao (extra `quantise`)")
    out.mkdir(parents=True)
    params = {"scheme": scheme, "dtype": dtype}
    run_quantise_stage(StageContext(params, {"model": model}, out, {"device": "cpu"}, lambda n, what: lambda k: None))
    return out


@pytest.fixture(scope="module", params=list(SCHEMES))
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(small_lm: Path, scheme: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT and a GPT-Neo under each scheme."""
    return rounded(small_lm, tmp_path_factory.mktemp("rounded") / "model", scheme)


def test_a_weight_moves_by_at_most_half_a_step(small_lm: Path, folder: Path, scheme: str) -> None:
    plain, model = models.load_fresh(small_lm), models.load_fresh(folder)
    names = rounded_weights(model)
    assert len(names) == 2 * 6  # four projections and two feed-forward layers a block
    before, after = dict(plain.named_parameters()), dict(model.named_parameters())
    for name in names:
        weight, now = before[name].detach(), after[name].detach().dequantize()
        groups = weight.reshape(len(weight), -1, weight.shape[1] if scheme == "int8" else GROUP)
        step = groups.abs().amax(-1, keepdim=True) / LARGEST[scheme]
        moved = (now.reshape(groups.shape) - groups).abs()
        assert bool((moved <= 0.51 * step).all()), name
        assert float(moved.max()) > 0
    for name in before.keys() - set(names):
        assert torch.equal(before[name], after[name]), name


def test_the_folder_is_loaded_and_answers_like_any_other(small_lm: Path, folder: Path, scheme: str) -> None:
    """Saved and read twice it is the same model; it is near the one that was rounded, and not that one."""
    said = []
    for _ in range(2):
        model, tokenizer = models.load_fresh(folder).eval(), models.load_tokenizer(folder)
        with torch.no_grad():
            said.append(model(**tokenizer("Who sells apples?", return_tensors="pt")).logits)
    assert torch.equal(*said)
    plain, tokenizer = models.load(small_lm)
    with torch.no_grad():
        reference = plain(**tokenizer("Who sells apples?", return_tensors="pt")).logits
    error = float((said[0] - reference).norm() / reference.norm())
    assert 0 < error < {"int8": 0.05, "int4": 0.6}[scheme]
    model, tokenizer = models.load(folder)
    answers = generate(model, tokenizer, ["Who sells apples?", "What?"], Decoding(max_new_tokens=5))
    assert all(a.text is not None for a in answers)


def test_it_says_how_much_was_rounded(folder: Path, scheme: str) -> None:
    said = json.loads((folder / "quantised.json").read_text())
    assert said["scheme"] == scheme
    assert 0 < said["rounded_weights"] < said["weights"]


def test_fewer_bits_round_more(small_opt: Path, tmp_path: Path) -> None:
    plain, tokenizer = models.load(small_opt)
    ids = tokenizer("Who sells apples?", return_tensors="pt")
    errors = {}
    for name in SCHEMES:
        model = models.load_fresh(rounded(small_opt, tmp_path / name, name))
        with torch.no_grad():
            errors[name] = float((model(**ids).logits - plain(**ids).logits).norm())
    assert errors["int4"] > 2 * errors["int8"]


def test_a_model_of_which_nothing_is_rounded_is_refused(small_opt: Path, tmp_path: Path) -> None:
    """GPT-2's layers are transposed convolutions, which torchao leaves alone: it would be base under another name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    models.load_tokenizer(small_opt).save_pretrained(folder)
    with pytest.raises(JobFailed, match="GPT2LMHeadModel has none"):
        rounded(folder, tmp_path / "out", "int8")


def test_a_width_that_has_no_groups_is_a_failed_job(small_opt: Path, tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=300, hidden_size=24, word_embed_proj_dim=24, ffn_dim=24, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "odd")
    models.load_tokenizer(small_opt).save_pretrained(tmp_path / "odd")
    with pytest.raises(
        JobFailed, match="int4 needs rows whose length is a multiple of 32, but some rows have 24 weights"
    ):
        rounded(tmp_path / "odd", tmp_path / "out", "int4")


def test_what_stands_in_the_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda name: object())
    assert [obstacle(device) for device in ("cpu", "cuda", "cuda:1")] == [None] * 3
    assert obstacle("mps") == "quantisation works on cpu and cuda, not on mps"
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    assert "pip install 'wpn-bench[quantise]'" in str(obstacle("cpu"))


def test_an_unknown_scheme() -> None:
    with pytest.raises(UserError, match="unknown quantisation 'int3'"):
        get_scheme("int3")


def test_every_scheme_says_what_it_is() -> None:
    for name, one in SCHEMES.items():
        assert (one.name, bool(one.title), one.description[-1]) == (name, True, ".")


@pytest.mark.parametrize("architecture", ["mixtral", "olmoe", "qwen3_moe", "gpt_oss"])
def test_fused_experts_are_rounded_too(architecture: str, scheme: str, tmp_path: Path) -> None:
    """All experts of a layer are one tensor, which torchao leaves alone; most weights of such a model are in it."""
    whole = save(architecture, tmp_path / "whole")
    folder = rounded(whole, tmp_path / "rounded", scheme)
    before, after = (dict(models.load_fresh(one).named_parameters()) for one in (whole, folder))
    fused = [name for name, weight in before.items() if "experts" in name and weight.dim() == 3]
    assert fused
    for name in fused:
        groups = before[name].detach().flatten(0, 1)
        groups = groups.reshape(len(groups), -1, groups.shape[1] if scheme == "int8" else GROUP)
        step = groups.abs().amax(-1, keepdim=True) / LARGEST[scheme]
        moved = (after[name].detach().reshape(groups.shape) - groups).abs()
        assert bool((moved <= 0.51 * step).all()), name
        assert float(moved.max()) > 0
    written = json.loads((folder / "quantised.json").read_text())
    assert written["rounded_weights"] > sum(before[name].numel() for name in fused)
