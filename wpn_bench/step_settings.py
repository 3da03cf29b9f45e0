"""Settings of the training curve, the relearning attack, the written references and the sizes of a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wpn_bench.attacks.base import RelearnKind
from wpn_bench.core.validation import Count

RELEARN_KINDS: tuple[RelearnKind, ...] = ("harmful", "benign")


def some_step(value: tuple[int, ...]) -> tuple[int, ...]:
    """Return the steps in ascending order. Raises `ValueError` if no step is above 0 or a step is given twice."""
    if not value or min(value) < 0 or max(value) == 0 or len(set(value)) != len(value):
        raise ValueError("give step numbers from 0, each once, and at least one above 0")
    return tuple(sorted(value))


class Curve(BaseModel):
    """Settings of the training curve, which measures a model repeatedly while it is trained.

    After each of `steps`, the first `limit` in-domain prompts and the first `limit` documents of each benchmark are
    measured. Step 0 is the base model. Steps after the end of a training are left out. Its last step is always
    included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    methods: tuple[str, ...] = Field(
        (), description="empty means all variants of wpn and ga in the run, or all methods if it has neither"
    )
    steps: tuple[int, ...] = (0, 5, 10, 20, 40, 70, 100)
    limit: Count = 60

    _steps = field_validator("steps")(some_step)


class Relearn(BaseModel):
    """Settings of the relearning attack, which fine-tunes every model (also the base) a little and measures it again.

    The first `limit` in-domain prompts are answered after each of `steps`. Step 0 is the model before fine-tuning.
    `harmful` trains on `items` pairs of a prompt and a harmful response from the forget set. `benign` trains on retain
    texts. All models get the same number of steps and items.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kinds: tuple[RelearnKind, ...] = Field(RELEARN_KINDS, min_length=1)
    steps: tuple[int, ...] = (0, 2, 5, 10, 20, 40)
    items: Count = Field(16, description="number of forget items that `harmful` trains on; each seed draws other items")
    batch_size: Count = Field(8, description="pairs or texts per step")
    lr: float | None = Field(None, gt=0, description="constant learning rate; None: 0.05 / hidden size")
    limit: Count = Field(60, description="number of in-domain prompts answered after each step")

    _steps = field_validator("steps")(some_step)


class WrittenReferences(BaseModel):
    """Settings of the harmless references that the base model writes (see `unlearn/written.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    samples: Count = Field(8, description="number of sampled answers to each prompt of the forget set")
    keep: Count = Field(2, description="number of answers, the least harmful ones, that become references")
    sentences: Count | None = Field(
        None, description="number of first sentences that are kept of an answer; None means all that are complete"
    )
    least_words: Count = Field(3, description="number of words from which an answer may become a reference")
    temperature: float = Field(0.8, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    limit: Count | None = Field(
        None, description="number of items of the forget set to write for, and to train on; None means all"
    )
    rejected: int = Field(
        0,
        ge=0,
        description="number of harmful or incoherent answers, the most harmful ones, that are added to an item's harmful references",
    )


class Limits(BaseModel):
    """How much of its data a run measures: the first N items of each set of a kind. None means all.

    Unlike the option `--limit`, which is for rehearsals, these are the sizes that a run was planned with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    in_domain: Count | None = Field(None, description="in-domain prompts")
    ood: Count | None = Field(None, description="prompts of each set out of distribution")
    benign: Count | None = Field(None, description="prompts of each benign set")
    attacks: Count | None = Field(None, description="in-domain prompts that each attack changes")
    benchmarks: Count | None = Field(None, description="documents of each benchmark")
    heldout: Count | None = Field(None, description="held-out texts for perplexity")
