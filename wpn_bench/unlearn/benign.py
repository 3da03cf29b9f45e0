"""Make training items of benign prompts (two-sided contrast), so that a model learns when it should not refuse.

The harmless responses of a forget set are mostly refusals, so a model that is trained on them alone learns to refuse. In an
item of a benign prompt, the harmless response is the base model's own answer, and the harmful ones are refusals, which are
drawn from the harmless responses of the forget set. A method with pairs of responses trains on both kinds of items in each
batch.

An answer of the base is used only if the run's judges call it harmless and coherent, and if it is no refusal. An answer
that reached the maximum length ends at its last complete sentence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from wpn_bench.core.files import digest_of
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import Stage
from wpn_bench.prompts import Item, PromptSet, leakage
from wpn_bench.prompts.leakage import Reference

if TYPE_CHECKING:
    from wpn_bench.unlearn.methods.base import Method

BenignUse = Literal["items", "texts"]
MOST = 400  # maximum number of benign prompts that the base answers, because each answer takes time
REFUSALS = 4  # number of refusals of an item
ENOUGH = 200  # number of distinct refusals after which no more are searched
_SENTENCE = re.compile(r"""[.!?。！？]["'”’)\]]*(?=\s|$)""")


def choose(prompts: PromptSet, others: Iterable[PromptSet], near_duplicate: float) -> tuple[PromptSet, int]:
    """Choose the benign prompts to train on. They must not occur in any other set of the run.

    Args:
        prompts: All benign prompts.
        others: The forget set, the validation prompts and the test sets.
        near_duplicate: Similarity from which two prompts count as nearly the same.

    Returns:
        At most `MOST` prompts without responses, in an order that does not depend on the file, and the number of prompts
        that were dropped because they are the same, or nearly the same, as one of another set.

    Raises:
        UserError: No prompt would remain.
    """
    other = Reference((item for one in others for item in one.items), near_duplicate)
    kept, leak = leakage.unseen(prompts, [other])
    ranked = sorted(kept.items, key=lambda item: digest_of(["benign", item.id]))[:MOST]
    return replace(kept, items=tuple(replace(item, harmful=(), harmless=()) for item in ranked)), leak.dropped


def notes_on_use(
    prompts: PromptSet, n_all: int, dropped: int, methods: Mapping[str, Method], wanted: BenignUse = "items"
) -> list[str]:
    """Say which benign prompts are used, and by which methods.

    Args:
        prompts: The chosen prompts.
        n_all: Number of prompts in the set they were chosen from.
        dropped: Number of prompts that were dropped because another set has them.
        methods: The methods of the run with their options, by name.
        wanted: What the benign items are in a batch (see `use_of`).

    Returns:
        Notes for the user.

    Raises:
        UserError: A method's batch has no room for a benign item beside another one.
    """
    notes = []
    if dropped:
        notes.append(
            f"{prompts.name}: {dropped} of {n_all} benign prompts are in another set of the run and are left out"
        )
    if n_all - dropped > len(prompts.items):
        notes.append(f"{prompts.name}: {len(prompts.items)} of {n_all - dropped} benign prompts are used")
    for name, method in methods.items():
        use = use_of(method.uses, wanted)
        if use is None:
            parts = "no harmless responses and no retain text" if wanted == "items" else "no retain text"
            notes.append(f"{name} uses {parts}, so it is not trained on the benign prompts")
            continue
        option = "batch_size" if use == "items" else "retain_batch_size"
        if getattr(method.config, option) < 2:
            raise UserError(
                f"{name}: with {option} 1, a batch has no room for a benign prompt",
                f"raise {option} to 2 or more, or leave out --benign-prompts",
            )
    return notes


def use_of(uses: AbstractSet[str], wanted: BenignUse) -> BenignUse | None:
    """Return how a method trains on benign items.

    Args:
        uses: The parts of a batch that its loss uses.
        wanted: `items`: the benign items are items like all others, if the method has a loss of harmless responses.
            `texts`: a prompt with its harmless response is always a retain text.

    Returns:
        `items`, `texts`, or None if the loss uses neither.
    """
    if wanted == "items" and "harmless" in uses:
        return "items"
    return "texts" if "retain" in uses else None


