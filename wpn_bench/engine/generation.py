"""Responses of a model to rendered prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.core.progress import Advance
from wpn_bench.models.backends.base import Decoding, Response
from wpn_bench.models.tokenizer import start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def too_long(n_tokens: int, decoding: Decoding, context: int) -> bool:
    """Whether a prompt of `n_tokens` leaves no room for a response in a context of so many tokens: then it is skipped."""
    return n_tokens + decoding.max_new_tokens > context


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """Responses to rendered prompts, in their order, each as if its prompt were alone.

    A response ends at end-of-text, at a stop text (which is cut off) or after `max_new_tokens`. A prompt that leaves no room
    for the response in the model's context is skipped: text None, reason "prompt too long". A prompt without tokens begins
    with the model's first token.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        inputs: Texts that the model continues.
        decoding: How responses are made.
        advance: Called with the number of responses done.
    """
    if not inputs:
        return []
    start = start_token(tokenizer)
    encoded = [ids or [start] for ids in tokenizer(list(inputs))["input_ids"]]
    return respond(model, tokenizer, encoded, decoding, advance)


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """`generate` for prompts that are token ids already, with at least one each."""
    from wpn_bench.engine.decode import Rules, Sampling, decode
    from wpn_bench.models import context_length

    context = context_length(model)
    fitting = [k for k, ids in enumerate(encoded) if not too_long(len(ids), decoding, context)]
    advance(len(encoded) - len(fitting))
    sampling = None
    if decoding.temperature is not None:
        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.seed)
    stops = _StopTexts(tokenizer, decoding.stop)
    # The padding token ends a response, too: some models write it after their last word.
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
        # A stop text has at most as many tokens as bytes, and may share one more token at each end.
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
            # Part of a character (U+FFFD) may complete any, and white space is dropped at the ends of a text.
            self.known[token] = "\ufffd" in text or any(c in text or c.isspace() for c in self.last)
        return self.known[token]
