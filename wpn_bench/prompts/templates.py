"""Templates convert a prompt to the model's input, and a response to the text that follows it.

Generation, training, scoring and attacks use the same template, so that a model is trained and evaluated on the same
text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wpn_bench.core.files import digest_of
from wpn_bench.prompts.types import Item


class Template(ABC):
    """Renders prompts.

    A subclass defines how to write a question (`question`) and the response after it (`continuation`). The rendered
    text does not contain the beginning-of-text token, which the tokenizer adds.
    """

    @staticmethod
    def parse(value: Template | str) -> Template:
        """Create a template from its `value`, as stored in settings, job parameters and results.

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
        """The template as a plain JSON value, from which `parse` creates an equal template."""

    @property
    def digest(self) -> str:
        """SHA-256 of the template's value. Templates with equal digests render all prompts alike."""
        return digest_of(self.value)

    @abstractmethod
    def question(self, prompt: str, context: str = "", answer_prefix: str = "") -> str:
        """Render a question.

        Args:
            prompt: The question.
            context: Text of demonstrations before it, from `demonstrations`.
            answer_prefix: First words of the response. They are part of the model's input.

        Returns:
            The text that the model continues.
        """

    def render(self, prompt: Item | str) -> str:
        """Render a prompt as the text that the model continues. A string is a question without context.

        Only items of kind "question" are put into the template. Other items are rendered without it.
        """
        item = Item("", prompt) if isinstance(prompt, str) else prompt
        if item.kind == "question":
            return self.question(item.prompt, item.context, item.answer_prefix)
        return item.context + item.prompt + _after_space(item.answer_prefix)

    def continuation(self, response: str) -> str:
        """Return the text of a response after a rendered prompt."""
        return joined(response)

    def pair(self, prompt: Item | str, response: str) -> tuple[str, str]:
        """Render a prompt and its response, for training and scoring.

        Args:
            prompt: The prompt.
            response: The response.

        Returns:
            The rendered prompt, and the text of the response after it.
        """
        return self.render(prompt), self.continuation(response)

    def demonstrations(self, examples: Iterable[tuple[Item, str]]) -> str:
        """Render (prompt, response) pairs as demonstrations before a prompt (`Item.context`)."""
        return "".join("".join(self.pair(item, response)) + "\n\n" for item, response in examples)


@dataclass(frozen=True)
class FormatTemplate(Template):
    """A template written as a text that contains `{prompt}` once and no other braces."""

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
    """Render a prompt as the text that the model continues.

    Args:
        item: The prompt.
        template: A template, or a format string such as "Q: {prompt} A:".

    Returns:
        The rendered prompt.
    """
    return Template.parse(template).render(item)


def joined(response: str) -> str:
    """Return the text of a response after a prompt in plain text: one space, then the stripped response."""
    return " " + response.strip()


def _after_space(words: str) -> str:
    return f" {words}" if words else ""
