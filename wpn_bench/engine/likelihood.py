"""Compute exact log-likelihoods of continuations.

Sequences that begin alike form a prefix tree (see `tree`), so that a shared prefix is computed once. Several trees are
packed into one row, with an attention mask that separates them, so that there is no padding. The logits are computed
only at the positions that predict continuation tokens.

Some models cannot process packed rows, or give other results for them. Each model is checked on a few tokens. If it
does not support packed rows, each row has one sequence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from wpn_bench.engine import tree as packing
from wpn_bench.engine.budget import Budget, for_batches
from wpn_bench.engine.head import Head, Tiles, all_logits, head_input
from wpn_bench.engine.placement import device_of
from wpn_bench.engine.prefixes import MEMBERS, TOKENS
from wpn_bench.engine.support import caches_plainly
from wpn_bench.jobs import journal
from wpn_bench.models.sizes import HEAD_ROWS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["loglikelihoods"]

Pair = tuple[Sequence[int], Sequence[int]]

ROW = 128  # maximum number of tokens in a row of several trees; longer rows have more masked pairs in attention
ACCELERATOR_HEAD_ROWS = 4096


def loglikelihoods(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    max_length: int,
    budget: Budget | None = None,
    advance: Callable[[int], object] = lambda n: None,
    cache_prefix: bool = False,
) -> list[tuple[float, bool]]:
    """Compute the log-likelihood of each continuation given its context.

    As in lm-eval's `hf` model, context and continuation are truncated on the left to the last max_length + 1 tokens. If
    several tokens are equally likely, the greedy token is the one with the lowest id.

    Args:
        model: A causal language model.
        pairs: Token ids of a context and its continuation.
        max_length: Maximum number of tokens that the model sees.
        budget: Maximum number of tokens in a pass; None measures the free memory.
        advance: Called with the number of pairs finished since its last call.
        cache_prefix: Whether to compute the common beginning of all contexts only once, if the model supports it. This
            is much faster if all contexts begin with the same instructions, but changes the last digits.

    Returns:
        For each pair, in order, the sum of log p(continuation | context) in nats, and whether greedy decoding would
        generate the continuation.

    Raises:
        ValueError: A context or continuation is empty, or a continuation has more than `max_length` tokens.
        UserError: The model and one sequence do not fit into memory.
    """
    # Pairs with the same input share one sequence. For instance, these are choices of one token after one context.
    asked: dict[packing.Tokens, list[int]] = defaultdict(list)
    for k, (context, continuation) in enumerate(pairs):
        _check(context, continuation, max_length)
        asked[tuple([*context, *continuation][-(max_length + 1) :][:-1])].append(k)
    sequences = list(asked)
    scores = np.zeros(len(pairs))
    greedy = np.ones(len(pairs), dtype=bool)
    support = _support_of(model)
    head = head_of(model, support.head_is_last)
    budget = budget or Budget.measured(model, logits=not support.head_is_last)
    checkpoint = journal.section(
        "loglikelihoods", lambda: journal.fingerprint((ids for pair in pairs for ids in pair), max_length)
    )

    batches = count()

    def settled(numbers: Sequence[int]) -> bool:
        """Return whether a batch needs no computation: the journal has its scores, or another process computes them.

        A batch is computed as a whole or not at all, so that results do not depend on the contents of the journal.
        """
        requests = [k for n in numbers for k in asked[sequences[n]]]
        if checkpoint.in_shard(next(batches)) and not all(k in checkpoint.known for k in requests):
            return False
        for k in requests:
            scores[k], greedy[k] = checkpoint.known.get(k, (0.0, False))
        advance(len(requests))
        return True

    def read(numbers: Sequence[int], outputs: Tensor, rows: Sequence[packing.Array]) -> None:
        """Compute the scores of sequences.

        `outputs` (N, width) are the head's inputs. `rows` are the indices of each sequence's tokens in `outputs`.
        """
        where, target, request = [], [], []
        for number, places in zip(numbers, rows, strict=True):
            for k in asked[sequences[number]]:
                continuation = pairs[k][1]
                where.append(places[-len(continuation) :])
                target.append(continuation)
                request.append(np.full(len(continuation), k))
        pair = np.concatenate(request)
        logprob, best = _read_head(head, outputs, np.concatenate(where), np.concatenate(target))
        np.add.at(scores, pair, logprob)
        np.logical_and.at(greedy, pair, best)
        done = [k for n in numbers for k in asked[sequences[n]]]
        checkpoint.add({k: (float(scores[k]), bool(greedy[k])) for k in done})
        advance(len(done))

    short = [n for n, s in enumerate(sequences) if len(s) <= support.packed_length]
    prefix = None
    if cache_prefix:
        # The outputs for a continuation are at the end of its sequence, so no such token may be in the prefix.
        room = min((len(sequences[n]) - len(pairs[k][1]) for n in short for k in asked[sequences[n]]), default=0)
        prefix = PrefixCache.of(model, [sequences[n] for n in short], room)
    start = prefix.length if prefix else 0
    _packed(model, support, [sequences[n][start:] for n in short], short, max_length, budget, settled, read, prefix)
    long = [n for n, s in enumerate(sequences) if len(s) > support.packed_length]
    _plain(model, support.head_is_last, sequences, long, budget, settled, read)
    return [(float(s), bool(g)) for s, g in zip(scores, greedy, strict=True)]


def _check(context: Sequence[int], continuation: Sequence[int], max_length: int) -> None:
    if not len(context) or not len(continuation):
        raise ValueError("a context and a continuation must have at least one token each")
    if len(continuation) > max_length:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens exceeds the maximum length of the model ({max_length})"
        )


Settled = Callable[[Sequence[int]], bool]
Read = Callable[[Sequence[int], "Tensor", Sequence[packing.Array]], None]


def _packed(
    model: PreTrainedModel,
    support: _Support,
    sequences: Sequence[packing.Tokens],
    numbers: Sequence[int],
    max_length: int,
    budget: Budget,
    settled: Settled,
    read: Read,
    prefix: PrefixCache | None = None,
) -> None:
    """Compute sequences as packed prefix trees, several in each row.

    With `prefix`, the sequences follow that prefix.
    """
    most = min(support.packed_length, max_length) - (prefix.length if prefix else 0)
    size = min(ROW, most)
    forest = packing.trees(sequences, size, most)
    filled = packing.rows(map(len, forest), size)
    width = [sum(len(forest[k]) for k in row) for row in filled]

    def work(part: list[int]) -> None:
        if settled([numbers[n] for r in part for k in filled[r] for n in forest[k].paths]):
            return
        batch = packing.pack([[forest[k] for k in filled[r]] for r in part])
        outputs = _batch_outputs(model, support.head_is_last, batch, prefix)
        columns = batch.tokens.shape[1]
        found = [
            (numbers[n], path + row * columns + at) for of, row, at in batch.places for n, path in of.paths.items()
        ]
        read([n for n, _ in found], outputs, [path for _, path in found])

    for_batches(range(len(filled)), lambda part: len(part) * width[part[0]], budget, work)


def _batch_outputs(
    model: PreTrainedModel, head_is_last: bool, batch: packing.Packed, prefix: PrefixCache | None = None
) -> Tensor:
    """Return the head's inputs (rows * width, d) for a batch. Each row follows the prefix, if one is given."""
    import torch

    device = device_of(model)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(batch.tokens).to(device)}
    visible = batch.visible
    if prefix is not None:
        rows, columns = batch.tokens.shape
        causal = np.broadcast_to(np.tri(columns, dtype=bool), (rows, columns, columns)) if visible is None else visible
        visible = np.concatenate([np.ones((rows, columns, prefix.length), dtype=bool), causal], axis=2)
        inputs["past_key_values"] = prefix.repeated(rows)
    if visible is not None:
        inputs["position_ids"] = torch.from_numpy(batch.positions + (prefix.length if prefix else 0)).to(device)
        inputs["attention_mask"] = additive(torch.from_numpy(visible).to(device), model.dtype)
    outputs = _outputs(model, head_is_last, **inputs)
    return outputs.flatten(0, 1)


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the tokens with which all sequences begin.

    Attributes:
        length: Number of these tokens.
        layers: Keys and values (1, H, length, D) of each layer.
    """

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: PreTrainedModel, sequences: Sequence[packing.Tokens], room: int) -> PrefixCache | None:
        """Compute the common prefix of sequences.

        Args:
            model: The model.
            sequences: The sequences.
            room: Maximum length of the prefix. Outputs are needed only at later tokens of the sequences.

        Returns:
            The cache; None if the prefix is too short to save time, or the model does not support it.
        """
        if len(sequences) < MEMBERS or not caches_plainly(model):
            return None
        first, last = min(sequences), max(sequences)  # their common prefix is the common prefix of all sequences
        length = min(packing.common_length(first, last), room)
        if length < TOKENS or not _continues(model):
            return None
        return cls._computed(model, first[:length])

    @classmethod
    def _computed(cls, model: PreTrainedModel, tokens: packing.Tokens) -> PrefixCache:
        import torch
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        _outputs(
            model,
            _support_of(model).head_is_last,
            input_ids=torch.tensor([tokens], device=device_of(model)),
            past_key_values=cache,
        )
        return cls(len(tokens), tuple((layer.keys, layer.values) for layer in cache.layers))

    def repeated(self, rows: int) -> Any:
        """Return a cache with `rows` copies of the prefix, to which a pass may append."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for k, states in enumerate(self.layers):
            keys, values = (x.expand(rows, *x.shape[1:]) for x in states)
            cache.update(keys, values, k)
        return cache


