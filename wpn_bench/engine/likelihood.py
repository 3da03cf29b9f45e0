"""Log-likelihoods of continuations, exactly, with every shared beginning computed once and logits only where they are read.

What a pass costs is one token of every distinct beginning, the vocabulary's logits at the tokens before a continuation's
ones, and nothing for padding (see `tree`). Models whose attention does not take such rows, or does something of its own
with them, are found by comparing on a few tokens first, and are given plain rows of one sequence each.
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
from wpn_bench.jobs import journal
from wpn_bench.models.sizes import HEAD_ROWS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["loglikelihoods"]

Pair = tuple[Sequence[int], Sequence[int]]

ROW = 128  # tokens of a row of several trees: what attention wastes on strangers in it grows with its length
ACCELERATOR_HEAD_ROWS = 4096


def loglikelihoods(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    max_length: int,
    budget: Budget | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> list[tuple[float, bool]]:
    """For each (context, continuation) of token ids: sum of log p(continuation | context) in nats, and whether greedy
    decoding would write it. In the order of `pairs`; `advance` is told how many are done.

    As lm-eval's `hf` does, context and continuation are cut on the left to the last max_length + 1 tokens. Equal greedy
    candidates go to the lowest token id. Raises `ValueError` for an empty context or continuation, and for a
    continuation of more than `max_length` tokens, of which no window holds the whole.
    """
    # Requests with one input (the same context before choices of a token each) are one sequence.
    asked: dict[packing.Tokens, list[int]] = defaultdict(list)
    for k, (context, continuation) in enumerate(pairs):
        _check(context, continuation, max_length)
        asked[tuple([*context, *continuation][-(max_length + 1) :][:-1])].append(k)
    sequences = list(asked)
    scores = np.zeros(len(pairs))
    greedy = np.ones(len(pairs), dtype=bool)
    taken = _taken(model)
    head = head_of(model, taken.apart)
    budget = budget or Budget.measured(model, logits=not taken.apart)
    kept = journal.section(
        "loglikelihoods", lambda: journal.fingerprint((ids for pair in pairs for ids in pair), max_length)
    )

    batches = count()

    def settled(numbers: Sequence[int]) -> bool:
        """Whether the scores of a batch of sequences are known, or another process's to find. Batches stay whole, so that
        what is found does not depend on what was known."""
        requests = [k for n in numbers for k in asked[sequences[n]]]
        if kept.in_shard(next(batches)) and not all(k in kept.known for k in requests):
            return False
        for k in requests:
            scores[k], greedy[k] = kept.known.get(k, (0.0, False))
        advance(len(requests))
        return True

    def read(numbers: Sequence[int], outputs: Tensor, rows: Sequence[packing.Array]) -> None:
        """Take the scores of sequences from `outputs` (N, width); `rows` are the indices of a sequence's tokens there."""
        where, target, request = [], [], []
        for number, places in zip(numbers, rows, strict=True):
            for k in asked[sequences[number]]:
                continuation = pairs[k][1]
                where.append(places[-len(continuation) :])
                target.append(continuation)
                request.append(np.full(len(continuation), k))
        who = np.concatenate(request)
        logprob, best = _read_head(head, outputs, np.concatenate(where), np.concatenate(target))
        np.add.at(scores, who, logprob)
        np.logical_and.at(greedy, who, best)
        done = [k for n in numbers for k in asked[sequences[n]]]
        kept.add({k: (float(scores[k]), bool(greedy[k])) for k in done})
        advance(len(done))

    short = [n for n, s in enumerate(sequences) if len(s) <= taken.reach]
    _packed(model, taken, [sequences[n] for n in short], short, max_length, budget, settled, read)
    long = [n for n, s in enumerate(sequences) if len(s) > taken.reach]
    _plain(model, taken.apart, sequences, long, budget, settled, read)
    return [(float(s), bool(g)) for s, g in zip(scores, greedy, strict=True)]


def _check(context: Sequence[int], continuation: Sequence[int], max_length: int) -> None:
    if not len(context) or not len(continuation):
        raise ValueError("a context and a continuation have at least one token each")
    if len(continuation) > max_length:
        raise ValueError(f"a continuation of {len(continuation)} tokens is longer than the model reads ({max_length})")


