"""The contract of a backend: get responses and log-likelihoods from one model, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from wpn_bench.core.progress import Advance
from wpn_bench.core.validation import Count
from wpn_bench.prompts import Item, Template

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler
    from transformers import PreTrainedTokenizerBase

TokenPair = tuple[Sequence[int], Sequence[int]]  # token ids of a context and its continuation


class Decoding(BaseModel):
    """How responses are generated. All fields can affect the responses.

    If `temperature` is None, decoding is greedy. Otherwise tokens are sampled from the most likely ones that together
    have the probability `top_p` (None: from all). The samples after a prompt depend only on `seed` and that prompt.
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
        """Leave the sampling options out of greedy decoding, so that its digest does not depend on them.

        Digests from before sampling existed stay valid.
        """
        told: dict[str, Any] = handler(self)
        if self.temperature is None:
            for name in ("temperature", "top_p", "seed"):
                told.pop(name, None)
        return told


@dataclass(frozen=True)
class Response:
    """The response of a model to one prompt.

    Attributes:
        text: The response without the stop text; None if there is none.
        n_tokens: Number of generated tokens.
        reason: Why there is no response.
    """

    text: str | None
    n_tokens: int
    reason: str | None = None


class Backend(ABC):
    """A model that generates responses and, for some backends, gives log-likelihoods.

    There is one subclass for each way to run or reach a model, such as in this process or at a remote endpoint.

    Attributes:
        tokenizer: The tokenizer of the token ids in `loglikelihoods`; None if the model gives no log-likelihoods.
        context_length: How many tokens the model can attend to.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    context_length: int

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, device: str, dtype: str, offload: str) -> Self:
        """Open a model for inference.

        Args:
            folder: Contains the model, or the settings of the backend.
            device: The device of a local model.
            dtype: Type of a local model's weights, such as "float32".
            offload: Where to keep weights of a local model that do not fit on the device: "none", "cpu" or "disk".

        Returns:
            The model.
        """

    @abstractmethod
    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Advance = lambda n: None) -> list[Response]:
        """Generate responses to rendered prompts. Each response is independent of the other prompts.

        Args:
            prompts: Texts that the model continues.
            decoding: How responses are generated.
            advance: Called with the number of responses done since its last call.

        Returns:
            One response for each prompt, in order.
        """

    def answer(
        self, items: Sequence[Item], template: Template, decoding: Decoding, advance: Advance = lambda n: None
    ) -> tuple[list[str], list[Response]]:
        """Generate responses to prompts, asked by a template. A chat endpoint overrides this: it gets messages.

        Args:
            items: The prompts.
            template: Renders them.
            decoding: How responses are generated.
            advance: Called with the number of responses done since its last call.

        Returns:
            The input of each prompt as text, and its response.
        """
        inputs = [template.render(item) for item in items]
        return inputs, self.generate(inputs, decoding, advance)

    @abstractmethod
    def loglikelihoods(
        self,
        pairs: Sequence[TokenPair],
        *,
        max_length: int | None = None,
        pass_tokens: int | None = None,
        advance: Advance = lambda n: None,
    ) -> list[tuple[float, bool]] | None:
        """Compute the log-likelihood of each continuation given its context.

        Args:
            pairs: Token ids of a context and its continuation, at least one each.
            max_length: Maximum number of tokens that the model sees; None: its whole context.
            pass_tokens: Number of tokens in a forward pass of a local model; None: as many as fit into memory.
            advance: Called with the number of pairs done since its last call.

        Returns:
            For each pair the sum of log p(continuation | context) in nats, and whether greedy decoding gives the
                continuation. None if the model gives no log-likelihoods, as with most remote endpoints.
        """

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 that identifies the model in the cache keys of its outputs."""
