"""Settings of what is measured after some training steps: the curve, and the relearning attack."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wpn_bench.attacks.base import RelearnKind
from wpn_bench.core.validation import Count

RELEARN_KINDS: tuple[RelearnKind, ...] = ("harmful", "benign")


def some_step(value: tuple[int, ...]) -> tuple[int, ...]:
    """Sort the steps; raise `ValueError` if none is above 0 or one is given twice."""
    if not value or min(value) < 0 or max(value) == 0 or len(set(value)) != len(value):
        raise ValueError("give steps of 0 and more, each once, and one above 0")
    return tuple(sorted(value))


class Curve(BaseModel):
    """A curve over training steps.

    The first `limit` in-domain prompts and documents of each benchmark are measured after each of `steps` (0 is the base
    model). Steps after the end of a training are left out; its last step is always included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    methods: tuple[str, ...] = Field(
        (), description="empty: the variants of wpn and ga in the run, else all its methods"
    )
    steps: tuple[int, ...] = (0, 5, 10, 20, 40, 70, 100)
    limit: Count = 60

    _steps = field_validator("steps")(some_step)


class Relearn(BaseModel):
    """The relearning attack: fine-tune every model a little, the base too, and measure it again.

    The first `limit` in-domain prompts are answered after each of `steps` (0 is the model before fine-tuning). `harmful`
    trains on `items` pairs of the forget set, prompt and harmful response; `benign` trains on retain texts. All models get
    the same budget.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kinds: tuple[RelearnKind, ...] = Field(RELEARN_KINDS, min_length=1)
    steps: tuple[int, ...] = (0, 2, 5, 10, 20, 40)
    items: Count = Field(16, description="forget items that `harmful` trains on, drawn anew for each seed")
    batch_size: Count = Field(8, description="pairs or texts per step")
    lr: float | None = Field(None, gt=0, description="constant learning rate; None: 0.05 / hidden size")
    limit: Count = Field(60, description="in-domain prompts asked after each step")

    _steps = field_validator("steps")(some_step)
