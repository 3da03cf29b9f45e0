"""Attacks that only reword the prompt, one YAML file each in `tasks/attacks/`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.errors import UserError
from wpn_bench.prompts import Item


class TemplateSpec(BaseModel):
    """`template` holds `{prompt}`; `answer_prefix` is what the model is made to have said already."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    description: str
    template: str = "{prompt}"
    answer_prefix: str = ""

    @field_validator("template")
    @classmethod
    def _has_prompt(cls, value: str) -> str:
        if "{prompt}" not in value:
            raise ValueError("the template must hold {prompt}")
        return value


class TemplateAttack(Attack):
    """Puts the prompt into a text, and optionally words into the model's mouth."""

    def __init__(self, name: str, spec: TemplateSpec) -> None:
        self.spec = spec
        # Of the instance, not of the class: one class serves every file.
        self.name = name  # type: ignore[misc]
        self.title = spec.title  # type: ignore[misc]
        self.description = spec.description  # type: ignore[misc]

    @classmethod
    def from_file(cls, path: Path) -> TemplateAttack:
        import yaml

        try:
            return cls(path.stem, TemplateSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))))
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as e:
            raise UserError(f"{path}: {' '.join(str(e).split())[:200]}", "see tasks/attacks/ for examples") from e

    def apply(self, item: Item, context: AttackContext) -> Item:
        # Not str.format: a prompt or template may hold other braces.
        text = self.spec.template.replace("{prompt}", item.prompt)
        return replace(item, prompt=text, answer_prefix=self.spec.answer_prefix)
