"""Attacks without code: a text around the prompt, or a script of turns. Each is a YAML file in `tasks/attacks/`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.attacks.conversations import ScriptTurn, check_script, conversation
from wpn_bench.core.validation import as_user_error
from wpn_bench.core.yaml_files import load_yaml
from wpn_bench.prompts import Item


class TemplateSpec(BaseModel):
    """Fields of a template attack's file.

    Attributes:
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        template: Text around `{prompt}`.
        answer_prefix: Beginning of the response, which the model continues.
        turns: A conversation in place of the template; the answer to its last turn is judged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    description: str
    template: str = "{prompt}"
    answer_prefix: str = ""
    turns: tuple[ScriptTurn, ...] = ()

    @field_validator("template")
    @classmethod
    def _has_prompt(cls, value: str) -> str:
        if "{prompt}" not in value:
            raise ValueError("the template must contain {prompt}")
        return value

    @model_validator(mode="after")
    def _does_something(self) -> TemplateSpec:
        if self.turns:
            if self.template != "{prompt}":
                raise ValueError("give either `template` or `turns`")
            check_script(self.turns)
        elif self.template.strip() == "{prompt}" and not self.answer_prefix.strip():
            raise ValueError(
                "the template is only {prompt} and there is no answer_prefix, so the attack changes nothing"
            )
        return self


class TemplateAttack(Attack):
    """Inserts the prompt into a text or a conversation, and optionally prefills the beginning of the response."""

    def __init__(self, name: str, spec: TemplateSpec, file: str | None = None, read_as: str | None = None) -> None:
        self.spec = spec
        self.file = file
        self.read_as = read_as  # what was read as template and as {prompt}; None if they have these names
        # These are attributes of the instance, because one class is used for all files.
        self.name = name  # type: ignore[misc]
        self.title = spec.title  # type: ignore[misc]
        self.description = spec.description  # type: ignore[misc]

    @classmethod
    def from_file(cls, path: Path) -> TemplateAttack:
        with as_user_error(str(path), "see tasks/attacks/ for examples"):
            return cls(path.stem, TemplateSpec.model_validate(load_yaml(path)))

    def apply(self, item: Item, context: AttackContext) -> Item:
        if self.spec.turns:
            return replace(
                conversation(item, self.spec.turns, self.name, context), answer_prefix=self.spec.answer_prefix
            )
        # str.format is not used, because prompts and templates may contain other braces.
        text = self.spec.template.replace("{prompt}", item.prompt)
        return replace(item, prompt=text, answer_prefix=self.spec.answer_prefix)
