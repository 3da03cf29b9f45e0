"""Remember what a frozen reference computed, for later trainings in the same process.

With the same seed, every method reads the same retain texts in the same batches, and so does every candidate of `--tune`.
A result is a function of the weights and of the tokens of its batch, so a remembered result equals a new one bit by bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

BYTES = 256 * 2**20  # of main memory for all results

Result = tuple[Tensor | None, Tensor | None]

_identity: WeakKeyDictionary[Any, Hashable] = WeakKeyDictionary()
_results: OrderedDict[Hashable, Result] = OrderedDict()


def remember(reference: Any, identity: Hashable | None) -> None:
    """Remember the results of a reference from now on, or no longer.

    Args:
        reference: A model whose weights never change.
        identity: What the results depend on besides the tokens: the weights and the precision of the computation.
            None remembers nothing.
    """
    if identity is None:
        _identity.pop(reference, None)
    else:
        _identity[reference] = identity


def result_of(model: Any, question: Hashable, compute: Callable[[], Result]) -> Result:
    """Return a remembered result, or compute it.

    Args:
        model: The model. Only results of a reference are remembered.
        question: The tokens, and what is read of them.
        compute: Computes the result on the device of the model.

    Returns:
        The result.
    """
    if torch.is_grad_enabled() or model not in _identity:
        return compute()
    key = (_identity[model], question)
    if key in _results:
        _results.move_to_end(key)
        inputs, states = (None if x is None else x.to(model.device) for x in _results[key])
        return inputs, states
    result = compute()
    _results[key] = (_stored(result[0]), _stored(result[1]))
    while _results and sum(map(_size, _results.values())) > BYTES:
        _results.popitem(last=False)
    return result


def _stored(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu()


def _size(result: Result) -> int:
    return sum(x.nbytes for x in result if x is not None)
