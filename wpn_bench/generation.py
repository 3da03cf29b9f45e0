"""Responses of a model to rendered prompts: greedy decoding in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.progress import Advance

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Decoding(BaseModel):
    """How responses are made. The responses depend on all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_new_tokens: int = Field(128, ge=1)
    stop: tuple[str, ...] = ("### Question:",)
    batch_size: int = Field(32, ge=1)


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
    """Greedy responses, in the order of `inputs`.

    A response ends at end-of-text, at a stop text (cut off) or after `max_new_tokens`. An input with no room for the
    response in the model's context is skipped: text None, reason "prompt too long".
    """
    import torch

    from wpn_bench.models import context_length

    context = context_length(model)
    encoded: list[list[int]] = [tokenizer(text)["input_ids"] for text in inputs]
    responses: dict[int, Response] = {}
    fitting = []
    for k, ids in enumerate(encoded):
        if too_long(len(ids), decoding, context):
            responses[k] = Response(None, 0, "prompt too long")
        else:
            fitting.append(k)
    advance(len(responses))
    # Neighbours in length share a batch: little padding, and the longest first shows early if memory is short.
    fitting.sort(key=lambda k: (-len(encoded[k]), k))
    stops = _StopTexts(tokenizer, decoding.stop)
    for at in range(0, len(fitting), decoding.batch_size):
        rows = fitting[at : at + decoding.batch_size]
        width = max(len(encoded[k]) for k in rows)
        batch = torch.full((len(rows), width), int(tokenizer.pad_token_id))
        mask = torch.zeros_like(batch)
        for r, k in enumerate(rows):
            batch[r, width - len(encoded[k]) :] = torch.tensor(encoded[k])
            mask[r, width - len(encoded[k]) :] = 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=decoding.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                stopping_criteria=[stops.at(width)],
            )
        for r, k in enumerate(rows):
            responses[k] = _cut(tokenizer, out[r, width:].tolist(), decoding.stop)
        advance(len(rows))
    return [responses[k] for k in range(len(inputs))]


def _cut(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: Sequence[str]) -> Response:
    # A row that ended before its batch did is filled up with padding.
    for end in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        if end in tokens:
            tokens = tokens[: tokens.index(end)]
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

    def at(self, width: int) -> Any:
        """A stopping criterion for a batch whose prompts are `width` tokens wide."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        outer = self

        class Criterion(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                if not outer.stop:
                    return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
                new = input_ids[:, max(width, input_ids.shape[1] - outer.tail) :]
                texts = outer.tokenizer.batch_decode(new, skip_special_tokens=True)
                found = [any(mark in text for mark in outer.stop) for text in texts]
                return torch.tensor(found, device=input_ids.device)

        return StoppingCriteriaList([Criterion()])
