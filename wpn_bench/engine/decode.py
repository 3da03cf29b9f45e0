"""Decode many prompts together by continuous batching, with the same results as for each prompt alone.

All padding is on the left of a row, and positions count only the tokens of the row. So a row has the same logits as
without a batch. Three optimisations keep the tokens the same:

- A row that has ended leaves the batch, and a waiting prompt takes its place. Columns of the key-value cache that are
  then padding in all rows are dropped.
- Keys and values of a prefix that several prompts share (an attack's template, demonstrations) are computed once. All
  rows of a batch then compute the same number of further tokens: as many as the longest prompt has after the prefix.
  For a shorter prompt, these include the last tokens of the prefix, where there would otherwise be padding, and fewer
  prefix tokens are taken from the cache. So there is never a gap inside a row, and attention windows (GPT-Neo) cover
  the right tokens.
- Equal prompts are decoded once.

When memory runs out, the rows of the batch return to the queue. The limit on the tokens in a batch is halved from then
on.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from wpn_bench.core import device_memory
from wpn_bench.engine.budget import Budget, does_not_fit, for_batches, useful_tokens
from wpn_bench.engine.placement import device_of
from wpn_bench.engine.prefixes import shared_prefixes
from wpn_bench.engine.support import accepted_by, is_plain, steering
from wpn_bench.jobs import journal
from wpn_bench.models.sizes import TokenMemory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_REGATHER_SHARE = 0.75  # the batch is rebuilt without its ended rows when at most this share of its rows is active
_SPARE_COLUMNS = 64  # number of spare columns in the cache, so that it is not copied for every token
_CACHE_SHARE = 0.25  # share of the free memory for keys and values, which need twice their memory during a rebuild


@dataclass(frozen=True)
class Sampling:
    """Sample tokens instead of decoding greedily.

    Each row has its own random generator, seeded with `seed` and the tokens of the prompt. So equal prompts get equal
    texts.

    Attributes:
        temperature: Divides the logits.
        top_p: Tokens are sampled from the most likely ones that together have this probability; None means all tokens.
        seed: Seed of the run.
    """

    temperature: float
    top_p: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Rules:
    """How tokens are chosen, and when a row ends.

    Attributes:
        max_new_tokens: Maximum number of new tokens.
        ends: Ids of tokens that end a row. They are not part of the result.
        stopped: Returns whether a row with these new tokens ends. The tokens are part of the result.
        sampling: How tokens are sampled; None means greedy decoding.
    """

    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] = lambda tokens: False
    sampling: Sampling | None = None


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rules: Rules,
    *,
    most_rows: int = 128,
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
    copies: dict[tuple[int, ...], list[int]] = {}
    for k, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError("a prompt has no tokens, so there is nothing to continue")
        copies.setdefault(tuple(prompt), []).append(k)
    distinct = [list(prompt) for prompt in copies]
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

    work = _Decoder(model, rules, most_rows).run if plain else _by_transformers(model, rules, most_rows)
    work([distinct[k] for k in todo], told)
    return out


Ended = Callable[[int, list[int]], None]  # is called with the position of a prompt and all its new tokens


# --- rows and batches -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    """A prompt and its new tokens.

    The first `shared` tokens of the prompt are the prefix that it shares with other prompts of its group.
    """

    index: int
    prompt: list[int]
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
    """

    rows: list[_Row]
    cache: Cache
    mask: Tensor
    width: int
    padded: bool

    @property
    def at_work(self) -> list[int]:
        return [r for r, row in enumerate(self.rows) if not row.ended]


class _Layer(DynamicLayer):
    """Keys and values (R, H, T, D) of one layer, at the front of a larger buffer.

    New tokens are written into the buffer. A `DynamicLayer` would copy all earlier tokens for each new token, and would
    need memory for both copies.
    """

    keys: Any
    values: Any
    is_initialized: bool
    place: tuple[Any, ...]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.hold(key_states, value_states)
            return self.keys, self.values
        begin, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self.place[0].shape[-2]:
            self.hold(self.keys, self.values, end + _SPARE_COLUMNS)
        for whole, states in zip(self.place, (key_states, value_states), strict=True):
            whole[:, :, begin:end] = states
        self.keys, self.values = (whole[:, :, :end] for whole in self.place)
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor, columns: int = 0) -> None:
        """Use these keys and values in a buffer of `columns` columns. With 0, they are neither copied nor extended."""
        width = keys.shape[-2]
        if columns <= width:
            self.place = (keys, values)
        else:
            self.place = tuple(x.new_empty((*x.shape[:2], columns, x.shape[3])) for x in (keys, values))
            for whole, x in zip(self.place, (keys, values), strict=True):
                whole[:, :, :width] = x
        self.keys, self.values = (whole[:, :, :width] for whole in self.place)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True


