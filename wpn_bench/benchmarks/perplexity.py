"""Loss on plain held-out text, beside the benchmarks.

A model near chance cannot lose accuracy, but it can lose its language.

Measured: the mean negative log-likelihood of a token, in nats, and its exponential, the perplexity. Each
text is cut into windows that do not overlap; every window begins with the beginning-of-text token, and
every token of the text is predicted exactly once, from what stands before it in its window. (lm-eval's
`wikitext` task conditions each window on more context and counts per word; its numbers are lower and not
comparable.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wpn_bench.jobs.job import StageContext

MAX_WINDOW = 512
Progress = Callable[[int | None, str], Callable[[int], None]]


@dataclass(frozen=True)
class WindowLoss:
    """`sum_nll` nats over the `n_tokens` predicted tokens of one window; `text` and `window` count from 0."""

    text: int
    window: int
    n_tokens: int
    sum_nll: float


@dataclass(frozen=True)
class TextLoss:
    """Over all windows. None where a broken model's loss is not a number, or its exponential overflows."""

    token_loss: float | None
    perplexity: float | None
    n_tokens: int


def token_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    window: int | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[WindowLoss]:
    """Loss of each window of each text, in order of text and window.

    window: tokens the model sees at once, the beginning-of-text token included; None is the model's context,
    at most 512. batch_tokens: upper bound on tokens of one forward pass, padding included (one window at
    least); None is as many as memory allows. Without a beginning-of-text token the end-of-text token stands in; with neither, a window's first
    token is not predicted. Texts without tokens have no window.
    """
    from wpn_bench.engine.budget import Budget
    from wpn_bench.engine.likelihood import loglikelihoods
    from wpn_bench.models import context_length

    size = min(window or MAX_WINDOW, context_length(model))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prefix = [] if start is None else [start]
    if size < 2:
        raise UserError(f"a window of {size} tokens predicts nothing", "use at least 2")
    pieces = [
        (t, w, prefix + ids)
        for t, text in enumerate(texts)
        for w, ids in enumerate(_cut(tokenizer.encode(text, add_special_tokens=False), size - len(prefix)))
        if len(prefix) + len(ids) > 1
    ]
    scores = loglikelihoods(
        model,
        [(tokens[:1], tokens[1:]) for _, _, tokens in pieces],
        max_length=size,
        budget=None if batch_tokens is None else Budget(batch_tokens),
        advance=progress(len(pieces), "windows") if progress else lambda n: None,
    )
    return [
        WindowLoss(text, number, len(tokens) - 1, -total)
        for (text, number, tokens), (total, _) in zip(pieces, scores, strict=True)
    ]


def summarise(losses: Sequence[WindowLoss]) -> TextLoss:
    """Token-weighted mean over all windows."""
    n = sum(w.n_tokens for w in losses)
    if n == 0:
        raise UserError("the held-out text holds no token to predict", "give more text")
    if not all(math.isfinite(w.sum_nll) for w in losses):
        return TextLoss(None, None, n)
    mean = math.fsum(w.sum_nll for w in losses) / n
    return TextLoss(mean, math.exp(mean) if mean < 700 else None, n)


def run_perplexity_stage(ctx: StageContext) -> None:
    """Stage `perplexity`. Needs `model` (a folder), `texts` (a folder with texts.jsonl, rows `{"text": ..}`).

    Parameters: `dtype` ("float32"), `window`, `batch_tokens`, `limit` (texts). Writes `result.json`
    (`token_loss`, `perplexity`, `n_tokens`, ...) and `windows.parquet`, whose rows pair up between models of
    one tokenizer.
    """
    import pandas as pd

    from wpn_bench import models
    from wpn_bench.core.files import write_json

    texts = read_texts(ctx.needs["texts"])[: ctx.params.get("limit")]
    dtype = ctx.params.get("dtype", "float32")
    device = models.pick_device(ctx.local.get("device", "auto"))
    model, tokenizer = models.load(ctx.needs["model"], device, dtype, ctx.local.get("offload", "none"))
    options: dict[str, Any] = {k: ctx.params[k] for k in ("window", "batch_tokens") if k in ctx.params}
    losses = token_losses(model, tokenizer, texts, progress=ctx.progress, **options)
    result = asdict(summarise(losses)) | {"n_texts": len(texts), "n_windows": len(losses)}
    pd.DataFrame([asdict(w) for w in losses]).to_parquet(ctx.out / "windows.parquet", index=False)
    write_json(ctx.out / "result.json", result)


def read_texts(folder: Path) -> list[str]:
    """The texts of `texts.jsonl` in `folder`."""
    with (folder / "texts.jsonl").open(encoding="utf-8") as f:
        return [json.loads(line)["text"] for line in f if line.strip()]


def _cut(ids: list[int], size: int) -> list[list[int]]:
    return [ids[i : i + size] for i in range(0, len(ids), size)]


STAGE = Stage(
    "wpn_bench.benchmarks.perplexity:run_perplexity_stage",
    2,
    LM_LIBRARIES,
    resumable=True,
    shardable=True,
    items="needs.texts",
)
