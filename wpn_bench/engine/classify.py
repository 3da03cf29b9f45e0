"""Score texts with a sequence classifier. Each distinct text is scored once, in batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from wpn_bench.engine.budget import Budget, for_batches
from wpn_bench.jobs import journal

if TYPE_CHECKING:
    from torch import Tensor

Ids = np.ndarray[Any, np.dtype[np.int32]]

CHUNK = 2048  # number of texts whose tokens are in memory at the same time, enough for batches of similar length
_ENCODED = 256  # number of texts tokenised in one call; the tokenizer's output needs much more memory than token ids
OVERLAP = 64  # number of tokens that two consecutive windows of a long text have in common


@dataclass(frozen=True)
class Classifier:
    """A Hugging Face sequence classifier.

    Attributes:
        model: The model in evaluation mode.
        tokenizer: Its fast tokenizer.
        score: Converts logits (R, classes) to one number for each of R rows.
        window: Maximum length of a text that is not split, in tokens without the special ones.
    """

    model: Any
    tokenizer: Any
    score: Callable[[Tensor], Tensor]
    window: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any, score: Callable[[Tensor], Tensor]) -> Classifier:
        """Return a classifier with the largest window that the model's positions allow.

        Eight positions are left for special tokens.

        Args:
            model: The model in evaluation mode.
            tokenizer: Its fast tokenizer.
            score: Converts logits (R, classes) to one number for each of R rows.

        Returns:
            The classifier.
        """
        return cls(model, tokenizer, score, int(getattr(model.config, "max_position_embeddings", 512)) - 8)


def scores(
    classifier: Classifier,
    texts: Sequence[str],
    advance: Callable[[int], None] = lambda n: None,
    *,
    chunk: int = CHUNK,
    most_rows: int | None = None,
) -> list[float]:
    """Score each text. Equal texts are scored once.

    A text longer than the window is scored in overlapping windows, and the highest score counts. Apart from the scores,
    memory does not grow with the number of texts.

    Args:
        classifier: The classifier.
        texts: The texts.
        advance: Called with the number of texts finished since its last call.
        chunk: Number of texts whose tokens are in memory at the same time.
        most_rows: Maximum number of rows in a batch; None means no limit.

    Returns:
        One score for each text, in order. It is NaN if a window of the text has no score. It is 0.0 for a text without
        tokens (empty, or only invisible characters).
    """
    copies: dict[str, int] = {}
    for text in texts:
        copies[text] = copies.get(text, 0) + 1
    distinct = list(copies)
    found: dict[str, float] = {}
    # The logits of a few classes need negligible memory.
    budget = Budget.measured(classifier.model, logits=False)
    for at in range(0, len(distinct), chunk):
        part = distinct[at : at + chunk]

        def ended(k: int, part: Sequence[str] = part) -> None:
            advance(copies[part[k]])

        found.update(zip(part, _scores(classifier, part, budget, ended, most_rows), strict=True))
    return [found[text] for text in texts]


def windows(classifier: Classifier, text: str) -> list[str]:
    """Split a text into the parts that are scored.

    Args:
        classifier: The classifier.
        text: The text.

    Returns:
        The text itself if it is short enough, else overlapping windows. An empty list if the text has no tokens.
    """
    encoded = classifier.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, truncation=False)
    spans, size = encoded["offset_mapping"], classifier.window
    if len(spans) <= size:
        return [text] if spans else []
    starts = range(0, len(spans) - OVERLAP, size - OVERLAP)
    return [text[spans[s][0] : spans[min(s + size, len(spans)) - 1][1]] for s in starts]


def _scores(
    classifier: Classifier,
    texts: Sequence[str],
    budget: Budget,
    ended: Callable[[int], None],
    most_rows: int | None,
) -> list[float]:
    rows = _rows(classifier, texts)
    left = [0] * len(texts)
    for k, _ in rows:
        left[k] += 1
    for k, n in enumerate(left):
        if not n:
            ended(k)
    worst = [0.0] * len(texts)
    kept = journal.section("scores", lambda: journal.fingerprint(texts, classifier.window))
    order = sorted(range(len(rows)), key=lambda r: -len(rows[r][1]))
    batches = count()

    def found(part: list[int]) -> list[float]:
        """Return the scores of a batch from the journal or the model, or 0.0 if another process computes them."""
        if not kept.in_shard(next(batches)) or all(r in kept.known for r in part):
            return [kept.known.get(r, 0.0) for r in part]
        fresh = _pass(classifier, [rows[r][1] for r in part])
        kept.add(dict(zip(part, fresh, strict=True)))
        return fresh

    def work(part: list[int]) -> None:
        for (k, _), score in zip([rows[r] for r in part], found(part), strict=True):
            # If one window is NaN, so is the text. `max` alone could drop the NaN and hide the failure.
            worst[k] = math.nan if math.isnan(score) or math.isnan(worst[k]) else max(score, worst[k])
            left[k] -= 1
            if not left[k]:
                ended(k)

    for_batches(order, lambda part: len(part) * len(rows[part[0]][1]), budget, work, most_rows)
    return worst


def _rows(classifier: Classifier, texts: Sequence[str]) -> list[tuple[int, Ids]]:
    """Return (position of the text, token ids with special tokens) for each window."""
    tokenizer = classifier.tokenizer
    special = tokenizer.num_special_tokens_to_add()
    rows: list[tuple[int, Ids]] = []
    for at in range(0, len(texts), _ENCODED):
        part = list(texts[at : at + _ENCODED])
        for k, ids in enumerate(tokenizer(part, truncation=False, verbose=False)["input_ids"], start=at):
            if len(ids) - special > classifier.window:
                cut = tokenizer(windows(classifier, texts[k]), truncation=True, max_length=classifier.window + 8)
                rows += [(k, np.asarray(window, dtype=np.int32)) for window in cut["input_ids"]]
            elif len(ids) > special:
                rows.append((k, np.asarray(ids, dtype=np.int32)))
    return rows


def _pass(classifier: Classifier, rows: Sequence[Ids]) -> list[float]:
    """Score some rows of token ids in one forward pass. Shorter rows are padded."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), int(classifier.tokenizer.pad_token_id or 0))
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = torch.from_numpy(row)
        mask[r, : len(row)] = 1
    device = classifier.model.device
    with torch.inference_mode():
        logits = classifier.model(input_ids=ids.to(device), attention_mask=mask.to(device))[0]
        return [float(score) for score in classifier.score(logits.float()).tolist()]
