"""Load a tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.core import consent
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token (end-of-text where it has none of its own)."""
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=consent.code_allowed())
    except Exception as e:  # the tokenizers library raises bare exceptions
        raise UserError(
            f"the tokenizer in {path} cannot be read ({' '.join(str(e).split())[:160]})",
            "save it again with tokenizer.save_pretrained(folder)",
        ) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _quiet() -> None:
    # One bar of our own instead of a bar a weight file; errors still show.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