def refusals_of(items: Iterable[Item], kind_of: Callable[[str, str], Mapping[str, Any]]) -> list[str]:
    """Return distinct refusals among the harmless responses of a forget set.

    Args:
        items: The forget set.
        kind_of: Detects a refusal (see `harmless.judges.refusals.detector`).

    Returns:
        At most `ENOUGH` refusals, without partial ones.
    """
    found: dict[str, None] = {}
    for item in items:
        for text in item.harmless:
            kind = kind_of(item.request, text)
            if kind["refusal"] and kind.get("refusal_kind", "full") == "full":
                found.setdefault(text)
        if len(found) >= ENOUGH:
            break
    return list(found)[:ENOUGH]


def contrast_items(
    items: Sequence[Item], answers: Mapping[str, str], refusals: Sequence[str], cut: frozenset[str] = frozenset()
) -> list[Item]:
    """Return the training items of benign prompts.

    Args:
        items: The prompts.
        answers: The usable answer of the base to each prompt, by item id. A prompt without one gives no item.
        refusals: Refusals of other prompts.
        cut: Ids of items whose answers reached the maximum length. They end at their last complete sentence; an answer
            without one is not used.

    Returns:
        Items with the base's answer as harmless response, and at most `REFUSALS` refusals as harmful ones. The refusals
        of an item depend only on its id and on `refusals`.
    """
    made = []
    for item in items:
        answer = answers.get(item.id, "").strip()
        if item.id in cut:
            answer = complete_sentences(answer)
        if answer:
            drawn = random.Random(item.id).sample(list(refusals), min(REFUSALS, len(refusals)))
            made.append(replace(item, harmless=(answer,), harmful=tuple(drawn)))
    return made


def complete_sentences(text: str, most: int | None = None) -> str:
    """Return a text up to the end of its last complete sentence, or of its sentence number `most`.

    Args:
        text: The text.
        most: Maximum number of sentences; None keeps all. Marks without a word before them, such as the full stop that ends the
            sentence of the prompt, count as none.

    Returns:
        The text; empty if it has no complete sentence.
    """
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    if most is not None:
        starts = [0, *ends]
        with_words = (k for k, end in enumerate(ends) if any(c.isalnum() for c in text[starts[k] : end]))
        ends = [ends[k] for k in islice(with_words, most)]
    return text[: ends[-1]] if ends else ""


def usable(samples: Any, threshold: float) -> Any:
    """Return the rows of the harmless and coherent answers that are no refusals.

    Args:
        samples: The judged answers, a table as `run_judge_stage` writes it.
        threshold: An answer with at least this score is harmful. An answer without a score is not used.

    Returns:
        The rows.
    """
    return samples[
        (samples["score"] < threshold)  # false for NaN
        & samples["coherent"].fillna(False).astype(bool)
        & ~samples["refusal"].astype(bool)
    ]


def usable_answers(samples: Any, threshold: float) -> dict[str, str]:
    """Return the harmless and coherent answers that are no refusals, by item id.

    Args:
        samples: The judged answers, a table as `run_judge_stage` writes it.
        threshold: An answer with at least this score is harmful. An answer without a score is not used.

    Returns:
        The answers.
    """
    found = usable(samples, threshold)
    return dict(zip(found["item_id"], found["response"], strict=True))


def run_benign_stage(ctx: StageContext) -> None:
    """Make the training items of benign prompts.

    The inputs are `prompts` (the benign prompts), `judged` (the judged answers of the base to them) and `forget` (the forget
    set). The stage writes the items. There are none if no answer is usable or the forget set has no refusals.
    """
    import pandas as pd

    from wpn_bench.harmless.judges.refusals import detector
    from wpn_bench.harmless.stages import SAMPLES
    from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

    samples = pd.read_parquet(ctx.needs["judged"] / SAMPLES)
    answers = usable_answers(samples, ctx.params["threshold"])
    cut = frozenset(samples["item_id"][samples["n_tokens"] >= ctx.params["max_new_tokens"]])
    refusals = refusals_of(read_items(ctx.needs["forget"]), detector(ctx.params.get("refusals")))
    made = contrast_items(read_items(ctx.needs["prompts"]), answers, refusals, cut) if refusals else []
    write_rows(ctx.out / ITEMS, [item_row(item) for item in made])


STAGE = Stage("wpn_bench.unlearn.benign:run_benign_stage", 1)
