from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from wpn_bench.unlearn.memory import of_training
from wpn_bench.unlearn.methods import METHODS

SHAPES: dict[str, tuple[Any, Any]] = {
    "opt": (OPTForCausalLM, OPTConfig(
        hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=500)),
    "neo": (GPTNeoForCausalLM, GPTNeoConfig(
        hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], vocab_size=500,
        bos_token_id=0, eos_token_id=0)),
    "llama": (LlamaForCausalLM, LlamaConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=500)),
}  # fmt: skip


def estimate(shape: str, method: str = "sft", dtype: str = "float32", **options: Any) -> Any:
    kind = METHODS.get(method)
    return of_training(*SHAPES[shape], kind(kind.Config(**options)), dtype)


def kept_by_autograd(model: Any, rows: int, length: int) -> int:
    """Bytes of a real forward pass with labels, each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(5, 400, (rows, length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("shape", list(SHAPES))
def test_activations_are_those_of_a_real_pass(shape: str) -> None:
    model_class, config = SHAPES[shape]
    found = estimate(shape, batch_size=4, max_length=48)
    real = kept_by_autograd(model_class(config).train(), 4, 48)
    # The estimate counts one more copy of the logits: their gradient.
    logits = 4 * 48 * 500 * 4
    assert 0.95 * real < found.activations - logits < 1.4 * real


@pytest.mark.parametrize("shape", list(SHAPES))
def test_weights_gradients_and_adam(shape: str) -> None:
    model_class, config = SHAPES[shape]
    n = sum(p.numel() for p in model_class(config).parameters())
    full = estimate(shape)
    assert (full.parameters, full.trainable) == (n, n)
    assert (full.weights, full.gradients, full.optimizer, full.reference) == (4 * n, 4 * n, 8 * n, 0)
    assert estimate(shape, "npo").reference == 4 * n
    assert estimate(shape, "task_vector").reference == 4 * n
    # The teacher of a distillation comes beside the reference, and after the copy of the base's weights.
    for method, copies in (("sft", 1), ("npo", 2), ("task_vector", 1)):
        assert estimate(shape, method, undo=True).reference == copies * 4 * n
    assert estimate(shape, "ga", undo=True).activations > estimate(shape, "ga").activations
    half = estimate(shape, dtype="bfloat16")
    assert (half.weights, half.gradients, half.optimizer) == (2 * n, 2 * n, 4 * n)
    assert estimate(shape, mixed_precision="bf16").weights == 6 * n


def test_what_saves_memory_is_seen_to() -> None:
    full = estimate("opt")
    lora = estimate("opt", lora=4)
    assert lora.trainable < full.trainable / 4
    assert lora.weights == 4 * (full.parameters + lora.trainable)
    again = estimate("opt", gradient_checkpointing=True)
    assert again.activations < full.activations
    assert again.weights == full.weights
    assert estimate("opt", mixed_precision="bf16").activations < full.activations
    assert estimate("opt", batch_size=16, retain_batch_size=16).activations > 1.9 * full.activations


@pytest.mark.parametrize("options", [{}, {"mixed_precision": "bf16"}])
def test_adapters_are_float32_and_spare_the_reference(options: dict[str, Any]) -> None:
    found = estimate("opt", "npo", dtype="bfloat16", lora=4, **options)
    assert found.reference == 0
    assert found.gradients == 4 * found.trainable
    assert found.optimizer == 8 * found.trainable
    # With mixed precision weights are float32, and there is a copy of them in half precision.
    whole, small = (6, 6) if options else (2, 4)
    assert found.weights == whole * found.parameters + small * found.trainable


def test_methods_that_read_more_rows_take_more() -> None:
    of = {
        name: estimate("opt", name, batch_size=8, retain_batch_size=8).activations
        for name in ("ga_answer", "sft", "sft_kl", "wpn", "llmu")
    }
    assert of["ga_answer"] == of["sft"] < of["sft_kl"] < of["wpn"] < of["llmu"]


def test_rows_are_not_longer_than_the_context() -> None:
    short = OPTConfig(
        hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=500,
        max_position_embeddings=32,
    )  # fmt: skip
    kind = METHODS.get("sft")
    cut = of_training(OPTForCausalLM, short, kind(kind.Config()), "float32")
    assert cut.activations == estimate("opt", max_length=32).activations
