"""Generate responses to rendered prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.core.progress import Advance
from wpn_bench.models.backends.base import Decoding, Response
from wpn_bench.models.ends import ends_of_model
from wpn_bench.models.tokenizer import encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def too_long(n_tokens: int, decoding: Decoding, context: int) -> bool:
    """Return whether a prompt leaves no room for a response. Such prompts are skipped.

    Args:
        n_tokens: Number of tokens in the prompt.
        decoding: How responses are generated.
        context: Number of tokens to which the model can attend.

    Returns:
        True if the prompt and `max_new_tokens` exceed the context.
    """
    return n_tokens + decoding.max_new_tokens > context


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """Generate responses to rendered prompts. Each response is independent of the other prompts.

    A response ends at an end-of-text token, at a stop text (which is removed) or after `max_new_tokens`. If a prompt
    leaves no room for a response in the model's context, its response has the text None and the reason "prompt too
    long". For an empty prompt, the input is the start token.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        inputs: Texts that the model continues.
        decoding: How responses are generated.
        advance: Called with the number of responses finished since its last call.

    Returns:
        One response for each prompt, in order.
    """
    if not inputs:
        return []
    return respond(
        model, tokenizer, encode_prompts(tokenizer, inputs), decoding, advance, ends=end_tokens(tokenizer, inputs)
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens that end the responses to rendered prompts, in addition to the end-of-text token.

    Args:
        tokenizer: The tokenizer.
        rendered: The prompts. Prompts from a chat template name the token that ends a turn.

    Returns:
        The token ids.
    """
    ends = {end for text in rendered if (end := getattr(text, "end", None))}
    return tuple(int(tokenizer.convert_tokens_to_ids(end)) for end in sorted(ends))


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    decoding: Decoding,
    advance: Advance = lambda n: None,
    *,
    ends: Sequence[int] = (),
) -> list[Response]:
    """Generate responses to prompts that are given as token ids (see `generate`).

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        encoded: Token ids of the prompts, at least one for each prompt.
        decoding: How responses are generated.
        advance: Called with the number of responses finished since its last call.
        ends: Ids of tokens that end a response, in addition to the end-of-text token.

    Returns:
        One response for each prompt, in order.
    """
    from wpn_bench.engine.decode import Rules, Sampling, decode
    from wpn_bench.models import context_length

    context = context_length(model)
    fitting = [k for k, ids in enumerate(encoded) if not too_long(len(ids), decoding, context)]
    advance(len(encoded) - len(fitting))
    sampling = None
    if decoding.temperature is not None:
        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.seed, decoding.independent)
    stops = _StopTexts(tokenizer, decoding.stop)
    last = ends_of_model(model, tokenizer) | frozenset(ends)
    rules = Rules(decoding.max_new_tokens, last, stops.ended, sampling)
    prompts = [encoded[k] for k in fitting]
    responses = [Response(None, 0, "prompt too long")] * len(encoded)
    for k, tokens in zip(
        fitting, decode(model, prompts, rules, most_rows=decoding.batch_size, advance=advance), strict=True
    ):
        responses[k] = cut_response(tokenizer, tokens, decoding.stop, encoded[k])
    return responses


def cut_response(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: Sequence[str], prompt: Sequence[int] = ()
) -> Response:
    """Make a response of generated tokens.

    Args:
        tokenizer: The tokenizer.
        tokens: The tokens without the one that ends the response.
        stop: Stop texts. The response ends before the first one.
        prompt: The tokens of the prompt.

    Returns:
        The response, without white space at its ends.
    """
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    for mark in stop:
        text = text.split(mark)[0]
    return Response(text.strip(), len(tokens), space=_begins_with_space(tokenizer, prompt, tokens))


def _begins_with_space(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Return whether the new tokens begin with white space, which some tokenizers drop at the beginning of a text."""
    if not tokens:
        return False
    last = list(prompt[-1:])
    before, both = (str(tokenizer.decode(ids)) for ids in (last, [*last, tokens[0]]))
    return both.startswith(before) and both[len(before) :][:1].isspace()


class _StopTexts:
    """Ends a row when its new tokens contain a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        # A stop text has at most as many tokens as bytes. The tokens at its two ends may also contain other text.
        self.tail = max((len(s.encode()) for s in stop), default=0) + 2
        self.last = {s[-1] for s in stop if s}
        self.known: dict[int, bool] = {}

    def ended(self, tokens: list[int]) -> bool:
        """Return whether the newest of `tokens` completes a stop text."""
        if not self.stop or not self._may_complete(tokens[-1]):
            return False
        text = self.tokenizer.decode(tokens[-self.tail :], skip_special_tokens=True)
        return any(mark in text for mark in self.stop)

    def _may_complete(self, token: int) -> bool:
        """Return whether a stop text can end within this token.

        For most tokens it cannot, and the newest tokens need not be decoded.
        """
        if token not in self.known:
            text = str(self.tokenizer.decode([token]))
            # U+FFFD stands for a part of a character, which may complete any character. Decoding removes white space.
            self.known[token] = "\ufffd" in text or any(c in text or c.isspace() for c in self.last)
        return self.known[token]