Settled = Callable[[Sequence[int]], bool]
Read = Callable[[Sequence[int], "Tensor", Sequence[packing.Array]], None]


def _packed(
    model: PreTrainedModel,
    taken: _Taken,
    sequences: Sequence[packing.Tokens],
    numbers: Sequence[int],
    max_length: int,
    budget: Budget,
    settled: Settled,
    read: Read,
) -> None:
    most = min(taken.reach, max_length)
    size = min(ROW, most)
    forest = packing.trees(sequences, size, most)
    filled = packing.rows(map(len, forest), size)
    width = [sum(len(forest[k]) for k in row) for row in filled]

    def work(part: list[int]) -> None:
        if settled([numbers[n] for r in part for k in filled[r] for n in forest[k].paths]):
            return
        batch = packing.pack([[forest[k] for k in filled[r]] for r in part])
        outputs = _of_batch(model, taken.apart, batch)
        columns = batch.tokens.shape[1]
        found = [
            (numbers[n], path + row * columns + at) for of, row, at in batch.places for n, path in of.paths.items()
        ]
        read([n for n, _ in found], outputs, [path for _, path in found])

    for_batches(range(len(filled)), lambda part: len(part) * width[part[0]], budget, work)


def _of_batch(model: PreTrainedModel, apart: bool, batch: packing.Packed) -> Tensor:
    """`_outputs` at every place of the batch, row by row."""
    import torch

    device = device_of(model)
    inputs = {"input_ids": torch.from_numpy(batch.tokens).to(device)}
    if batch.visible is not None:
        inputs["position_ids"] = torch.from_numpy(batch.positions).to(device)
        inputs["attention_mask"] = _additive(torch.from_numpy(batch.visible).to(device), model.dtype)
    outputs = _outputs(model, apart, **inputs)
    return outputs.flatten(0, 1)


def _additive(visible: Tensor, dtype: Any) -> Tensor:
    """(rows, 1, T, T): 0 where `visible` (rows, T, T), the least number of `dtype` elsewhere."""
    import torch

    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


def _plain(
    model: PreTrainedModel,
    apart: bool,
    sequences: Sequence[packing.Tokens],
    numbers: Sequence[int],
    budget: Budget,
    settled: Settled,
    read: Read,
) -> None:
    """One sequence a row, padded on the right as lm-eval does, neighbours in length together."""
    import torch

    order = sorted(numbers, key=lambda n: (-len(sequences[n]), sequences[n]))

    def work(part: list[int]) -> None:
        if settled(part):
            return
        width = len(sequences[part[0]])
        tokens = np.zeros((len(part), width), dtype=np.int64)
        for row, n in enumerate(part):
            tokens[row, : len(sequences[n])] = sequences[n]
        outputs = _outputs(model, apart, input_ids=torch.from_numpy(tokens).to(device_of(model)))
        read(part, outputs.flatten(0, 1), [np.arange(len(sequences[n])) + row * width for row, n in enumerate(part)])

    for_batches(order, lambda part: len(part) * len(sequences[part[0]]), budget, work)


# --- the model ---


@dataclass(frozen=True)
class _Taken:
    """How a model is to be used. `reach`: the longest row in which it takes several trees (0: none at all).
    `apart`: its logits are its head's output, so the head can be left out of the pass and applied where it is read."""

    reach: int
    apart: bool


_TAKEN: WeakKeyDictionary[Any, _Taken] = WeakKeyDictionary()


def _taken(model: PreTrainedModel) -> _Taken:
    """Found out once for a model, by comparing on a few tokens."""
    if model not in _TAKEN:
        apart = head_comes_last(model)
        window = local_window(model.config)
        _TAKEN[model] = _Taken(window if _packs(model, window, apart) else 0, apart)
    return _TAKEN[model]


def _outputs(model: PreTrainedModel, apart: bool, **inputs: Any) -> Tensor:
    """(rows, T, width) that the head is given; the logits (rows, T, V) themselves where they are not the head's alone."""
    import torch

    with torch.inference_mode():
        if not apart:
            return model(**inputs, use_cache=False).logits
        with head_input(model) as kept:
            model(**inputs, use_cache=False)
    return kept[0]


