"""Choose the data on which the trials of tuning are measured. None of it is used for training or testing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wpn_bench import prompts
from wpn_bench.benchmarks.run import BenchmarkInfo
from wpn_bench.config import RunConfig
from wpn_bench.core.files import digest_of
from wpn_bench.errors import UserError
from wpn_bench.preflight.sets import RunSet
from wpn_bench.prompts import PromptSet, TextSet, leakage
from wpn_bench.prompts.leakage import Reference
from wpn_bench.unlearn.tuning import Bound

TUNE_PROMPTS = 200  # largest number of prompts of each kind that a trial answers
TUNE_SHARE = 0.1  # share of the retain texts, or benign prompts, that is held back if the user names none for tuning
TUNE_TEXTS = 300


@dataclass(frozen=True)
class TuningData:
    """The data on which trials are measured.

    Attributes:
        prompts: Validation prompts.
        benign: Benign prompts, which a trial should answer; None if there are none.
        tasks: Tasks that measure the ability of the model; empty if texts measure it.
        texts: Texts whose loss measures the ability; None if tasks measure it.
        bound: The maximum loss of ability.
    """

    prompts: PromptSet
    benign: PromptSet | None
    tasks: tuple[BenchmarkInfo, ...]
    texts: TextSet | None
    bound: Bound


def read_tuning_data(
    config: RunConfig,
    sets: Sequence[RunSet],
    tasks: tuple[BenchmarkInfo, ...],
    validation: PromptSet,
    others: Sequence[PromptSet],
    retain: TextSet,
    heldout: TextSet | None,
    benign: PromptSet | None,
    texts: TextSet | None,
    notes: list[str],
) -> tuple[TuningData, TextSet, PromptSet | None]:
    """Choose the data on which trials are measured.

    With tuning tasks, the macro accuracy may decrease by the margin. Without them, the loss on text may increase by
    `tune_loss_bound`. This text is the one named for tuning, or a tenth of the retain texts, which are then not used
    for training. A text that is also a retain or held-out text is dropped.

    Benign prompts are those named for tuning, or a tenth of the benign prompts to train on. A prompt that is also in
    another set is dropped.

    Args:
        config: Settings of the run.
        sets: All sets of the run.
        tasks: The tuning tasks.
        validation: The validation prompts.
        others: The forget set and the test sets.
        retain: The retain texts.
        heldout: The held-out texts for testing, if any.
        benign: The benign prompts to train on, if any.
        texts: The tuning texts; None to take them from the retain texts.
        notes: Gets lines about what was held back.

    Returns:
        The tuning data, and the rest of the retain texts and of the benign prompts to train on.

    Raises:
        UserError: No text or no benign prompt is left for tuning or for training.
    """
    answered, benign = _benign(config, sets, [validation, *others], benign, notes)
    asked = validation.head(TUNE_PROMPTS).head(config.limit)
    if tasks:
        bound = Bound("macro_accuracy", config.margin_points / 100)
        return TuningData(asked, answered, tasks, None, bound), retain, benign
    if texts is None:
        ranked = sorted(retain.texts, key=lambda text: digest_of(["tune", text]))
        n = max(1, round(len(ranked) * TUNE_SHARE))
        held = set(ranked[:n])
        texts = replace(retain, name="tune_text", role="validation", texts=tuple(ranked[:n]))
        retain = replace(retain, texts=tuple(t for t in retain.texts if t not in held))
        notes.append(f"no tuning text was given, so {n} of the retain texts were held back for tuning")
    known = {*retain.texts, *(heldout.texts if heldout else ())}
    apart = tuple(t for t in texts.texts if t not in known)[: min(TUNE_TEXTS, config.limit or TUNE_TEXTS)]
    if not apart or not retain.texts:
        raise UserError(
            "there is no text left for tuning that is not also used for training or testing",
            "give one with `tune_text:` in a --config file, or give more retain texts",
        )
    bound = Bound("token_loss", config.tune_loss_bound)
    return TuningData(asked, answered, (), replace(texts, texts=apart), bound), retain, benign


def _benign(
    config: RunConfig, sets: Iterable[RunSet], others: Sequence[PromptSet], trained: PromptSet | None, notes: list[str]
) -> tuple[PromptSet | None, PromptSet | None]:
    """Return the benign prompts to tune on, and those left to train on."""
    spec = next((one.spec for one in sets if one.use == "tune_benign"), None)
    if spec is None or (trained is not None and config.tune_benign == config.benign_prompts):
        if trained is None:
            notes.append("no benign prompts were given to tune on (`tune_benign:`), so tuning does not count refusals")
            return None, None
        n = min(TUNE_PROMPTS, max(1, round(len(trained.items) * TUNE_SHARE)))
        if n == len(trained.items):
            raise UserError("there is no benign prompt left to train on beside the one to tune on", "give more of them")
        notes.append(f"{n} of the benign prompts are held back for tuning, and are not trained on")
        held = replace(trained, name="tune_benign", items=trained.items[:n])
        return held.head(config.limit), replace(trained, items=trained.items[n:])
    read = replace(prompts.load_prompts(spec), name="tune_benign")
    known = Reference(
        (item for one in (*others, *([trained] if trained else [])) for item in one.items), config.near_duplicate
    )
    kept, leak = leakage.unseen(read, [known])
    if leak.dropped:
        notes.append(
            f"{leak.dropped} of {len(read.items)} benign prompts to tune on are in another set and are left out"
        )
    ranked = sorted(kept.items, key=lambda item: digest_of(["tune", item.id]))[:TUNE_PROMPTS]
    items = tuple(replace(item, harmful=(), harmless=()) for item in ranked)
    return replace(kept, items=items).head(config.limit), trained