_CONTINUES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _continues(model: PreTrainedModel) -> bool:
    """Return whether packed rows after a cached prefix give the same logits as each sequence alone."""
    import torch

    if model not in _CONTINUES:
        support = _support_of(model)
        sequences = some_sequences(model, 9)
        rest = [tokens[3:] for tokens in (sequences[0], (*sequences[0][:3], *sequences[1][3:]))]
        batch = packing.pack([packing.trees(rest, 27, 27)])
        head = head_of(model, support.head_is_last)
        try:
            prefix = PrefixCache._computed(model, sequences[0][:3])
            outputs = _batch_outputs(model, support.head_is_last, batch, prefix)
            with torch.inference_mode():
                _CONTINUES[model] = support.packed_length > 0 and all(
                    equal_logits(
                        all_logits(head, outputs[path + at]),
                        _logits(model, (*sequences[0][:3], *rest[number]))[3:],
                        model.dtype,
                    )
                    for of, _, at in batch.places
                    for number, path in of.paths.items()
                )
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            _CONTINUES[model] = False  # the model does not accept such a cache
    return _CONTINUES[model]


def additive(visible: Tensor, dtype: Any) -> Tensor:
    """Make an additive attention mask.

    Args:
        visible: (rows, T, C), true where the token T sees the token C.
        dtype: Data type of the mask.

    Returns:
        (rows, 1, T, C), 0 where `visible` is true, else the minimum of `dtype`.
    """
    import torch

    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