def head_of(model: PreTrainedModel, apart: bool) -> Head:
    """Logits from `_outputs`: the model's head in tiles, or all at once."""
    return Tiles.of(model.get_output_embeddings()) if apart else lambda logits: iter([(0, logits.float())])


def _read_head(
    head: Head, outputs: Tensor, rows: packing.Array, targets: packing.Array
) -> tuple[packing.Array, packing.Array]:
    """log p of each of `targets` (n,) from the row of `outputs` (N, width) beside it, and whether it is the likeliest."""
    import torch

    # Several requests read one row (choices of one token): its logits are made once.
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
    """The log-softmax of the head's logits (R, V) at (`row`, `target`), both (n,), and whether the target is the likeliest:
    of equal ones, the first."""
    import torch

    value = torch.empty(len(row), device=inputs.device)
    highest = torch.full((len(inputs),), -torch.inf, device=inputs.device)
    total, best = torch.zeros_like(highest), torch.zeros_like(highest, dtype=torch.long)
    for first, logits in head(inputs):
        inside = (target >= first) & (target < first + logits.shape[-1])
        value[inside] = logits[row[inside], target[inside] - first]
        peak = logits.amax(-1)
        # An equal one in a later tile has a higher id, and does not count.
        higher = peak > highest
        best[higher] = logits[higher].argmax(-1) + first
        top = torch.maximum(peak, highest)
        total = total * (highest - top).exp() + (logits - top.unsqueeze(1)).exp_().sum(-1)
        highest = top
    return value - (highest + total.log())[row], best[row] == target


# --- what a model takes ---


def local_window(config: Any) -> int:
    """Tokens that the narrowest layer looks back; beyond it, a place in the row is more than a position to it.

    GPT-Neo counts columns, and models with sliding windows make their own mask only where none is given. Within the
    window neither matters.
    """
    windows = [getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None]
    if "local" in (getattr(config, "attention_layers", None) or ()):
        windows.append(config.window_size)
    return min((int(w) for w in windows if w), default=1 << 30)


def _sample(model: PreTrainedModel, n: int) -> list[packing.Tokens]:
    """Three sequences of n tokens, two of which begin alike."""
    words = min(int(model.config.vocab_size), 1000)
    rng = np.random.default_rng(1)
    a, b, c = (tuple(int(w) for w in rng.integers(0, words, n)) for _ in range(3))
    return [a, (*a[: n // 2], *b[n // 2 :]), c]


def _logits(model: PreTrainedModel, tokens: packing.Tokens) -> Tensor:
    import torch

    return _outputs(model, False, input_ids=torch.tensor([tokens], device=device_of(model)))[0].float()


def _equal(ours: Tensor, theirs: Tensor, dtype: Any) -> bool:
    """Equal but for rounding in `dtype`."""
    import torch

    bound = max(1e-3, 8 * torch.finfo(dtype).eps * float(theirs.abs().max()))
    return ours.shape == theirs.shape and bool(((ours - theirs).abs() <= bound).all())


def head_comes_last(model: PreTrainedModel) -> bool:
    """False where logits are capped or scaled behind the head, or where there is none to be found."""
    import torch

    if model.get_output_embeddings() is None:
        return False
    tokens = _sample(model, 4)[0]
    with torch.inference_mode():
        ours = all_logits(
            head_of(model, True), _outputs(model, True, input_ids=torch.tensor([tokens], device=device_of(model)))[0]
        )
    return _equal(ours, _logits(model, tokens), model.dtype)


def _packs(model: PreTrainedModel, window: int, apart: bool) -> bool:
    """Whether a row of two trees, within the window, gives the logits of its three sequences, each alone."""
    import torch

    n = min(9, window // 3)
    if n < 2:
        return False
    sequences = _sample(model, n)
    batch = packing.pack([packing.trees(sequences, 3 * n, 3 * n)])
    try:
        outputs = _of_batch(model, apart, batch)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # no such masks, or no positions of one's own
    head = head_of(model, apart)
    with torch.inference_mode():
        return all(
            _equal(all_logits(head, outputs[path + at]), _logits(model, sequences[number]), model.dtype)
            for of, _, at in batch.places
            for number, path in of.paths.items()
        )
