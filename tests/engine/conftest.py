"""Random models of the four shapes that differ in what matters here: positions, heads, windows, how masks are taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SHAPES = ("opt", "neo", "gpt2", "llama")
CONTEXT = 48
WORDS = 97


def random_model(shape: str, seed: int = 0) -> Any:
    """Two layers, width 32, 97 words, 48 positions (Llama counts as it likes); GPT-Neo's second layer looks back 8.

    Beside `SHAPES` there is "capped", a Gemma 2: its logits are capped behind the head, one layer looks back 8.
    """
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    torch.manual_seed(seed)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    if shape == "opt":
        made: Any = OPTForCausalLM(
            OPTConfig(
                vocab_size=WORDS,
                hidden_size=32,
                word_embed_proj_dim=16,  # as OPT-350M's: a projection before the head
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=CONTEXT,
                init_std=0.3,
                dropout=0.0,
                **ends,
            )
        )
    elif shape == "neo":
        made = GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=WORDS,
                hidden_size=32,
                num_layers=2,
                num_heads=2,
                attention_types=[[["global", "local"], 1]],
                window_size=8,
                max_position_embeddings=CONTEXT,
                initializer_range=0.3,
                **ends,
            )
        )
    elif shape == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=WORDS, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.3, **ends
            )
        )
    elif shape == "capped":
        made = Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=WORDS,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                sliding_window=8,
                final_logit_softcapping=2.0,
                max_position_embeddings=CONTEXT,
                initializer_range=0.3,
                **ends,
            )
        )
    else:
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=WORDS,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT,
                initializer_range=0.3,
                **ends,
            )
        )
    return made.eval()


@pytest.fixture(scope="session", params=SHAPES)
def model(request: pytest.FixtureRequest) -> Any:
    return random_model(request.param)
