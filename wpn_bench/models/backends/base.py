"""The interface of a backend, which gives responses and log-likelihoods of one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
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

    If `temperature` is None, decoding is greedy. Otherwise tokens are sampled: from the most likely tokens that
    together have the probability `top_p`, or from all tokens if `top_p` is None. The samples after a prompt depend only
    on `seed` and on the prompt. So equal prompts get equal responses, unless they are `independent`: then the samples also
    depend on how many equal prompts precede.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    max_new_tokens: Count = 128
    stop: tuple[str, ...] = ("### Question:",)
    batch_size: Count = Field(256, description="number of rows decoded at the same time; fewer if memory is short")
    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int = Field(0, ge=0)
    independent: bool = Field(False, description="whether equal prompts get different samples")

    @model_validator(mode="after")
    def _one_way_of_decoding(self) -> Self:
        if self.temperature is None and self.top_p is not None:
            raise ValueError("top_p needs sampling, so also give a temperature")
        if self.temperature is None and self.independent:
            raise ValueError("independent samples need sampling, so also give a temperature")
        return self

    @model_serializer(mode="wrap")
    def _without_sampling_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the sampling options if decoding is greedy.

        So the digest of greedy decoding is the same as in versions of wpn-bench that could not sample, and stored
        results stay valid. For the same reason, `independent` is left out if it is false.
        """
        told: dict[str, Any] = handler(self)
        if self.temperature is None:
            for name in ("temperature", "top_p", "seed"):
                told.pop(name, None)
        if not self.independent:
            told.pop("independent", None)
        return told


@dataclass(frozen=True)
class Response:
    """The response of a model to one prompt.

    Attributes:
        text: The response without the stop text; None if there is no response.
        n_tokens: Number of generated tokens.
        reason: Why there is no response; None if there is one.
        space: Whether white space, which is removed, separated the response from the text before it.
    """

    text: str | None
    n_tokens: int
    reason: str | None = None
    space: bool = field(default=False, compare=False)


def sample_numbers(prompts: Sequence[Hashable], independent: bool) -> list[int]:
    """Number the samples after equal prompts.

    Args:
        prompts: The prompts.
        independent: Whether equal prompts get different samples.

    Returns:
        For each prompt, how many equal ones precede it; 0 for all prompts if the samples are not independent.
    """
    seen: Counter[Hashable] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt])
        seen[prompt] += independent
    return numbers


class Backend(ABC):
    """A model that generates responses and, for some backends, gives log-likelihoods.

    Attributes:
        tokenizer: Tokenizer of the token ids in `loglikelihoods`; None if the model gives no log-likelihoods.
        context_length: Number of tokens to which the model can attend.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    context_length: int

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Return what changes results besides the model, such as a version, as a part of the digests of jobs.

        It has the backend's name as `name`. It is empty for a backend that is not chosen by `--backend`.

        Raises:
            UserError: The backend is not installed.
        """
        return {}

    @classmethod
    def check_placement(cls, device: str, offload: str) -> None:
        """Check that the backend can hold a model there.

        Args:
            device: Device of a local model.
            offload: Where to keep weights that do not fit on the device.

        Raises:
            UserError: The backend cannot run on this device, or does not offload weights.
        """
        return

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, device: str, dtype: str, offload: str) -> Self:
        """Open a model for inference.

        Args:
            folder: Folder of the model, or of the settings of the backend.
            device: Device of a local model.
            dtype: Data type of a local model's weights, such as "float32".
            offload: Where to keep weights of a local model that do not fit on the device: "none", "cpu" or "disk".

        Returns:
            The backend.
        """

    @abstractmethod
    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Advance = lambda n: None) -> list[Response]:
        """Generate responses to rendered prompts. Each response is independent of the other prompts.

        Args:
            prompts: Texts that the model continues.
            decoding: How responses are generated.
            advance: Called with the number of responses finished since its last call.

        Returns:
            One response for each prompt, in order.
        """

    def answer(
        self, items: Sequence[Item], template: Template, decoding: Decoding, advance: Advance = lambda n: None
    ) -> tuple[list[str], list[Response]]:
        """Render prompts with a template and generate responses to them. Chat endpoints override this to send messages.

        Args:
            items: The prompts.
            template: Renders the prompts.
            decoding: How responses are generated.
            advance: Called with the number of responses finished since its last call.

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
            pairs: Token ids of a context and its continuation, at least one token each.
            max_length: Maximum number of tokens that the model sees; None means its whole context.
            pass_tokens: Number of tokens in a forward pass of a local model; None means as many as fit into memory.
            advance: Called with the number of pairs finished since its last call.

        Returns:
            For each pair the sum of log p(continuation | context) in nats, and whether greedy decoding would generate
            the continuation. None if the model gives no log-likelihoods, as with most remote endpoints.
        """

    def parameters(self) -> int:
        """Return the number of parameters of the model; 0 if it is not known."""
        return 0

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 that identifies the model. It is part of the digests of all jobs that use the model."""
