"""The backend for models that run in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from wpn_bench.core.progress import Advance
from wpn_bench.models.backends.base import Backend, Decoding, Response, TokenPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LocalBackend(Backend):
    """A transformers model and its tokenizer. Finished examples are kept in the job's journal."""

    tokenizer: PreTrainedTokenizerBase

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            folder: Folder of the model's files; None if the model is only in memory, in which case it has no digest.
        """
        from wpn_bench.models import context_length

        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.context_length = context_length(model)

    @classmethod
    def open(cls, folder: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none") -> Self:
        from wpn_bench import models

        return cls(*models.load(folder, device, dtype, offload), folder)

    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Advance = lambda n: None) -> list[Response]:
        from wpn_bench.engine.generation import generate

        return generate(self.model, self.tokenizer, prompts, decoding, advance)

    def loglikelihoods(
        self,
        pairs: Sequence[TokenPair],
        *,
        max_length: int | None = None,
        pass_tokens: int | None = None,
        advance: Advance = lambda n: None,
    ) -> list[tuple[float, bool]]:
        from wpn_bench.engine.budget import Budget
        from wpn_bench.engine.likelihood import loglikelihoods

        return loglikelihoods(
            self.model,
            pairs,
            max_length=max_length or self.context_length,
            budget=None if pass_tokens is None else Budget(pass_tokens),
            advance=advance,
            cache_prefix=True,
        )

    def parameters(self) -> int:
        return sum(weights.numel() for weights in self.model.parameters())

    def digest(self) -> str:
        from wpn_bench.models.locate import folder_digest

        if self.folder is None:
            raise ValueError("a model that is only in memory has no digest")
        return folder_digest(self.folder)
