"""Compute what a loss reads from a model: log-probabilities of tokens, KL divergences, hidden states.

A batch repeats tokens. The prompt of an item stands before each of its responses, a chat template begins all prompts
alike, and rows are padded to the longest. A `Pass` computes each distinct prefix once, without padding, for all rows
that a loss reads (`engine/tree.py`). Values and gradients are those of the padded rows, up to rounding.

Not every model can compute several sequences in one row, and dropout must be drawn for each row. Such models compute each
set of rows as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
import torch.nn.functional as F

from wpn_bench.engine import tree as packing
from wpn_bench.engine.blocks import blockwise
from wpn_bench.engine.head import head_input, head_only_at
from wpn_bench.engine.likelihood import additive, equal_logits, head_comes_last, local_window, some_sequences
from wpn_bench.engine.placement import device_of
from wpn_bench.engine.readout import (
    Target,
    at_least_float32,
    divergences,
    divergences_of,
    entropies,
    entropies_of,
    kl_divergences,
    logit_margins,
    logit_margins_of,
    logprobs,
)
from wpn_bench.unlearn.methods.base import forward, predicted, spread
from wpn_bench.unlearn.remembered import Result, result_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Rows

TREE = 256  # maximum number of tokens in a tree of sequences that share less than half of their tokens
GROWN = 1024  # maximum number of tokens in a tree of sequences that share more
ROW = 2048  # maximum number of tokens in a row of trees whose attention is computed tree by tree
PADDED_ROW = 256  # the same, if attention computes the whole row

Array = packing.Array
Layer = int | tuple[int, ...]


class Pass:
    """One forward pass of a model over all rows that a loss reads.

    The pass is computed when the loss first asks for a value. The functions of `methods/base.py` take a `Pass` in place
    of a model.
    """

    def __init__(
        self, model: PreTrainedModel, *groups: Sequence[Rows | None], layer: Layer | None = None, head: bool = True
    ) -> None:
        """Describe a pass.

        Args:
            model: A causal language model.
            *groups: Sets of rows that share prefixes; None stands for no rows. Each group is computed for itself. So if
                model and reference are equal and read the same group, their results are equal bit by bit. Otherwise
                rounding would give a gradient where there is none, which Adam would make as large as any other.
            layer: Number of the hidden layer that the loss reads with `states`, or numbers of several; None if it reads
                none.
            head: Whether the loss reads log-probabilities.
        """
        self.model = model
        self.layer = layer
        self.head = head
        self.packed = packs(model)
        self._packed: dict[int, _Packed] = {}
        for group in groups:
            parts = [rows for rows in group if rows is not None]
            packed = _Packed(model, parts, layer, head)
            self._packed |= {id(rows): packed for rows in parts}
        self._padded: dict[int, tuple[Tensor, Any]] = {}

    def covers(self, rows: Rows) -> bool:
        """Return whether a set of rows is part of this pass."""
        return id(rows) in self._packed

    def logprobs(self, rows: Rows, mask: Tensor) -> Tensor:
        """Compute log p(token | tokens before it) for selected tokens.

        Args:
            rows: R rows of T tokens, of this pass.
            mask: (R, T-1), 1 for the selected tokens. Column t stands for the token in column t + 1.

        Returns:
            (R, T-1) in nats, zero where `mask` is zero.
        """
        targets = rows.input_ids[:, 1:][mask.bool()]
        if self.packed:
            values = logprobs(self.model.get_output_embeddings(), self._packed[id(rows)].inputs(rows, mask), targets)
        else:
            values = -F.cross_entropy(self._logits(rows, mask), targets, reduction="none")
        return spread(values, mask)

    def kl_from(self, reference: Pass, rows: Rows, mask: Tensor) -> Tensor:
        """Compute KL(p_ref || p_theta) of the next token at selected places.

        Args:
            reference: A pass of the reference p_ref over the same rows.
            rows: R rows of T tokens, of both passes.
            mask: (R, T-1), 1 at the N selected places.

        Returns:
            (N,) in nats.
        """
        if not (self.packed and reference.packed):
            with torch.no_grad():
                p = reference._logits(rows, mask).log_softmax(-1)
            q = self._logits(rows, mask).log_softmax(-1)
            return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        with torch.no_grad():
            before = reference._packed[id(rows)].inputs(rows, mask)
        head, of_reference = (model.get_output_embeddings() for model in (self.model, reference.model))
        return kl_divergences(head, self._packed[id(rows)].inputs(rows, mask), of_reference, before)

    def divergences(self, rows: Rows, mask: Tensor, target: Target, *, cross_entropy: bool = False) -> Tensor:
        """Compute KL(q || p_theta) of the next token at selected places, where the target q is held constant.

        Args:
            rows: R rows of T tokens, of this pass.
            mask: (R, T-1), 1 at the N selected places.
            target: Gives log q of a part of the N places (`engine/readout.py`).
            cross_entropy: Compute -sum_v q(v) log p_theta(v) instead.

        Returns:
            (N,) in nats.
        """
        if not self.packed:
            return divergences_of(self._logits(rows, mask), target, cross_entropy=cross_entropy)
        inputs = self._packed[id(rows)].inputs(rows, mask)
        return divergences(self.model.get_output_embeddings(), inputs, target, cross_entropy=cross_entropy)

    def entropies(self, rows: Rows, mask: Tensor) -> Tensor:
        """Compute the entropy of the next token at selected places.

        Args:
            rows: R rows of T tokens, of this pass.
            mask: (R, T-1), 1 at the N selected places.

        Returns:
            (N,) in nats.
        """
        if not self.packed:
            return entropies_of(self._logits(rows, mask))
        return entropies(self.model.get_output_embeddings(), self._packed[id(rows)].inputs(rows, mask))

    def logit_margins(self, rows: Rows, mask: Tensor) -> Tensor:
        """Compute max_v z(v) - mean_v z(v) of the logits z of the next token at selected places.

        Args:
            rows: R rows of T tokens, of this pass.
            mask: (R, T-1), 1 at the N selected places.

        Returns:
            (N,), at least in float32.
        """
        if not self.packed:
            return logit_margins_of(self._logits(rows, mask))
        return logit_margins(self.model.get_output_embeddings(), self._packed[id(rows)].inputs(rows, mask))

    def logits(self, rows: Rows, mask: Tensor) -> Callable[[slice], Tensor]:
        """Return a function that computes the logits of the next token at a part of the selected places.

        Args:
            rows: R rows of T tokens, of this pass.
            mask: (R, T-1), 1 at the N selected places.

        Returns:
            A function from a slice of the N places to their logits (n, V), at least in float32.
        """
        if not self.packed:
            logits = self._logits(rows, mask)
            return lambda part: logits[part]
        head, inputs = self.model.get_output_embeddings(), self._packed[id(rows)].inputs(rows, mask)
        return lambda part: at_least_float32(head(inputs[part]))

    def states(self, rows: Rows) -> Tensor:
        """Return the hidden states (R, T, H) of the layer that this pass keeps, at least in float32.

        If the pass keeps L layers, they are (R, T, L, H), in the order of the numbers that the pass was given. States of
        padding have no meaning.
        """
        if self.packed:
            return at_least_float32(self._packed[id(rows)].states(rows))
        if self.head:
            mask = predicted(rows, rows.response_mask)
            return at_least_float32(_kept(self._run(rows, mask).hidden_states, self.layer))
        out = forward(self.model.base_model, rows, output_hidden_states=True)
        return at_least_float32(_kept(out.hidden_states, self.layer))

    def _logits(self, rows: Rows, mask: Tensor) -> Tensor:
        """Return the logits (N, V) that predict the selected tokens, in the order of the rows."""
        if self.packed:
            return at_least_float32(self.model.get_output_embeddings()(self._packed[id(rows)].inputs(rows, mask)))
        return at_least_float32(self._run(rows, mask).logits[0])

    def _run(self, rows: Rows, mask: Tensor) -> Any:
        """Run the model on one set of padded rows, with the head at selected tokens. The last output is kept."""
        known = self._padded.get(id(rows))
        if known is None or not torch.equal(known[0], mask):
            options = {} if self.layer is None else {"output_hidden_states": True}
            with head_only_at(self.model, F.pad(mask, (0, 1))):
                self._padded[id(rows)] = mask, forward(self.model, rows, **options)
        return self._padded[id(rows)][1]


def pass_over(model: PreTrainedModel | Pass, rows: Rows) -> Pass:
    """Find the pass that computes a set of rows.

    Args:
        model: A model, or a pass that may cover the rows.
        rows: The rows.

    Returns:
        The given pass if it covers the rows, else a pass over these rows alone.
    """
    if isinstance(model, Pass):
        return model if model.covers(rows) else Pass(model.model, [rows])
    return Pass(model, [rows])


class _Packed:
    """A pass over packed prefix trees."""

    def __init__(self, model: PreTrainedModel, parts: list[Rows], layer: Layer | None, head: bool) -> None:
        self.model, self.parts, self.layer, self.head = model, parts, layer, head
        self._outputs: tuple[_Places, Tensor | None, Tensor | None] | None = None

    def inputs(self, rows: Rows, mask: Tensor) -> Tensor:
        """Return the inputs (N, width) of the head that predict the selected tokens, in the order of the rows."""
        places, inputs, _ = self._computed()
        assert inputs is not None
        return _selected(inputs, places.of(rows)[:, :-1][mask.bool()])

    def states(self, rows: Rows) -> Tensor:
        """Return the states (R, T, H) of the kept layer."""
        places, _, states = self._computed()
        assert states is not None
        table = places.of(rows)
        return _selected(states, table.flatten()).unflatten(0, table.shape)

    def _computed(self) -> tuple[_Places, Tensor | None, Tensor | None]:
        if self._outputs is None:
            layout = _layout_of(self.model)
            places = _Places(self.parts, layout)

            def compute() -> Result:
                each = [_run(self.model, rows, layout, self.layer, self.head) for rows in places.batches]
                inputs, states = zip(*each, strict=True)
                return _joined(inputs), _joined(states)

            question = (places.sequences, layout, self.layer, self.head)
            self._outputs = (places, *result_of(self.model, question, compute))
        return self._outputs


def _selected(values: Tensor, places: Tensor) -> Tensor:
    """Return the values (N, ...) at N places, of which some may be equal.

    Several threads would add up the gradient of `values[places]` in no fixed order, and in the data type of the values. The
    gradient of `index_select` is added up in the same order in each run, here at least in float32.
    """
    return at_least_float32(values).index_select(0, places).to(values.dtype)


def _joined(tensors: Any) -> Tensor | None:
    known = [x.flatten(0, 1) for x in tensors if x is not None]
    return (known[0] if len(known) == 1 else torch.cat(known)) if known else None


class _Places:
    """Where the tokens of padded rows stand in packed rows.

    Attributes:
        batches: The packed rows of each forward pass.
        sequences: The distinct sequences, which determine the packed rows.
    """

    def __init__(self, parts: list[Rows], layout: _Layout) -> None:
        number: dict[packing.Tokens, int] = {}
        of_rows: list[list[int]] = []
        for rows in parts:
            ids, real = rows.input_ids.cpu().numpy(), rows.attention_mask.cpu().numpy().astype(bool)
            sequences = [tuple(ids[r, real[r]].tolist()) for r in range(len(ids))]
            of_rows.append([number.setdefault(tokens, len(number)) for tokens in sequences if tokens])
        self.sequences = tuple(number)
        forest = packing.trees(self.sequences, min(TREE, layout.most), min(GROWN, layout.most))
        filled = packing.rows(map(len, forest), layout.size)
        rows_of_trees = [[forest[k] for k in row] for row in filled]
        self.batches = [[row] for row in rows_of_trees] if layout.blocks else [rows_of_trees]
        path: dict[int, Array] = {}
        before = 0
        for batch in self.batches:
            width = max(sum(map(len, row)) for row in batch)
            for r, row in enumerate(batch):
                at = before + r * width
                for tree in row:
                    path |= {n: places + at for n, places in tree.paths.items()}
                    at += len(tree)
            before += len(batch) * width
        self._of = {id(rows): self._table(rows, paths, path) for rows, paths in zip(parts, of_rows, strict=True)}

    @staticmethod
    def _table(rows: Rows, numbers: list[int], path: dict[int, Array]) -> Tensor:
        real = rows.attention_mask.cpu().numpy().astype(bool)
        table = np.zeros(real.shape, dtype=np.int64)
        if numbers:
            table[real] = np.concatenate([path[n] for n in numbers])
        return torch.from_numpy(table).to(rows.input_ids.device)

    def of(self, rows: Rows) -> Tensor:
        """Return the place (R, T) of each token. Places of padding have no meaning."""
        return self._of[id(rows)]


def _run(
    model: PreTrainedModel, rows_of_trees: list[list[packing.Tree]], layout: _Layout, layer: Layer | None, head: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Run a model on packed rows.

    Returns:
        The inputs of its head (rows, width, d) if `head`, and the states of `layer` if it is not None.
    """
    device = device_of(model)
    batch = packing.pack(rows_of_trees)
    given: dict[str, Any] = {"input_ids": torch.from_numpy(batch.tokens).to(device), "use_cache": False}
    if layer is not None:
        given["output_hidden_states"] = True
    with ExitStack() as stack:
        if batch.visible is not None:
            given["position_ids"] = torch.from_numpy(batch.positions).to(device)
            given["attention_mask"] = mask = additive(torch.from_numpy(batch.visible).to(device), model.dtype)
            if layout.blocks:
                stack.enter_context(blockwise(rows_of_trees[0], mask))
        if not head:
            return None, _kept(model.base_model(**given).hidden_states, layer)
        inputs = stack.enter_context(head_input(model))
        out = model(**given)
    return inputs[0], None if layer is None else _kept(out.hidden_states, layer)