def _plain(
    model: PreTrainedModel,
    head_is_last: bool,
    sequences: Sequence[packing.Tokens],
    numbers: Sequence[int],
    budget: Budget,
    settled: Settled,
    read: Read,
) -> None:
    """Compute one sequence per row, padded on the right as in lm-eval. Sequences of similar length share a batch."""
    import torch

    order = sorted(numbers, key=lambda n: (-len(sequences[n]), sequences[n]))

    def work(part: list[int]) -> None:
        if settled(part):
            return
        width = len(sequences[part[0]])
        tokens = np.zeros((len(part), width), dtype=np.int64)
        for row, n in enumerate(part):
            tokens[row, : len(sequences[n])] = sequences[n]
        outputs = _outputs(model, head_is_last, input_ids=torch.from_numpy(tokens).to(device_of(model)))
        read(part, outputs.flatten(0, 1), [np.arange(len(sequences[n])) + row * width for row, n in enumerate(part)])

    for_batches(order, lambda part: len(part) * len(sequences[part[0]]), budget, work)


# --- the model ---


@dataclass(frozen=True)
class _Support:
    """What a model supports.

    Attributes:
        packed_length: Maximum length of a row of several trees; 0 if the model does not support such rows.
        head_is_last: Whether the logits are the output of the head. If so, the head can be computed for some tokens
            only.
    """

    packed_length: int
    head_is_last: bool


