"""Decode many prompts together by continuous batching, with the same results as for each prompt alone.

All padding is on the left of a row, and positions count only the tokens of the row. So a row has the same logits as
without a batch. These optimisations keep the tokens the same:

- A row that has ended leaves the batch at once. When a quarter of the rows has left, waiting prompts take their places,
  and columns of the key-value cache that are then padding in all rows are dropped.
- Keys and values of a prefix that several prompts share (an attack's template, demonstrations) are computed once. All
  rows of a batch then compute the same number of further tokens: as many as the longest prompt has after the prefix.
  For a shorter prompt, these include the last tokens of the prefix, where there would otherwise be padding, and fewer
  prefix tokens are taken from the cache. So there is never a gap inside a row, and attention windows (GPT-Neo) cover
  the right tokens.
- Equal prompts are decoded once. Independent samples after equal prompts share the computation of the prompt.
- Greedy tokens are found without most of the head's work in float32 (see `engine.greedy`).

When memory runs out, the rows of the batch return to the queue. The limit on the tokens in a batch is halved from then
on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from wpn_bench.core import device_memory
from wpn_bench.engine.budget import does_not_fit, useful_tokens
from wpn_bench.engine.by_transformers import by_transformers
from wpn_bench.engine.cache import SPARE_COLUMNS, Layer, cache_budget, cache_of, new_cache
from wpn_bench.engine.greedy import GreedyHead
from wpn_bench.engine.head import last_inputs
from wpn_bench.engine.placement import device_of
from wpn_bench.engine.prefixes import shared_prefixes
from wpn_bench.engine.sampling import Ended, Rules, Sampling, drawn, seed_of
from wpn_bench.engine.support import accepted_by, is_plain
from wpn_bench.jobs import journal
from wpn_bench.models.backends.base import sample_numbers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

__all__ = ["Rules", "Sampling", "decode"]

_REGATHER_SHARE = (
    0.75  # the batch is rebuilt, and filled with waiting rows, when at most this share of its rows is left
)
_HEAD_TOKENS = 2048  # number of tokens after which a copy of the head for greedy decoding has paid


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rules: Rules,
    *,
    most_rows: int = 256,
    advance: Callable[[int], None] = lambda n: None,
) -> list[list[int]]:
    """Decode all prompts.

    Args:
        model: A causal language model.
        prompts: Token ids, at least one for each prompt. The model's context must have room for `max_new_tokens` more.
        rules: How tokens are chosen, and when a row ends.
        most_rows: Maximum number of rows in a batch. Batches are smaller if memory is short.
        advance: Called with the number of prompts finished since its last call.

    Returns:
        The new tokens of each prompt, in order.

    Raises:
        ValueError: A prompt has no tokens.
        UserError: A single row does not fit into memory.
    """
    copies: dict[tuple[tuple[int, ...], int], list[int]] = {}
    independent = rules.sampling is not None and rules.sampling.independent
    inputs = [tuple(prompt) for prompt in prompts]
    for k, (tokens, number) in enumerate(zip(inputs, sample_numbers(inputs, independent), strict=True)):
        if not tokens:
            raise ValueError("a prompt has no tokens, so there is nothing to continue")
        copies.setdefault((tokens, number), []).append(k)
    distinct = [list(prompt) for prompt, _ in copies]
    streams = [stream for _, stream in copies]
    places = list(copies.values())
    plain = is_plain(model)
    about = (rules.max_new_tokens, sorted(rules.ends), rules.sampling)
    kept = journal.section("decode", lambda: journal.fingerprint(distinct, *about))
    todo = [k for k in range(len(distinct)) if k not in kept.known and kept.in_shard(k)]
    out: list[list[int]] = [[] for _ in prompts]

    def ended(k: int, text: list[int]) -> None:
        for place in places[k]:
            out[place] = text
        advance(len(places[k]))

    for k, text in kept.known.items():
        ended(k, text)

    def told(number: int, text: list[int]) -> None:
        kept.add({todo[number]: text})
        ended(todo[number], text)

    work = _Decoder(model, rules, most_rows).run if plain else by_transformers(model, rules, most_rows)
    work([distinct[k] for k in todo], [streams[k] for k in todo], told)
    return out


# --- rows and batches -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    """A prompt and its new tokens.

    The first `shared` tokens of the prompt are the prefix that it shares with other prompts of its group. `stream` is the number of
    the sample after this prompt.
    """

    index: int
    prompt: list[int]
    stream: int = 0
    shared: int = 0
    new: list[int] = field(default_factory=list)
    ended: bool = False
    draws: Tensor | None = None

    @property
    def cached(self) -> int:
        """Return the number of tokens with keys and values in the cache, which are all but the newest token."""
        return len(self.prompt) + len(self.new) - 1


@dataclass
class _Live:
    """A batch of rows that are being decoded.

    Attributes:
        rows: The R rows.
        cache: Their keys and values.
        mask: Attention mask (R, C). It includes the columns of future tokens, which are 1.
        width: Number of columns that have keys and values.
        padded: Whether any row has padding.
        places: Number of rows when the batch was built.
    """

    rows: list[_Row]
    cache: Cache
    mask: Tensor
    width: int
    padded: bool
    places: int

    @property
    def at_work(self) -> list[int]:
        return [r for r, row in enumerate(self.rows) if not row.ended]

    def drop_ended(self) -> None:
        """Remove the ended rows. The last active rows take their places, so only few rows are copied."""
        n = len(self.at_work)
        if n == len(self.rows):
            return
        holes = [r for r in range(n) if self.rows[r].ended]
        last = [r for r in range(n, len(self.rows)) if not self.rows[r].ended]
        for hole, r in zip(holes, last, strict=True):
            self.rows[hole] = self.rows[r]
        del self.rows[n:]
        if holes:
            self.mask[holes] = self.mask[last]
        self.mask = self.mask[:n]
        for layer in self.cache.layers:
            assert isinstance(layer, Layer)
            layer.keep(n, holes, last)


# --- the loop --------------------------------------------------------------------------------------------------------


class _Decoder:
    """Decodes prompts with continuous batching."""

    def __init__(self, model: PreTrainedModel, rules: Rules, most_rows: int) -> None:
        from wpn_bench.models import context_length

        self.model, self.rules, self.most_rows = model, rules, most_rows
        self.device = device_of(model)
        self.context = context_length(model)
        self.accepted = accepted_by(model)
        self.budget = cache_budget(model)
        self.prefix: tuple[tuple[int, ...], Cache] | None = None
        self.greedy: GreedyHead | None = None

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], streams: list[int], ended: Ended) -> None:
        if self.rules.sampling is None and len(prompts) * self.rules.max_new_tokens >= _HEAD_TOKENS:
            self.greedy = GreedyHead.of(self.model)
        rows = [_Row(k, prompt, stream) for k, (prompt, stream) in enumerate(zip(prompts, streams, strict=True))]
        queue = deque(self._ordered(rows))
        live: _Live | None = None
        flight: list[_Row] = []  # rows that have left the queue and not ended
        while queue or flight:
            failed = False
            try:
                if live is None or self._is_thin(live):
                    taken = self._take(queue, flight)
                    flight += taken
                    live = self._gather(live, self._begin(taken))
                else:
                    self._step(live)
            except Exception as e:
                if not device_memory.ran_out_of_memory(e):
                    raise
                if len(flight) == 1:
                    raise does_not_fit() from e
                failed = True
            if failed:
                # Within the except block, the traceback would still refer to the tensors that did not fit.
                live = self.prefix = None
                device_memory.release()
                self.budget.tokens = min(self.budget.tokens, self._cost(flight))
                self.budget.halve()
                for row in flight:
                    row.new.clear()
                    row.ended = False
                queue.extendleft(reversed(flight))
                flight = []
                continue
            for row in flight:
                if row.ended:
                    ended(row.index, row.new)
            flight = [row for row in flight if not row.ended]
            if not flight:
                live = None

    def _ordered(self, rows: list[_Row]) -> list[_Row]:
        """Order the rows so that groups with a shared prefix stay together, and the longest rows come first.

        So rows of similar length share a batch. If memory runs out, it does so early.
        """
        alone = {row.index for row in rows}
        blocks = []
        for group in shared_prefixes([row.prompt for row in rows]):
            for k in group.members:
                rows[k].shared = group.length
            blocks.append([rows[k] for k in group.members])
            alone -= set(group.members)
        blocks.append([rows[k] for k in sorted(alone)])
        for block in blocks:
            block.sort(key=lambda row: -len(row.prompt))
        blocks.sort(key=lambda block: -len(block[0].prompt) if block else 0)
        return [row for block in blocks for row in block]

    def _cost(self, rows: Sequence[_Row]) -> int:
        """Return the maximum number of tokens, including padding, that these rows have in the cache."""
        return len(rows) * (max((len(row.prompt) for row in rows), default=0) + self.rules.max_new_tokens)

    def _is_thin(self, live: _Live) -> bool:
        """Return whether so many rows have ended that the batch should be rebuilt."""
        n = len(live.at_work)
        # Some models (GPT-Neo) allow no mask wider than their context. A batch without its ended rows is narrower.
        return n <= _REGATHER_SHARE * live.places or (n < live.places and live.width >= self.context)

    def _take(self, queue: deque[_Row], flight: list[_Row]) -> list[_Row]:
        """Take as many rows from the queue as fit next to those in the batch, at least one if the batch is empty."""
        taken: list[_Row] = []
        while queue and len(flight) + len(taken) < self.most_rows:
            if (flight or taken) and self._cost([*flight, *taken, queue[0]]) > self.budget.tokens:
                break
            taken.append(queue.popleft())
        return taken

    def _begin(self, rows: list[_Row]) -> list[_Live]:
        """Compute the prompts of `rows` in passes of one group each, with a limited number of tokens."""
        most = min(self.budget.tokens, useful_tokens(self.device.type))
        passes: list[list[_Row]] = []
        for row in rows:
            last = passes[-1] if passes else None
            if (
                last is not None
                and last[0].prompt[: last[0].shared] == row.prompt[: row.shared]
                and (len(last) + 1) * (len(last[0].prompt) - last[0].shared) <= most
            ):
                last.append(row)
            else:
                passes.append([row])
        return [self._prefill(part) for part in passes]

    def _prefill(self, rows: list[_Row]) -> _Live:
        """Compute the prompts of rows with the same shared prefix in one pass, and choose their first new tokens."""
        lengths = torch.tensor([len(row.prompt) for row in rows], device=self.device)
        longest = int(lengths.max())
        shared = rows[0].shared
        width = longest - shared  # only the last `width` tokens of each row are computed
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for r, row in enumerate(rows):
            tokens = row.prompt[-width:]
            ids[r, width - len(tokens) :] = torch.tensor(tokens)
        cache = (
            self._repeated(tuple(rows[0].prompt[:shared]), (lengths - width).clamp(min=0)) if shared else new_cache()
        )
        mask, padded = self._mask(lengths, longest)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:longest]
        tokens = self._next(rows, ids.to(self.device), mask[:, :longest] if padded else None, positions, cache)
        self._append(rows, tokens)
        return _Live(list(rows), cache, mask, longest, padded, len(rows))

    def _repeated(self, prefix: tuple[int, ...], lengths: Tensor) -> Cache:
        """Return the keys and values of the first `lengths` (R,) tokens of `prefix` for each row.

        They are right-aligned in len(prefix) columns.
        """
        if self.prefix is None or self.prefix[0] != prefix:
            cache = new_cache()
            ids = torch.tensor([prefix], device=self.device)
            self._forward(ids, None, torch.arange(len(prefix), device=self.device).unsqueeze(0), cache)
            self.prefix = (prefix, cache)
        columns = torch.arange(len(prefix), device=self.device) - (len(prefix) - lengths).unsqueeze(1)
        columns = columns.clamp(min=0)  # masked columns on the left must contain finite numbers
        return cache_of(
            (layer.keys[0][:, columns].transpose(0, 1), layer.values[0][:, columns].transpose(0, 1))
            for layer in self.prefix[1].layers
        )

    def _mask(self, lengths: Tensor, width: int) -> tuple[Tensor, bool]:
        """Return the mask (R, `width` + `max_new_tokens`) of right-aligned rows, and whether any row has padding."""
        columns = torch.arange(width + self.rules.max_new_tokens, device=self.device)
        mask = (columns >= (width - lengths).unsqueeze(1)).long()
        return mask, bool((lengths < width).any())

    def _gather(self, live: _Live | None, begun: list[_Live]) -> _Live | None:
        """Combine the active rows of `live` and the new batches into one batch with as few columns as possible."""
        parts = [(part, part.at_work) for part in ([live] if live else []) + begun]
        if len(parts) == 1 and len(parts[0][1]) == parts[0][0].places:
            return parts[0][0]
        parts = [(part, at_work) for part, at_work in parts if at_work]
        rows = [part.rows[r] for part, at_work in parts for r in at_work]
        if not rows:
            return None
        lengths = torch.tensor([row.cached for row in rows], device=self.device)
        width = int(lengths.max())

        def side_by_side(tensors: list[Tensor]) -> Tensor:
            one = tensors[0]
            # Masked columns are filled with zeros, because they must contain finite numbers.
            whole = one.new_zeros(len(rows), one.shape[1], width + SPARE_COLUMNS, one.shape[3])
            at = 0
            for x, (part, at_work) in zip(tensors, parts, strict=True):
                kept = min(width, part.width)
                index = torch.tensor(at_work, device=self.device)
                whole[at : at + len(at_work), :, width - kept : width] = x[:, :, part.width - kept :][index]
                at += len(at_work)
            return whole

        cache = new_cache()
        for k in range(len(parts[0][0].cache.layers)):
            layer = Layer()
            layers = [part.cache.layers[k] for part, _ in parts]
            layer.hold(side_by_side([x.keys for x in layers]), side_by_side([x.values for x in layers]))
            layer.keys, layer.values = (whole[:, :, :width] for whole in layer.place)
            cache.layers.append(layer)
            for old in layers:
                old.reset()  # free this layer now, so that only one layer at a time is in memory twice
                old.place = ()
        mask, padded = self._mask(lengths, width)
        return _Live(rows, cache, mask, width, padded, len(rows))

    def _step(self, live: _Live) -> None:
        live.drop_ended()
        ids = torch.tensor([[row.new[-1]] for row in live.rows], device=self.device)
        positions = torch.tensor([[row.cached] for row in live.rows], device=self.device)
        mask = live.mask[:, : live.width + 1] if live.padded else None
        tokens = self._next(live.rows, ids, mask, positions, live.cache)
        live.width += 1
        self._append(live.rows, tokens)

    def _next(self, rows: list[_Row], ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> list[int]:
        """Compute the tokens `ids` (R, T), and choose the next token of each row."""
        if self.greedy is not None:
            with last_inputs(self.model) as inputs:
                self._forward(ids, mask, positions, cache)
            return self.greedy(inputs[0]).tolist()
        logits = self._forward(ids, mask, positions, cache)
        if self.rules.sampling is None:
            return logits.argmax(-1).tolist()
        return drawn(logits, self._draws(rows), self.rules.sampling).tolist()

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits (R, V) after the last token of each row, in float32."""
        given: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self.accepted}
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _append(self, rows: list[_Row], tokens: list[int]) -> None:
        """Append the next token to each active row, and mark the row as finished if that token ends it."""
        for row, token in zip(rows, tokens, strict=True):
            if row.ended:
                continue
            if token in self.rules.ends:
                row.ended = True
                continue
            row.new.append(token)
            row.ended = len(row.new) >= self.rules.max_new_tokens or self.rules.stopped(row.new)

    def _draws(self, rows: list[_Row]) -> Tensor:
        """Return the next random number (R,) of each row's own generator."""
        assert self.rules.sampling is not None
        now = []
        for row in rows:
            if row.draws is None:
                stream = torch.Generator().manual_seed(seed_of(self.rules.sampling.seed, row.prompt, row.stream))
                row.draws = torch.rand(self.rules.max_new_tokens + 1, generator=stream, dtype=torch.float64)
            now.append(row.draws[len(row.new)])
        return torch.stack(now)
