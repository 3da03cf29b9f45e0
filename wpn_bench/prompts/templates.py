"""Templates: how a prompt becomes the text that a model continues, and a response the text that follows it.

Generation, training, scoring and the attacks all ask the template, so that a model is trained, asked and scored on the
same text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wpn_bench.core.files import digest_of
from wpn_bench.prompts.types import Item


class Template(ABC):
    """Renders prompts. A subclass says how a question is put (`question`) and how a response follows it (`continuation`).

    The rendered text does not hold the beginning-of-text token: the tokenizer adds it.
    """

    @staticmethod
    def parse(value: Template | str) -> Template:
        """The template with this `value`, as it stands in settings, job parameters and results.

        Raises:
            ValueError: `value` is not a valid template.
        """
        if isinstance(value, Template):
            return value
        if not isinstance(value, str):
            raise ValueError("the template must be a text with {prompt} in it")
        return FormatTemplate(value)

    @property
    @abstractmethod
    def value(self) -> Any:
        """The template as a plain JSON value, from which `parse` makes an equal template."""

    @property
    def digest(self) -> str:
        """SHA-256 of the template's value: templates with equal digests render every prompt alike."""
        return digest_of(self.value)

    @abstractmethod
    def question(self, prompt: str, context: str = "", answer_prefix: str = "") -> str:
        """The text for a question.

        Args:
            prompt: The question.
            context: Text of demonstrations before it, made by `demonstrations`.
            answer_prefix: Words with which the response begins, given to the model as if it had said them.
        """

    def render(self, prompt: Item | str) -> str:
        """The text that the model continues. A string is a question without context.

        Only items of kind "question" are put into the template; other kinds are given to the model as they are.
        """
        item = Item("", prompt) if isinstance(prompt, str) else prompt
        if item.kind == "question":
            return self.question(item.prompt, item.context, item.answer_prefix)
        return item.context + item.prompt + _after_space(item.answer_prefix)

    def continuation(self, response: str) -> str:
        """A response as it follows a rendered prompt."""
        return joined(response)

    def pair(self, prompt: Item | str, response: str) -> tuple[str, str]:
        """The rendered prompt and the response as it follows it, as both are trained on and scored."""
        return self.render(prompt), self.continuation(response)

    def demonstrations(self, examples: Iterable[tuple[Item, str]]) -> str:
        """Text that shows (prompt, response) pairs, to stand before a prompt (`Item.context`)."""
        return "".join("".join(self.pair(item, response)) + "\n\n" for item, response in examples)


@dataclass(frozen=True)
class FormatTemplate(Template):
    """A text with `{prompt}` in it once, and no other braces."""

    text: str

    def __post_init__(self) -> None:
        if self.text.count("{prompt}") != 1 or set("{}") & set(self.text.replace("{prompt}", "")):
            raise ValueError("the template must hold {prompt} once and no other braces")

    @property
    def value(self) -> str:
        return self.text

    def question(self, prompt: str, context: str = "", answer_prefix: str = "") -> str:
        return context + self.text.replace("{prompt}", prompt) + _after_space(answer_prefix)


def render(item: Item, template: Template | str) -> str:
    """The text that a model continues for `item`; `template` may be a format string such as "Q: {prompt} A:"."""
    return Template.parse(template).render(item)


def joined(response: str) -> str:
    """A response as it follows a prompt in plain text: one space, then the text."""
    return " " + response.strip()


def _after_space(words: str) -> str:
    return f" {words}" if words else ""
