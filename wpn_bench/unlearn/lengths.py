"""Make training rows of at most `max_length` tokens.

A row consists of the rendered prompt, the response and the token that ends it. If a row is too long, it is shortened:

- The response keeps its beginning. If its end is cut off, it gets no end token. At least a quarter of the row is
  reserved for it.
- The question keeps its beginning and its end, because one of them usually tells what is asked. Words in its middle are
  left out, as LongBench does for long prompts (Bai et al. 2024, arXiv 2308.14508). The template, the special tokens and
  the first words of the answer stay whole, so that the model is trained with the same format as in the evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from wpn_bench.errors import UserError
from wpn_bench.models.tokenizer import encode_pairs, encode_prompts
from wpn_bench.prompts import Item, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEW_WORDS = 16  # from a prompt with fewer words (or in a script without spaces), characters are left out


@dataclass(frozen=True)
class Row:
    """The token ids of a training row.

    Attributes:
        prompt: Token ids of the rendered prompt.
        response: Token ids of the response and its end.
        prompt_cut: Whether words of the prompt were left out.
        response_cut: Whether the response lost its end.
    """

    prompt: list[int]
    response: list[int]
    prompt_cut: bool
    response_cut: bool


def row_of(tokenizer: PreTrainedTokenizerBase, template: Template, item: Item, response: str, max_length: int) -> Row:
    """Make the training row of a prompt and a response.

    Args:
        tokenizer: The tokenizer.
        template: Renders the prompt.
        item: The prompt.
        response: The response.
        max_length: Maximum number of tokens.

    Returns:
        The row.

    Raises:
        UserError: The template alone leaves no room for a response.
    """
    before, after = template.pair(item, response)
    prompt, answer = encode_pairs(tokenizer, [before], [after])[0]
    end = getattr(before, "end", None)  # the token that ends a turn in a chat
    answer = [*answer, int(tokenizer.convert_tokens_to_ids(end) if end else tokenizer.eos_token_id)]
    room = max(1, max_length - min(len(answer), max_length // 4))
    prompt_cut = len(prompt) > room
    if prompt_cut:
        prompt = list(_shortened(tokenizer, template, item, room))
    kept = answer[: max_length - len(prompt)]
    return Row(prompt, kept, prompt_cut, len(kept) < len(answer))


@lru_cache(maxsize=4096)  # each epoch uses the same prompts again
def _shortened(tokenizer: PreTrainedTokenizerBase, template: Template, item: Item, room: int) -> tuple[int, ...]:
    """Return the ids of the rendered prompt, with as many words of its two ends as fit into `room` tokens."""
    pieces = re.findall(r"\s*\S+", item.prompt)
    if len(pieces) < _FEW_WORDS:
        pieces = list(item.prompt)

    def rendered(kept: int) -> list[int]:
        last = kept // 2
        text = "".join(pieces[: kept - last] + pieces[len(pieces) - last :])
        return encode_prompts(tokenizer, [template.render(replace(item, prompt=text))])[0]

    fitting = rendered(0)
    if len(fitting) > room:
        raise UserError(
            f"max_length leaves {room} tokens for a prompt, but the template alone has {len(fitting)}",
            "raise max_length of the method, or use a shorter template",
        )
    low, high = 0, len(pieces)  # `low` pieces fit, `high` pieces do not
    while high - low > 1:
        middle = (low + high) // 2
        ids = rendered(middle)
        if len(ids) <= room:
            low, fitting = middle, ids
        else:
            high = middle
    return tuple(fitting)


def count_cut(
    tokenizer: PreTrainedTokenizerBase, template: Template, items: Iterable[Item], max_length: int
) -> tuple[int, int]:
    """Count the prompts and responses that are shortened in training.

    Args:
        tokenizer: The tokenizer.
        template: Renders the prompts.
        items: The prompts with their responses.
        max_length: Maximum number of tokens of a row.

    Returns:
        The number of prompts that lose words, and of responses that lose their end.

    Raises:
        UserError: The template alone leaves no room for a response.
    """
    prompts: set[str] = set()
    responses = 0
    for item in items:
        for response in (*item.harmful, *item.harmless):
            row = row_of(tokenizer, template, item, response, max_length)
            responses += row.response_cut
            if row.prompt_cut:
                prompts.add(item.id)
    return len(prompts), responses


def notes_on_length(
    tokenizer: PreTrainedTokenizerBase, template: Template, items: Iterable[Item], lengths: Iterable[int]
) -> list[str]:
    """Return notes on how many forget items are shortened in training.

    Args:
        tokenizer: The tokenizer.
        template: Renders the prompts.
        items: The forget set.
        lengths: The `max_length` of each method.

    Returns:
        One note for each length at which items are shortened.
    """
    items, lines = list(items), []
    for length in sorted(set(lengths)):
        prompts, responses = count_cut(tokenizer, template, items, length)
        said = [
            *([f"{prompts} of {len(items)} prompts lose words in their middle"] if prompts else []),
            *(
                [f"{responses} response{'s lose their end' if responses > 1 else ' loses its end'}"]
                if responses
                else []
            ),
        ]
        if said:
            lines.append(f"training rows have at most {length} tokens (max_length), so {' and '.join(said)}")
    return lines
