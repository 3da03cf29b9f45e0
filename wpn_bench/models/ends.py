"""Find the tokens that end a response.

A chat model often has several such tokens: one ends the turn and another ends the text. The tokenizer knows only one of
them, and the model's generation configuration lists all. A response ends at any of them.

Training teaches the model one end token after each response. With a chat template, this is the token that the template
writes after the assistant's message. Without a template, it is the tokenizer's end-of-text token, with which base
models were trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ends_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the tokens that end a response.

    Args:
        model: The model, whose generation configuration names one or several end tokens.
        tokenizer: Its tokenizer. Its padding token also ends a response, because some models generate it after their
            last word.

    Returns:
        The token ids.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = named if isinstance(named, list | tuple) else [named]
    return frozenset(int(e) for e in (*ends, tokenizer.eos_token_id, tokenizer.pad_token_id) if e is not None)
