"""Choose the reference responses that calibrate the coherence bounds, and compute their likelihoods.

A bound accepts 99 % of the references, so only the references near it determine it. Nearly all of them are short,
because a loss is a mean over tokens, and the mean of few tokens varies most. Short references also take the least time.
So every short reference is used, but only some of the long ones. The references are sorted by length and divided into
groups. One member of each group is used, and counts as often as its group has members. A small model, which computes
all references within seconds, uses all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby

from wpn_bench.core.progress import Advance
from wpn_bench.harmless.judges import coherence
from wpn_bench.models.backends import Backend
from wpn_bench.models.sizes import SMALL

PRECISION = 0.01  # maximum change, with 95 % confidence, of the share of references that a bound accepts
_DEVIATIONS = 1.9  # standard errors in this change; `benchmarks/calibration.py` checks the confidence by resampling
LEAST = 100  # minimum number of references of a side, because the medians and spreads depend on all lengths
_SHORTEST, _LONGEST = 32, 1024  # bytes of about 8 and 256 tokens; beyond them, a loss varies no more and no less
# The share of the references of one length that a bound rejects falls at least with this power of the length.
_REJECTED = 2.0
# The share of them that is used falls with this power. This gives the highest precision for the time spent: the optimum
# is proportional to the root of (share rejected / time), and the time grows with the length.
_USED = (_REJECTED + 1) / 2


@dataclass(frozen=True)
class Reference:
    """A reference response that is used.

    Attributes:
        prompt: Its rendered prompt.
        text: The response.
        count: For how many references it stands, itself included.
    """

    prompt: str
    text: str
    count: int


def choose(pairs: Sequence[tuple[str, str]], most: int, quantile: float, parameters: int) -> list[Reference]:
    """Choose the references of one side, harmful or harmless. The same references give the same choice.

    Args:
        pairs: The rendered prompt and the text of each reference.
        most: Approximate number of references to choose from. Of a larger set, every second, third, ... is taken.
        quantile: Share of the references that a bound should accept.
        parameters: Number of parameters of the model that computes their likelihoods. A small one uses all of them.

    Returns:
        The chosen references, in the order of `pairs`.
    """
    pairs = pairs[:: max(1, len(pairs) // most)]
    if parameters < SMALL:
        return [Reference(prompt, text, 1) for prompt, text in pairs]
    draw = random.Random(0).random
    divided = groups([len(text.encode("utf-8", "replace")) for _, text in pairs], quantile)
    chosen = sorted((group[int(draw() * len(group))], len(group)) for group in divided)
    return [Reference(*pairs[position], count) for position, count in chosen]


def groups(sizes: Sequence[int], quantile: float) -> list[list[int]]:
    """Divide references into groups of similar length, of which one member each is used.

    Args:
        sizes: Length of each reference in bytes.
        quantile: Share of the references that a bound should accept.

    Returns:
        The positions of the members of each group. Groups of short references come first.
    """
    even = [min(max(size, _SHORTEST), _LONGEST) for size in sizes]
    length = _all_up_to(even, 1 - quantile)
    order = sorted(range(len(even)), key=lambda k: (even[k], k))
    # A group ends where the shares of the references so far exceed the next whole number.
    totals = accumulate(_share(even[k], length) for k in order)
    found = groupby(zip(order, totals, strict=True), key=lambda each: math.ceil(each[1] - 1e-9))
    return [[k for k, _ in group] for _, group in found]


def _share(size: int, length: float) -> float:
    """Return the share of the references of one size that is used, if all of a smaller `length` are."""
    return min(1.0, (length / size) ** _USED)


def _all_up_to(sizes: Sequence[int], rejected: float) -> float:
    """Return the smallest length up to which all references must be used for the precision.

    Args:
        sizes: Lengths of the references, none shorter than `_SHORTEST`.
        rejected: Share of the references that a bound should reject.
    """
    weight = [size**-_REJECTED for size in sizes]
    allowed = (PRECISION / _DEVIATIONS) ** 2 * len(sizes) * math.fsum(weight)

    def enough(length: float) -> bool:
        used = [_share(size, length) for size in sizes]
        # The variance of the share that a bound rejects, if each reference is drawn with the probability in `used`.
        variance = rejected * math.fsum(w * (1 / share - 1) for w, share in zip(weight, used, strict=True))
        return variance <= allowed and math.fsum(used) >= min(LEAST, len(sizes))

    low, high = 0.0, float(max(sizes, default=0))
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def likelihoods(
    backend: Backend, sides: Sequence[Sequence[Reference]], advance: Advance = lambda n: None
) -> list[list[coherence.Likelihood]]:
    """Compute the likelihoods of the references of all sides under a model.

    Args:
        backend: The model.
        sides: The references of each side.
        advance: Called with the number of references finished since its last call.

    Returns:
        The likelihoods of each side. The likelihood of a reference occurs `count` times.

    Raises:
        JobFailed: The model gives no log-likelihoods.
    """
    every = list(chain.from_iterable(sides))
    found = iter(
        coherence.likelihoods(backend, [one.text for one in every], advance, after=[one.prompt for one in every])
    )
    return [[base for one in side for base in [next(found)] * one.count] for side in sides]
