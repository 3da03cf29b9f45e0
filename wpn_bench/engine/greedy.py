"""Choose greedy tokens with a bfloat16 copy of the head, exactly as in float32.

The head of a small model does a large part of the work of decoding (SmolLM2: a fifth of all operations), only to find
the largest logit. A processor with instructions for bfloat16 multiplies it at least twice as fast. So an upper bound of
each logit is computed in bfloat16. Only tokens whose bound reaches the largest logit found so far can be the greedy
token, usually one to three per row. Their logits are computed in float32.

With x the head's input and w the weights of a token, both rounded to bfloat16 as x' and w',

    x w  <=  x' w'  +  |x - x'| |w'|  +  |x| |w - w'|

by the inequality of Cauchy and Schwarz. The last two terms are computed by the same matrix product: x' and w' get two
more columns each. Rounding errors of the sums are bounded in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear, pad

from wpn_bench.core import device_memory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_MEMORY_SHARE = 0.05  # share of the free memory that the copy may use
_GROUPS = 64  # the vocabulary is searched in this many slices at once
_SLACK = 1.01  # exceeds the rounding of a norm to bfloat16
_ROUNDING = 2.0**-8  # largest relative error of a number that is rounded to bfloat16
_FAILURES = 3  # after as many searches that found too many tokens, the whole head is always used
_CANDIDATES = 64  # for more tokens per row, the whole head is faster


@dataclass
class GreedyHead:
    """Finds the token with the largest logit.

    Attributes:
        head: The head, a linear layer without bias.
        weight: Its weights (V, width), in float32.
        bounds: Its copy in bfloat16 with the columns of the bound (V', columns). The last row is repeated, so that V'
            is a multiple of the number of groups.
        failures: Number of searches since the last one that was faster than the whole head.
    """

    head: Any
    weight: Tensor
    bounds: Tensor
    failures: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel) -> GreedyHead | None:
        """Return the search for a model, or None where it would not be faster, not be exact, or not fit into memory.

        It needs a float32 model on a CPU, and logits that are the output of a linear head without bias.
        """
        from wpn_bench.engine.likelihood import head_comes_last

        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks or head.bias is not None:
            return None
        weight = head.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or hasattr(head, "_hf_hook"):
            return None
        if 2 * weight.numel() > _MEMORY_SHARE * device_memory.free_memory("cpu") or not fast_bfloat16():
            return None
        return cls(head, weight, _bounds(weight.detach())) if head_comes_last(model) else None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the greedy tokens (R,) for the head's inputs (R, width)."""
        found = self.search(inputs) if self.failures < _FAILURES else None
        if found is not None:
            self.failures = 0
            return found
        self.failures += 1
        tokens: Tensor = self.head(inputs).argmax(-1)
        return tokens

    def search(self, inputs: Tensor) -> Tensor | None:
        """Return the greedy tokens (R,) for the head's inputs (R, width).

        Returns:
            None if a logit is not finite, or if so many tokens are nearly equally likely that the whole head is faster.
        """
        uppers = linear(self._rounded(inputs), self.bounds).view(len(inputs), -1, _GROUPS)
        highest = uppers.amax(1).float()  # (R, groups)
        if not highest.isfinite().all():
            return None
        column = highest.argmax(1)
        first = uppers[torch.arange(len(inputs)), :, column].argmax(1) * _GROUPS + column
        least = self._logits(inputs, first.clamp(max=len(self.weight) - 1)).unsqueeze(1)
        row, column = (_above(highest) >= least).nonzero(as_tuple=True)
        of_group = _above(uppers[row, :, column].float()) >= least[row]
        pair, place = of_group.nonzero(as_tuple=True)
        if len(pair) > _CANDIDATES * len(inputs):
            return None
        row, token = row[pair], (place * _GROUPS + column[pair]).clamp(max=len(self.weight) - 1)
        logits = self._logits(inputs[row], token)
        best = logits.new_full((len(inputs),), -torch.inf).scatter_reduce_(0, row, logits, "amax")
        winners = token.masked_fill(logits < best[row], len(self.weight))
        # Of equally likely tokens, the first one is taken, as `argmax` does.
        return token.new_full((len(inputs),), len(self.weight)).scatter_reduce_(0, row, winners, "amin")

    def _rounded(self, inputs: Tensor) -> Tensor:
        """Return the inputs (R, width) in bfloat16, with the columns of the bound."""
        rounded = inputs.bfloat16()
        length = inputs.norm(dim=1)
        # The sums of both products, in bfloat16 and in float32, have at most this error relative to the norms.
        sums = 2.0**-22 * inputs.shape[1] * length
        columns = torch.stack([(inputs - rounded.float()).norm(dim=1) + sums, length], 1) * _SLACK
        return pad(torch.cat([rounded, columns.bfloat16()], 1), (0, self.bounds.shape[1] - inputs.shape[1] - 2))

    def _logits(self, inputs: Tensor, tokens: Tensor) -> Tensor:
        """Return the logit (N,) of one token (N,) for each of the inputs (N, width)."""
        return (inputs * self.weight[tokens]).sum(1)


def fast_bfloat16() -> bool:
    """Return whether the processor has instructions for matrix products in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _bounds(weight: Tensor) -> Tensor:
    rounded = weight.bfloat16()
    columns = torch.stack([rounded.float().norm(dim=1), (weight - rounded.float()).norm(dim=1)], 1) * _SLACK
    # A multiple of 32 columns is fastest.
    whole = pad(torch.cat([rounded, columns.bfloat16()], 1), (0, -(weight.shape[1] + 2) % 32))
    return torch.cat([whole, whole[-1:].expand(-len(whole) % _GROUPS, -1)])


def _above(uppers: Tensor) -> Tensor:
    """Return the largest numbers that bfloat16 rounds to `uppers`."""
    return uppers + uppers.abs() * (_SLACK * _ROUNDING)
