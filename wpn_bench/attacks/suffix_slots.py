"""Slots for a suffix in rendered prompts: before | suffix | after | target, as text and as token ids."""

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

_MARK = "\0"  # stands for the suffix while a prompt is rendered


@dataclass(frozen=True)
class SuffixSlot:
    """A rendered prompt with a slot for a suffix.

    Attributes:
        item: The prompt.
        head: Text before the suffix, without the space between them.
        tail: Text after the suffix.
        before: Token ids of `head`.
        after: Token ids of `tail`.
        target: Token ids of the beginning of the response that the search optimises for.
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
        initial_ids: Its token ids, the same in every slot.
        slots: One slot for each prompt that can be attacked.
        unfit: Item id -> reason, for prompts that cannot be attacked.
    """

    initial_suffix: str
    initial_ids: tuple[int, ...]
    slots: tuple[SuffixSlot, ...]
    unfit: dict[str, str] = field(default_factory=dict)

    def one_by_one(self) -> list[SuffixSlots]:
        """Return one object for each slot."""
        return [replace(self, slots=(slot,)) for slot in self.slots]


def with_suffix(item: Item, suffix: str) -> Item:
    """Append a suffix to a prompt, with a space between them.

    Args:
        item: The prompt.
        suffix: The suffix.

    Returns:
        The attacked item; its `original` is the plain prompt.
    """
    return replace(item, prompt=f"{item.prompt} {suffix}", original=item.request)


def find_slots(
    items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, template: Template, config: SearchConfig, context: int
) -> SuffixSlots:
    """Render the items, and split them at the initial suffix.

    An item is unfit if prompt, suffix and target exceed the context, or if a token spans the suffix and the text around it.

    Args:
        items: The prompts. The target is the beginning of their first harmful reference.
        tokenizer: A fast tokenizer: its offsets map tokens to positions in the text.
        template: Renders the prompts.
        config: Initial suffix, and maximum lengths of suffix and target.
        context: Context length of the model in tokens.

    Returns:
        The initial suffix, the slots, and the unfit items.

    Raises:
        UserError: The tokenizer is not fast, or the initial suffix fits after no prompt.
        JobFailed: Every item is unfit.
    """
    if not tokenizer.is_fast:
        raise UserError("a search for a suffix needs a fast tokenizer", "save the model's as tokenizer.json")
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
        raise JobFailed(f"a suffix can stand after none of the {len(items)} prompts ({next(iter(unfit.values()))})")
    return SuffixSlots(suffix, ids, tuple(slots), unfit)


def evenly_spread(items: Sequence[Item], n: int) -> list[Item]:
    """Select items at even distances.

    Args:
        items: The items.
        n: Maximum number of items.

    Returns:
        `n` of the items, or all items if there are at most `n`.
    """
    return list(items) if len(items) <= n else [items[k * len(items) // n] for k in range(n)]


def _around_suffix(item: Item, template: Template) -> tuple[str, str]:
    rendered = template.render(replace(item, prompt=item.prompt + _MARK))
    head, _, tail = rendered.rpartition(_MARK)
    return same_kind(head, rendered), tail


def _initial_suffix(
    around: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, config: SearchConfig
) -> tuple[str, tuple[int, ...]]:
    """Make the suffix that the search begins with: `init`, repeated up to `suffix_tokens` tokens.

    Tokens are counted in the text around the suffix. The first prompt is used in which the suffix has tokens of its own, that
    is, in which no token spans the border between prompt and suffix.
    """
    for head, tail in around:
        for n in range(config.suffix_tokens, 0, -1):
            suffix = " ".join([config.init] * n)
            parts = _split_at_suffix(tokenizer, head, suffix, tail)
            if parts is not None and len(parts[1]) <= config.suffix_tokens:
                return suffix, parts[1]
    raise UserError(
        f"the suffix {config.init!r} does not stand on its own within {config.suffix_tokens} tokens after any prompt",
        "give another `init` or more `suffix_tokens`",
    )


def _split_at_suffix(
    tokenizer: PreTrainedTokenizerBase, head: str, suffix: str, tail: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Token ids before, of and after the suffix; None if a token crosses one of its ends.

    The space before the suffix belongs to it.
    """
    encoded = tokenizer(
        f"{head} {suffix}{tail}", return_offsets_mapping=True, add_special_tokens=adds_special_tokens(head)
    )
    ids, spans = tuple(encoded["input_ids"]), encoded["offset_mapping"]
    begin, end = len(head), len(head) + 1 + len(suffix)
    first = next((k for k, span in enumerate(spans) if span[1] > begin), len(spans))
    # The span of a special token that the tokenizer adds is empty. There may be one at the end.
    last = next((k for k in range(first, len(spans)) if spans[k][1] > end or spans[k][1] == 0), len(spans))
    if not first < last or spans[first][0] < begin or (last < len(spans) and 0 < spans[last][0] < end):
        return None
    return ids[:first], ids[first:last], ids[last:]
