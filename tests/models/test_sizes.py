"""Bytes of memory of a token: the terms of which all estimates are made."""

from __future__ import annotations

import pytest
import torch
from transformers import OPTConfig

from wpn_bench.models.sizes import HEAD_ROWS, TokenMemory, dtype_bytes, logit_bytes, working_memory

CONFIG = OPTConfig(hidden_size=64, num_hidden_layers=3, vocab_size=500, max_position_embeddings=100)


def test_types_by_name_and_by_themselves() -> None:
    assert [dtype_bytes(one) for one in ("float32", "bfloat16", torch.float16, torch.float64)] == [4, 2, 2, 8]


@pytest.mark.parametrize(("dtype", "plain", "with_gradient"), [("float32", 8, 12), ("bfloat16", 10, 16)])
def test_a_logit(dtype: str, plain: int, with_gradient: int) -> None:
    """float32 logit and log-softmax (and gradient); beside them the head's own output in half precision."""
    assert (logit_bytes(dtype, gradient=False), logit_bytes(dtype, gradient=True)) == (plain, with_gradient)


def test_a_token() -> None:
    token = TokenMemory.of(CONFIG, "bfloat16")
    assert token.cache == 2 * 3 * 64 * 2
    assert token.forward == token.cache + 12 * 64 * 2
    assert token.kept_activations == 36 * 3 * 64 * 2
    assert (token.logits, token.logits_with_gradient) == (10 * 500, 16 * 500)
    assert token == TokenMemory.of(CONFIG, torch.bfloat16)


def test_a_forward_pass_is_no_longer_than_the_context() -> None:
    token = TokenMemory.of(CONFIG, "float32")
    assert working_memory(CONFIG, "float32") == 100 * token.forward + HEAD_ROWS * token.logits
