"""Low-rank adapters: what is trained, what comes out, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.errors import UserError
from wpn_bench.prompts import Item
from wpn_bench.unlearn.lora import Adapters, check
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import LoRAConfig, MethodConfig
from wpn_bench.unlearn.train import train

from .training import NOT_FALLING, TEMPLATE, Done, Weights, equal, method_of

RANK_4 = {"lora": {"rank": 4}, "lr": 3e-2}


def trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_adapters_sit_in_every_linear_module_but_the_head(small_lm: Path) -> None:
    model = models.load_fresh(small_lm)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    assert len(linear) == 2 * 6
    kind = type(model)
    Adapters(model, LoRAConfig(rank=4), 0)
    assert type(model) is kind  # a loss that knows the model's modules finds them where they were
    names = trained(model)
    assert {name.partition(".lora_")[0] for name in names} == linear
    assert all(min(p.shape) == 4 for p in names.values())
    assert sum(p.numel() for p in names.values()) < 0.3 * sum(p.numel() for p in model.parameters())


def test_what_it_begins_with_follows_the_seed_alone(small_opt: Path) -> None:
    def begin(seed: int, state: int) -> dict[str, Any]:
        model = models.load_fresh(small_opt)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        Adapters(model, LoRAConfig(rank=2), seed)
        assert torch.equal(torch.get_rng_state(), before)  # nor does anything else depend on them
        return {name: p.detach().clone() for name, p in trained(model).items()}

    assert equal(begin(3, 1), begin(3, 2))
    assert not equal(begin(3, 1), begin(4, 1))


def test_untrained_adapters_change_nothing(small_lm: Path, weights: Callable[[Any], Weights]) -> None:
    model = models.load_fresh(small_lm)
    before = weights(model)
    merged = Adapters(model, LoRAConfig(), 0).merge()
    assert merged is model
    assert equal(weights(merged), before)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.slow
def test_every_method_trains_with_lora(
    name: str, small_lm: Path, items: list[Item], texts: list[str], weights: Callable[[Any], Weights], tmp_path: Path
) -> None:
    from peft import PeftModel

    before = weights(models.load_fresh(small_lm))
    done = Done(small_lm, method_of(name, **RANK_4), items, texts, adapter=tmp_path / "adapter")
    losses = [h["loss"] for h in done.said.history]
    assert sum(losses[-3:]) < sum(losses[:3]) or name in NOT_FALLING
    after = weights(done.model)
    assert after.keys() == before.keys()
    # Embeddings, and with them the tied head, norms and biases stay; every adapted matrix moves by rank 4 at most.
    for one, value in after.items():
        change = value - before[one]
        adapted = one.endswith("proj.weight") or ("fc" in one and one.endswith("weight"))
        if name in ("rmu", "circuit_breakers"):  # they steer the first block here, and what comes after is not trained
            adapted = adapted and ".0." in one
        assert bool(change.any()) == adapted, one
        if adapted:
            assert int(torch.linalg.matrix_rank(change, atol=1e-5)) <= 4
    # The base with the adapter beside it says the same as the merged model.
    again = PeftModel.from_pretrained(models.load_fresh(small_lm), str(tmp_path / "adapter")).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(again(input_ids=ids).logits, done.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_the_adapter_names_no_place(small_opt: Path, items: list[Item], tmp_path: Path) -> None:
    Done(small_opt, method_of("sft", steps=1, **RANK_4), items, [], adapter=tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    assert settings["inference_mode"] is True
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert str(small_opt.parent) not in json.dumps(settings)


def test_the_rate_of_adapters_is_another(small_opt: Path, items: list[Item]) -> None:
    full = Done(small_opt, method_of("sft", lr=None, steps=1), items, []).said.lr
    lora = Done(small_opt, method_of("sft", lr=None, steps=1, lora=4), items, []).said.lr
    own = Done(small_opt, method_of("sft", lr=0.01, steps=1, lora=4), items, []).said.lr
    assert (full, lora, own) == (pytest.approx(0.05 / 32), pytest.approx(0.5 / 32), 0.01)


@pytest.mark.parametrize(
    ("given", "config"),
    [
        (None, None),
        (False, None),
        (True, LoRAConfig()),
        (8, LoRAConfig(rank=8)),
        ({"rank": 8, "alpha": 4}, LoRAConfig(rank=8, alpha=4)),
        (LoRAConfig(rank=3), LoRAConfig(rank=3)),
    ],
)
def test_ways_to_say_it(given: Any, config: LoRAConfig | None) -> None:
    made = MethodConfig(lora=given)
    assert made.lora == config
    assert MethodConfig(**made.model_dump(mode="json")) == made


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in METHODS if method_of(name).needs_reference), ("sft", {"kl": 1}), ("grad_diff", {"retain": "kl"}),
     ("llmu", {"variant": "released"}), ("wpn", {"space": "hidden"}), ("wpn", {"mixed_precision": "bf16"}),
     ("npo", {"gradient_checkpointing": True}), ("dpo", {"lora": {"rank": 4, "dropout": 0.3}})],
)  # fmt: skip
@pytest.mark.slow
def test_the_model_without_its_adapters_is_the_reference(
    name: str,
    options: dict[str, Any],
    small_opt: Path,
    items: list[Item],
    texts: list[str],
    weights: Callable[[Any], Weights],
) -> None:
    """A frozen second copy gives the same losses and the same model, bit for bit."""
    method = method_of(name, **{**RANK_4, "steps": 3, **options})
    assert method.needs_reference
    alone = Done(small_opt, method, items, texts, reference=None)
    beside = Done(small_opt, method, items, texts, reference=models.load(small_opt)[0])
    assert alone.said.history == beside.said.history
    assert equal(weights(alone.model), weights(beside.model))


def test_adapters_are_off_for_the_reference_alone(small_lm: Path) -> None:
    model = models.load_fresh(small_lm).train()
    plain = models.load_fresh(small_lm).eval()
    adapters = Adapters(model, LoRAConfig(rank=2, dropout=0.5), 0)
    with torch.no_grad():
        for p in trained(model).values():
            p.normal_()
    reference = adapters.reference()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        assert torch.equal(reference(input_ids=ids).logits, expected)
        # Also by its parts, as a plug-in's loss may call it.
        hidden = plain.base_model(input_ids=ids)[0]
        assert torch.equal(reference.base_model(input_ids=ids)[0], hidden)
        assert torch.equal(reference.get_output_embeddings()(hidden), expected)
        assert torch.equal(reference.generate(ids, max_new_tokens=3), plain.generate(ids, max_new_tokens=3))
        assert not torch.equal(model(input_ids=ids).logits, expected)
    assert model.training
    assert all(p.requires_grad for p in trained(model).values())
    assert reference.config is model.config


@pytest.mark.slow
def test_adapters_learn_in_float32_inside_a_model_in_half_precision(
    small_lm: Path, items: list[Item], texts: list[str]
) -> None:
    """As `--dtype bfloat16 --lora 4` trains: the frozen weights stay half as large."""
    model = models.load_fresh(small_lm, dtype="bfloat16")
    seen: dict[bool, set[torch.dtype]] = {}

    def look(step: int, current: Any) -> None:
        for name, p in model.named_parameters():
            seen.setdefault("lora_" in name, set()).add(p.dtype)

    said = train(
        model, models.load_tokenizer(small_lm), method_of("wpn", **RANK_4), items, texts, template=TEMPLATE, seed=0,
        after_step=look,
    )  # fmt: skip
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    losses = [h["loss"] for h in said.history]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (("query",), "LoRA finds no modules to adapt in"),
        (("q_proj", "lm_head"), "share one tensor"),
        (("lm_head",), "share one tensor"),
    ],
)
def test_target_modules_that_cannot_be(small_lm: Path, targets: tuple[str, ...], problem: str) -> None:
    model = models.load_fresh(small_lm)
    config = LoRAConfig(target_modules=targets)
    with pytest.raises(UserError, match=problem):
        check(type(model), model.config, config)
    with pytest.raises(UserError, match=problem):
        Adapters(model, config, 0)


def test_a_check_costs_no_memory(small_lm: Path) -> None:
    """It says yes too, and makes no weights: the model here would take 800 GB."""
    model = models.load_fresh(small_lm)
    big = type(model.config)(**{**model.config.to_dict(), "vocab_size": 4_000_000, "hidden_size": 51200})
    big.word_embed_proj_dim = 51200
    check(type(model), big, LoRAConfig(target_modules=("q_proj", "v_proj")))


@pytest.mark.slow
def test_nothing_of_peft_is_needed_afterwards(small_opt: Path, items: list[Item], tmp_path: Path) -> None:
    """The saved model loads in a process that has neither peft nor this package."""
    done = Done(small_opt, method_of("sft", steps=2, **RANK_4), items, [])
    done.model.save_pretrained(tmp_path)
    code = (
        "import sys; sys.modules['peft'] = sys.modules['wpn_bench'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "m, said = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not said['missing_keys'] and not said['unexpected_keys'], said\n"
        "assert m.config.use_cache is True\n"
        "print(type(m).__name__, m.model.decoder.layers[0].fc1.weight.detach().double().sum().item())\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    name, total = said.stdout.split()
    assert name == "OPTForCausalLM"
    assert float(total) == pytest.approx(float(done.model.model.decoder.layers[0].fc1.weight.detach().double().sum()))
