"""Templates convert a prompt to the model's input, and a response to the text that follows this input.

Generation, training, scoring and attacks use the same template. So a model is trained and evaluated on the same text.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.files import digest_of
from wpn_bench.errors import UserError
from wpn_bench.prompts.types import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION_TEMPLATE = "### Question: {prompt}\n ### Answer:"
_MARK = "wpnbenchmark"  # a placeholder message, which shows where a chat template puts messages
_TODAY = datetime(2024, 7, 26)
_ROLES = ("user", "assistant")


Turn = tuple[str, str]  # a demonstration: prompt and response


class Rendered(str):
    """A rendered prompt, with information for the tokenizer.

    If a rendered prompt is a plain `str`, the tokenizer adds its special tokens.

    Attributes:
        special: Whether the tokenizer adds special tokens. False for a chat template, which contains them.
        end: Token that ends the response; None means the end-of-text token.
        blank: Whether a space separates the prompt from its response. It does not after a special token. As an
            argument, None means the value of `special`.
    """

    special: bool
    end: str | None
    blank: bool

    def __new__(cls, text: str, special: bool = True, end: str | None = None, blank: bool | None = None) -> Rendered:
        self = super().__new__(cls, text)
        self.special, self.end, self.blank = special, end, special if blank is None else blank
        return self

    def __getnewargs__(self) -> tuple[str, bool, str | None, bool]:  # type: ignore[override]
        return str(self), self.special, self.end, self.blank


def same_kind(text: str, rendered: str) -> str:
    """Give a changed text the attributes of the rendered prompt that it was made from.

    Args:
        text: The changed text.
        rendered: The rendered prompt.

    Returns:
        The text, with the attributes of the prompt if the prompt is `Rendered`.
    """
    if not isinstance(rendered, Rendered):
        return text
    return Rendered(text, rendered.special, rendered.end, rendered.blank)


def adds_special_tokens(rendered: str) -> bool:
    """Return whether the tokenizer adds its special tokens to a rendered prompt."""
    return getattr(rendered, "special", True)


class Template(ABC):
    """Renders prompts.

    A subclass defines how a question is written (`question`). The rendered text does not contain the beginning-of-text
    token, because the tokenizer adds it. The exception is `Rendered` text with `special` False.
    """

    @staticmethod
    def parse(value: Template | str | dict[str, Any]) -> Template:
        """Create a template from its `value`, which settings, job parameters and results store.

        Raises:
            ValueError: `value` is not a valid template.
        """
        if isinstance(value, Template):
            return value
        if isinstance(value, dict) and isinstance(value.get("format"), str):
            return FormatTemplate(value["format"], bool(value.get("blank")))
        if isinstance(value, dict):
            return ChatTemplate.from_value(value)
        if not isinstance(value, str):
            raise ValueError("the template must be a text that contains {prompt}")
        return FormatTemplate(value)

    @property
    @abstractmethod
    def value(self) -> Any:
        """Return the template as a plain JSON value. From it, `parse` creates an equal template."""

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the template's value. Templates with equal digests render all prompts alike."""
        return digest_of(self.value)

    @property
    def label(self) -> str:
        """Return the name of the template in results. Templates with equal labels render all prompts alike."""
        return str(self.value)

    @property
    def is_chat(self) -> bool:
        """Return whether questions become messages of a chat."""
        return False

    @property
    def keeps_turns(self) -> bool:
        """Return whether the earlier turns of a conversation are written before its last question."""
        return True

    @abstractmethod
    def question(self, prompt: str, context: str = "", answer_prefix: str = "") -> str:
        """Render a question.

        Args:
            prompt: The question.
            context: Text before the question, as `demonstrations` returns it.
            answer_prefix: First words of the response, which become part of the model's input.

        Returns:
            The text that the model continues.
        """

    def render(self, prompt: Item | str) -> str:
        """Render a prompt as the text that the model continues. A string is rendered as a question without context.

        Only items of the kind "question" are put into the template. Other items are rendered without it.
        """
        item = Item("", prompt) if isinstance(prompt, str) else prompt
        if item.kind == "question":
            return self.question(item.prompt, item.context, item.answer_prefix)
        return _text_of(item.context) + item.prompt + _after_space(item.answer_prefix)

    def pair(self, prompt: Item | str, response: str) -> tuple[str, str]:
        """Render a prompt and its response, for training and scoring.

        Args:
            prompt: The prompt.
            response: The response.

        Returns:
            The rendered prompt, and the text of the response that follows it.
        """
        before = self.render(prompt)
        return before, joined(response, before)

    def demonstrations(self, examples: Iterable[tuple[Item, str]]) -> str:
        """Render (prompt, response) pairs as demonstrations that precede a prompt (`Item.context`)."""
        return "".join("".join(self.pair(item, response)) + "\n\n" for item, response in examples)


