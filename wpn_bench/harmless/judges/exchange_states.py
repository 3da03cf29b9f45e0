"""Hidden states of a language model as features of exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wpn_bench.core.progress import Advance
from wpn_bench.engine.layers import layers_of
from wpn_bench.harmless.judges.base import Exchange

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # SmolLM2's format, without its system message
_PROMPT_TOKENS, _RESPONSE_TOKENS, _BATCH = 96, 128, 16


class _Reached(Exception):
    """Raised by a hook to leave the model before the layers that are not needed."""


def response_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[Exchange],
    layer: int,
    advance: Advance = lambda n: None,
) -> np.ndarray[Any, Any]:
    """Return the mean hidden state of each response after its prompt.

    Only the first 96 tokens of a prompt and 128 of a response are read. Special tokens that are written in them are plain text.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        exchanges: The exchanges.
        layer: Number of layers whose output is taken; later layers are not computed.
        advance: Called with the number of exchanges done since its last call.

    Returns:
        The states, (exchanges, width), float32. They are 0 for a response without tokens.
    """
    import torch

    encoded = _encode(tokenizer, exchanges)
    order = sorted(range(len(encoded)), key=lambda k: sum(map(len, encoded[k])))
    found = np.zeros((len(encoded), model.config.hidden_size), dtype=np.float32)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        longest = max(sum(map(len, encoded[k])) for k in batch)
        ids = torch.full((len(batch), longest), pad)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, k in enumerate(batch):
            both = encoded[k][0] + encoded[k][1]
            ids[row, : len(both)] = torch.tensor(both)
            mask[row, : len(both)] = 1
        states = _states(model, ids.to(model.device), mask.to(model.device), layer)
        for row, k in enumerate(batch):
            prompt, response = encoded[k]
            if response:
                found[k] = states[row, len(prompt) : len(prompt) + len(response)].float().mean(0).cpu().numpy()
        advance(len(batch))
    return found


def _encode(tokenizer: Any, exchanges: Sequence[Exchange]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each prompt in the chat format, and of each response."""
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in CHAT.split("{}"))

    def ids(text: str, limit: int) -> list[int]:
        # Ten characters a token are enough for any text that fills the limit.
        text = text[: 10 * limit].encode(errors="replace").decode()
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"][:limit])

    return [
        (before + ids(one.prompt, _PROMPT_TOKENS) + after, ids(one.response, _RESPONSE_TOKENS)) for one in exchanges
    ]


def _states(model: Any, ids: torch.Tensor, mask: torch.Tensor, layer: int) -> torch.Tensor:
    """Return the output of the first `layer` layers, (rows, tokens, width)."""
    import torch

    reached: list[torch.Tensor] = []

    def stop(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        reached.append(given[0] if given else named["hidden_states"])
        raise _Reached

    handle = layers_of(model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]
