"""Features of a text for linear models: hashed n-grams of words and letters."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

Features = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def words_and_pairs(words: list[str]) -> Counter[str]:
    """Count words, and pairs of words that follow each other."""
    return Counter([*words, *(f"{a} {b}" for a, b in pairwise(words))])


def runs(text: str, lengths: tuple[int, ...]) -> Counter[str]:
    """Count runs of letters.

    Args:
        text: The text.
        lengths: Numbers of letters in a run.

    Returns:
        How often each run occurs.
    """
    return Counter(text[k : k + n] for n in lengths for k in range(len(text) - n + 1))


def hashed(blocks: Mapping[str, Counter[str]], buckets: int) -> Features:
    """Return the features of counted n-grams. The value of an n-gram is 1 + log(count), scaled so that a block has the Euclidean norm 1.

    Args:
        blocks: The counts of each block of n-grams. The same n-gram is another feature in another block.
        buckets: Number of weights that the n-grams share.

    Returns:
        Buckets (int64) and values (float64), both of shape (n-grams,). A bucket may occur more than once.
    """
    found: list[int] = []
    values = [np.zeros(0)]
    for block, counts in blocks.items():
        if counts:
            start = zlib.crc32(f"{block} ".encode())
            found.extend(zlib.crc32(ngram.encode(errors="replace"), start) % buckets for ngram in counts)
            value = 1 + np.log(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))
            values.append(value / np.linalg.norm(value))
    return np.array(found, dtype=np.int64), np.concatenate(values)


def sigmoid(logit: float) -> float:
    """Return the logistic function of a logit, also of a very large one."""
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, logit))))
