"""What a judge is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from wpn_bench.progress import Advance


class Judge(ABC):
    """Scores responses. `measures` says in one sentence what a low score does and does not promise."""

    name: ClassVar[str]
    title: ClassVar[str]
    measures: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, variant: str, device: str) -> None:
        self.variant = variant
        self.device = device

    @abstractmethod
    def digest(self) -> str:
        """Identifies the weights: a score is only ever reused for the judge that gave it."""

    @abstractmethod
    def score(self, texts: Sequence[str], advance: Advance = lambda n: None) -> list[float | None]:
        """Toxicity in [0, 1] for each text, in order; None where the judge gave no usable score (missing)."""