_SUPPORT: WeakKeyDictionary[Any, _Support] = WeakKeyDictionary()


def _support_of(model: PreTrainedModel) -> _Support:
    """Return what a model supports. This is tested once for each model, by comparisons on a few tokens."""
    if model not in _SUPPORT:
        head_is_last = head_comes_last(model)
        window = local_window(model.config)
        _SUPPORT[model] = _Support(window if _packs(model, window, head_is_last) else 0, head_is_last)
    return _SUPPORT[model]


def _outputs(model: PreTrainedModel, head_is_last: bool, **inputs: Any) -> Tensor:
    """Return the head's inputs (rows, T, width), or the logits (rows, T, V) if the head is not the last step."""
    import torch

    inputs["use_cache"] = "past_key_values" in inputs
    with torch.inference_mode():
        if not head_is_last:
            return model(**inputs).logits
        with head_input(model) as inputs_of_head:
            model(**inputs)
    return inputs_of_head[0]


def head_of(model: PreTrainedModel, head_is_last: bool) -> Head:
    """Return a function that computes logits from the result of `_outputs`.

    Args:
        model: The model.
        head_is_last: Whether this result is the input of the head. If not, it already contains logits.

    Returns:
        The head, which computes the logits in tiles (slices of the vocabulary), or a function that returns its input as
        one tile.
    """
    return Tiles.of(model.get_output_embeddings()) if head_is_last else lambda logits: iter([(0, logits.float())])


def _read_head(
    head: Head, outputs: Tensor, rows: packing.Array, targets: packing.Array
) -> tuple[packing.Array, packing.Array]:
    """Return log p of each of `targets` (n,), and whether it is the greedy token.

    `rows` (n,) are the rows in `outputs` (N, width) that predict the targets.
    """
    import torch

    # Several pairs can use the same row, for instance choices of one token. Its logits are computed once.
    distinct, of = np.unique(rows, return_inverse=True)
    order = np.argsort(of, kind="stable")
    logprobs, likeliest = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
    step = HEAD_ROWS if outputs.device.type == "cpu" else ACCELERATOR_HEAD_ROWS
    starts = np.searchsorted(of[order], np.arange(0, len(distinct) + step, step))
    with torch.inference_mode():
        wanted = torch.from_numpy(distinct).to(outputs.device)
        for part, at in enumerate(range(0, len(distinct), step)):
            mine = order[starts[part] : starts[part + 1]]
            row = torch.from_numpy(of[mine] - at).to(outputs.device)
            target = torch.from_numpy(targets[mine]).to(outputs.device)
            logprob, best = log_softmax_at(head, outputs[wanted[at : at + step]], row, target)
            logprobs[mine] = logprob.double().cpu().numpy()
            likeliest[mine] = best.cpu().numpy()
    return logprobs, likeliest