def _kept(hidden: Sequence[Tensor], layer: Layer | None) -> Tensor:
    """Return the states (R, T, H) of one layer, or (R, T, L, H) of several."""
    assert layer is not None
    return hidden[layer] if isinstance(layer, int) else torch.stack([hidden[one] for one in layer], dim=-2)


# --- what a model supports ---


@dataclass(frozen=True)
class _Layout:
    """How packed rows are made.

    Attributes:
        blocks: Whether attention is computed tree by tree. Then each row has a pass of its own, without padding.
        size: Maximum number of tokens in a row of several trees.
        most: Maximum number of tokens in a tree of several sequences.
    """

    blocks: bool
    size: int
    most: int


def _layout_of(model: PreTrainedModel) -> _Layout:
    window = local_window(model.config)
    # The backward pass computes checkpointed layers again, and must find the same operations.
    blocks = (
        device_of(model).type == "cpu"
        and getattr(model.config, "_attn_implementation", None) == "sdpa"
        and not getattr(model, "is_gradient_checkpointing", False)
        and model not in _AS_CHECKPOINTED
    )
    return _Layout(blocks, min(ROW if blocks else PADDED_ROW, window), window)


_AS_CHECKPOINTED: WeakSet[Any] = WeakSet()


def prepare(model: PreTrainedModel, reference: PreTrainedModel | None) -> None:
    """Decide how a model in training mode and its reference compute packed rows, which both do alike.

    Call this in full precision and before the model is sharded.

    Args:
        model: The trained model.
        reference: The frozen reference, or None.
    """
    model.train()
    packs(model)
    if reference is not None:
        packs(reference)
        if getattr(model, "is_gradient_checkpointing", False):
            _AS_CHECKPOINTED.add(reference)


