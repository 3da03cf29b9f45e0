"""Rendered prompts with a slot for a suffix, as text and as token ids.

The parts of a prompt are: text before the suffix, suffix, text after it, and target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wpn_bench.errors import JobFailed, UserError
from wpn_bench.models.tokenizer import encode_pairs
from wpn_bench.prompts import Item, Template, joined
from wpn_bench.prompts.templates import adds_special_tokens, same_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wpn_bench.attacks.search import SearchConfig

_MARK = "\0"  # placeholder for the suffix while a prompt is rendered


@dataclass(frozen=True)
class SuffixSlot:
    """A rendered prompt with a slot for a suffix.

    Attributes:
        item: The prompt.
        head: Text before the suffix, without the space that separates them.
        tail: Text after the suffix.
        before: Token ids of `head`.
        after: Token ids of `tail`.
        target: Token ids of the beginning of the response that the search makes more likely.
    """

    item: Item
    head: str
    tail: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]

    def text(self, suffix: str) -> str:
        """Return the rendered prompt with this suffix."""
        return same_kind(f"{self.head} {suffix}{self.tail}", self.head)

    def ids(self, suffix: Sequence[int]) -> list[int]:
        """Return the token ids of the rendered prompt with this suffix."""
        return [*self.before, *suffix, *self.after]


@dataclass(frozen=True)
class SuffixSlots:
    """The initial suffix of a search, and the prompts with a slot for it.

    Attributes:
        initial_suffix: The initial suffix.
        initial_ids: Its token ids, which are the same in every prompt.
        slots: One entry for each prompt that can be attacked.
        unfit: For each prompt that cannot be attacked, its item id and the reason.
    """

    initial_suffix: str
    initial_ids: tuple[int, ...]
    slots: tuple[SuffixSlot, ...]
    unfit: dict[str, str] = field(default_factory=dict)

    def one_by_one(self) -> list[SuffixSlots]:
        """Return one object for each prompt."""
        return [replace(self, slots=(slot,)) for slot in self.slots]


def with_suffix(item: Item, suffix: str) -> Item:
    """Append a suffix to a prompt, with a space between them.

    Args:
        item: The prompt.
        suffix: The suffix.

    Returns:
        The attacked item. Its `original` is the prompt without the suffix.
    """
    return replace(item, prompt=f"{item.prompt} {suffix}", original=item.request)


def find_slots(
    items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, template: Template, config: SearchConfig, context: int
) -> SuffixSlots:
    """Render the items, and split them at the initial suffix.

    An item is unfit if prompt, suffix and target exceed the context, or if one token spans the boundary of the suffix.

    Args:
        items: The prompts. The target is the beginning of their first harmful reference response.
        tokenizer: A fast tokenizer, whose offsets map tokens to positions in the text.
        template: Renders the prompts.
        config: Initial suffix, and maximum lengths of suffix and target.
        context: Context length of the model in tokens.

    Returns:
        The initial suffix, the slots, and the unfit items.

    Raises:
        UserError: The tokenizer is not fast, or the initial suffix cannot follow any prompt.
        JobFailed: Every item is unfit.
    """
    if not tokenizer.is_fast:
        raise UserError("a search for a suffix needs a fast tokenizer", "save the model's tokenizer as tokenizer.json")
    around = [_around_suffix(item, template) for item in items]
    suffix, ids = _initial_suffix(around, tokenizer, config)
    slots, unfit = [], {}
    for item, (head, tail) in zip(items, around, strict=True):
        parts = _split_at_suffix(tokenizer, head, suffix, tail)
        before = same_kind(f"{head} {suffix}{tail}", head)
        wanted = joined(item.harmful[0] if item.harmful else config.target, before)
        target = encode_pairs(tokenizer, [before], [wanted])[0][1][: config.target_tokens]
        if parts is None or parts[1] != ids:
            unfit[item.id] = "the tokenizer joins the suffix with its neighbours"
        elif sum(map(len, parts)) + len(target) > context:
            unfit[item.id] = "prompt too long"
        else:
            slots.append(SuffixSlot(item, head, tail, parts[0], parts[2], tuple(target)))
    if not slots:
        raise JobFailed(f"a suffix can follow none of the {len(items)} prompts ({next(iter(unfit.values()))})")
    return SuffixSlots(suffix, ids, tuple(slots), unfit)


def evenly_spread(items: Sequence[Item], n: int) -> list[Item]:
    """Select items at even distances.

    Args:
        items: The items.
        n: Maximum number of items.

    Returns:
        `n` of the items, or all items if there are no more than `n`.
    """
    return list(items) if len(items) <= n else [items[k * len(items) // n] for k in range(n)]


def _around_suffix(item: Item, template: Template) -> tuple[str, str]:
    rendered = template.render(replace(item, prompt=item.prompt + _MARK))
    head, _, tail = rendered.rpartition(_MARK)
    return same_kind(head, rendered), tail


def _initial_suffix(
    around: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, config: SearchConfig
) -> tuple[str, tuple[int, ...]]:
    """Make the suffix with which the search begins: `init`, repeated up to `suffix_tokens` tokens.

    Tokens are counted within the text of a prompt. This is the first prompt in which no token spans the boundary
    between prompt and suffix.
    """
    for head, tail in around:
        for n in range(config.suffix_tokens, 0, -1):
            suffix = " ".join([config.init] * n)
            parts = _split_at_suffix(tokenizer, head, suffix, tail)
            if parts is not None and len(parts[1]) <= config.suffix_tokens:
                return suffix, parts[1]
    raise UserError(
        f"after every prompt, the suffix {config.init!r} shares a token with it or exceeds {config.suffix_tokens} tokens",
        "give another `init` or more `suffix_tokens`",
    )


def _split_at_suffix(
    tokenizer: PreTrainedTokenizerBase, head: str, suffix: str, tail: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Return the token ids before, of and after the suffix, or None if a token spans one of its ends.

    The space before the suffix belongs to the suffix.
    """
    encoded = tokenizer(
        f"{head} {suffix}{tail}", return_offsets_mapping=True, add_special_tokens=adds_special_tokens(head)
    )
    ids, spans = tuple(encoded["input_ids"]), encoded["offset_mapping"]
    begin, end = len(head), len(head) + 1 + len(suffix)
    first = next((k for k, span in enumerate(spans) if span[1] > begin), len(spans))
    # A special token that the tokenizer adds has an empty span. There may be one at the end.
    last = next((k for k in range(first, len(spans)) if spans[k][1] > end or spans[k][1] == 0), len(spans))
    if not first < last or spans[first][0] < begin or (last < len(spans) and 0 < spans[last][0] < end):
        return None
    return ids[:first], ids[first:last], ids[last:]
