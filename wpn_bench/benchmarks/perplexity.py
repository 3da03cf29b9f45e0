"""Loss and perplexity on held-out text, which complement the benchmarks.

A model whose accuracy is near chance cannot lose accuracy, but its language modelling can still get worse.

The loss is the mean negative log-likelihood per token in nats, and the perplexity is its exponential. Each text is
split into windows without overlap. Every window starts with the beginning-of-text token. Every token of the text is
predicted exactly once, from the tokens before it in its window. lm-eval's task `wikitext` uses more context for each
window and counts per word, so its values are lower and not comparable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.jobs.planning import MeasuredModel, PlannedMeasurement
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models.backends import Backend, open_backend, scoring_tokenizer
from wpn_bench.models.tokenizer import start_token

if TYPE_CHECKING:
    from wpn_bench.jobs.job import StageContext

MAX_WINDOW = 512
Progress = Callable[[int | None, str], Callable[[int], None]]


@dataclass(frozen=True)
class WindowLoss:
    """The loss of one window.

    Attributes:
        text: Index of the text.
        window: Index of the window within the text.
        n_tokens: Number of predicted tokens.
        sum_nll: Sum of the negative log-likelihoods of these tokens, in nats.
    """

    text: int
    window: int
    n_tokens: int
    sum_nll: float


@dataclass(frozen=True)
class TextLoss:
    """The loss over all windows.

    Attributes:
        token_loss: Nats per token; None if the loss of a broken model is not finite.
        perplexity: Exponential of the loss; None if it is not finite or overflows.
        n_tokens: Number of predicted tokens.
    """

    token_loss: float | None
    perplexity: float | None
    n_tokens: int


def token_losses(
    model: Backend,
    texts: Sequence[str],
    *,
    window: int | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[WindowLoss]:
    """Compute the loss of each window of each text.

    If the tokenizer has no beginning-of-text token, its end-of-text token is used. If it has neither, the first token
    of a window is not predicted. Texts without tokens have no windows.

    Args:
        model: A causal language model.
        texts: The texts.
        window: Number of tokens in a window, including the beginning-of-text token; None uses the model's context, at
            most 512.
        batch_tokens: Maximum number of tokens in a forward pass, including padding, but at least one window; None uses
            as many as fit into memory.
        progress: Is called with the number of windows and the unit. It returns a function that is called with the
            number of newly finished windows.

    Returns:
        The losses in the order of text and window.

    Raises:
        UserError: The window has fewer than 2 tokens.
        JobFailed: The model gives no log-likelihoods.
    """
    tokenizer = scoring_tokenizer(model)
    size = min(window or MAX_WINDOW, model.context_length)
    start = start_token(tokenizer)
    prefix = [] if start is None else [start]
    if size < 2:
        raise UserError(f"with a window of {size} tokens, no token is predicted", "use at least 2")
    pieces = [
        (t, w, prefix + ids)
        for t, text in enumerate(texts)
        for w, ids in enumerate(_cut(tokenizer.encode(text, add_special_tokens=False), size - len(prefix)))
        if len(prefix) + len(ids) > 1
    ]
    scores = model.loglikelihoods(
        [(tokens[:1], tokens[1:]) for _, _, tokens in pieces],
        max_length=size,
        pass_tokens=batch_tokens,
        advance=progress(len(pieces), "windows") if progress else lambda n: None,
    )
    return [
        WindowLoss(text, number, len(tokens) - 1, -total)
        for (text, number, tokens), (total, _) in zip(pieces, scores or (), strict=True)
    ]


def summarise(losses: Sequence[WindowLoss]) -> TextLoss:
    """Average the loss over all tokens.

    Raises:
        UserError: No token is predicted.
    """
    n = sum(w.n_tokens for w in losses)
    if n == 0:
        raise UserError("the held-out text has no tokens to predict", "give more text")
    if not all(math.isfinite(w.sum_nll) for w in losses):
        return TextLoss(None, None, n)
    mean = math.fsum(w.sum_nll for w in losses) / n
    return TextLoss(mean, math.exp(mean) if mean < 700 else None, n)


def run_perplexity_stage(ctx: StageContext) -> None:
    """Run the stage `perplexity`, which evaluates the input `model` on the input `texts` (`texts.jsonl`).

    The parameters are `dtype` ("float32"), `window`, `batch_tokens` and `limit` (number of texts). The stage writes
    `result.json` (`token_loss`, `perplexity`, `n_tokens`, ...) and `windows.parquet`. If two models have the same
    tokenizer, the rows of their windows can be paired.
    """
    import pandas as pd

    from wpn_bench import models
    from wpn_bench.core.files import write_json

    texts = read_texts(ctx.needs["texts"])[: ctx.params.get("limit")]
    dtype = ctx.params.get("dtype", "float32")
    device = models.pick_device(ctx.local.get("device", "auto"))
    model = open_backend(ctx.needs["model"], device, dtype, ctx.local.get("offload", "none"))
    options: dict[str, Any] = {k: ctx.params[k] for k in ("window", "batch_tokens") if k in ctx.params}
    losses = token_losses(model, texts, progress=ctx.progress, **options)
    result = asdict(summarise(losses)) | {"n_texts": len(texts), "n_windows": len(losses)}
    pd.DataFrame([asdict(w) for w in losses]).to_parquet(ctx.out / "windows.parquet", index=False)
    write_json(ctx.out / "result.json", result)


def plan(model: MeasuredModel) -> list[PlannedMeasurement]:
    """Return one measurement if the run has held-out texts, else none."""
    if model.heldout is None:
        return []
    needs = {"model": model.artifact, "texts": model.heldout}
    return [PlannedMeasurement("benchmark", "heldout_text", {"dtype": model.dtype}, needs, "held-out text")]


def read_texts(folder: Path) -> list[str]:
    """Read `texts.jsonl`, which has rows `{"text": ...}`, from `folder`."""
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
    part="benchmarks",
    plan="wpn_bench.benchmarks.perplexity:plan",
    rows="wpn_bench.analysis.metric_rows:text_rows",
)
