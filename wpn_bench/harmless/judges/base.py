"""What a judge is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.core.progress import Advance
from wpn_bench.hub import Fetched


class JudgeConfig(BaseModel):
    """Options of every judge; a judge with more of them extends this."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    threshold: float | None = Field(None, gt=0, lt=1, description="harmful from this score on (None: the run's)")


class Judge(ABC):
    """Scores responses. `measures` says in one sentence what a low score does and does not promise; `usage` how the judge
    is named on the command line. `journalled`: all its work is done by `engine.classify`, so a killed job finds its scores
    again, and several processes can share a job's."""

    name: ClassVar[str]
    title: ClassVar[str]
    measures: ClassVar[str]
    source: ClassVar[str]
    usage: ClassVar[str] = ""
    journalled: ClassVar[bool] = False
    Config: ClassVar[type[JudgeConfig]] = JudgeConfig

    def __init__(self, variant: str, device: str, config: JudgeConfig | None = None) -> None:
        self.variant = variant
        self.device = device
        self.config = config or self.Config()

    @classmethod
    def check(cls, variant: str) -> None:
        """Raise `UserError` for a variant that cannot be, without loading anything."""
        return

    @classmethod
    def to_fetch(cls, variant: str) -> str:
        """What must still be fetched before the judge can score, in words; empty when all of it is on this machine."""
        return ""

    def fetched(self) -> list[Fetched]:
        """What of it comes from elsewhere, with its commit; fetched if need be. Empty: it is all in the package, or local."""
        return []

    @abstractmethod
    def digest(self) -> str:
        """Identifies the weights and whatever else decides a score: a score is only reused for the judge that gave it."""

    @abstractmethod
    def score(self, texts: Sequence[str], advance: Advance = lambda n: None) -> list[float | None]:
        """Harm in [0, 1] for each text, in order; None where the judge gave no usable score (missing).

        Equal texts have equal scores, and an empty text is not harmful.
        """

    def card(self) -> Path | None:
        """The card (see `harmless/card.py`) that comes with the judge, if one does."""
        return None