def _new_cache() -> Cache:
    # Models with attention windows also get full layers. Masks limit their attention, and rows can be regrouped.
    return Cache(layer_class_to_replicate=_Layer)


def _cache_of(layers: Iterable[tuple[Tensor, Tensor]], columns: int = 0) -> Cache:
    cache = _new_cache()
    for keys, values in layers:
        layer = _Layer()
        layer.hold(keys, values, columns)
        cache.layers.append(layer)
    return cache


# --- the loop --------------------------------------------------------------------------------------------------------


class _Decoder:
    """Decodes prompts with continuous batching."""

    def __init__(self, model: PreTrainedModel, rules: Rules, most_rows: int) -> None:
        from wpn_bench.models import context_length

        self.model, self.rules, self.most_rows = model, rules, most_rows
        self.device = device_of(model)
        self.context = context_length(model)
        self.accepted = accepted_by(model)
        self.budget = _cache_budget(model)
        self.prefix: tuple[tuple[int, ...], Cache] | None = None

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], ended: Ended) -> None:
        rows = [_Row(k, prompt) for k, prompt in enumerate(prompts)]
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
        """Return whether so many rows have ended that the batch should be rebuilt without them."""
        n = len(live.at_work)
        # Some models (GPT-Neo) allow no mask wider than their context. A batch without its ended rows is narrower.
        return n <= _REGATHER_SHARE * len(live.rows) or (n < len(live.rows) and live.width >= self.context)

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
            self._repeated(tuple(rows[0].prompt[:shared]), (lengths - width).clamp(min=0)) if shared else _new_cache()
        )
        mask, padded = self._mask(lengths, longest)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:longest]
        logits = self._forward(ids.to(self.device), mask[:, :longest] if padded else None, positions, cache)
        self._choose(rows, logits)
        return _Live(rows, cache, mask, longest, padded)

    def _repeated(self, prefix: tuple[int, ...], lengths: Tensor) -> Cache:
        """Return the keys and values of the first `lengths` (R,) tokens of `prefix` for each row.

        They are right-aligned in len(prefix) columns.
        """
        if self.prefix is None or self.prefix[0] != prefix:
            cache = _new_cache()
            ids = torch.tensor([prefix], device=self.device)
            self._forward(ids, None, torch.arange(len(prefix), device=self.device).unsqueeze(0), cache)
            self.prefix = (prefix, cache)
        columns = torch.arange(len(prefix), device=self.device) - (len(prefix) - lengths).unsqueeze(1)
        columns = columns.clamp(min=0)  # masked columns on the left must contain finite numbers
        return _cache_of(
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
        if len(parts) == 1 and len(parts[0][1]) == len(parts[0][0].rows):
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
            whole = one.new_zeros(len(rows), one.shape[1], width + _SPARE_COLUMNS, one.shape[3])
            at = 0
            for x, (part, at_work) in zip(tensors, parts, strict=True):
                kept = min(width, part.width)
                index = torch.tensor(at_work, device=self.device)
                whole[at : at + len(at_work), :, width - kept : width] = x[:, :, part.width - kept :][index]
                at += len(at_work)
            return whole

        cache = _new_cache()
        for k in range(len(parts[0][0].cache.layers)):
            layer = _Layer()
            layers = [part.cache.layers[k] for part, _ in parts]
            layer.hold(side_by_side([x.keys for x in layers]), side_by_side([x.values for x in layers]))
            layer.keys, layer.values = (whole[:, :, :width] for whole in layer.place)
            cache.layers.append(layer)
            for old in layers:
                old.reset()  # free this layer now, so that only one layer at a time is in memory twice
                old.place = ()
        mask, padded = self._mask(lengths, width)
        return _Live(rows, cache, mask, width, padded)

    def _step(self, live: _Live) -> None:
        ids = torch.tensor([[row.new[-1] if row.new else 0] for row in live.rows], device=self.device)
        positions = torch.tensor([[max(row.cached, 0)] for row in live.rows], device=self.device)
        mask = live.mask[:, : live.width + 1] if live.padded else None
        logits = self._forward(ids, mask, positions, live.cache)
        live.width += 1
        self._choose(live.rows, logits)

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits (R, V) after the last token of each row, in float32."""
        given: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self.accepted}
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _choose(self, rows: list[_Row], logits: Tensor) -> None:
        """Append the next token to each active row, and mark the row as finished if that token ends it."""
        if self.rules.sampling is None:
            tokens = logits.argmax(-1).tolist()
        else:
            tokens = _drawn(logits, self._draws(rows), self.rules.sampling).tolist()
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
                stream = torch.Generator().manual_seed(seed_of(self.rules.sampling.seed, row.prompt))
                row.draws = torch.rand(self.rules.max_new_tokens + 1, generator=stream, dtype=torch.float64)
            now.append(row.draws[len(row.new)])
        return torch.stack(now)


def seed_of(seed: int, prompt: Sequence[int]) -> int:
    """Return the seed for sampling after a prompt. It does not depend on the other prompts of the batch.

    Args:
        seed: Seed of the run.
        prompt: Token ids of the prompt.

    Returns:
        An integer of 63 bits.
    """
    told = hashlib.sha256(f"{seed}:{','.join(map(str, prompt))}".encode()).digest()
    return int.from_bytes(told[:8], "big") >> 1


def _drawn(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """Sample one token per row (R,) by inversion of the cumulative distribution.

    The token is the first one, in the order of the vocabulary, at which the cumulative probability from `logits` (R, V)
    exceeds the row's number in `draws` (R,), which lies in [0, 1). Tokens are not ordered by probability, because
    rounding errors could change that order.
    """
    p = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p is not None:
        ranked, order = p.sort(-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= sampling.top_p  # the most likely token is always kept
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    sums = p.cumsum(-1)
    aims = draws.to(p.device).unsqueeze(1) * sums[:, -1:]
    picked = (sums <= aims).sum(-1)
    # Because of rounding, no cumulative probability may exceed the number. Then take the last possible token.
    last = p.shape[-1] - 1 - (p > 0).flip(-1).long().argmax(-1)
    return torch.minimum(picked, last)


# --- models that transformers decodes --------------------------------------------------------------------------------


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Reduce the model's generation configuration to the settings that wpn-bench uses, within a `with` block."""
    from transformers import GenerationConfig

    brought = model.generation_config
    model.generation_config = GenerationConfig(**steering(brought))
    try:
        yield
    finally:
        model.generation_config = brought


def _cache_budget(model: PreTrainedModel) -> Budget:
    """Return the number of tokens whose keys and values may be in memory at the same time."""
    free = device_memory.free_memory(device_of(model).type)
    return Budget(int(_CACHE_SHARE * free / max(1, TokenMemory.of(model.config, model.dtype).cache)))


def _by_transformers(model: PreTrainedModel, rules: Rules, most_rows: int) -> Callable[..., None]:
    """Return a function that decodes with the model's own `generate`, for models that `_Decoder` does not support.

    It is slower, because ended rows stay in the batch. All prompts of a batch have the same length, so that there is no
    padding. A repetition penalty or a minimum length would count padding as tokens of the prompt, and some state-space
    models would process it.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    sampling = rules.sampling

    device = device_of(model)

    def run(prompts: list[list[int]], ended: Ended) -> None:
        def work(part: list[int]) -> None:
            width = max(len(prompts[k]) for k in part)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for r, k in enumerate(part):
                ids[r, width - len(prompts[k]) :] = torch.tensor(prompts[k])
                mask[r, width - len(prompts[k]) :] = 1

            class Stopped(StoppingCriteria):
                def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
                    said = [rules.stopped(row) for row in input_ids[:, width:].tolist()]
                    return torch.tensor(said, device=input_ids.device)

            options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
            if sampling is not None:
                torch.manual_seed(seed_of(sampling.seed, prompts[part[0]]))
                options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p or 1.0}
                options |= {"top_k": 0}
            end = sorted(rules.ends)
            with torch.inference_mode(), _own_settings(model):
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=rules.max_new_tokens,
                    eos_token_id=end or None,
                    pad_token_id=end[0] if end else 0,
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                    **options,
                )
            for r, k in enumerate(part):
                ended(k, _until_the_end(out[r, width:].tolist(), rules))

        order = sorted(range(len(prompts)), key=lambda k: -len(prompts[k]))
        budget = _cache_budget(model)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=sampling is not None):
            for _, equal in groupby(order, key=lambda k: len(prompts[k])):
                for_batches(
                    list(equal),
                    lambda part: len(part) * (len(prompts[part[0]]) + rules.max_new_tokens),
                    budget,
                    work,
                    # `generate` has one random generator for the whole batch, so with sampling a batch is one prompt.
                    1 if sampling is not None else most_rows,
                )

    return run


def _until_the_end(tokens: list[int], rules: Rules) -> list[int]:
    """Return the tokens of a row up to its end, without padding."""
    for k, token in enumerate(tokens):
        if token in rules.ends:
            return tokens[:k]
        if rules.stopped(tokens[: k + 1]):
            return tokens[: k + 1]
    return tokens
