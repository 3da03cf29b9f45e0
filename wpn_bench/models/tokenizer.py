"""Load tokenizers, and find the token that begins a text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.core import consent
from wpn_bench.errors import UserError
from wpn_bench.prompts.templates import adds_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder. If it has no padding token, the end-of-text token is used.

    Raises:
        UserError: Its files cannot be read.
    """
    from transformers import AutoTokenizer

    silence_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=consent.code_allowed())
    except Exception as e:  # the tokenizers library raises plain `Exception`
        raise UserError(
            f"the tokenizer in {path} cannot be read ({' '.join(str(e).split())[:160]})",
            "save it again with tokenizer.save_pretrained(folder)",
        ) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that begins a text: beginning-of-text, else end-of-text; None if there is neither."""
    start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return start


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> list[list[int]]:
    """Convert rendered prompts to token ids.

    The tokenizer adds its special tokens, but not to prompts that contain them already (see `Rendered`).

    Args:
        tokenizer: The tokenizer.
        rendered: The rendered prompts.

    Returns:
        The token ids of each prompt, in order. An empty prompt may have none.
    """
    found: list[list[int]] = [[]] * len(rendered)
    for special in (True, False):
        places = [k for k, text in enumerate(rendered) if adds_special_tokens(text) is special]
        if places:
            texts = [str(rendered[k]) for k in places]
            encoded = tokenizer(texts, add_special_tokens=special)["input_ids"]
            for k, ids in zip(places, encoded, strict=True):
                found[k] = ids
    return found


def silence_transformers() -> None:
    """Print only errors of transformers, and none of its progress bars, because a run has its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
