"""Insert exchanges into a guard's prompt, and convert it to token ids.

The judged text is data. A special token that is written in it must not act as a control token in the prompt. Such a
text is therefore tokenised in parts from which the special token cannot be formed. A long exchange is shortened, but
the template never is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange
from wpn_bench.prompts.templates import own_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT, _RESPONSE = "wpnbenchmarkprompt", "wpnbenchmarkresponse"
_MARKS = re.compile(f"({_PROMPT}|{_RESPONSE})")
# Names of the placeholders in published prompts, which are Python format strings.
_PUBLISHED = {
    _PROMPT: ("prompt", "behavior", "forbidden_prompt", "user_prompt", "question"),
    _RESPONSE: ("response", "generation", "model_response", "answer"),
}


@dataclass(frozen=True)
class Encoded:
    """The guard's prompt for one exchange.

    Attributes:
        ids: Token ids.
        cut: Whether the exchange was shortened.
    """

    ids: list[int]
    cut: bool


@dataclass(frozen=True)
class GuardPrompt:
    """A guard's prompt with placeholders for an exchange.

    Attributes:
        pieces: The text, split so that each placeholder is a piece of its own.
        special: Whether the tokenizer adds its special tokens.
        trims: Whether white space around the texts of an exchange is removed.
    """

    pieces: tuple[str, ...]
    special: bool
    trims: bool

    @classmethod
    def of_chat(cls, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], name: str) -> GuardPrompt:
        """Make the prompt from the chat template of a tokenizer.

        Args:
            tokenizer: The tokenizer.
            variables: Further arguments of the chat template.
            name: Name of the guard, for messages.

        Returns:
            The prompt.

        Raises:
            UserError: The tokenizer has no chat template, or the template cannot be rendered or leaves out the
                response.
        """
        if own_chat_template(tokenizer) is None:
            raise UserError(
                f"the tokenizer of {name} has no chat template, which this format needs",
                "use the tokenizer_config.json (and chat_template.jinja) of the original model, or give ,template=FILE",
            )
        error: Exception | None = None
        for parts in (False, True):  # newer templates expect a list of parts as content
            try:
                text, loose = (_chat(tokenizer, variables, parts, blank) for blank in ("", " "))
            except Exception as e:  # a template can raise any error, not only those of Jinja
                error = error or e
                continue
            if _RESPONSE in text:
                return cls._of(text, f" {_RESPONSE} " not in loose, False)
        reason = f" ({type(error).__name__}: {' '.join(str(error).split())[:160]})" if error else ""
        raise UserError(
            f"the chat template of {name} does not contain the response{reason}",
            "choose another ,format=, or give ,template=FILE",
        )

    @classmethod
    def of_template(cls, source: str, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> GuardPrompt:
        """Make the prompt from a Jinja template with `{{ prompt }}` and `{{ response }}`.

        A published prompt in Python's format syntax, with placeholders such as `{behavior}` and `{generation}`, is also
        accepted.

        Args:
            source: The template.
            tokenizer: The tokenizer. The template may use `bos_token`, `eos_token` and its other special tokens.
            variables: Further variables of the template.

        Returns:
            The prompt.

        Raises:
            UserError: The template cannot be rendered, or leaves out the response.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        tokens = {
            name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)
        }
        if "{{" not in source:
            for mark, names in _PUBLISHED.items():
                source = re.sub(r"\{(?:" + "|".join(names) + r")\}", mark, source)
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        try:
            text = environment.from_string(source).render(**tokens, **variables, prompt=_PROMPT, response=_RESPONSE)
        except (jinja2.TemplateError, TypeError, ValueError) as e:
            raise UserError(
                f"the guard's template cannot be rendered ({' '.join(str(e).split())[:160]})",
                "write a Jinja template with {{ prompt }} and {{ response }}",
            ) from e
        if _RESPONSE not in text:
            raise UserError(
                "the guard's template does not contain the response",
                "write {{ response }} in the place of the response",
            )
        own = [token for token in {*tokens.values(), *map(str, tokenizer.added_tokens_decoder.values())} if token]
        return cls._of(text, False, not text.startswith(tuple(own)))

    @classmethod
    def _of(cls, text: str, trims: bool, special: bool) -> GuardPrompt:
        return cls(tuple(_MARKS.split(text)), special, trims)

    @property
    def tail(self) -> str:
        """Return the text between the exchange and the guard's answer."""
        return self.pieces[-1]

    def filled(self, prompt: str, response: str) -> list[tuple[str, bool]]:
        """Insert an exchange into the prompt.

        Args:
            prompt: The prompt of the exchange.
            response: The response of the exchange.

        Returns:
            The parts of the text, each with whether it is text of the exchange.
        """
        texts = {_PROMPT: prompt, _RESPONSE: response}
        return [
            ((texts[piece].strip() if self.trims else texts[piece]), True) if piece in texts else (piece, False)
            for piece in self.pieces
        ]


