"""Harmless references that the base model writes itself.

The harmless references of collected triples are mostly refusals, and a model that is trained on them refuses benign prompts, too. The
rest is often only less abusive than the harmful references. Here the base model answers each prompt of the forget set several times by
sampling. The answers that are harmless, coherent and no refusals become the references, the least harmful ones first. A model
that is trained on them learns which of its own answers to prefer. This is rejection sampling as in best-of-n distillation (Touvron et al.
2023, "Llama 2", section 3.2.3), with the judge of the run in place of the reward model.

The harmful and incoherent answers can join the harmful references (`rejected`). A method with a contrast then also learns what it
should no longer say of what the base model does say, such as to repeat itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import Stage
from wpn_bench.prompts import Item
from wpn_bench.unlearn.benign import complete_sentences, usable

LEAST_WORDS = 3  # the default: a model that learns from references such as "." gives empty answers


def with_written(
    items: Iterable[Item],
    samples: Any,
    threshold: float,
    max_new_tokens: int,
    keep: int,
    sentences: int | None = None,
    rejected: int = 0,
    least_words: int = LEAST_WORDS,
) -> list[Item]:
    """Replace the harmless references of items by answers of the base model.

    Args:
        items: The forget set.
        samples: Judged answers to it, several for each item, as a table that `run_judge_stage` writes.
        threshold: An answer with at least this score is harmful.
        max_new_tokens: Length in tokens at which an answer was cut off. Such an answer ends at its last complete sentence, and is not
            used if it has none.
        keep: Maximum number of references of an item.
        sentences: Number of first sentences that are kept of an answer; None means all. A model that is trained on short answers
            learns to end, where a small one would repeat itself.

        rejected: Maximum number of answers that are added to the harmful references of an item (see `not_usable`).
        least_words: An answer of fewer words is not used.

    Returns:
        The items that have a usable answer, with the least harmful answers as their references. Of equally harmful answers, the first
        ones are used. The answers that are added to the harmful references are the most harmful ones.
    """
    bad: dict[str, dict[str, None]] = {}
    if rejected:
        for row in not_usable(samples, threshold).sort_values("score", ascending=False, kind="stable").itertuples():
            bad.setdefault(str(row.item_id), {}).setdefault(str(row.response).strip())
    found: dict[str, dict[str, None]] = {}
    for row in usable(samples, threshold).sort_values("score", kind="stable").itertuples():
        text = str(row.response).strip()
        if row.n_tokens >= max_new_tokens:
            text = complete_sentences(text, sentences)
        elif sentences is not None:
            text = complete_sentences(text, sentences) or text
        if len(text.split()) >= least_words:
            found.setdefault(str(row.item_id), {}).setdefault(text)
    return [
        replace(
            item,
            harmless=tuple(found[item.id])[:keep],
            harmful=tuple(dict.fromkeys([*item.harmful, *tuple(bad.get(item.id, ()))[:rejected]])),
        )
        for item in items
        if item.id in found
    ]


def not_usable(samples: Any, threshold: float) -> Any:
    """Return the rows of the answers that are harmful or incoherent, and are no refusals.

    Args:
        samples: Judged answers, as a table that `run_judge_stage` writes. Answers without a verdict and empty ones are left out.
        threshold: An answer with at least this score is harmful.

    Returns:
        The rows.
    """
    harmful = samples["score"] >= threshold  # false for NaN
    incoherent = samples["score"].notna() & ~samples["coherent"].fillna(True).astype(bool)
    said = samples["response"].fillna("").str.strip() != ""
    return samples[(harmful | incoherent) & said & ~samples["refusal"].fillna(True).astype(bool)]


def run_written_stage(ctx: StageContext) -> None:
    """Choose the references among the judged answers.

    The inputs are `prompts` (the forget set) and `judged` (the judged answers of the base to it). The stage writes the items that have
    a usable answer.
    """
    import pandas as pd

    from wpn_bench.harmless.stages import SAMPLES
    from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

    samples = pd.read_parquet(ctx.needs["judged"] / SAMPLES)
    items = read_items(ctx.needs["prompts"])
    given = ctx.params
    options = {name: given[name] for name in ("sentences", "rejected", "least_words") if name in given}
    made = with_written(items, samples, given["threshold"], given["max_new_tokens"], given["keep"], **options)
    write_rows(ctx.out / ITEMS, [item_row(item) for item in made])


STAGE = Stage("wpn_bench.unlearn.written:run_written_stage", 2)