@dataclass(frozen=True)
class FormatTemplate(Template):
    """A template given as a text that contains `{prompt}` once and no other braces.

    Attributes:
        text: The text.
        blank: Whether the response begins with a space if the text does not end in white space. False for a text that
            ends in a special token, such as `<|assistant|>`.
    """

    text: str
    blank: bool = True

    def __post_init__(self) -> None:
        if self.text.count("{prompt}") != 1 or set("{}") & set(self.text.replace("{prompt}", "")):
            raise ValueError("the template must contain {prompt} once and no other braces")

    @property
    def value(self) -> str | dict[str, Any]:
        return self.text if self.blank else {"format": self.text, "blank": False}

    @property
    def label(self) -> str:
        return self.text

    def question(self, prompt: str, context: str = "", answer_prefix: str = "") -> str:
        turns = turns_of(context)
        if turns is not None:
            shown = ((before := self.question(asked)) + joined(answered, before) for asked, answered in turns)
            context = "".join(f"{one}\n\n" for one in shown)
        text = context + self.text.replace("{prompt}", prompt)
        if self.blank:
            return text + _after_space(answer_prefix)
        return Rendered(text + answer_prefix, blank=bool(answer_prefix))


@dataclass(frozen=True)
class ChatTemplate(Template):
    """A chat template, in which prompts are messages of the user and responses are turns of the assistant.

    The rendered text contains all special tokens, so the tokenizer must not add any (see `Rendered`). Items of the kind
    "continuation" are rendered as plain text.

    Attributes:
        source: The Jinja template, as in `tokenizer.chat_template`.
        system: The system message; None leaves it to the template.
        tokens: (name, token) of the special tokens that the template uses, such as ("bos_token", "<s>").
        end: Token that ends a turn of the assistant; None means the end-of-text token.
        parts: Whether the content of a message is a list of parts instead of a string, as some multimodal models need
            it.
        begin: Text that begins a turn of the assistant, if the template ignores `add_generation_prompt`; else empty.
    """

    source: str
    system: str | None = None
    tokens: tuple[tuple[str, str], ...] = ()
    end: str | None = None
    parts: bool = False
    begin: str = ""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, system: str | None = None, source: str | None = None
    ) -> ChatTemplate:
        """Create the chat template of a tokenizer.

        Args:
            tokenizer: The tokenizer.
            system: The system message; None leaves it to the template.
            source: A Jinja template to use instead of the tokenizer's own.

        Returns:
            The template.

        Raises:
            UserError: The tokenizer has no chat template, or the template cannot be rendered.
        """
        if source is None:
            source = own_chat_template(tokenizer)
        if source is None:
            raise UserError(
                "the tokenizer has no chat template", 'use --template plain, or --template "...{prompt}..."'
            )
        known = {
            name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)
        }
        tokens = tuple(sorted((name, token) for name, token in known.items() if name in source))
        template = next(
            (t for t in (cls(source, system, tokens), cls(source, system, tokens, parts=True)) if _reads(t)), None
        )
        if template is None:
            raise UserError("the chat template does not contain the user's message", "use another --template")
        if system and system.strip() not in template.question(_MARK):
            raise UserError("the chat template does not support a system message", "leave out --system")
        asked = template._messages(_MARK, ())
        told = template._render([*asked, {"role": "assistant", "content": _MARK}], False)
        tail = told.rpartition(_MARK)[2]
        before = template._render(asked, True)
        begin = ""
        if before == template._render(asked, False) and told.startswith(before):
            begin = told[len(before) :].partition(_MARK)[0]
        special = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
        ends = sorted((tail.index(token), -len(token), token) for token in special if token and token in tail)
        # White space alone, as in Mistral's templates, is for the model to write.
        return replace(template, end=ends[0][2] if ends else None, begin=begin if begin.strip() else "")

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> ChatTemplate:
        """Create the template from its `value`. Raises `ValueError` if the value is not valid."""
        if not isinstance(value.get("chat"), str):
            raise ValueError("a chat template needs its Jinja source in the field `chat`")
        return cls(
            value["chat"],
            value.get("system"),
            tuple(sorted(value.get("tokens", {}).items())),
            value.get("end"),
            bool(value.get("parts")),
            str(value.get("begin", "")),
        )

    @property
    def value(self) -> dict[str, Any]:
        value = {"chat": self.source, "system": self.system, "tokens": dict(self.tokens), "end": self.end}
        return value | ({"parts": True} if self.parts else {}) | ({"begin": self.begin} if self.begin else {})

    @property
    def label(self) -> str:
        system = "" if self.system is None else f", system message {self.system!r}"
        return f"chat template {self.digest[:12]}{system}"

    @property
    def is_chat(self) -> bool:
        return True

    @property
    def keeps_turns(self) -> bool:
        """Return whether all turns are written, in order. Some templates write one message only, or refuse several."""
        marks = [f"{_MARK}{k}{_MARK}" for k in range(3)]
        try:
            text = self.question(marks[2], json.dumps([marks[:2]]))
        except UserError:
            return False
        places = [text.find(mark) for mark in marks]
        return places[0] >= 0 and places == sorted(places)

    def question(self, prompt: str, context: str = "", answer_prefix: str = "") -> Rendered:
        turns = turns_of(context)
        if turns is None:
            prompt, turns = context + prompt, []
        text = self._render(self._messages(prompt, turns), True)
        return Rendered(text + self.begin + answer_prefix, special=False, end=self.end)

    def demonstrations(self, examples: Iterable[tuple[Item, str]]) -> str:
        return json.dumps([[item.prompt, response.strip()] for item, response in examples], ensure_ascii=False)

    def _messages(self, prompt: str, turns: Iterable[Turn]) -> list[dict[str, str]]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*messages, *messages_of(turns), {"role": "user", "content": prompt}]

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.parts else text

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        import jinja2
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            return str(
                _compile_jinja_template(self.source).render(
                    messages=[m | {"content": self._content(m["content"])} for m in messages],
                    add_generation_prompt=add_generation_prompt,
                    tools=None,
                    documents=None,
                    strftime_now=_TODAY.strftime,
                    **dict(self.tokens),
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as e:
            hint = "leave out --system" if self.system else 'use --template plain, or --template "...{prompt}..."'
            raise UserError(f"the chat template cannot be rendered ({type(e).__name__}: {e})", hint) from e


def _reads(template: ChatTemplate) -> bool:
    """Return whether a chat template writes the user's message. With lists of parts, an error counts as no."""
    try:
        return _MARK in template.question(_MARK)
    except UserError:
        if template.parts:
            return False
        raise


def choose_template(choice: str, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Template:
    """Create the template that the user chose, for a model.

    Args:
        choice: "auto" (the chat template if the tokenizer has one, else plain), "chat", "plain", a text that contains
            {prompt}, or a file with such a text or a Jinja chat template.
        tokenizer: Tokenizer of the model.
        system: System message of a chat, or a file that contains it.

    Returns:
        The template.

    Raises:
        UserError: The choice cannot be used with the tokenizer, or a file cannot be read.
    """
    if system is not None:
        system = system_message(system)
    if choice == "auto":
        choice = "chat" if own_chat_template(tokenizer) else "plain"
    if choice == "chat":
        return ChatTemplate.of(tokenizer, system)
    if choice == "plain":
        choice = QUESTION_TEMPLATE
    elif is_file(choice):
        text = _read_text(choice, "template")
        if "{{" in text or "{%" in text:
            return ChatTemplate.of(tokenizer, system, text)
        choice = text.rstrip("\n")
    if system is not None:
        raise UserError(
            "the system message needs a chat template, but the chosen template is plain text",
            "write the message into the template (--template 'TEXT {prompt}'), or use --template chat",
        )
    special = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
    ends_in_words = not choice.endswith(tuple(token for token in special if token))
    try:
        return FormatTemplate(_without_bos(choice, tokenizer), blank=ends_in_words)
    except ValueError as e:
        raise UserError(f"--template: {e}", "use auto, chat, plain, a text that contains {prompt}, or a file") from e


def system_message(given: str) -> str:
    """Return a system message that is given as a text or as the name of a file."""
    return _read_text(given, "system message").strip() if is_file(given) else given


def _without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Remove the beginning-of-text token from a text if the tokenizer adds it again."""
    bos = tokenizer.bos_token
    if isinstance(bos, str) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text


def is_file(text: str) -> bool:
    """Return whether a text names a file that exists."""
    try:
        return "\n" not in text and Path(text).expanduser().is_file()
    except OSError:  # the text is too long for a file name
        return False


def _read_text(file: str, what: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"the {what} in {file} cannot be read ({e})", "give a text file in UTF-8") from e


def own_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a tokenizer's own chat template, its default one if it has several, or None if it has none.

    Raises:
        UserError: The tokenizer has several chat templates, and none has the name `default`.
    """
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        if len(found) > 1 and "default" not in found:
            raise UserError(
                f"the tokenizer has several chat templates and no default: {', '.join(sorted(found))[:200]}",
                "write the one that you want into a file: --template FILE",
            )
        found = found.get("default") or next(iter(found.values()), None)
    return found or None


def render(item: Item, template: Template | str) -> str:
    """Render a prompt as the text that the model continues.

    Args:
        item: The prompt.
        template: A template, or a format string such as "Q: {prompt} A:".

    Returns:
        The rendered prompt.
    """
    return Template.parse(template).render(item)


def joined(response: str, before: str = "") -> str:
    """Return the text of a response as it follows a prompt.

    Args:
        response: The response.
        before: The rendered prompt.

    Returns:
        The stripped response. One space precedes it, unless the prompt ends in white space or a special token.
    """
    blank = getattr(before, "blank", True) and not before[-1:].isspace()
    return " " + response.strip() if blank else response.strip()


def messages_of(turns: Iterable[Sequence[str]]) -> list[dict[str, str]]:
    """Return turns as messages of a chat. A turn is a prompt and a response, or only a prompt."""
    return [{"role": role, "content": text} for turn in turns for role, text in zip(_ROLES, turn, strict=False)]


def turns_of(context: str) -> list[Turn] | None:
    """Read the turns before a prompt: demonstrations that a chat template wrote, or a conversation.

    Args:
        context: The context of an item. Turns are written as JSON, `[[prompt, response], ...]`. A response that the model has
            still to give is null, and is read as an empty text.

    Returns:
        The turns; None for plain text.
    """
    if not context.startswith("[["):
        return None
    try:
        return [(str(asked), str(answered or "")) for asked, answered in json.loads(context)]
    except (ValueError, TypeError):
        return None


def _text_of(context: str) -> str:
    turns = turns_of(context)
    return context if turns is None else "".join(f"{asked}{joined(answered)}\n\n" for asked, answered in turns)


def _after_space(words: str) -> str:
    return f" {words}" if words else ""