_PACKS: WeakKeyDictionary[Any, dict[bool, bool]] = WeakKeyDictionary()


def packs(model: PreTrainedModel) -> bool:
    """Return whether a model, in its present mode, gives the same results for packed rows as for each sequence alone.

    This is tested once for each model and mode, on a few tokens, without effect on random generators.
    """
    known = _PACKS.setdefault(model, {})
    if model.training not in known:
        device = device_of(model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            known[model.training] = not _drops(model) and head_comes_last(model) and _packs(model)
    return known[model.training]


def _drops(model: PreTrainedModel) -> bool:
    """Return whether the model has dropout that is active. Dropout within functions shows in `_packs`."""
    kind = torch.nn.modules.dropout._DropoutNd
    return model.training and any(isinstance(m, kind) and m.training and m.p > 0 for m in model.modules())


def _packs(model: PreTrainedModel) -> bool:
    window = local_window(model.config)
    n = min(9, window // 3)
    if n < 2:
        return False
    sequences = some_sequences(model, n)
    head = model.get_output_embeddings()

    def alone(tokens: packing.Tokens) -> Tensor:
        out = model(input_ids=torch.tensor([tokens], device=device_of(model)), use_cache=False)
        return at_least_float32(out.logits[0])

    try:
        expected = [alone(tokens) for tokens in sequences]
        if not torch.equal(alone(sequences[0]), expected[0]):
            return False  # something is drawn at random
        forest = packing.trees(sequences, 2 * n, 2 * n)
        found, _ = _run(model, [forest], _layout_of(model), None, True)
        assert found is not None
        logits = at_least_float32(head(found[0]))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # the model does not accept such masks or position ids
    # In float32, rounding adds up over the layers; another mask or position would change all digits.
    units = 64 if model.dtype.itemsize >= 4 else 8
    at = 0
    for tree in forest:
        for number, path in tree.paths.items():
            if not equal_logits(logits[path + at], expected[number], model.dtype, least=1e-5, units=units):
                return False
        at += len(tree)
    return True
