"""The contract of a backend: how responses and log-likelihoods are asked of one model, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from wpn_bench.core.progress import Advance
from wpn_bench.core.validation import Count

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler
    from transformers import PreTrainedTokenizerBase

TokenPair = tuple[Sequence[int], Sequence[int]]  # token ids of a context and of its continuation


class Decoding(BaseModel):
    """How responses are made. The responses depend on all of it.

    `temperature` None is greedy decoding. With a temperature, tokens are drawn from the most likely ones that together have
    `top_p` of the probability; the draws after a prompt depend on `seed` and that prompt alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    max_new_tokens: Count = 128
    stop: tuple[str, ...] = ("### Question:",)
    batch_size: Count = Field(128, description="rows at work at a time; fewer where memory is short")
    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_way_of_decoding(self) -> Self:
        if self.temperature is None and self.top_p is not None:
            raise ValueError("top_p is for sampling: give a temperature, too")
        return self

    @model_serializer(mode="wrap")
    def _without_sampling_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Greedy responses have the same digest whatever the seed, and as before there was one."""
        told: dict[str, Any] = handler(self)
        if self.temperature is None:
            for name in ("temperature", "top_p", "seed"):
                told.pop(name, None)
        return told


@dataclass(frozen=True)
class Response:
    """A model's response to one prompt.

    Attributes:
        text: Without the stop text; None where there is no response.
        n_tokens: How many tokens were generated.
        reason: Why there is no response.
    """

    text: str | None
    n_tokens: int
    reason: str | None = None


class Backend(ABC):
    """A model that can be asked. There is one subclass for each way to reach a model: in this process, at an endpoint.

    Attributes:
        tokenizer: The tokenizer whose token ids `loglikelihoods` takes; None for a model that gives no log-likelihoods.
        context_length: How many tokens the model can attend to.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    context_length: int

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, device: str, dtype: str, offload: str) -> Self:
        """Make the model ready.

        Args:
            folder: Holds the model, or the settings with which it is reached.
            device: Where a local model computes.
            dtype: Type of a local model's weights, such as "float32".
            offload: Where weights of a local model wait that do not fit on the device: "none", "cpu" or "disk".
        """

    @abstractmethod
    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Advance = lambda n: None) -> list[Response]:
        """Responses to rendered prompts, in their order, each as if its prompt were alone.

        Args:
            prompts: Texts that the model continues.
            decoding: How responses are made.
            advance: Called with the number of responses done.
        """

    @abstractmethod
    def loglikelihoods(
        self,
        pairs: Sequence[TokenPair],
        *,
        max_length: int | None = None,
        pass_tokens: int | None = None,
        advance: Advance = lambda n: None,
    ) -> list[tuple[float, bool]] | None:
        """For each pair the sum of log p(continuation | context) in nats, and whether greedy decoding would write it.

        Args:
            pairs: Token ids of a context and of its continuation, at least one each.
            max_length: How many tokens the model sees at most; None: its whole context.
            pass_tokens: How many tokens a local model computes at a time; None: as many as fit into memory.
            advance: Called with the number of pairs done.

        Returns:
            None where the model gives no log-likelihoods, as most remote endpoints.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 that tells this model from others, for the cache keys of what it answers."""
