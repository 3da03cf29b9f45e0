"""The part of a judge that all judges with a model of their own share: they find it by the judge's variant."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Judge, JudgeConfig
from wpn_bench.hub import FetchedItem

if TYPE_CHECKING:
    from wpn_bench.models import ModelRef


class ModelJudgeConfig(JudgeConfig):
    """Options of all judges whose variant names a model."""

    revision: str | None = Field(None, description="branch, tag or commit on the hub")


class ModelJudge(Judge):
    """A judge whose variant is the folder or hub id of a model.

    Attributes:
        without_model: Whether the variant may be empty, because the judge also works without a model.
    """

    without_model: ClassVar[bool] = False
    Config = ModelJudgeConfig
    config: ModelJudgeConfig

    def __init__(self, variant: str, device: str, config: JudgeConfig | None = None) -> None:
        super().__init__(variant, device, config)
        self.check(variant)

    @classmethod
    def check(cls, variant: str) -> None:
        if not variant and not cls.without_model:
            raise UserError(f"the judge {cls.name} names no model", f"write {cls.name}:HUB_ID or {cls.name}:FOLDER")

    @classmethod
    def to_fetch(cls, variant: str) -> str:
        from huggingface_hub import try_to_load_from_cache

        if not variant or Path(variant).expanduser().is_dir():
            return ""
        return "" if isinstance(try_to_load_from_cache(variant, "config.json"), str) else "its model"

    def fetched(self) -> list[FetchedItem]:
        return [replace(one, kind="judge") for one in self._model.fetched] if self.variant else []

    @cached_property
    def _model(self) -> ModelRef:
        """The model, downloaded if it is not on this machine."""
        from wpn_bench import models

        return models.resolve(self.variant, self.config.revision)
