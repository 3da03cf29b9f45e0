"""The tokens that end a response.

A chat model often has several: one that ends the turn and one that ends the text. The tokenizer knows one of them; the
model's generation configuration lists all. A response ends at any of them.

Training teaches one end after each response. With a chat template it is the token that the template itself writes after
the assistant's words. Without one it is the tokenizer's end-of-text token, with which base models were trained; another
one of the list would teach a turn in a text that has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ends_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the tokens that end a response.

    Args:
        model: The model; its generation configuration names one end or several.
        tokenizer: Its tokenizer. Its padding token also ends a response, because some models generate it after their last
            word.

    Returns:
        The ids.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = named if isinstance(named, list | tuple) else [named]
    return frozenset(int(e) for e in (*ends, tokenizer.eos_token_id, tokenizer.pad_token_id) if e is not None)