def _chat(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], parts: bool, blank: str) -> str:
    def content(text: str) -> Any:
        text = f"{blank}{text}{blank}"
        return [{"type": "text", "text": text}] if parts else text

    messages = [{"role": "user", "content": content(_PROMPT)}, {"role": "assistant", "content": content(_RESPONSE)}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))


class Encoder:
    """Tokenises a guard's prompts for exchanges.

    Args:
        tokenizer: The tokenizer, from `models.load_tokenizer`.
        prompt: The guard's prompt.
        room: Maximum number of tokens in a prompt.
        response_tokens: Maximum number of tokens of a response; None means no limit.

    Raises:
        UserError: The prompt without an exchange leaves too little room for one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: GuardPrompt, room: int, response_tokens: int | None = None
    ) -> None:
        self._tokenizer, self._prompt, self._room, self._most = tokenizer, prompt, room, response_tokens
        fixed = "".join(piece for piece in prompt.pieces if not _MARKS.fullmatch(piece))
        # Control tokens are all special tokens, and added tokens in the template that are not marked as special.
        added = tokenizer.added_tokens_decoder.values()
        control = {str(t) for t in added if t.special or (str(t).strip() and str(t) in fixed)}
        control |= set(tokenizer.all_special_tokens)
        tokens = sorted((t for t in control if len(t) > 1), key=len, reverse=True)
        self._heads = {token[:2] for token in tokens}
        self._control = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        empty = len(self.ids("", ""))
        self._free = room - empty
        if self._free < 8:
            raise UserError(
                f"the guard's prompt without an exchange has {empty} tokens, but there is room for only {max(room, 0)}",
                "give a shorter policy or template, or a guard with a longer context",
            )

    def encode(self, exchanges: Sequence[Exchange]) -> list[Encoded]:
        """Return the tokenised prompt for each exchange, in order.

        A response that is too long loses its end. A prompt loses its end if it takes more than half of the free room.
        """
        return [self._fitted(exchange.prompt, exchange.response) for exchange in exchanges]

    def ids(self, prompt: str, response: str) -> list[int]:
        """Tokenise the guard's prompt for one exchange. Nothing is cut, however long it is.

        Args:
            prompt: The prompt of the exchange.
            response: The response of the exchange.

        Returns:
            The token ids.
        """
        found: list[int] = []
        for k, text in enumerate(self._chunks(self._prompt.filled(prompt, response))):
            ids = self._tokenizer(text, add_special_tokens=self._prompt.special and k == 0)["input_ids"]
            if k == 0 and len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
                ids = ids[1:]  # the text already begins with the token that the tokenizer adds
            found += ids
        return found

    def _fitted(self, prompt: str, response: str) -> Encoded:
        given = (prompt, response)
        if self._most is not None:
            response = self._first_tokens(response, self._most)
        ids = self.ids(prompt, response) if len(prompt) + len(response) <= self._characters else []
        if not ids or len(ids) > self._room:
            prompt = self._first_tokens(prompt, max(self._free // 2, self._free - self._n_tokens(response)))
            most = self._free - self._n_tokens(prompt)
            while True:
                response = self._first_tokens(response, most)
                ids = self.ids(prompt, response)
                over = len(ids) - self._room
                if over <= 0:
                    break
                # A control token written in the exchange is split into more tokens than in the text alone.
                if not most:
                    prompt = prompt[: len(prompt) - over]
                most = max(most - over, 0)
        return Encoded(ids, (prompt, response) != given)

    @property
    def _characters(self) -> int:
        """Return the number of characters beyond which a text is not tokenised, because it would hardly ever fit."""
        return 64 * self._room

    def _n_tokens(self, text: str) -> int:
        return len(self._tokenizer(text[: self._characters], add_special_tokens=False)["input_ids"])

    def _first_tokens(self, text: str, n: int) -> str:
        """Return the beginning of a text, up to its first `n` tokens."""
        text = text[: self._characters]
        if not self._tokenizer.is_fast:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return text if len(ids) <= n else str(self._tokenizer.decode(ids[:n]))
        spans = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= n:
            return text
        return text[: spans[n - 1][1]] if n else ""

    def _chunks(self, parts: Sequence[tuple[str, bool]]) -> list[str]:
        """Return the text in chunks that are tokenised one by one.

        There is one chunk unless a control token is written in the exchange. If so, the text is split after the first
        character of that token, so that only the template's own control tokens remain.
        """
        text = "".join(part for part, _ in parts)
        given = [part for part, is_given in parts if is_given]
        if self._control is None or not any(head in part for part in given for head in self._heads):
            return [text]
        ours, at = [], 0
        for part, is_given in parts:
            if not is_given:
                ours.append((at, at + len(part)))
            at += len(part)
        cuts, first = [0], 0
        while found := self._control.search(text, first):
            first = found.start() + 1
            if not any(begin <= found.start() and found.end() <= end for begin, end in ours):
                cuts.append(first)
        return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True) if a < b]
