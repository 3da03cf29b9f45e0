"""Where a suffix goes in a rendered prompt: before | suffix | after | target, as text and as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wpn_bench.errors import JobFailed, UserError
from wpn_bench.prompts import Item, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wpn_bench.attacks.search import SearchConfig

_MARK = "\0"  # stands for the suffix while a prompt is rendered


@dataclass(frozen=True)
class SuffixSlot:
    """A rendered prompt with a slot for a suffix.

    Attributes:
        item: The prompt.
        head: Text before the suffix, without the space that joins them.
        tail: Text after the suffix.
        before: Token ids of `head`.
        after: Token ids of `tail`.
        target: Token ids of the response that the search tries to reach.
    """

    item: Item
    head: str
    tail: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]

    def text(self, suffix: str) -> str:
        """The rendered prompt with this suffix."""
        return f"{self.head} {suffix}{self.tail}"

    def ids(self, suffix: Sequence[int]) -> list[int]:
        """Token ids of the rendered prompt with this suffix."""
        return [*self.before, *suffix, *self.after]


@dataclass(frozen=True)
class SuffixSlots:
    """The suffix that a search begins with, and the prompts that it can stand in.

    Attributes:
        initial_suffix: The text of that suffix.
        initial_ids: Its token ids, the same in every slot.
        slots: One for each prompt that can be attacked.
        unfit: Item id -> reason, for prompts that cannot.
    """

    initial_suffix: str
    initial_ids: tuple[int, ...]
    slots: tuple[SuffixSlot, ...]
    unfit: dict[str, str] = field(default_factory=dict)

    def one_by_one(self) -> list[SuffixSlots]:
        """Each slot by itself."""
        return [replace(self, slots=(slot,)) for slot in self.slots]


def with_suffix(item: Item, suffix: str) -> Item:
    """The attacked item: the suffix after the prompt, a space between."""
    return replace(item, prompt=f"{item.prompt} {suffix}", original=item.request)


def find_slots(
    items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, template: Template, config: SearchConfig, context: int
) -> SuffixSlots:
    """Render the items and cut them around the initial suffix.

    An item is unfit if prompt, suffix and target do not fit into the context, or if the tokenizer joins the suffix with
    the text around it.

    Args:
        items: The prompts; the target is the beginning of their first harmful reference.
        tokenizer: A fast tokenizer, for it must tell where a token stands in the text.
        template: Renders the prompts.
        config: Says what the suffix begins as, and how long suffix and target are.
        context: How many tokens the model can attend to.

    Raises:
        UserError: The tokenizer is not fast, or the initial suffix cannot stand after any prompt.
        JobFailed: Every item is unfit.
    """
    if not tokenizer.is_fast:
        raise UserError("a search for a suffix needs a fast tokenizer", "save the model's as tokenizer.json")
    around = [_around_suffix(item, template) for item in items]
    suffix, ids = _initial_suffix(around, tokenizer, config)
    slots, unfit = [], {}
    for item, (head, tail) in zip(items, around, strict=True):
        parts = _split_at_suffix(tokenizer, head, suffix, tail)
        wanted = template.continuation(item.harmful[0] if item.harmful else config.target)
        target = tokenizer(wanted, add_special_tokens=False)["input_ids"][: config.target_tokens]
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
    """At most `n` of the items, evenly spread over them."""
    return list(items) if len(items) <= n else [items[k * len(items) // n] for k in range(n)]


def _around_suffix(item: Item, template: Template) -> tuple[str, str]:
    head, _, tail = template.render(replace(item, prompt=item.prompt + _MARK)).rpartition(_MARK)
    return head, tail


def _initial_suffix(
    around: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, config: SearchConfig
) -> tuple[str, tuple[int, ...]]:
    """The most repeats of `init` that fill at most `suffix_tokens` tokens after the first prompt that takes them."""
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
    """Token ids before, of and after the suffix; None where a token crosses one of its ends. The space before the suffix
    belongs to it."""
    encoded = tokenizer(f"{head} {suffix}{tail}", return_offsets_mapping=True)
    ids, spans = tuple(encoded["input_ids"]), encoded["offset_mapping"]
    begin, end = len(head), len(head) + 1 + len(suffix)
    first = next((k for k, span in enumerate(spans) if span[1] > begin), len(spans))
    # An empty span is a token that the tokenizer adds, at the end as well.
    last = next((k for k in range(first, len(spans)) if spans[k][1] > end or spans[k][1] == 0), len(spans))
    if not first < last or spans[first][0] < begin or (last < len(spans) and 0 < spans[last][0] < end):
        return None
    return ids[:first], ids[first:last], ids[last:]
