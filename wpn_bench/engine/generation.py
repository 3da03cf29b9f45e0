"""Responses of a model to rendered prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from wpn_bench.core.progress import Advance
from wpn_bench.core.validation import Count

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Decoding(BaseModel):
    """How responses are made. The responses depend on all of it.

    `temperature` None is greedy decoding. With a temperature, tokens are drawn from the likeliest that together have
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
    def _without_what_greedy_ignores(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Greedy responses are known by the same digest whatever the seed, and as before there was one."""
        told: dict[str, Any] = handler(self)
        if self.temperature is None:
            for name in ("temperature", "top_p", "seed"):
                told.pop(name, None)
        return told


@dataclass(frozen=True)
class Response:
    """`text` without the stop text, or None with the `reason` why there is none; `n_tokens` generated."""

    text: str | None
    n_tokens: int
    reason: str | None = None


def too_long(n_tokens: int, decoding: Decoding, context: int) -> bool:
    """The stated rule: a prompt that leaves no room for the response within the model's context is skipped."""
    return n_tokens + decoding.max_new_tokens > context


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """Responses in the order of `inputs`, each as if its input were alone.

    A response ends at end-of-text, at a stop text (cut off) or after `max_new_tokens`. An input with no room for the
    response in the model's context is skipped: text None, reason "prompt too long". An input without tokens begins with
    the model's first token.
    """
    if not inputs:
        return []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = [ids or [start] for ids in tokenizer(list(inputs))["input_ids"]]
    return respond(model, tokenizer, encoded, decoding, advance)


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """`generate` after prompts that are token ids already, each with one at least."""
    from wpn_bench.engine.decode import Rules, Sampling, decode
    from wpn_bench.models import context_length

    context = context_length(model)
    fitting = [k for k, ids in enumerate(encoded) if not too_long(len(ids), decoding, context)]
    advance(len(encoded) - len(fitting))
    sampling = None
    if decoding.temperature is not None:
        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.seed)
    stops = _StopTexts(tokenizer, decoding.stop)
    # Padding is an end, too: some models write it after their last word.
    ends = frozenset(e for e in (tokenizer.eos_token_id, tokenizer.pad_token_id) if e is not None)
    rules = Rules(decoding.max_new_tokens, ends, stops.ended, sampling)
    prompts = [encoded[k] for k in fitting]
    responses = [Response(None, 0, "prompt too long")] * len(encoded)
    for k, tokens in zip(
        fitting, decode(model, prompts, rules, most_rows=decoding.batch_size, advance=advance), strict=True
    ):
        responses[k] = _cut(tokenizer, tokens, decoding.stop)
    return responses


def _cut(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: Sequence[str]) -> Response:
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    for mark in stop:
        text = text.split(mark)[0]
    return Response(text.strip(), len(tokens))


class _StopTexts:
    """Ends a row once a stop text stands in what it generated."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        # A stop text spans at most its bytes in tokens, and one more at each end.
        self.tail = max((len(s.encode()) for s in stop), default=0) + 2
        self.last = {s[-1] for s in stop if s}
        self.known: dict[int, bool] = {}

    def ended(self, tokens: list[int]) -> bool:
        """Whether the newest of `tokens` completes a stop text."""
        if not self.stop or not self._may_complete(tokens[-1]):
            return False
        text = self.tokenizer.decode(tokens[-self.tail :], skip_special_tokens=True)
        return any(mark in text for mark in self.stop)

    def _may_complete(self, token: int) -> bool:
        """Whether a stop text can end within this token: for most tokens it cannot, and the tail need not be decoded."""
        if token not in self.known:
            text = str(self.tokenizer.decode([token]))
            # A piece of a character (U+FFFD) may complete any, and white space is dropped at the edges of a text.
            self.known[token] = "\ufffd" in text or any(c in text or c.isspace() for c in self.last)
        return self.known[token]
