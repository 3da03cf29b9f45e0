"""Attention over a row of several prefix trees, computed tree by tree.

The mask of a packed row lets each token attend only to tokens of its own tree. Most of the products that such a row
would compute are masked. On a CPU, where these products cost what unmasked ones cost, `blockwise` leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from wpn_bench.engine.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor


class blockwise(TorchFunctionMode):
    """Split `scaled_dot_product_attention` into blocks, within a `with` block.

    Other calls are not changed.
    """

    def __init__(self, trees: Sequence[Tree], mask: Tensor) -> None:
        """Describe the row.

        Args:
            trees: The trees of the row, in order, without padding between or after them.
            mask: The additive mask (1, 1, T, T) of the row, which the model is given.
        """
        super().__init__()
        self.whole = mask
        self.sizes = [len(tree) for tree in trees]
        ends = list(accumulate(self.sizes))
        # A tree without a fork needs no mask, and its kernel leaves out half of the products.
        self.masks = [
            None if len(tree.branches) == 1 else mask[:, :, end - len(tree) : end, end - len(tree) : end].contiguous()
            for tree, end in zip(trees, ends, strict=True)
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and self._applies(args, kwargs):
            return self._in_blocks(func, args, kwargs)
        return func(*args, **kwargs)

    def _applies(self, args: Any, kwargs: Any) -> bool:
        """Return whether a call is attention over the row with the row's own mask (and not with one of ALiBi)."""
        mask = kwargs.get("attn_mask")
        return (
            len(args) == 3
            and mask is not None
            and mask.data_ptr() == self.whole.data_ptr()
            and mask.shape == self.whole.shape
            and not kwargs.get("dropout_p")
            and all(x.shape[0] == 1 and x.shape[2] == sum(self.sizes) for x in args)
        )

    def _in_blocks(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        rest = {name: value for name, value in kwargs.items() if name not in ("attn_mask", "is_causal", "dropout_p")}
        parts = zip(*(x.split(self.sizes, dim=2) for x in args), self.masks, strict=True)
        outputs = [func(q, k, v, attn_mask=mask, is_causal=mask is None, **rest) for q, k, v, mask in parts]
        return torch.cat(outputs, dim=2)