def log_softmax_at(head: Head, inputs: Tensor, row: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the log-softmax of the head's logits for some tokens.

    Args:
        head: Computes the logits (R, V) in tiles.
        inputs: Inputs of the head (R, width).
        row: (n,) row of the logits for each target.
        target: (n,) token ids.

    Returns:
        The log-probabilities (n,), and whether each target is the most likely token (n,). Among equally likely tokens,
        the first one counts as most likely.
    """
    import torch

    value = torch.empty(len(row), device=inputs.device)
    highest = torch.full((len(inputs),), -torch.inf, device=inputs.device)
    total, best = torch.zeros_like(highest), torch.zeros_like(highest, dtype=torch.long)
    for first, logits in head(inputs):
        inside = (target >= first) & (target < first + logits.shape[-1])
        value[inside] = logits[row[inside], target[inside] - first]
        peak = logits.amax(-1)
        # An equal logit in a later tile belongs to a higher token id, so it does not replace the greedy token.
        higher = peak > highest
        best[higher] = logits[higher].argmax(-1) + first
        top = torch.maximum(peak, highest)
        total = total * (highest - top).exp() + (logits - top.unsqueeze(1)).exp_().sum(-1)
        highest = top
    return value - (highest + total.log())[row], best[row] == target


# --- what a model supports ---


def local_window(config: Any) -> int:
    """Return the attention window of the narrowest layer, in tokens.

    Packed rows must not be longer. In a longer row, results depend on the columns of the tokens and not only on their
    positions: GPT-Neo computes its window from columns, and models with sliding windows apply them only if no mask is
    given.
    """
    config = config.get_text_config()
    windows = [getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None]
    if "local" in (getattr(config, "attention_layers", None) or ()):
        windows.append(config.window_size)
    return min((int(w) for w in windows if w), default=1 << 30)


def some_sequences(model: PreTrainedModel, n: int) -> list[packing.Tokens]:
    """Return three sequences of random tokens, two of which have a common prefix.

    Args:
        model: The model, which limits the token ids.
        n: Number of tokens of each sequence.

    Returns:
        The sequences.
    """
    words = min(int(model.config.get_text_config().vocab_size), 1000)
    rng = np.random.default_rng(1)
    a, b, c = (tuple(int(w) for w in rng.integers(0, words, n)) for _ in range(3))
    return [a, (*a[: n // 2], *b[n // 2 :]), c]


def _logits(model: PreTrainedModel, tokens: packing.Tokens) -> Tensor:
    import torch

    return _outputs(model, False, input_ids=torch.tensor([tokens], device=device_of(model)))[0].float()


def equal_logits(ours: Tensor, theirs: Tensor, dtype: Any, least: float = 1e-3, units: int = 8) -> bool:
    """Return whether two tensors of logits are equal up to rounding.

    Args:
        ours: Logits.
        theirs: The logits that they should be.
        dtype: The data type in which they were computed.
        least: Difference that always counts as equal.
        units: Difference that counts as rounding, in units of the last place of the largest logit.

    Returns:
        Whether they are equal.
    """
    import torch

    bound = max(least, units * torch.finfo(dtype).eps * float(theirs.abs().max()))
    return ours.shape == theirs.shape and bool(((ours - theirs).abs() <= bound).all())


def head_comes_last(model: PreTrainedModel) -> bool:
    """Return whether the logits are the output of the head.

    They are not if the model caps or scales them after the head, or has no known head.
    """
    import torch

    if model.get_output_embeddings() is None:
        return False
    tokens = some_sequences(model, 4)[0]
    with torch.inference_mode():
        ours = all_logits(
            head_of(model, True), _outputs(model, True, input_ids=torch.tensor([tokens], device=device_of(model)))[0]
        )
    # The bound is strict, because a soft cap (Gemma 2) changes small logits only by a term of third order.
    return equal_logits(ours, _logits(model, tokens), model.dtype, least=1e-5)


def _packs(model: PreTrainedModel, window: int, head_is_last: bool) -> bool:
    """Return whether a packed row of two trees gives the same logits as each of its three sequences alone."""
    import torch

    n = min(9, window // 3)
    if n < 2:
        return False
    sequences = some_sequences(model, n)
    batch = packing.pack([packing.trees(sequences, 3 * n, 3 * n)])
    try:
        outputs = _batch_outputs(model, head_is_last, batch)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # the model does not accept such masks or position ids
    head = head_of(model, head_is_last)
    with torch.inference_mode():
        return all(
            equal_logits(all_logits(head, outputs[path + at]), _logits(model, sequences[number]), model.dtype)
            for of, _, at in batch.places
            for number, path in of.paths.items()
        )
